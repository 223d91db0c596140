"""The wheel and the sdist hold the whole package, links followed, and the wheel runs."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement

from diffusion_rt.runtime.doctor import CORE, EXPORT, RUNTIMES

ROOT = Path(__file__).parent.parent
# What lies beside the package in the sdist: enough for `make picture`.
BESIDE = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"),
    *("constraints.txt", "pyproject.toml"),
)
FOLDERS = ("bench", "engines", "export", "kernels", "runtime")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Which modules an extra is to make run, and which packages bring what these import from outside.
ENGINES = {
    "cpu": ("ort.backend",),
    "gpu": ("ort.backend",),
    "trt": ("trt.backend", "trt.build"),
    "native": ("native.backend", "native.build"),
}
BRINGS = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime onnxruntime-gpu",  # one of the two
    "tensorrt": "tensorrt",
    "cuda.bindings.driver": "cuda-bindings",
    "cuda.bindings.nvrtc": "nvidia-cuda-nvrtc",  # beside the bindings the library itself
}
UNASKED = {"cudnn", "nvmath.bindings.cublasLt"}  # only `build --libraries` wants them, and says so
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


def python(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def package_files() -> Iterator[str]:
    """What must be in both archives, as paths below diffusion_rt/."""
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            yield str(path.relative_to(ROOT))
    shipped = ("runtime/models", "kernels/sources", "bench/sources", "engines/native/tables")
    for folder in shipped:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                yield str(path.relative_to(ROOT))
    yield from ("__init__.py", "__main__.py", "command.py", "py.typed")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of a copy of the tree, and the wheel built from that sdist alone."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("MANIFEST.in", *BESIDE):
        shutil.copy(ROOT / name, copy)
    for name in ("src", *FOLDERS):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    python("-c", BUILD, "build_sdist", str(folder), cwd=copy)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    python("-c", BUILD, "build_wheel", str(folder), cwd=source)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def test_both_archives_hold_every_file(archives: tuple[Path, Path]) -> None:
    sdist, wheel = archives
    assert wheel.name.endswith("-py3-none-any.whl")  # nothing is compiled: arm64 hosts take it too
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        shipped = {member.name.split("/", 1)[-1] for member in archive if member.isfile()}
    wanted = list(package_files())
    assert "runtime/models/shapes-xl/manifest.json" in wanted
    assert [name for name in wanted if f"diffusion_rt/{name}" not in packed] == []
    assert [name for name in wanted if f"src/diffusion_rt/{name}" not in shipped] == []
    assert [name for name in BESIDE if name not in shipped] == []
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert not any("tests" in name or "__pycache__" in name for name in packed)
    assert not any(name.startswith("tests/") for name in shipped), "some would run, not all"


def test_the_wheel_runs_without_any_of_its_dependencies(
    archives: tuple[Path, Path], tmp_path: Path
) -> None:
    python("-m", "venv", "--without-pip", "env", cwd=tmp_path)
    python(
        *("-m", "pip", "--python", "env/bin/python", "install", "--no-deps", "--no-index"),
        *("--quiet", "--disable-pip-version-check", str(archives[1])),
        cwd=tmp_path,
    )
    for command in (["env/bin/diffusion-rt"], ["env/bin/python", "-m", "diffusion_rt"]):
        done = subprocess.run(
            [*command, "generate", "--help"],
            cwd=tmp_path,
            env={},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "--guidance-scale" in done.stdout
    done = subprocess.run(
        ["env/bin/diffusion-rt", "generate", "x"],
        cwd=tmp_path,
        env={},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        "diffusion-rt: error: numpy is not installed; run: pip install 'd"
    )


def test_the_doctor_knows_what_the_project_asks_for() -> None:
    def names(requirements: list[str]) -> list[str]:
        return [Requirement(text).name for text in requirements]

    extras = PROJECT["optional-dependencies"]
    assert sorted(names(PROJECT["dependencies"])) == sorted(CORE)
    assert sorted(names(extras["export"])) == sorted(EXPORT)
    assert all(name in names(extras[extra]) for name, extra in RUNTIMES.items())


def imported(extra: str) -> set[str]:
    """What the modules of an extra's engine import from outside, late and by name included."""
    graph = grimp.build_graph("diffusion_rt", cache_dir=None)
    found: set[str] = set()
    for entry in ENGINES[extra]:
        name = f"diffusion_rt.engines.{entry}"
        for module in {name, *graph.find_upstream_modules(name)}:
            found.update(imported_by(ROOT / "src" / module.replace(".", "/")))
    known = {*sys.stdlib_module_names, "diffusion_rt"}
    return {name for name in found if name.split(".")[0] not in known}


def imported_by(path: Path) -> Iterator[str]:
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
            yield ast.literal_eval(node.args[0])


def brought_by(extra: str) -> set[str]:
    """The packages of an extra, those of other extras that it names included."""
    found = set()
    for wanted in map(Requirement, PROJECT["optional-dependencies"][extra]):
        own = wanted.name == PROJECT["name"]
        found |= set().union(*map(brought_by, wanted.extras)) if own else {wanted.name}
    return found


@pytest.mark.parametrize("extra", ENGINES)
def test_what_an_engine_imports_is_in_its_extra(extra: str) -> None:
    have = {Requirement(text).name for text in PROJECT["dependencies"]} | brought_by(extra)
    for module in imported(extra) - UNASKED:
        brings = [
            packages for name, packages in BRINGS.items() if f"{module}.".startswith(f"{name}.")
        ]
        assert brings, f"say which package brings {module}"
        assert have & set(brings[0].split()), f"{extra} lacks {brings[0]}, for {module}"


def test_what_is_said_to_install_exists() -> None:
    places = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    places += [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    said = {
        name
        for path in (*places, ROOT / "bench" / "README.md")
        for names in re.findall(r"diffusion-rt\[([a-z,]+)\]", path.read_text())
        for name in names.split(",")
    }
    assert said >= {"cpu", "gpu", "native", "export"}
    assert said <= PROJECT["optional-dependencies"].keys()


def test_what_the_engines_of_a_gpu_import_is_seen_at_all() -> None:
    late = {"cuda.bindings.driver", "cuda.bindings.nvrtc"}
    assert imported("native") >= late
    assert imported("trt") >= {*late, "tensorrt", "tensorrt.plugin"}
    assert "onnxruntime" in imported("gpu")


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {Requirement(line).name: Requirement(line) for line in lines if line[:1].isalpha()}
    assert str(pins["torch"].specifier) == "==2.13.0"
    extras = PROJECT["optional-dependencies"]
    for text in (
        *PROJECT["dependencies"],
        *extras["cpu"],
        *extras["native"],
        *extras["export"],
        *extras["dev"],
    ):
        wanted = Requirement(text)
        if wanted.name == PROJECT["name"]:
            continue
        (pin,) = pins[wanted.name].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{text} against {pin}"
