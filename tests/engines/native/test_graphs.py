"""Whole graphs of the shipped model as launches on the simulator, against the host's references."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu, open_gpu
from diffusion_rt.engines.device.protocol import DeviceArray
from diffusion_rt.engines.errors import BadInput, OutOfMemory
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.backend import open_native
from diffusion_rt.engines.native.budget import BudgetedDevice
from diffusion_rt.engines.native.engine import check_bound
from diffusion_rt.engines.native.graphs import NativeGraphs
from diffusion_rt.engines.native.host_backend import HostBackend
from diffusion_rt.engines.protocol import Backend, Engine
from diffusion_rt.engines.safetensors_file import read_table
from diffusion_rt.engines.spec import Precision
from diffusion_rt.kernels import driver
from diffusion_rt.kernels.cache import Progress
from diffusion_rt.kernels.driver import BadImage, Launch
from diffusion_rt.kernels.driver.interface import Kernel
from diffusion_rt.kernels.driver.simulator import Simulator
from diffusion_rt.kernels.driver.simulator.module import Lookup, host_library
from diffusion_rt.kernels.variant import Variant
from diffusion_rt.runtime.decode import Decoder
from support.device_graphs import HostImages, simulated_gpu
from support.kernel_bench import DEVICE

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"
SIZES = {"height": 4, "width": 6, "tokens": 32}
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def model() -> ModelFolder:
    return open_model(SHIPPED)


def sizes_of(graph: str) -> dict[str, int]:
    """Every symbol of a graph's signature."""
    batch = {"unet_timestep": 5, "vae_decoder": 1, "vae_encoder": 1}.get(graph, 2)
    sizes = {**SIZES, "batch": batch, "n": batch}
    if graph == "vae_encoder":
        sizes |= {"height": 32, "width": 48, "latent_height": 4, "latent_width": 6}
    return sizes | {"image_height": 32, "image_width": 48}


def run(backend: Backend, graph: str, precision: Precision | None = None, seed: int = 0) -> Arrays:
    """Outputs of a graph for random inputs, the same in every precision."""
    engine = backend.load(graph, precision)
    inputs: Arrays = {}
    rng = np.random.default_rng(seed)
    sizes = sizes_of(graph)
    for name, spec in engine.inputs.items():
        shape = spec.resolve(sizes)
        if spec.dtype == "int64":
            inputs[name] = rng.integers(0, 40, shape)
        elif name in ("timestep", "time_ids"):
            inputs[name] = rng.uniform(0, 999, shape).astype(spec.dtype)
        else:
            inputs[name] = rng.normal(size=shape).astype(np.float16).astype(spec.dtype)
    outputs: Arrays = {
        name: np.full(spec.resolve(sizes), np.nan, spec.dtype)
        for name, spec in engine.outputs.items()
    }
    engine.bind(inputs | outputs)
    for _ in range(2):  # nothing is left of a run that the next would see
        engine.enqueue()
    engine.close()
    return outputs


def error(found: Arrays, truth: Arrays) -> float:
    """The largest difference of any output, as a share of that output's largest number."""
    return max(
        float(np.abs(found[name].astype(np.float64) - wanted).max() / np.abs(wanted).max())
        for name, wanted in truth.items()
    )


def native(model: ModelFolder, gpu: Gpu, precision: Precision = "float32") -> DeviceBackend:
    return DeviceBackend(NativeGraphs(model, gpu, precision=precision), gpu)


def gpu_of(arch: int) -> Gpu:
    """A simulated chip, or with DIFFUSION_RT_TEST_DEVICE=cuda the GPU that is there."""
    if os.environ.get(DEVICE) != "cuda":
        return simulated_gpu(arch=arch)
    found = open_gpu()
    if found.device.arch < arch:
        pytest.skip(f"skipped: {found.device.name} is sm_{found.device.arch}, not sm_{arch}")
    return found


def test_every_graph_in_float32(model: ModelFolder) -> None:
    backend, host = native(model, gpu_of(80)), HostBackend(model)
    for graph in model.manifest.graphs:
        assert error(run(backend, graph), run(host, graph)) < 5e-6, graph


@pytest.mark.parametrize(
    ("arch", "graphs"),
    [(80, ("unet_step",)), (90, ("unet_prompt", "unet_step"))],
)
def test_graphs_in_float16(model: ModelFolder, arch: int, graphs: tuple[str, ...]) -> None:
    """No further from float32 than twice what rounding at the same places gives."""
    backend = native(model, gpu_of(arch), "float16")
    host = HostBackend(model, precision="float16")
    for graph in graphs:
        truth = run(HostBackend(model), graph)
        assert error(run(backend, graph), truth) < 2 * error(run(host, graph), truth), graph


class Noted(HostImages):
    """Images that write down what is made together."""

    def __init__(self) -> None:
        self.filled: list[set[str]] = []

    def fill(
        self, wanted: Iterable[tuple[Variant, int | None]], progress: Progress | None = None
    ) -> None:
        self.filled.append({variant.name for variant, _ in wanted})
        if progress is not None:
            progress(0, len(self.filled[0]))


def test_opening_compiles_what_a_picture_of_the_models_size_takes(model: ModelFolder) -> None:
    images = Noted()
    heard: list[tuple[int, int]] = []
    backend = open_native(
        model,
        precision="float32",
        gpu=Gpu(Simulator(arch=80), images),
        progress=lambda done, total: heard.append((done, total)),
    )
    (first,) = images.filled
    assert heard == [(0, len(first))]
    assert {"guided_step.float32", "gemm_64x64.float32", "timestep_embedding.float32"} <= first
    for graph, batch in (("text_encoder", 2), ("unet_timestep", 40)):
        engine = backend.load(graph)
        sizes = {"batch": batch, "tokens": 32, "n": batch}
        specs = {**engine.inputs, **engine.outputs}
        engine.bind({name: np.zeros(s.resolve(sizes), s.dtype) for name, s in specs.items()})
    assert len(images.filled) == 3
    assert first >= set().union(*images.filled[1:])


class Labelled(HostImages):
    """Images that say for what they were compiled."""

    def image(self, variant: Variant, arch: int | None) -> bytes:
        form = variant.ptx_target if arch is None else variant.target(arch)
        return form.encode() + b" " + super().image(variant, arch)


@pytest.mark.parametrize("refused", [(), ("compute_90a",)])
def test_a_driver_that_refuses_cubins_runs_the_same_graph(
    refused: tuple[str, ...], model: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernels of sm_90a from their PTX; where that is refused too, those of any chip."""
    taken = []

    def open_image(image: bytes) -> Lookup:
        form, library = image.split(b" ", 1)
        if form.decode() in ("sm_90", "sm_90a", *refused):
            raise BadImage("made by too new a compiler")
        taken.append(form.decode())
        return host_library(library)

    gpu = Gpu(Simulator(arch=90, open_image=open_image), Labelled())
    backend = native(model, gpu, "float16")
    truth = run(HostBackend(model), "unet_prompt")
    host = run(HostBackend(model, precision="float16"), "unet_prompt")
    for _ in range(2):
        assert error(run(backend, "unet_prompt"), truth) < 2 * error(host, truth)
    assert set(taken) == {"compute_80", "compute_90a"} - set(refused)
    assert len(caplog.records) == 1 + len(refused)


def test_a_vae_that_overflows_runs_in_bfloat16_until_float32_is_asked(model: ModelFolder) -> None:
    vae = replace(model.manifest.vae, force_upcast=True)
    folder = replace(model, manifest=replace(model.manifest, vae=vae))
    backend = native(folder, gpu_of(80), "float16")
    truth = run(HostBackend(model), "vae_decoder")
    found = run(backend, "vae_decoder")
    assert found["image"].dtype == np.float32
    assert 1e-4 < error(found, truth) < 0.1
    assert error(run(backend, "vae_decoder", "float32"), truth) < 5e-6


def test_pixels_are_those_that_the_host_makes(model: ModelFolder) -> None:
    backend = native(model, gpu_of(80))
    vae = model.manifest.vae

    def load(guarded: bool) -> Engine:
        return backend.load("vae_decoder", "float32" if guarded else None)

    plain, device = Decoder(load, vae), Decoder(load, vae, device=backend.decoder())
    for seed in range(3):  # run, captured, replayed
        latent = 2 * np.random.default_rng(seed).standard_normal((4, 4, 6), np.float32)
        wanted = plain.decode(latent, None)
        assert wanted.std() > 10
        np.testing.assert_array_equal(device.decode(latent, None), wanted)
    plain.close()
    device.close()


def test_engines_of_one_graph_share_weights_and_arena(model: ModelFolder) -> None:
    gpu = simulated_gpu()
    graphs = NativeGraphs(model, gpu, precision="float32")
    first, second = graphs.open("unet_timestep"), graphs.open("unet_timestep")
    bind(gpu, first, 1)
    weights = graphs.loaded("unet_timestep").weights
    address = weights.address(next(iter(first.program.plan.weights)))  # type: ignore[union-attr]
    before = first.generation
    arrays = bind(gpu, second, 64)
    assert graphs.loaded("unet_timestep").weights is weights
    assert first.generation > before  # the arena has grown, and so moved
    stream = gpu.device.stream()
    first.enqueue(stream)
    second.enqueue(stream)
    stream.synchronize()
    second.close()
    assert weights.address(next(iter(first.program.plan.weights))) == address  # type: ignore[union-attr]
    assert arrays
    held = memory(gpu)
    first.close()
    assert memory(gpu) < held - weights.nbytes
    graphs.close()


def test_a_step_is_captured_and_replayed_after_the_arena_has_moved(model: ModelFolder) -> None:
    gpu = simulated_gpu()
    graphs = NativeGraphs(model, gpu, precision="float32")
    engine = graphs.open("unet_timestep")
    arrays = bind(gpu, engine, 2)
    stream = gpu.device.stream()

    def captured() -> NDArray[np.uint8]:
        engine.enqueue(stream)
        graph = stream.capture(lambda: engine.enqueue(stream))  # nothing is allocated in it
        for place in arrays.values():
            if place is not arrays["timestep"] and place is not arrays["added"]:
                stream.fill(place, 0xFF)
        graph.replay(stream)
        return read(gpu, arrays["down_blocks.0.resnets.0.time_emb_proj"])

    first = captured()
    generation = engine.generation
    engine.enqueue(stream)  # and is under way when the memory is taken away
    other = graphs.open("unet_timestep")
    bind(gpu, other, 300)
    assert engine.generation != generation
    np.testing.assert_array_equal(captured(), first)
    assert np.isfinite(first.view(np.float32)).all()


def test_a_captured_graph_sees_weights_that_are_poured_in(model: ModelFolder) -> None:
    """As a LoRA does: one tensor of the checkpoint, at its address; without it the bias is left."""
    gpu = simulated_gpu()
    graphs = NativeGraphs(model, gpu, precision="float32")
    engine = graphs.open("unet_timestep")
    arrays = bind(gpu, engine, 2)
    stream = gpu.device.stream()
    engine.enqueue(stream)
    graph = stream.capture(lambda: engine.enqueue(stream))
    name = "down_blocks.0.resnets.0.time_emb_proj"
    table = read_table(model.path / "unet/diffusion_pytorch_model.safetensors").tensors
    stored = table[f"{name}.weight"]

    def replayed() -> NDArray[np.float32]:
        graph.replay(stream)
        return read(gpu, arrays[name]).view(np.float32).reshape(arrays[name].shape)

    before = replayed()
    weights = graphs.loaded("unet_timestep").weights
    weights.write(f"{name}.weight", np.zeros(stored.shape, np.float32))
    bias = replayed()
    assert np.abs(before - bias).max() > 0.01
    np.testing.assert_array_equal(bias[0], bias[1])
    weights.write(f"{name}.bias", np.full(stored.shape[:1], 7, np.float32))
    np.testing.assert_array_equal(replayed(), 7)


def test_arrays_that_are_not_what_the_graph_writes(model: ModelFolder) -> None:
    """As of a manifest with another factor of the VAE: too small an array would be overrun."""
    gpu = simulated_gpu()
    graphs = NativeGraphs(model, gpu, precision="float32")
    engine = graphs.open("vae_decoder")
    right = {"image_height": 32, "image_width": 48}
    for wrong in ({"image_height": 28}, {"image_width": 96}):
        with pytest.raises(BadInput, match=r"vae_decoder: image: got .* has .*\[1, 3, 32, 48\]"):
            bind(gpu, engine, 1, **{**right, **wrong})
        with pytest.raises(BadInput, match="call bind first"):
            engine.enqueue(gpu.device.stream())
    arrays = dict(bind(gpu, engine, 1, **right))
    plan = engine.program.plan  # type: ignore[union-attr]
    check_bound(plan, arrays)
    with pytest.raises(
        BadInput, match=r"image: got float16 \[1, 3, 32, 48\], the graph has float32"
    ):
        check_bound(plan, arrays | {"image": replace(arrays["image"], dtype="float16")})
    graphs.close()


class Recorded:
    """A stream that only notes what is launched."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, bool]] = []

    def launch(self, kernel: Kernel, launch: Launch, arguments: object) -> None:
        self.launched.append((kernel.name, launch.overlap))


@pytest.mark.parametrize(
    ("arch", "named", "overlap"),
    [
        (80, ("unet_timestep",), False),
        (90, (), False),
        (90, ("unet_step",), False),
        (90, ("unet_step", "unet_timestep"), True),
    ],
)
def test_kernels_overlap_in_the_graphs_that_are_named_where_the_chip_can(
    model: ModelFolder, arch: int, named: tuple[str, ...], overlap: bool
) -> None:
    gpu = simulated_gpu(arch=arch)
    graphs = NativeGraphs(model, gpu, precision="float32", overlap=named)
    engine = graphs.open("unet_timestep")
    bind(gpu, engine, 2)
    stream: Any = Recorded()
    engine.enqueue(stream)
    assert len(stream.launched) == 15
    assert {overlaps for _, overlaps in stream.launched} == {overlap}


def test_a_chip_that_is_too_old_is_named(model: ModelFolder) -> None:
    class Old(Simulator):
        arch = 75

    with pytest.raises(BadInput, match=r"sm_75, sm_80 or newer .*--engine ort"):
        NativeGraphs(model, Gpu(Old(), object()))  # type: ignore[arg-type]


def test_memory_too_small_for_the_weights(model: ModelFolder) -> None:
    gpu = simulated_gpu(memory_bytes=4 << 20)
    graphs = NativeGraphs(model, gpu, precision="float32")
    engine = graphs.open("unet_timestep")
    with pytest.raises(OutOfMemory, match=r"unet_step: 0\.02\d GB of device memory is needed"):
        bind(gpu, graphs.open("unet_step"), 2)
    bind(gpu, engine, 2)  # and others still fit
    graphs.close()


def test_a_size_that_never_fits_is_told_with_one_that_would(model: ModelFolder) -> None:
    graphs = NativeGraphs(model, simulated_gpu(memory_bytes=24 << 20), precision="float32")
    loaded = graphs.loaded("unet_step")
    sizes = {"batch": 2, "height": 64, "width": 96, "tokens": 32}
    with pytest.raises(OutOfMemory, match=r"GB is free; \d+x\d+ would fit") as told:
        loaded.program(sizes)
    width, height = str(told.value).split("; ")[1].split()[0].split("x")
    loaded.program({**sizes, "height": int(height) // 8, "width": int(width) // 8})
    tiny = NativeGraphs(model, simulated_gpu(memory_bytes=1 << 20), precision="float32")
    with pytest.raises(OutOfMemory, match="no size would fit"):
        tiny.loaded("unet_step").program(sizes)


def budgeted(gpu: Gpu, megabytes: int) -> Gpu:
    """The same device, of which only some memory may be taken."""
    return Gpu(BudgetedDevice(gpu.device, megabytes << 20), HostImages())


def test_a_budget_is_what_a_smaller_device_would_be(model: ModelFolder) -> None:
    gpu = budgeted(simulated_gpu(), 4)
    graphs = NativeGraphs(model, gpu, precision="float32")
    with pytest.raises(OutOfMemory, match=r"unet_step: .* 0\.004 GB is free"):
        bind(gpu, graphs.open("unet_step"), 2)
    bind(gpu, graphs.open("unet_timestep"), 2)
    left = gpu.device.memory()
    assert left.total == 4 << 20
    assert left.free < (4 << 20) - graphs.loaded("unet_timestep").weights_bytes
    with pytest.raises(driver.OutOfMemory, match="are left"):
        gpu.device.allocate(left.free + 1)
    gpu.device.allocate(left.free)


def test_the_images_that_fit(model: ModelFolder) -> None:
    gpu = simulated_gpu()
    whole = NativeGraphs(model, gpu, precision="float16")
    most = {"rows": 2, "tokens": 32, "images": 8}
    assert whole.most_images((4, 16, 16), **most) == 8
    for megabytes in (11, 13, 15):
        small = budgeted(gpu, megabytes)
        graphs = NativeGraphs(model, small, precision="float16")
        count = graphs.most_images((4, 16, 16), **most)
        assert 1 <= count < 8
        if count > 1:  # and so many do fit
            bind(small, graphs.open("unet_step"), 2 * count, height=16, width=16)
        graphs.close()


def bind(gpu: Gpu, engine: Any, batch: int, **sizes: int) -> Mapping[str, DeviceArray]:
    """Bind an engine to zeros of so many rows."""
    symbols = {**SIZES, "batch": batch, "n": batch, **sizes}
    arrays = {}
    stream = gpu.device.stream()
    for name, spec in {**engine.inputs, **engine.outputs}.items():
        place = DeviceArray(0, spec.resolve(symbols), spec.dtype)
        buffer = gpu.device.allocate(place.nbytes)
        stream.fill(buffer, 0)
        arrays[name] = replace(place, address=buffer.address)
    stream.synchronize()
    engine.bind(arrays)
    return arrays


def read(gpu: Gpu, place: DeviceArray) -> NDArray[np.uint8]:
    stream = gpu.device.stream()
    staged = gpu.device.pinned(place.nbytes)
    stream.synchronize()
    for other in gpu.device.streams:  # type: ignore[attr-defined]
        other.synchronize()
    stream.copy(staged, place)
    stream.synchronize()
    return staged.array.copy()


def memory(gpu: Gpu) -> int:
    found = gpu.device.memory()
    return found.total - found.free
