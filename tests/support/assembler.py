"""NVIDIA's assembler of PTX as a library: what ptxas does, and a driver to the PTX in a plan."""

import importlib
from typing import Any

import pytest


def assemble(ptx: bytes, arch: int | str) -> bytes:
    """The cubin of a PTX file for a chip, such as 90 or 90a.

    AssertionError with the assembler's words if it refuses. Skips the test where nvJitLink is not
    installed.
    """
    try:
        linker: Any = importlib.import_module("cuda.bindings.nvjitlink")
        linker.version()
    except (ImportError, RuntimeError):
        pytest.skip("skipped: no assembler; pip install nvidia-nvjitlink")
    handle = linker.create(1, [f"-arch=sm_{arch}"])
    try:
        linker.add_data(handle, linker.InputType.PTX, ptx, len(ptx), "kernel.ptx")
        linker.complete(handle)
    except linker.nvJitLinkError:
        words = bytearray(linker.get_error_log_size(handle))
        linker.get_error_log(handle, words)
        raise AssertionError(words.decode(errors="replace").strip("\0")) from None
    image = bytearray(linker.get_linked_cubin_size(handle))
    linker.get_linked_cubin(handle, image)
    linker.destroy(handle)
    return bytes(image)
