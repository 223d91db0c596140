"""From a catalogue row to an image: a cubin for a chip, PTX for chips to come, or host code."""

import importlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from diffusion_rt.kernels.variant import SOURCES, Variant

PTX_VERSION = b"8.0"
"""Of the language, as the text declares it: CUDA 12.0's, and nothing that our kernels use is newer.

A compiler declares its own version, and a driver older than that compiler refuses the text. That
the lower one is true is held by assembling: an instruction of a later version would be refused.
"""

OPTIONS = ("-std=c++17",)
_INCLUDE = f"-I{SOURCES}"


class CompileError(RuntimeError):
    """A kernel does not compile, or there is no compiler; the message says the way out."""


class Compiler(Protocol):
    """Something that makes images of a variant; raises CompileError."""

    def cubin(self, variant: Variant, arch: int) -> bytes: ...

    def ptx(self, variant: Variant) -> bytes: ...


def find_compiler() -> Compiler:
    """NVRTC (a wheel, no toolkit needed), else nvcc; raises CompileError where neither is here."""
    try:
        return Nvrtc()
    except CompileError as nvrtc:
        try:
            return Nvcc()
        except CompileError as nvcc:
            raise CompileError(
                f"no CUDA compiler: {nvrtc}; {nvcc}; pip install 'diffusion-rt[native]'"
            ) from None


class Nvrtc:
    """NVIDIA's run-time compiler, in the process."""

    def __init__(self) -> None:
        self.log = ""  # what it said of the last image, its assembler's warnings included
        try:
            self._api = api = importlib.import_module("cuda.bindings.nvrtc")
            api.nvrtcVersion()
        except ImportError:
            raise CompileError("cuda-bindings is not installed") from None
        except RuntimeError:  # The bindings' own, where the library is not found.
            raise CompileError("libnvrtc is not installed") from None

    def cubin(self, variant: Variant, arch: int) -> bytes:
        require_chip(variant, arch)
        return self._image(variant, variant.target(arch), "CUBIN")

    def ptx(self, variant: Variant) -> bytes:
        return _for_older_drivers(self._image(variant, variant.ptx_target, "PTX").rstrip(b"\0"))

    def _image(self, variant: Variant, target: str, kind: str) -> bytes:
        api = self._api
        headers = {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.h"))}
        names = [name.encode() for name in headers]
        source = (SOURCES / variant.source).read_bytes()
        program = self._check(
            api.nvrtcCreateProgram(
                source, variant.source.encode(), len(names), list(headers.values()), names
            )
        )
        options = [*OPTIONS, *_definitions(variant), f"--gpu-architecture={target}"]
        encoded = [option.encode() for option in options]
        (status,) = api.nvrtcCompileProgram(program, len(encoded), encoded)
        log = self._text(program, api.nvrtcGetProgramLogSize, api.nvrtcGetProgramLog)
        self.log = log.rstrip(b"\0").decode(errors="replace").strip()
        if int(status) != 0:
            api.nvrtcDestroyProgram(program)
            raise _failure(variant, target, self.log)
        size = getattr(api, f"nvrtcGet{kind}Size")
        image = self._text(program, size, getattr(api, f"nvrtcGet{kind}"))
        api.nvrtcDestroyProgram(program)
        return image

    def _text(self, program: Any, size: Any, read: Any) -> bytes:
        text = bytearray(self._check(size(program)))
        buffer = bytes(text)  # The bindings write into it; they take no bytearray.
        self._check(read(program, buffer))
        return buffer

    def _check(self, answer: tuple[Any, ...]) -> Any:
        status, *values = answer
        if int(status) != 0:
            raise CompileError(f"NVRTC answers {status}; reinstall nvidia-cuda-nvrtc")
        return values[0] if values else None


class Nvcc:
    """The toolkit's compiler."""

    def __init__(self) -> None:
        self._nvcc = _tool("nvcc")

    def cubin(self, variant: Variant, arch: int) -> bytes:
        require_chip(variant, arch)
        # For the chip from the start: what it has beyond the oldest, the text for that one lacks.
        return self._image(variant, variant.target(arch), "cubin")

    def ptx(self, variant: Variant) -> bytes:
        return _for_older_drivers(self._image(variant, variant.ptx_target, "ptx"))

    def _image(self, variant: Variant, target: str, kind: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder, f"kernel.{kind}")
            options = [f"-{kind}", *OPTIONS, *_definitions(variant), f"-arch={target}", "-O3"]
            source = str(SOURCES / variant.source)
            command = [self._nvcc, *options, _INCLUDE, source, "-o", str(image)]
            _run(command, f"{variant.name} for {target}")
            return image.read_bytes()


def host_library(variants: Sequence[Variant]) -> bytes:
    """The same sources as a library for the simulator, by the system's C++ compiler.

    Products and sums stay apart here (`-ffp-contract=off`), while a device fuses them. Raises
    CompileError where there is no g++, or two variants of one kernel are asked for.
    """
    if len({variant.kernel for variant in variants}) != len(variants):
        raise CompileError("two variants of one kernel cannot lie in one host library")
    compiler = _tool("g++")
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for variant in variants:
            made = str(Path(folder, f"{variant.kernel}.o"))
            source = str(SOURCES / variant.source)
            command = [compiler, "-x", "c++", *OPTIONS, "-O1", "-fPIC", "-ffp-contract=off"]
            # Fortified jumps take a change of stack for an attack.
            command += [
                "-U_FORTIFY_SOURCE",
                "-Wall",
                "-Wno-unknown-pragmas",
                _INCLUDE,
                *_definitions(variant),
            ]
            _run([*command, "-c", source, "-o", made], f"{variant.name} for the host")
            objects.append(made)
        image = Path(folder, "kernels.so")
        _run([compiler, "-shared", *objects, "-o", str(image)], "the host library")
        return image.read_bytes()


def require_chip(variant: Variant, arch: int) -> None:
    """Raise CompileError where a kernel of one chip is asked for another."""
    if variant.suffix and arch not in variant.archs:
        these = ", ".join(variant.target(chip) for chip in variant.archs)
        raise CompileError(f"{variant.name} is for {these} alone, not for sm_{arch}")


def _for_older_drivers(ptx: bytes) -> bytes:
    return re.sub(rb"(?m)^\.version [0-9.]+", b".version " + PTX_VERSION, ptx, count=1)


def _definitions(variant: Variant) -> list[str]:
    return [f"-D{name}={value}" for name, value in variant.constants]


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise CompileError(f"{name} is not on the path")
    return found


def _run(command: list[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        log = done.stderr.strip().splitlines() or ["no message"]
        raise CompileError(f"{what} does not compile: {log[0]}")
    return done.stdout.strip()


def _failure(variant: Variant, target: str, log: str) -> CompileError:
    lines = [line for line in log.splitlines() if "error" in line] or ["no message"]
    return CompileError(f"{variant.name} for {target} does not compile: {lines[0]}")
