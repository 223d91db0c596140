"""What is measured: models of ours, and what only diffusers draws."""

from pathlib import Path

import pytest

from diffusion_rt.bench import cli
from diffusion_rt.bench.architectures import SD_1_5, SDXL_REFINER, narrow
from diffusion_rt.bench.checkpoint import make_checkpoint
from diffusion_rt.bench.peers import Diffusers
from diffusion_rt.bench.records import ALL, OURS, read
from diffusion_rt.bench.subject import open_subject
from diffusion_rt.engines.errors import BadInput
from support.exported import ExportedModel
from support.races import case


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd") / "narrow-sd"
    make_checkpoint(folder, narrow(SD_1_5))
    return folder


def test_a_model_of_ours(exported_model: ExportedModel) -> None:
    subject = open_subject(exported_model("plain"))
    assert subject.absent is None
    assert subject.folder is not None
    assert open_subject(None).name == "shapes-xl"


def test_another_family_is_measured_without_us(sd: Path) -> None:
    subject = open_subject(sd)
    assert subject.absent == "not supported yet: Stable Diffusion 1 or 2"
    assert subject.folder is None
    assert (subject.width, subject.steps, subject.scheduler) == (128, 50, "PNDMScheduler")


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        open_subject(tmp_path / "nowhere")
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(BadInput, match=r"not exported yet"):
        open_subject(tmp_path)
    with pytest.raises(BadInput, match='"FluxPipeline" is not measured; one of StableDiffusionXL'):
        Diffusers(model=tmp_path, threads=1)


def test_of_another_family_there_is_a_row_that_says_so(
    sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--sizes", "64x64", "--steps", "2", "--repeats", "1", "--warm-up", "0"]
    words = ["end-to-end", "--model", str(sd), "--threads", "1", *flags]
    assert cli.main([*words, "--output", str(tmp_path)]) == 0
    records = read(tmp_path)
    ours = [record for record in records if record.contender == OURS]
    assert [(record.measure, record.absent) for record in ours] == [
        (ALL, "not supported yet: Stable Diffusion 1 or 2")
    ]
    theirs = {record.measure for record in records if record.contender == "diffusers"}
    assert theirs == {"picture", "step"}
    assert not any(record.against for record in records)
    assert "not timed, not supported yet" in capsys.readouterr().out


def test_the_refiner_redraws_a_picture(tmp_path: Path) -> None:
    folder = tmp_path / "refiner"
    make_checkpoint(folder, narrow(SDXL_REFINER))
    theirs = Diffusers(model=folder, threads=1)
    first, second = (theirs.run(case(width=64, height=64, steps=4)) for _ in range(2))
    assert first.arrays["pixels"].shape == (1, 64, 64, 3)
    assert (first.arrays["pixels"] == second.arrays["pixels"]).all()
    assert len(first.seconds["evaluation"]) == 1, "a strength of 0.3 leaves one step of four"
    theirs.close()
