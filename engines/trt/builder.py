"""One plan out of TensorRT's builder: settings, profiles, timings, and what a failure means."""

from collections.abc import Mapping

import tensorrt as trt

from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.monitor import Monitor
from diffusion_rt.engines.trt.network import Network
from diffusion_rt.engines.trt.options import BuilderOptions
from diffusion_rt.engines.trt.prepare import Prepared
from diffusion_rt.engines.trt.profiles import Profile
from diffusion_rt.engines.trt.timing_cache import TimingCache
from diffusion_rt.engines.trt.weights import MappedWeight

COMPATIBILITY = {
    "none": trt.HardwareCompatibilityLevel.NONE,
    "same": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
    "ampere+": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
}
TILING = {
    "none": trt.TilingOptimizationLevel.NONE,
    "fast": trt.TilingOptimizationLevel.FAST,
    "moderate": trt.TilingOptimizationLevel.MODERATE,
    "full": trt.TilingOptimizationLevel.FULL,
}


class Cancelled(Exception):
    """The build ended because it was told to."""


def build_plan(
    prepared: Prepared,
    weights: Mapping[str, MappedWeight],
    profiles: tuple[Profile, ...],
    options: BuilderOptions,
    *,
    timings: TimingCache,
    monitor: Monitor,
    messages: Messages,
    plugins: bool = False,
) -> memoryview:
    """The plan of one graph, in TensorRT's own memory; new timings are added to `timings`.

    Raises Cancelled where `monitor` was told to cancel, OutOfMemory, and Fault with TensorRT's own
    reason where it cannot.
    """
    messages.forget()
    try:
        builder = trt.Builder(messages)
    except TypeError:  # its way to say that there is none
        raise Fault(f"TensorRT's builder does not start: {messages.reason()}") from None
    network = Network(builder, prepared, weights, messages, plugins=plugins)
    config = builder.create_builder_config()
    apply_options(config, options)
    for profile in profiles:
        add_profile(builder, config, profile, prepared.variant.inputs, options.profile_memory)
    config.progress_monitor = monitor
    attach_timings(config, timings)
    plan = builder.build_serialized_network(network.definition, config)
    if monitor.failure is not None:
        raise monitor.failure
    if monitor.cancelled:
        raise Cancelled
    if plan is None:
        if messages.out_of_memory():
            raise OutOfMemory(f"{prepared.graph}: TensorRT ran out of memory: {messages.reason()}")
        raise Fault(f"{prepared.graph}: TensorRT cannot build it: {messages.reason()}")
    keep_timings(config, timings)
    return memoryview(plan)


def scratch_of(
    plan: memoryview, graph: str, options: BuilderOptions, messages: Messages
) -> tuple[int, ...]:
    """Device memory that each profile needs to run, found by loading the plan that was built.

    Raises OutOfMemory and Fault where it does not load.
    """
    messages.forget()
    runtime = trt.Runtime(messages)
    if options.version_compatible:  # holds the code that runs it, which we have just made
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        if messages.out_of_memory():
            raise OutOfMemory(f"{graph}: no memory to load what was built: {messages.reason()}")
        raise Fault(f"{graph}: TensorRT does not load what it built: {messages.reason()}")
    count = engine.num_optimization_profiles
    return tuple(engine.get_device_memory_size_for_profile_v2(index) for index in range(count))


def apply_options(config: trt.IBuilderConfig, options: BuilderOptions) -> None:
    """Give a configuration its settings; BadInput where this TensorRT lacks one."""
    config.builder_optimization_level = options.optimization_level
    config.tiling_optimization_level = TILING[options.tiling]
    config.hardware_compatibility_level = COMPATIBILITY[options.compatibility]
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.auxiliary_streams is not None:
        config.max_aux_streams = options.auxiliary_streams
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.build_route:
        if not getattr(config, "all_build_routes", ""):
            raise BadInput("build route: this TensorRT has none; wants 11.1 or newer on Linux")
        config.build_route = options.build_route


def add_profile(
    builder: trt.Builder,
    config: trt.IBuilderConfig,
    profile: Profile,
    inputs: tuple[TensorSpec, ...],
    memory: float,
) -> None:
    """Add one profile with the shapes of all inputs. Raises Fault where TensorRT refuses it."""
    made = builder.create_optimization_profile()
    made.extra_memory_target = memory
    for spec in inputs:
        low, best, high = (trt.Dims(shape) for shape in profile.shapes(spec))
        made.set_shape(spec.name, low, best, high)
    if config.add_optimization_profile(made) < 0:
        raise Fault(f"profile {profile.name}: TensorRT refuses its shapes")


def attach_timings(config: trt.IBuilderConfig, timings: TimingCache) -> None:
    """Start from the timings there are, or from none where TensorRT cannot use them."""
    for content in (timings.read(), b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        timings.damaged = True


def keep_timings(config: trt.IBuilderConfig, timings: TimingCache) -> None:
    """Add this build's timings to those that other builds have written meanwhile.

    A file that cannot be written costs the next build time, no more: nothing is raised for it.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        with timings.held():
            others = config.create_timing_cache(timings.read())
            if others is not None:
                cache.combine(others, False)
            timings.write(bytes(cache.serialize()))
    except BadInput as wrong:
        timings.unwritten = str(wrong)
