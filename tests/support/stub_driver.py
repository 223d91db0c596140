"""The stub libcuda.so.1: compiled, put in front, and journalled."""

import inspect
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

STUB = "DIFFUSION_RT_STUB_DRIVER"
"""Set in a process whose libcuda.so.1 is the stub."""

FOLDER = Path(__file__).resolve().parent


def build(folder: Path) -> Path:
    """Compile it into a folder of its own, which a subprocess gets as LD_LIBRARY_PATH."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("skipped: no gcc")
    command = [compiler, "-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    command += ["-Wl,-soname,libcuda.so.1", "-o", str(folder / "libcuda.so.1")]
    subprocess.run([*command, str(FOLDER / "stub_driver.c"), "-ldl", "-lpthread"], check=True)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a process which finds the stub as its driver."""
    return {
        **os.environ,
        "LD_LIBRARY_PATH": str(folder),
        STUB: "1",
        **more,
    }


class Journal:
    """The real bindings, with every call of the driver written down in order."""

    def __init__(self, bindings: Any) -> None:
        self._bindings = bindings
        self.calls: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._bindings, name)
        if not name.startswith("cu") or isinstance(found, type) or not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            inspect.signature(found).bind(*arguments)
            # Made before every other call; said once, it would only hide the order.
            if name != "cuCtxSetCurrent":
                self.calls.append(name)
                self.arguments.append(arguments)
            return found(*arguments)

        return call

    def take(self) -> list[str]:
        """The calls since the last time."""
        calls, self.calls, self.arguments = self.calls, [], []
        return calls
