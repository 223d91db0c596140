"""Models without their weights: what grows back is the same to the byte, or is refused."""

import json
from pathlib import Path

import pytest

from diffusion_rt.bench import cli
from diffusion_rt.bench.architectures import SDXL_SMALL
from diffusion_rt.bench.bare import fill, is_bare, strip
from diffusion_rt.bench.checkpoint import make_checkpoint
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import NAME
from diffusion_rt.runtime.pipeline import SHIPPED


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "small"
    make_checkpoint(folder, SDXL_SMALL)
    return folder


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs and manifest are other files among many here."""

    class Folder:
        def __init__(self, path: Path) -> None:
            self.path = path

    monkeypatch.setattr("diffusion_rt.bench.bare.open_model", Folder)


def test_weights_grow_back_to_the_byte(model: Path, tmp_path: Path) -> None:
    bare, full = tmp_path / "bare", tmp_path / "full"
    (model / NAME).write_text("{}")
    size = strip(model, bare)
    assert size == sum(path.stat().st_size for path in bare.rglob("*") if path.is_file())
    assert size < 300_000
    assert is_bare(bare)
    assert not is_bare(model)
    count = fill(bare, full)
    for path in (path for path in model.rglob("*") if path.is_file()):
        assert (full / path.relative_to(model)).read_bytes() == path.read_bytes()
    assert count > 1_000_000
    with pytest.raises(BadInput, match="there already"):
        strip(model, bare)


def test_the_manifest_comes_last(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / NAME).write_text("{}")
    strip(model, tmp_path / "bare")

    def full(path: Path, *_: object) -> int:
        raise OSError("no room")

    monkeypatch.setattr("diffusion_rt.bench.bare.write_weights", full)
    with pytest.raises(OSError, match="no room"):
        fill(tmp_path / "bare", tmp_path / "full")
    assert not (tmp_path / "full" / NAME).exists()


def test_weights_of_another_seed_or_of_somebody_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not what seed 1 makes"):
        strip(model, tmp_path / "bare", seed=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: b"{",
        lambda header: b"[1, 2]",
        lambda header: header.replace(b"F16", b"I64"),
        lambda header: header + b"        ",
        lambda header: json.dumps(json.loads(header), indent=1).encode(),
    ],
)
def test_a_header_that_is_none_is_refused(model: Path, tmp_path: Path, change: object) -> None:
    strip(model, tmp_path / "bare")
    (path,) = (tmp_path / "bare" / "vae").glob("*.header")
    assert callable(change)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BadInput, match="header"):
        fill(tmp_path / "bare", tmp_path / "full")


def test_links_and_large_files_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strip(model, tmp_path / "bare")
    monkeypatch.setattr("diffusion_rt.bench.bare.MAX_FILE", 1000)
    with pytest.raises(BadInput, match="and no weights"):
        fill(tmp_path / "bare", tmp_path / "full")
    (tmp_path / "bare" / "a").symlink_to("/etc/hostname")
    with pytest.raises(BadInput, match="neither a file nor a folder"):
        fill(tmp_path / "bare", tmp_path / "other")


def test_the_sub_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="--keep is missing"):
        cli.main(["graphs", "--model", "somewhere"])
    assert cli.main(["graphs", "--model", str(model), "--keep", str(tmp_path / "small")]) == 0
    assert "python bench/gpu.py --graphs " in capsys.readouterr().out
    words = ["--model", str(SHIPPED), "--keep", str(tmp_path / "bare")]
    with pytest.raises(BadInput, match="is not what seed 0 makes; only generated weights"):
        cli.main(["graphs", *words])
