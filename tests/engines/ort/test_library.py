"""ONNX Runtime is imported in one place: it calls nobody, and an interruption stays one."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.ort.library import load_library, open_session

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "argv", [["generate", "a red circle", "--steps=1", "--output=a.png"], ["doctor"]]
)
def test_nothing_is_left_for_its_telemetry(argv: list[str], tmp_path: Path) -> None:
    """What it would send lies in a file under the cache from the moment it is imported."""
    kept = {
        k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    subprocess.run(
        [sys.executable, "-P", "-m", "diffusion_rt", *argv],
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert not list(tmp_path.rglob("Microsoft"))


def test_it_is_imported_in_one_place() -> None:
    an_import = re.compile(r"^\s*(import|from) onnxruntime|import_module\(.onnxruntime", re.M)
    folders = ("bench", "engines", "export", "kernels", "runtime")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    found = [str(f.relative_to(ROOT)) for f in files if an_import.search(f.read_text())]
    assert found == ["engines/ort/library.py"]


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_of_the_import_is_no_broken_install(
    cause: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(name: str) -> ModuleType:
        raise ImportError("initialization failed") from cause

    monkeypatch.setattr(importlib, "import_module", interrupted)
    with pytest.raises(type(cause)) as caught:
        load_library()
    assert caught.value is cause


def test_a_broken_install_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise ImportError("libfoo.so: not found")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(BadInput, match=r"onnxruntime cannot be imported \(libfoo\.so: not found\)"):
        load_library()


def test_a_folder_whose_name_is_no_text_is_refused() -> None:
    file = Path(os.fsdecode(b"/models/\xff/unet.onnx"))
    with pytest.raises(BadInput, match="takes no path that is not UTF-8; rename the folder"):
        open_session(b"", file, provider="cpu", threads=1, entries={})
