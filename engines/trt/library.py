"""The TensorRT package: whether it is there, and whether it is one that this program knows.

Modules that use it import it as `tensorrt` at their top, and are themselves imported late, after
`require_tensorrt`: the message then says what to install, and nothing else needs the package.
"""

import importlib
import re

from diffusion_rt.engines.errors import BadInput

OLDEST = (11, 0)
INSTALL = "pip install 'diffusion-rt[trt]'"


def require_tensorrt() -> str:
    """The version of TensorRT, such as 11.4.0.106; BadInput where it cannot be used."""
    try:
        version = str(importlib.import_module("tensorrt").__version__)
    except ModuleNotFoundError as missing:
        if missing.name != "tensorrt":
            raise BadInput(_broken(missing)) from None
        raise BadInput(f"engine trt: TensorRT is not installed; {INSTALL}") from None
    except Exception as error:  # a library that is missing, or another's: several kinds
        raise BadInput(_broken(error)) from None
    if version_of(version) < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise BadInput(f"engine trt: TensorRT {version}, wants {wanted} or newer; {INSTALL}")
    return version


def version_of(text: str) -> tuple[int, ...]:
    """A version as numbers that compare."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", text))


def _broken(error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"engine trt: TensorRT cannot be imported ({reason}); install it anew: {INSTALL}"
