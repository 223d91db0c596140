"""The real device, without a GPU: its calls against the real bindings, and a missing driver."""

import ast
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import diffusion_rt.kernels.driver.cuda.stream as one_of_them
from diffusion_rt.kernels.compile import CompileError
from diffusion_rt.kernels.driver import errors
from diffusion_rt.kernels.driver.cuda.context import LEAST_DRIVER
from support import scale_add, stub_driver
from support.kernel_bench import DEVICE

HERE = Path(__file__).parent
SOURCES = sorted(Path(one_of_them.__file__).parent.glob("*.py"))


@pytest.fixture(scope="module")
def bindings() -> Any:
    return pytest.importorskip("cuda.bindings.driver", reason="skipped: no cuda-python")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = stub_driver.build(tmp_path_factory.mktemp("stub"))
    try:
        (folder / "scale_add.so").write_bytes(scale_add.host_image())
    except CompileError as error:
        pytest.skip(f"skipped: {error}")
    return folder


def wrong_names(source: str, bindings: Any) -> list[str]:
    """What a source uses of the driver's bindings that is not so there.

    Every attribute chain that starts with a driver's name (cuX, CUx, CU_X) is looked up, and the
    number of arguments of every call is held against the real signature.
    """
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = node.func.attr
            if name.startswith("cu") and not any(isinstance(a, ast.Starred) for a in node.args):
                try:
                    function = getattr(bindings, name)
                    keywords = {str(k.arg): k.value for k in node.keywords}
                    inspect.signature(function).bind(*node.args, **keywords)
                except (AttributeError, TypeError) as error:
                    wrong.append(f"{name}: {error}")
                except ValueError:
                    pass  # A class of the bindings, without a signature.
        if isinstance(node, ast.Attribute):
            chain = _chain(node)
            found = bindings
            for name in chain:
                if not hasattr(found, name):
                    wrong.append(".".join(chain))
                    break
                found = getattr(found, name)
    return wrong


def _chain(node: ast.Attribute) -> list[str]:
    """The names from the first of the driver's on; empty where there is none."""
    names = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        names.insert(0, value.attr)
        value = value.value
    while names and not names[0].startswith(("cu", "CU")):
        names.pop(0)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_name_and_count_is_that_of_the_bindings(path: Path, bindings: Any) -> None:
    assert wrong_names(path.read_text(), bindings) == []


def test_the_sources_hold_calls_at_all() -> None:
    text = "".join(path.read_text() for path in SOURCES)
    assert text.count(".cu") > 40


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("driver.cuEventRecord(", "driver.cuEventRecrod("),
        ("cuMemcpyAsync(destination.address, ", "cuMemcpyAsync("),
        ("cuStreamEndCapture(self._stream)", "cuStreamEndCapture()"),
        ("CU_EVENT_DISABLE_TIMING", "CU_EVENT_NO_TIMING"),
        ("CU_STREAM_CAPTURE_MODE_THREAD_LOCAL", "CU_STREAM_CAPTURE_MODE_THREAD"),
        ("driver.CUlaunchAttribute()", "driver.CUlaunchAtribute()"),
    ],
)
def test_a_planted_mistake_is_found(right: str, wrong: str, bindings: Any) -> None:
    source = Path(one_of_them.__file__).read_text()
    assert right in source
    assert wrong_names(source.replace(right, wrong), bindings)


def test_the_codes_are_those_of_the_bindings(bindings: Any) -> None:
    """Each class of error by the names that belong to it; a number that moved would show."""
    names = {int(code): code.name.removeprefix("CUDA_ERROR_") for code in bindings.CUresult}
    lost = {names[code] for code in errors._LOST}
    assert lost >= {
        "ILLEGAL_ADDRESS",
        "ASSERT",
        "MISALIGNED_ADDRESS",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "ECC_UNCORRECTABLE",
        "ILLEGAL_INSTRUCTION",
        "HARDWARE_STACK_ERROR",
        "LAUNCH_TIMEOUT",
    }
    assert {names[code] for code in errors._BAD_IMAGE} >= {
        "INVALID_IMAGE",
        "NO_BINARY_FOR_GPU",
        "INVALID_PTX",
        "UNSUPPORTED_PTX_VERSION",
    }
    assert {names[code] for code in errors._NO_DRIVER} >= {
        "STUB_LIBRARY",
        "NO_DEVICE",
        "SYSTEM_DRIVER_MISMATCH",
        "COMPAT_NOT_SUPPORTED_ON_DEVICE",
    }
    assert {n for n in names.values() if "CAPTURE" in n} - {"GRAPH_RECAPTURE_FAILURE"} <= {
        names[code] for code in errors._MISUSE
    }
    assert names[2] == "OUT_OF_MEMORY"
    groups = [errors._LOST, errors._BAD_IMAGE, set(errors._NO_DRIVER), errors._MISUSE, {2}]
    assert sum(len(group) for group in groups) == len(set().union(*groups))


def test_the_real_device_keeps_the_contract_over_the_stub(bindings: Any, stub: Path) -> None:
    _pytest(stub, "test_contract.py", "-k", "cuda")


def test_the_real_device_calls_in_order_over_the_stub(bindings: Any, stub: Path) -> None:
    _pytest(stub, "over_stub.py")
    _pytest(stub, "test_tensor_map.py", "-k", "encodes")


def test_the_oldest_driver_has_every_call_over_the_stub(bindings: Any, stub: Path) -> None:
    """The bindings ask for a function by the CUDA that brought it; an older driver has none."""
    _pytest(stub, "over_stub.py", version=LEAST_DRIVER)


def test_a_whole_denoise_runs_through_the_bindings(bindings: Any, stub: Path) -> None:
    """Every kernel's parameters, a capture, updates of tables, pacing by events."""
    _pytest(stub, "../test_step_loop.py", "-k", "None or many or break")


def test_tensor_maps_reach_kernels_through_the_bindings(bindings: Any, stub: Path) -> None:
    """What the driver encoded goes by value into the kernel's parameters."""
    _pytest(stub, "../test_conv_sm90.py", "-k", "all_of_an_epilogue")


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        # A launch before the function is loaded, lost attributes, shifted arguments, a leak.
        ("module.py", 'context.check(driver.cuFuncLoad(function), f"load {name}")', "pass"),
        ("stream.py", "config.attrs = attributes", "config.attrs = []"),
        ("stream.py", "packed.address, 0)", "packed.address + 8, 0)"),
        ("memory.py", "cuMemFree(self._address)", "cuMemFreeHost(self._address)"),
    ],
)
def test_a_planted_mistake_fails_over_the_stub(
    bindings: Any, stub: Path, tmp_path: Path, file: str, right: str, wrong: str
) -> None:
    """The same tests against a copy of the package with one mistake in it."""
    package = Path(one_of_them.__file__).resolve().parents[2]
    copy = tmp_path / "diffusion_rt" / "kernels"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy.parent / "__init__.py").touch()
    target = copy / "driver" / "cuda" / file
    source = target.read_text()
    assert right in source
    target.write_text(source.replace(right, wrong))
    done = _run(stub, ["over_stub.py", "-k", "memory or launch"], first=tmp_path)
    # A wrong pointer may end the process; no test at all (5) would prove nothing.
    assert done.returncode not in (0, 2, 3, 4, 5), done.stdout


def _pytest(stub: Path, *arguments: str, version: int = 13000) -> None:
    done = _run(stub, list(arguments), version=version)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


def _run(
    stub: Path, arguments: list[str], first: Path | None = None, version: int = 13000
) -> "subprocess.CompletedProcess[str]":
    path = [str(first)] if first else []
    path += [entry for entry in sys.path if entry]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-o", "pythonpath=", "-o", "addopts=--import-mode=importlib"]
    name, *rest = arguments
    more = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",
        DEVICE: "cuda",
        scale_add.IMAGE: str(stub / "scale_add.so"),
        "STUB_DRIVER_VERSION": str(version),
    }
    return subprocess.run(
        [*command, str(HERE / name), *rest],
        env=stub_driver.environment(stub, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_stub_is_laid_out_as_the_driver(tmp_path: Path) -> None:
    include = _include_folder()
    if include is None or shutil.which("gcc") is None:
        pytest.skip("skipped: no cuda.h, or no gcc")
    check = str(stub_driver.FOLDER / "stub_layout_check.c")
    command = ["gcc", "-fsyntax-only", f"-I{include}", check]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _include_folder() -> Path | None:
    """Where cuda.h lies: beside nvcc, or in the wheel of the CUDA runtime."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parents[1] / "include"] if nvcc else []
    places += [Path("/usr/local/cuda/include")]
    places += [Path(entry, "nvidia", "cu13", "include") for entry in sys.path]
    return next((place for place in places if (place / "cuda.h").exists()), None)


MISSING = """
    from diffusion_rt.kernels.driver import NoDriver, open_device
    for _ in range(2):
        try:
            open_device()
        except NoDriver as error:
            assert "\\n" not in str(error), error
            print(error)
"""


def test_without_a_driver_opening_says_so(bindings: Any) -> None:
    from diffusion_rt.kernels.driver.probe import probe

    if probe().missing is None:
        pytest.skip("skipped: there is a driver")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MISSING)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "no NVIDIA driver" in lines[0]


def test_without_the_bindings_opening_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(errors.NoDriver, match=r"pip install 'diffusion-rt\[native\]'"):
        importlib.import_module("diffusion_rt.kernels.driver").open_device()
