"""The driver that does nothing, compiled and put before the real one, for the real bindings."""

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

from diffusion_rt.bench.idle import NoImages
from diffusion_rt.engines.device.gpu import Gpu
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.kernels.driver import open_device

SOURCE = Path(__file__).parent / "sources" / "idle_driver.c"
OPTIONS = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")


def open_driver() -> Gpu:
    """A GPU by the real bindings, over the driver of `sources/idle_driver.c`.

    For a process of its own: whoever looks for libcuda.so.1 in it from now on finds this one.
    Raises BadInput where there is no C compiler.
    """
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BadInput("--engine idle-cuda compiles a driver that does nothing; install gcc")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "libcuda.so.1"
        command = [compiler, *OPTIONS, "-o", str(library), str(SOURCE), "-ldl"]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise BadInput(f"--engine idle-cuda: {compiler}: {made.stderr.strip()[:300]}")
        # A library that is loaded is found by its soname from then on.
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return Gpu(open_device(), NoImages())
