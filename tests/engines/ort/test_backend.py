"""ONNX Runtime as an engine: right numbers in the bound arrays, and nothing it should not read."""

import gc
import multiprocessing
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diffusion_rt.engines.errors import BadInput, Fault, OutOfMemory
from diffusion_rt.engines.manifest import write_manifest
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.ort import backend as backend_module
from diffusion_rt.engines.ort import library
from diffusion_rt.engines.ort.backend import OrtBackend
from diffusion_rt.engines.ort.library import translated
from support.model_folders import (
    WEIGHTS,
    WIDTHS,
    SmallModel,
    make_model_folder,
    manifest_of,
    set_external,
)

Arrays = dict[str, NDArray[Any]]

SHIPPED = Path(__file__).resolve().parents[3] / "runtime" / "models" / "shapes-xl"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return make_model_folder(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    return make_model_folder(tmp_path_factory.mktemp("half") / "model", stored="float16")


def arrays(batch: int, tokens: int, dtype: str = "float32", seed: int = 0) -> Arrays:
    """An input of random numbers and an output of NaN."""
    x = np.random.default_rng(seed).normal(size=(batch, tokens, WIDTHS[0])).astype(dtype)
    return {"x": x, "y": np.full((batch, tokens, WIDTHS[1]), np.nan, dtype)}


def engine_of(model: SmallModel, **options: Any) -> Any:
    return OrtBackend(open_model(model.path), threads=1, **options).load("unet_step")


def test_the_result_lands_in_the_bound_array(small: SmallModel) -> None:
    engine = engine_of(small)
    bound = arrays(2, 3)
    engine.bind(bound)
    assert np.isnan(bound["y"]).all()
    engine.enqueue()
    np.testing.assert_allclose(bound["y"], small.expected(bound["x"]), rtol=1e-5, atol=1e-6)
    engine.close()


def test_weights_in_float16_compute_in_float32(half: SmallModel) -> None:
    engine = engine_of(half)
    bound = arrays(1, 5)
    engine.bind(bound)
    engine.enqueue()
    np.testing.assert_allclose(bound["y"], half.expected(bound["x"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stored", ["small", "half"])
def test_float16_arithmetic(stored: str, request: pytest.FixtureRequest) -> None:
    model: SmallModel = request.getfixturevalue(stored)
    engine = OrtBackend(open_model(model.path)).load("unet_step", "float16")
    bound = arrays(2, 3, "float16")
    engine.bind(bound)
    engine.enqueue()
    np.testing.assert_allclose(bound["y"], model.expected(bound["x"]), atol=4e-3)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_binding_again_replaces_the_arrays(
    small: SmallModel, sizes: list[tuple[int, int]], seed: int
) -> None:
    """One engine, any run of shapes; what was bound before is never touched again."""
    engine = engine_of(small)
    old: list[tuple[Arrays, Arrays]] = []
    for batch, tokens in sizes:
        bound = arrays(batch, tokens, seed=seed)
        engine.bind(bound)
        for _ in range(2):
            bound["x"] += 0.25  # written in place between runs
            engine.enqueue()
            np.testing.assert_allclose(bound["y"], small.expected(bound["x"]), atol=1e-5)
        old.append((bound, {name: array.copy() for name, array in bound.items()}))
    for bound, then in old[:-1]:
        np.testing.assert_array_equal(bound["y"], then["y"])


def test_a_batch_equals_its_images(small: SmallModel) -> None:
    engine = engine_of(small)
    together = arrays(4, 7)
    engine.bind(together)
    engine.enqueue()
    for i in range(4):
        alone = {"x": together["x"][i : i + 1].copy(), "y": np.empty_like(together["y"][:1])}
        engine.bind(alone)
        engine.enqueue()
        np.testing.assert_allclose(alone["y"][0], together["y"][i], atol=1e-6)


def test_the_array_is_kept_alive_and_let_go(small: SmallModel) -> None:
    engine = engine_of(small)
    bound = arrays(1, 4)
    wanted, y = small.expected(bound["x"]), bound["y"]
    engine.bind(bound)
    del bound
    gc.collect()
    np.zeros((1, 4, WIDTHS[0]), np.float32)
    engine.enqueue()
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_a_closed_engine_says_so_and_closes_twice(small: SmallModel) -> None:
    engine = engine_of(small)
    with pytest.raises(BadInput, match="no arrays are bound; call bind first"):
        engine.enqueue()
    engine.bind(arrays(1, 1))
    with pytest.raises(BadInput, match="no stream"):
        engine.enqueue(0)
    engine.close()
    engine.close()
    with pytest.raises(BadInput, match="no arrays are bound"):
        engine.enqueue()
    with pytest.raises(BadInput, match="the engine is closed; load it again"):
        engine.bind(arrays(1, 1))


def test_the_name_and_the_threads(small: SmallModel) -> None:
    folder = open_model(small.path)
    assert OrtBackend(folder).name == "ort (cpu)"
    for threads in (0, -1, 1.0, True, 5000):
        with pytest.raises(BadInput, match=r"threads=.*, wants 1 to 1024"):
            OrtBackend(folder, threads=threads)  # type: ignore[arg-type]


def test_cuda_is_refused_where_onnxruntime_has_none(small: SmallModel) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BadInput, match=r"has only .*pip install 'diffusion-rt\[gpu\]'"):
        OrtBackend(open_model(small.path), provider="cuda")


class CudaLibrary:
    """An onnxruntime for CUDA on a machine whose libraries do not load."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.calls.append("preload")
        print("Failed to load libcublasLt.so.13")

    def SessionOptions(self) -> Any:
        return MagicMock()

    def InferenceSession(self, content: bytes, **options: Any) -> Any:
        self.calls.append(options["providers"][0])
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])


def test_cuda_that_does_not_start_is_told_once_with_its_extra(
    small: SmallModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = CudaLibrary()
    monkeypatch.setattr(library, "load_library", lambda: fake)
    with pytest.raises(BadInput, match=r"for want of CUDA .*pip install 'diffusion-rt\[gpu\]'"):
        library.open_session(b"", small.path, provider="cuda", threads=1, entries={})
    assert fake.calls == ["preload", "CUDAExecutionProvider"]  # from packages, before it is wanted
    assert capsys.readouterr().out == ""


def rewritten(small: SmallModel, folder: Path, change: Any) -> ModelFolder:
    """A copy whose unet_step is changed by `change(model)`, with a manifest that fits its files."""
    shutil.copytree(small.path, folder)
    path = folder / "unet_step.float32.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    graphs = open_model(small.path).manifest.graphs
    (folder / "manifest.json").unlink()
    write_manifest(folder, manifest_of(folder, graphs))
    return open_model(folder)


def refusal(folder: ModelFolder) -> str:
    with pytest.raises(BadInput) as caught:
        OrtBackend(folder, threads=1).load("unet_step")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_gate_stands_before_onnxruntime(
    small: SmallModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(10_000))

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("onnxruntime was asked")

    monkeypatch.setattr(backend_module, "open_session", never)

    def outside(location: str) -> Any:
        def change(model: onnx.ModelProto) -> None:
            set_external(model.graph.initializer[0], location=location, offset=0, length=64)

        return change

    def custom(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.microsoft"

    for i, (change, words) in enumerate(
        [
            (outside("../secret"), "wants a file of the manifest"),
            (outside(str(secret)), "wants a file of the manifest"),
            (outside("manifest.json"), "wants a file of the manifest"),
            (custom, "wants standard ONNX only"),
        ]
    ):
        assert words in refusal(rewritten(small, tmp_path / str(i), change))


def test_hard_linked_data_does_not_reach_onnxruntime(small: SmallModel, tmp_path: Path) -> None:
    """ONNX Runtime itself would read it; the manifest's hash of all the file keeps it out."""
    shutil.copytree(small.path, tmp_path / "model")
    weights = tmp_path / "model" / WEIGHTS
    other = tmp_path / "other"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    weights.unlink()
    os.link(other, weights)
    with pytest.raises(BadInput, match="was changed since it was exported"):
        open_model(tmp_path / "model")


def test_a_signature_that_is_not_the_manifests(small: SmallModel, tmp_path: Path) -> None:
    def name(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = "z"
        model.graph.node[-1].output[0] = "z"

    def width(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 9
        model.graph.node[-1].input[1] = "scale"

    def rank(model: onnx.ModelProto) -> None:
        del model.graph.input[0].type.tensor_type.shape.dim[0]

    def dtype(model: onnx.ModelProto) -> None:
        del model.graph.node[:]
        model.graph.node.append(onnx.helper.make_node("Identity", ["x"], ["y"]))
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    assert "has z, the manifest says y" in refusal(rewritten(small, tmp_path / "a", name))
    assert "x is tensor(double)" in refusal(rewritten(small, tmp_path / "c", dtype))
    assert "['tokens', 8], the manifest" in refusal(rewritten(small, tmp_path / "d", rank))
    with pytest.raises((Fault, BadInput)):
        OrtBackend(rewritten(small, tmp_path / "b", width)).load("unet_step")


def test_what_onnxruntime_refuses_is_one_line(
    small: SmallModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "NoSuchOperator"

    folder = rewritten(small, tmp_path / "a", unknown)
    with pytest.raises(
        Fault, match=r"unet_step\.float32\.onnx: onnxruntime: .*NoSuchOperator"
    ) as e:
        OrtBackend(folder).load("unet_step")
    assert "\n" not in str(e.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("factor", [7, 9])
def test_an_array_that_is_not_what_the_graph_writes_is_not_overrun(factor: int) -> None:
    """As of a manifest with another factor of the VAE; ONNX Runtime tells when it runs."""
    engine = OrtBackend(open_model(SHIPPED), threads=1).load("vae_decoder")
    latent = np.zeros((1, 4, 4, 6), np.float32)
    shape = (1, 3, 4 * factor, 6 * factor)
    memory = np.full(4 * 1 * 3 * 32 * 48, 7, np.float32)
    engine.bind({"latent": latent, "image": memory[: np.prod(shape)].reshape(shape)})
    with pytest.raises(Fault, match=r"vae_decoder: onnxruntime: "):
        engine.enqueue()
    np.testing.assert_array_equal(memory[np.prod(shape) :], 7)


def test_memory_that_runs_out_is_told_apart() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"g: the memory .* Failed to allocate memory for"),
        translated("g"),
    ):
        raise RuntimeError(
            "bfc_arena.cc:1 Failed to allocate memory for requested\nbuffer of size 1"
        )
    with (
        pytest.raises(OutOfMemory, match="g: the memory there is does not suffice"),
        translated("g"),
    ):
        raise MemoryError
    with pytest.raises(Fault, match=r"^g: onnxruntime: a b$"), translated("g"):
        raise RuntimeError("a\n  b\n")
    assert issubclass(OutOfMemory, BadInput)


def _run_without_memory(path: Path, said: Path) -> None:
    engine = OrtBackend(open_model(path), threads=1).load("unet_step")
    bound = arrays(1, 1_000_000)
    engine.bind(bound)
    with Path("/proc/self/statm").open() as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), used + (16 << 20)))
    try:
        engine.enqueue()
    except OutOfMemory as error:
        said.write_text(str(error))
    engine.bind({name: array[:, :10].copy() for name, array in bound.items()})
    engine.enqueue()  # a smaller run goes on


def test_a_run_that_does_not_fit_the_memory_leaves_a_usable_engine(
    small: SmallModel, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    runner = multiprocessing.get_context("fork").Process(
        target=_run_without_memory, args=(small.path, said)
    )
    runner.start()
    runner.join(60)
    assert runner.exitcode == 0
    assert said.read_text().startswith("unet_step: the memory there is does not suffice")


@pytest.mark.parametrize("overflows", [False, True])
def test_a_vae_that_overflows_in_float16_is_float32_unless_asked(overflows: bool) -> None:
    shipped = open_model(SHIPPED)
    vae = replace(shipped.manifest.vae, force_upcast=overflows)
    folder = replace(shipped, manifest=replace(shipped.manifest, vae=vae))
    backend = OrtBackend(folder, precision="float16", threads=1)
    usual = backend.load("vae_decoder").inputs["latent"].dtype
    assert usual == ("float32" if overflows else "float16")
    assert backend.load("vae_decoder", "float32").inputs["latent"].dtype == "float32"
    assert backend.load("unet_timestep").inputs["added"].dtype == "float16"
