"""One plan out of TensorRT's builder: settings, profiles, timings, and what a failure means."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import tensorrt as trt

from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.trt.messages import Messages
from diffusion_rt.engines.trt.monitor import Monitor
from diffusion_rt.engines.trt.network import Network
from diffusion_rt.engines.trt.options import BuilderOptions
from diffusion_rt.engines.trt.prepare import Prepared
from diffusion_rt.engines.trt.profiles import Profile
from diffusion_rt.engines.trt.refit import complete
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


@dataclass(frozen=True, slots=True)
class Product:
    """What TensorRT made: a plan in its own memory, and what it says of it."""

    plan: memoryview
    added: Mapping[str, MappedWeight]  # by the parser, which a stripped plan wants back
    scratch: tuple[int, ...] = ()  # device memory that each profile needs to run
    short: str = ""  # why nobody could ask for that


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
) -> Product:
    """The plan of one graph; new timings are added to `timings`, whatever becomes of it.

    Raises Cancelled where `monitor` was told to cancel, OutOfMemory, and Fault with TensorRT's own
    reason where it cannot.
    """
    messages.forget()
    builder = messages.made("builder", lambda: trt.Builder(messages))
    network = Network(builder, prepared, weights, messages, plugins=plugins)
    added = network.added() if options.stripped else {}
    config = builder.create_builder_config()
    apply_options(config, options, messages)
    for profile in profiles:
        add_profile(builder, config, profile, prepared.variant.inputs, options.profile_memory)
    config.progress_monitor = monitor
    attach_timings(config, timings)
    plan = builder.build_serialized_network(network.definition, config)
    failure = messages.failure(f"{prepared.graph}: TensorRT cannot build it")
    keep_timings(config, timings)
    if monitor.failure is not None:
        raise monitor.failure
    if monitor.cancelled:
        raise Cancelled
    if plan is None:
        raise failure
    return Product(memoryview(plan), added)


def examine(
    product: Product,
    prepared: Prepared,
    weights: Mapping[str, MappedWeight],
    options: BuilderOptions,
    messages: Messages,
) -> Product:
    """Load what was built, and give it its weights where it is stripped: it must run later.

    A plan that there is no memory to load beside what else the device holds is still one. Raises
    Fault where it does not load for another reason.
    """
    messages.forget()
    runtime = messages.made("runtime", lambda: trt.Runtime(messages))
    if options.version_compatible:  # holds the code that runs it, which we have just made
        runtime.engine_host_code_allowed = True
    try:
        engine = runtime.deserialize_cuda_engine(product.plan)
        if engine is None:
            raise messages.failure(f"{prepared.graph}: TensorRT does not load what it built")
        if options.stripped:
            numbers = {**weights, **prepared.constants, **product.added}
            wanted = complete(engine, prepared.graph, numbers, messages)
            added = {name: product.added[name] for name in product.added if name in wanted}
            product = replace(product, added=added)
    except OutOfMemory as short:
        return replace(product, short=str(short))
    count = engine.num_optimization_profiles
    sizes = [engine.get_device_memory_size_for_profile_v2(index) for index in range(count)]
    return replace(product, scratch=tuple(sizes))


def apply_options(config: trt.IBuilderConfig, options: BuilderOptions, messages: Messages) -> None:
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
        messages.forget()
        config.build_route = options.build_route
        # The setter says nothing of what it does not take.
        left = set(options.build_route.split()) - set(config.build_route.split())
        if left or messages.failed:
            named = ", ".join(sorted(left)) or options.build_route
            raise BadInput(
                f"build route {named}: TensorRT refuses it: {messages.reason()}; its "
                "IBuilderConfig.all_build_routes has those it knows, or leave --build-route out"
            )


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
            if (kept := cache.serialize()) is not None:
                timings.write(bytes(kept))
    except (BadInput, OSError) as wrong:
        timings.unwritten = str(wrong)
