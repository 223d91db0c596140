"""The device's loop against the host's, on a simulated device whose model is ONNX Runtime."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.device import loop as device_loop
from diffusion_rt.engines.device.bucket import Bucket
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.device.loop import DeviceDenoiser
from diffusion_rt.engines.device.protocol import AHEAD
from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.model_folder import open_model
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.protocol import Backend
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.driver.simulator.stream import SimulatedStream
from diffusion_rt.runtime.conditioning import Conditioning
from diffusion_rt.runtime.denoise import Guidance, denoise, denoise_on_device
from diffusion_rt.runtime.noise import make_noise
from diffusion_rt.runtime.pipeline import SHIPPED
from diffusion_rt.runtime.plan import Plan, Step
from diffusion_rt.runtime.samplers import SAMPLERS, make_plan
from diffusion_rt.runtime.unet import Unet
from support.device_graphs import HostGraphs, simulated_gpu

Array = NDArray[Any]
SHAPE = (4, 8, 6)
FOLDER = open_model(SHIPPED)


class Kept(OrtBackend):
    """Loads each graph once: an engine serves one loop at a time, and these take turns."""

    def __init__(self) -> None:
        super().__init__(FOLDER, threads=1)
        self.load = functools.cache(super().load)  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Kept()


@pytest.fixture(scope="module")
def unet() -> Unet:
    loaded = OrtBackend(FOLDER, threads=1)
    return Unet(*(loaded.load(f"unet_{part}") for part in ("prompt", "timestep", "step")))


class Bench:
    """A denoiser, and the device and the graphs under it."""

    def __init__(self, backend: Backend, **options: Any) -> None:
        kept = options.pop("kept", device_loop.KEPT)
        self.gpu: Gpu = simulated_gpu(**options)
        self.graphs = HostGraphs(backend, self.gpu)
        self.denoiser = DeviceDenoiser(self.graphs, self.gpu, kept=kept)

    def close(self) -> None:
        self.denoiser.close()
        free = self.gpu.device.memory()
        assert free.free == free.total, "device memory is left over"
        self.gpu.close()


@pytest.fixture(params=[None, 5], ids=["late", "drifting"])
def bench(backend: Backend, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(backend, seed=request.param)
    yield made
    made.close()


@pytest.fixture
def plain(backend: Backend) -> Iterator[Bench]:
    made = Bench(backend)
    yield made
    made.close()


def conditioning(rows: int, seed: int = 0, tokens: int = 77) -> Conditioning:
    rng = np.random.default_rng(seed)
    specs = {spec.name: spec for spec in FOLDER.variant("unet_prompt", "float32").inputs}
    width, pooled = int(specs["context"].shape[-1]), int(specs["text_embeds"].shape[-1])
    return Conditioning(
        context=rng.normal(size=(rows, tokens, width)).astype(np.float32),
        text_embeds=rng.normal(size=(rows, pooled)).astype(np.float32),
        time_ids=np.array([[64, 48, 0, 0, 64, 48]] * rows, np.float32),
    )


def plan_of(sampler: str, steps: int, **settings: Any) -> Plan:
    return make_plan(FOLDER.manifest.schedule, sampler=sampler, steps=steps, **settings)


def silent(done: int, total: int) -> None: ...


def both(
    unet: Unet,
    bench: Bench,
    plan: Plan,
    images: int,
    guidance: Guidance,
    shape: tuple[int, int, int] = SHAPE,
    tokens: int = 77,
) -> tuple[Array, Array]:
    """The latents of the host's loop and of the device's."""
    told = conditioning(guidance.rows, tokens=tokens)
    sources = [make_noise("cpu", seed) for seed in range(images)]
    unet.prepare(told, plan.timesteps, images, shape)
    host = denoise(unet, plan, sources, shape, guidance, silent)
    sources = [make_noise("cpu", seed) for seed in range(images)]
    device = denoise_on_device(bench.denoiser, told, plan, sources, shape, guidance, silent)
    assert host.std() > 0.05
    return host, device


def apart(host: Array, device: Array) -> float:
    return float(np.abs(host - device).max() / np.abs(host).max())


# The two sum what a rescale divides by in another order; without one they are equal to the bit. The
# worst seen is 8e-6.
CLOSE = 2e-5


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_gives_the_latents_of_the_host(
    unet: Unet, plain: Bench, sampler: str
) -> None:
    plan = plan_of(sampler, 6)
    host, device = both(unet, plain, plan, 1, Guidance(4.0, 0.0))
    np.testing.assert_array_equal(device, host)
    assert apart(*both(unet, plain, plan, 3, Guidance(3.0, 0.7))) < CLOSE


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_one_capture_serves_every_order_and_length(unet: Unet, bench: Bench, order: int) -> None:
    rng = np.random.default_rng(order)
    guidance = Guidance(2.0, 0.7 if order % 2 else 0.0)
    for count in (7, 1, 4, 12):
        steps = []
        for index in range(count):
            matrix = rng.normal(0, 0.3 / order, (order, order + 2))
            matrix[0, 0] += 0.9
            fresh = bool(rng.random() < 0.5)
            matrix[:, -1] *= fresh
            steps.append(
                Step(
                    timestep=900.0 - 50 * index,
                    sigma=1.0,
                    c_in=0.7,
                    c_skip=1.0,
                    c_out=-0.5,
                    noise=fresh,
                    matrix=matrix,
                )
            )
        plan = Plan(sampler="random", start=1.0, picture=(1.0, 1.0), steps=tuple(steps))
        assert plan.order == order
        assert apart(*both(unet, bench, plan, 2, guidance)) < CLOSE
    # Once to run it, once to capture it; the rest is replayed.
    assert bench.graphs.enqueued.count("unet_step") == 2
    assert bench.graphs.enqueued.count("unet_prompt") == 2
    assert bench.graphs.runs.count("unet_prompt") == 4


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 9, 5)])
@pytest.mark.parametrize("tokens", [77, 154])
def test_without_guidance(
    unet: Unet, bench: Bench, shape: tuple[int, int, int], tokens: int
) -> None:
    plan = plan_of("euler-a", 5)
    host, device = both(unet, bench, plan, 2, Guidance(1.0, 0.7), shape, tokens)
    np.testing.assert_array_equal(device, host)


def test_more_evaluations_than_one_run_of_the_timesteps(unet: Unet, plain: Bench) -> None:
    for steps in (3, 70, 66):
        plan = plan_of("euler-a", steps)
        assert apart(*both(unet, plain, plan, 1, Guidance(2.0, 0.0), (4, 4, 4))) < CLOSE
    runs = [bound["timestep"] for graph, bound in plain.graphs.binds if graph == "unet_timestep"]
    assert max(place.shape[0] for place in runs) == 128


def test_float16_graphs(backend: Backend) -> None:
    whole = Unet(*(backend.load(f"unet_{part}") for part in ("prompt", "timestep", "step")))
    half = OrtBackend(FOLDER, precision="float16", threads=1)
    unet = Unet(*(half.load(f"unet_{part}") for part in ("prompt", "timestep", "step")))
    other = Bench(half)
    plan, guidance = plan_of("dpmpp-2m", 5), Guidance(3.0, 0.7)
    truth, _ = both(whole, other, plan, 2, guidance)
    host, device = both(unet, other, plan, 2, guidance)
    assert apart(truth, device) < 2 * apart(truth, host) < 0.02
    other.close()


def test_the_host_is_at_most_four_evaluations_ahead(
    plain: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    waits: list[int] = []
    evaluate, wait = Bucket.evaluate, SimulatedStream.synchronize

    def counted(bucket: Bucket, stream: Any) -> None:
        made.append(1)
        evaluate(bucket, stream)

    def noted(stream: SimulatedStream) -> None:
        waits.append(len(made))
        wait(stream)

    monkeypatch.setattr(Bucket, "evaluate", counted)
    monkeypatch.setattr(SimulatedStream, "synchronize", noted)
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        told.append((done, total))
        assert plain.graphs.runs.count("unet_step") >= done
        assert len(made) - done <= AHEAD

    draw(plain, plan_of("euler", 9), report)
    assert told == [(done, 9) for done in range(10)]
    assert len(made) == 9
    assert set(waits) <= {0, 9}, "the host waited for the stream inside the loop"


@pytest.mark.parametrize("after", [0, 1, 5])
def test_cancelling_takes_at_most_four_evaluations(unet: Unet, bench: Bench, after: int) -> None:
    def report(done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(bench, plan_of("euler", 20), report)
    assert bench.graphs.runs.count("unet_step") <= after + AHEAD
    host, device = both(unet, bench, plan_of("euler", 3), 1, Guidance(4.0, 0.0))
    assert apart(host, device) < CLOSE


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_latents_that_are_not_finite_are_told_as_the_host_tells_them(
    unet: Unet, plain: Bench
) -> None:
    plan = plan_of("euler", 6)
    steps = list(plan.steps)
    steps[3] = replace(steps[3], matrix=np.array([[3e38, 3e38, 0.0]]))
    plan = replace(plan, steps=tuple(steps))
    said = []
    for run in (
        lambda: denoise(prepared(unet, plan), plan, [make_noise("cpu", 1)], SHAPE, GUIDED, silent),
        lambda: draw(plain, plan, silent),
    ):
        with pytest.raises(Fault) as fault:
            run()
        said.append(str(fault.value))
    assert said[0] == said[1]
    assert "evaluation 4 of 6" in said[0]


def test_the_timesteps_are_captured_where_as_many_come_again(unet: Unet, bench: Bench) -> None:
    for count, enqueued in ((5, 1), (5, 2), (5, 2), (4, 3), (5, 4)):
        assert apart(*both(unet, bench, plan_of("euler", count), 1, GUIDED)) < CLOSE
        assert bench.graphs.enqueued.count("unet_timestep") == enqueued


def test_memory_that_moved_is_captured_anew(unet: Unet, bench: Bench) -> None:
    for _ in range(3):
        bench.graphs.generation += 1
        host, device = both(unet, bench, plan_of("euler", 3), 1, GUIDED)
        assert apart(host, device) < CLOSE
    assert bench.graphs.enqueued.count("unet_step") == 6
    assert bench.graphs.enqueued.count("unet_prompt") == 5


def test_only_the_sizes_used_last_keep_their_memory(unet: Unet, backend: Backend) -> None:
    bench = Bench(backend, kept=2)
    shapes = [(4, 4, 4), (4, 4, 8), (4, 8, 4)]
    used = []
    for shape in (*shapes, shapes[2], shapes[0]):
        assert apart(*both(unet, bench, plan_of("euler", 2), 1, GUIDED, shape)) < CLOSE
        used.append(bench.gpu.device.memory().free)
    assert used[2] == used[3]
    steps = [engine for engine in bench.graphs.engines if "latent" in engine.inputs]
    # The first one holds the weights.
    assert [engine.closed for engine in steps] == [False, True, True, False, False]
    bench.close()


def test_too_little_memory(unet: Unet, backend: Backend) -> None:
    bench = Bench(backend, memory_bytes=6 << 20)
    small, large = (4, 8, 8), (4, 256, 256)
    assert apart(*both(unet, bench, plan_of("euler", 2), 1, GUIDED, small)) < CLOSE
    with pytest.raises(OutOfMemory) as error:
        draw(bench, plan_of("euler", 2), silent, large)
    said = str(error.value)
    for words in ("256x256", "needed", "free", "fewer images", "smaller size", "nvidia-smi"):
        assert words in said, said
    assert "\n" not in said
    assert apart(*both(unet, bench, plan_of("euler", 2), 1, GUIDED, small)) < CLOSE
    bench.close()


@pytest.mark.parametrize("made", [0, 1, 3])
def test_what_cannot_be_made_whole_leaves_nothing_open(
    plain: Bench, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    """A loop of which an event, or its last engine, cannot be had."""
    events: list[Any] = []
    event, open_graph = plain.gpu.device.event, plain.graphs.open

    def few(**options: Any) -> Any:
        if len(events) == made:
            raise driver.OutOfMemory("no more events")
        events.append(event(**options))
        return events[-1]

    def fewer(graph: str, precision: Any = None) -> Any:
        if len(plain.graphs.engines) == made:
            raise OutOfMemory("no more engines")
        return open_graph(graph, precision)

    with monkeypatch.context() as patch:
        patch.setattr(plain.gpu.device, "event", few)
        with pytest.raises(OutOfMemory, match="no more events"):
            draw(plain, plan_of("euler", 2), silent)
    assert len(events) == made
    for one in events:
        with pytest.raises(driver.Misuse):
            one.synchronize()
    assert all(engine.closed for engine in plain.graphs.engines)
    if made < 3:
        with monkeypatch.context() as patch:
            patch.setattr(plain.graphs, "open", fewer)
            with pytest.raises(OutOfMemory, match="no more engines"):
                draw(plain, plan_of("euler", 2), silent)
        assert len(plain.graphs.engines) == made
        assert all(engine.closed for engine in plain.graphs.engines)
    draw(plain, plan_of("euler", 2), silent)


def test_parts_of_different_models(plain: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    open_graph = plain.graphs.open

    def wrong(graph: str, precision: Any = None) -> Any:
        engine: Any = open_graph(graph, precision)
        if graph == "unet_timestep":
            engine.outputs = dict(list(engine.outputs.items())[1:])
        return engine

    monkeypatch.setattr(plain.graphs, "open", wrong)
    with pytest.raises(BadInput, match="do not fit together"):
        draw(plain, plan_of("euler", 2), silent)
    assert [engine.closed for engine in plain.graphs.engines] == [True] * 3


ASKED = st.tuples(
    st.sampled_from([(4, 4, 4), (4, 8, 4), (4, 5, 3)]),
    st.integers(1, 2),  # images
    st.sampled_from([Guidance(1.0, 0.0), Guidance(3.0, 0.7)]),
    st.sampled_from(["euler", "euler-a", "dpmpp-2m", "unipc"]),
    st.integers(1, 7),  # steps
    st.none() | st.integers(0, 6),  # finished evaluations after which it is cancelled
    st.booleans(),  # whether scratch memory moved meanwhile
)


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
)
@given(st.lists(ASKED, min_size=2, max_size=5), st.none() | st.integers(0, 9))
def test_any_sequence_of_requests(
    backend: Backend, unet: Unet, asked: list[Any], seed: int | None
) -> None:
    bench = Bench(backend, kept=2, seed=seed)
    for shape, images, guidance, sampler, steps, cancelled, moved in asked:
        plan = plan_of(sampler, steps)
        bench.graphs.generation += moved
        if cancelled is not None and cancelled <= len(plan.steps):

            def report(done: int, total: int, cancelled: int = cancelled) -> None:
                if done == cancelled:
                    raise KeyboardInterrupt

            sources = [make_noise("cpu", image) for image in range(images)]
            told = conditioning(guidance.rows)
            with pytest.raises(KeyboardInterrupt):
                denoise_on_device(bench.denoiser, told, plan, sources, shape, guidance, report)
        assert apart(*both(unet, bench, plan, images, guidance, shape)) < CLOSE
    bench.close()


GUIDED = Guidance(4.0, 0.0)


def prepared(unet: Unet, plan: Plan) -> Unet:
    unet.prepare(conditioning(2), plan.timesteps, 1, SHAPE)
    return unet


def draw(bench: Bench, plan: Plan, report: Any, shape: tuple[int, int, int] = SHAPE) -> Array:
    """One image, with guidance, on the device alone."""
    sources = [make_noise("cpu", 1)]
    return denoise_on_device(bench.denoiser, conditioning(2), plan, sources, shape, GUIDED, report)
