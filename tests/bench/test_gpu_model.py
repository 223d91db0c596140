"""The model of the GPU run on the simulator: what is drawn, held against the host, and refused."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_rt.bench import gpu_against, gpu_drawing, gpu_model, gpu_prepare
from diffusion_rt.bench.gpu_chip import SIMULATOR, Chip
from diffusion_rt.bench.gpu_drawing import Drawer, Drawing, evaluate
from diffusion_rt.bench.gpu_prepare import SHIPPED
from diffusion_rt.bench.gpu_rows import Row, Sink
from diffusion_rt.engines.device.backend import DeviceBackend
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.backend import open_host
from diffusion_rt.engines.native.ways import Way, Ways
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.runtime.conditioning import Conditioning
from diffusion_rt.runtime.unet import Unet
from support.device_graphs import HostGraphs, HostImages

CHIP = Chip(name="a chip", arch=90, multiprocessors=132, memory=1 << 37, l2_bytes=1, cuda="13.0")


def stand_in(folder: ModelFolder, *, gpu: Gpu) -> DeviceBackend:
    """The native engine's plans by their references, inside the real loop on a simulated device.

    The same by its kernels takes half a minute of compiling; that engine's own tests do it.
    """
    return DeviceBackend(HostGraphs(open_host(folder, precision="float16"), gpu), gpu)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_model, "HostImages", HostImages)
    monkeypatch.setattr(gpu_model, "open_native", stand_in)


def rows_of(part: Any, folder: Path, chip: Chip = SIMULATOR, **more: Any) -> list[Row]:
    rows: list[Row] = []
    part(Sink("part", chip, folder, time.time() + 600, "command", "a" * 40, rows.append, **more))
    return rows


def test_a_picture_is_held_against_the_host_and_timed(tmp_path: Path) -> None:
    rows = rows_of(gpu_model.native, tmp_path)
    assert [(row.name, row.outcome) for row in rows] == [
        ("unet", "right"),
        ("vae_decoder", "right"),
        *((name, "untimed") for name in ("step", "decode", "text", "picture", "load")),
    ]
    rows = rows_of(gpu_model.first, tmp_path)
    assert [(row.name, row.outcome) for row in rows] == [("first-picture", "untimed")]


@pytest.mark.parametrize("name", ["unet", "vae_decoder"])
def test_a_graph_that_is_wrong_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gpu_prepare.CHECKED[name]

    def other(folder: ModelFolder, load: Any, side: int) -> Any:
        found = right(folder, load, side)
        if load.__self__.name.startswith("native (host)"):
            return found
        return found + np.float32(0.05) * found.std()

    monkeypatch.setitem(gpu_prepare.CHECKED, name, other)
    monkeypatch.setattr(gpu_model, "_time", lambda *_: None)
    rows = rows_of(gpu_model.native, tmp_path)
    assert {row.name: row.outcome for row in rows}[name] == "wrong"
    assert len(rows) == 2


def test_what_the_host_found_is_kept_for_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rows_of(gpu_prepare.prepare, tmp_path) == []
    folder = open_model(SHIPPED)
    sink = Sink("p", SIMULATOR, tmp_path, time.time() + 9, "c", "a" * 40)
    monkeypatch.setattr(gpu_prepare, "open_host", lambda *_, **__: pytest.fail("computed again"))
    exact, rounded = gpu_prepare.truths(sink, folder, "unet")
    assert exact.shape == rounded.shape == (2, 4, gpu_prepare.TINY_SIDE, gpu_prepare.TINY_SIDE)
    assert 0 < np.abs(exact - rounded).max() < 0.1


def test_the_ways_of_any_chip_are_told_from_those_of_one() -> None:
    def way(name: str) -> Way:
        variants = (CATALOGUE[f"gemm{name}.float16"],)
        return Way(name=name, variants=variants, calls=lambda _: ())

    own, portable = way("_sm90_128x160"), way("_128x80")
    assert gpu_model.any_chip(Ways("k", (own, portable))) is portable
    assert gpu_model.any_chip(Ways("k", (own,))) is own


def test_an_evaluation_is_what_the_runtime_makes_of_the_same_inputs() -> None:
    folder = open_model(SHIPPED)
    backend = open_host(folder)
    given: dict[str, Any] = {}

    class Noted:
        """An engine that keeps what it is bound to."""

        def __init__(self, graph: str) -> None:
            self._engine, self._graph = backend.load(graph), graph

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

        def bind(self, buffers: Any, only: Any = None) -> None:
            given[self._graph] = {name: buffers[name].copy() for name in self._engine.inputs}
            self._engine.bind(buffers)

    found = evaluate(Noted, 2)
    prompt, latent = given["unet_prompt"], given["unet_step"]["latent"]
    unet = Unet(*(backend.load(f"unet_{part}") for part in ("prompt", "timestep", "step")))
    conditioning = Conditioning(**prompt)
    # The runtime gives each row of guidance the same latent, so it is asked row by row.
    for row in range(2):
        unet.prepare(conditioning, np.array([601], np.float32), 1, latent.shape[1:])
        wanted = unet.predict(0, latent[row : row + 1], 1.0)[row]
        np.testing.assert_allclose(found[row], wanted.reshape(wanted.shape[-3:]), atol=1e-5)


@pytest.mark.parametrize("spoil", ["nan", "flat"])
def test_a_picture_that_is_none_is_wrong(spoil: str, tmp_path: Path) -> None:
    rows: list[Row] = []
    sink = Sink("p", SIMULATOR, tmp_path, time.time() + 9, "c", "a" * 40, rows.append)
    latents = np.random.default_rng(0).standard_normal((1, 4, 2, 2), np.float32)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3), np.uint8)
    assert gpu_model._fine(sink, Drawing(latents, pixels), {})
    if spoil == "nan":
        latents[0, 0, 0, 0] = np.nan
    else:
        pixels[:] = 7
    assert not gpu_model._fine(sink, Drawing(latents, pixels), {})
    assert rows[-1].outcome == "wrong"


@pytest.mark.parametrize(
    "part", [gpu_model.native, gpu_model.first, gpu_model.tensorrt, gpu_against.eager]
)
def test_without_graphs_nothing_of_full_size_runs(part: Any, tmp_path: Path) -> None:
    rows = rows_of(part, tmp_path, CHIP)
    assert [row.outcome for row in rows] == ["not run"]
    assert "diffusion-rt bench graphs" in rows[0].note


@pytest.mark.parametrize("part", [gpu_model.tensorrt, gpu_against.eager, gpu_against.compiled])
def test_what_a_simulator_does_not_stand_for_is_said(part: Any, tmp_path: Path) -> None:
    rows = rows_of(part, tmp_path)
    assert [row.outcome for row in rows] == ["not run"]


def test_a_peer_that_cannot_run_is_not_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        "compile not timed, failed: compile: no compiler": "not run",
        "compile not timed, wrong: latents differ by 1": "wrong",
        "diffusion-rt not timed, failed: diffusion-rt: lost": "wrong",
        "diffusion-rt step 20 ms": "timed",
    }
    monkeypatch.setattr(gpu_against, "told", lambda sink, command: "\n".join(said))
    monkeypatch.setattr(gpu_against, "model_of", lambda sink, part: open_model(SHIPPED))
    rows = rows_of(gpu_against.eager, tmp_path, CHIP)
    assert {row.note: row.outcome for row in rows} == said


def test_a_process_knows_how_old_it_is() -> None:
    age = gpu_model._age()
    assert 0 < age < 24 * 3600
    assert gpu_model._age() >= age


def test_a_backend_without_a_loop_on_a_device_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="a loop on its device"):
        Drawer(open_model(SHIPPED), open_host(open_model(SHIPPED)))
    assert gpu_drawing.ROWS == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('words')", "status 1: words"),
        ("import os; os.kill(os.getpid(), 11)", "status -11: no word"),
        ("import time; time.sleep(60)", "out of time"),
    ],
)
def test_a_build_that_fails_is_not_timed(code: str, said: str, tmp_path: Path) -> None:
    sink = Sink("p", SIMULATOR, tmp_path, time.time() + 2, "c", "a" * 40)
    with pytest.raises(RuntimeError, match=said):
        gpu_against.told(sink, [sys.executable, "-c", code])
