"""The sub-command `kernels`, on the simulator and without a GPU."""

from pathlib import Path

import pytest

from diffusion_rt.bench import cli, gpu_cases, gpu_kernels, kernels
from diffusion_rt.bench.flags import parser_of
from diffusion_rt.bench.gpu_chip import NoChip
from diffusion_rt.bench.gpu_norms import GroupNorm, LayerNorm
from diffusion_rt.bench.unet_alone import network_of
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.kernels.catalogue import CATALOGUE
from diffusion_rt.kernels.compile import CompileError, host_library
from diffusion_rt.runtime.pipeline import SHIPPED


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        host_library([CATALOGUE["select_rows"]])
    except CompileError as error:
        pytest.skip(f"skipped: {error}")


def test_without_a_gpu_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(ordinal: int = 0) -> None:
        raise NoChip("no NVIDIA driver")

    monkeypatch.setattr(kernels, "this_chip", none)
    with pytest.raises(BadInput, match=r"^kernels: no NVIDIA driver; --device simulator says"):
        cli.main(["kernels"])


def test_the_simulator_says_what_is_right_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kernels", "--device", "simulator", "--only", "layer*,select_rows"]
    assert cli.main([*words, "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        "right   layer_norm.float16",
        "right   select_rows",
    ]
    assert lines[-1].startswith("right: 2, wrong: 0, ")
    assert not list(tmp_path.iterdir())


def test_a_wrong_kernel_is_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "_check", lambda sink, bench, case, seed: 1 / 0)
    words = ["kernels", "--device", "simulator", "--only", "select_rows"]
    assert cli.main(words) == 1


def test_a_kernel_that_there_is_not_is_named() -> None:
    with pytest.raises(BadInput, match=r"--only foo: no such kernel; of "):
        cli.main(["kernels", "--device", "simulator", "--only", "foo"])


def test_sizes_are_those_of_a_step() -> None:
    found = gpu_cases.of_step(512, 768, images=3)
    assert LayerNorm("float16", 2 * 3 * 32 * 48, 640) in found
    assert GroupNorm("float16", True, 6, 64 * 96, 320) in found
    assert len(set(found)) == len(found)


def test_kernels_of_another_model_are_those_of_its_unet(tmp_path: Path) -> None:
    network = network_of(SHIPPED)
    assert network is not None
    parser = parser_of("kernels", "", ("model", "sizes", "batches", "guidance-scale"))
    parser.set_defaults(device="cuda", only=None)
    words = ["--model", str(SHIPPED), "--sizes", "128x128"]
    found = kernels._chosen(parser.read(words))
    assert found == gpu_cases.of_step(128, 128, network=network)
    assert found != gpu_cases.of_step(128, 128)
    with pytest.raises(BadInput, match="it has no UNet of SDXL's kind"):
        kernels._chosen(parser.read(["--model", str(tmp_path), "--sizes", "128x128"]))
