"""What the real bindings of TensorRT need to be imported: libraries of that name, made here.

The wheel `tensorrt-cu13-bindings` holds Python's side alone and links to three libraries by nine C
functions. Stand-ins that answer null are enough to import it, and to ask it for every name, number
and signature it has; nothing can be built or run with it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getPluginRegistry",
        "getBuilderPluginRegistry",
    ),
    "libnvonnxparser.so.11": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
}


def make_libraries(folder: Path) -> Path:
    """Compile the stand-ins into `folder`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed to test against TensorRT's bindings: install gcc"
    for name, functions in LIBRARIES.items():
        source = folder / f"{name}.c"
        source.write_text(
            "".join(f"void *{function}(void) {{ return 0; }}\n" for function in functions)
        )
        command = [compiler, "-shared", "-fPIC", "-o", str(folder / name), str(source)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder


def with_bindings(libraries: Path, arguments: Sequence[str]) -> str:
    """What Python prints for these arguments, in a process that can import `tensorrt_bindings`."""
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(libraries),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
