"""Keys, headers and machines for tests of plan files."""

import hashlib
from typing import Any

from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.trt.key import Key, Machine
from diffusion_rt.engines.trt.options import BuilderOptions, Edits
from diffusion_rt.engines.trt.plan_file import PlanHeader
from diffusion_rt.engines.trt.profiles import Profile, Range, fixed

MACHINE = Machine(gpu="NVIDIA H200", arch=90, driver="13.0", tensorrt="11.4.0.106")
PROFILE = Profile(name="128x128", sizes={"batch": Range(min=1, opt=2, max=8), "height": fixed(16)})


def key_of(**changes: Any) -> Key:
    """A key of a plan that nobody built."""
    fields: dict[str, Any] = {
        "graph": "unet_step",
        "onnx": "0" * 64,
        "weights": {"unet/model.safetensors": "1" * 64},
        "edits": Edits(arithmetic="float16"),
        "network": "2" * 64,
        "plugin": None,
        "profiles": (PROFILE,),
        "builder": BuilderOptions(),
        "machine": MACHINE,
    }
    return Key(**(fields | changes))


def header_of(plan: bytes, key: Key | None = None, **changes: Any) -> PlanHeader:
    """The header of a plan of these bytes."""
    key = key or key_of()
    fields: dict[str, Any] = {
        "key": key,
        "plan_bytes": len(plan),
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "inputs": (TensorSpec("latent", "float16", ("batch", 4, "height", 16)),),
        "outputs": (TensorSpec("prediction", "float16", ("batch", 4, "height", 16)),),
        "scratch_bytes": (1 << 20,) * len(key.profiles),
        "seconds": 12.5,
        "made_by": "diffusion-rt 0.1.0",
    }
    return PlanHeader(**(fields | changes))
