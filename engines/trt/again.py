"""The command that builds engines as they are, but for what is changed."""

import shlex
from collections.abc import Mapping

from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.trt.buckets import Bucket, spelt
from diffusion_rt.engines.trt.options import BuilderOptions, Options
from diffusion_rt.engines.trt.plan_file import PlanHeader
from diffusion_rt.engines.trt.profiles import Range

DEFAULTS = {"batch": "1:1:1", "chunks": "1:1:3", "precision": "float16"}
DEFAULTS |= {"vae-precision": "bfloat16", "attention": "tensorrt"}


def build_command(
    model: ModelFolder, plans: Mapping[str, PlanHeader] | None = None, **changes: str
) -> str:
    """What to type to build the engines of a model.

    `plans` are those there are, by graph: the command spells every setting of theirs that is not
    the default. `changes` are values of flags, by name, that are to be other ones.
    """
    flags = settings(model, plans or {})
    flags |= {name.replace("_", "-"): value for name, value in changes.items()}
    words = ["diffusion-rt", "build", str(model.path), "--engine", "trt"]
    for name, value in flags.items():
        if value == DEFAULTS.get(name):
            continue
        if name == "build-route":  # begins with a dash
            words.append(f"--{name}={value}")
        else:
            words += [f"--{name}", value] if value else [f"--{name}"]
    return shlex.join(words)


def settings(model: ModelFolder, plans: Mapping[str, PlanHeader]) -> dict[str, str]:
    """The flags that plans were built with; one without a value is the empty text."""
    found: dict[str, str] = {}
    if step := plans.get("unet_step"):
        profiles, edits = step.key.profiles, step.key.edits
        rows, tokens = profiles[0].sizes["batch"], profiles[0].sizes["tokens"]
        length = max(encoder.max_length for encoder in model.manifest.text_encoders)
        found["buckets"] = spelt([bucket_of(profile.name) for profile in profiles])
        found["batch"] = str(Range(min=rows.min, opt=rows.opt // 2, max=rows.max // 2))
        found["chunks"] = str(
            Range(min=tokens.min // length, opt=tokens.opt // length, max=tokens.max // length)
        )
        found["precision"] = edits.arithmetic
        found["attention"] = edits.attention
        usual = Options(precision=edits.source, attention={"unet_step": edits.attention})
        usual = usual.settled(step.key.machine.tensorrt)
        if edits.wide_attention != usual.edits("unet_step").wide_attention:
            found["float32-attention" if edits.wide_attention else "no-float32-attention"] = ""
        found |= builder_flags(step.key.builder)
    if decoder := plans.get("vae_decoder"):
        found["vae-precision"] = decoder.key.edits.arithmetic
    return found


def builder_flags(options: BuilderOptions) -> dict[str, str]:
    """The flags of the builder's settings that are not the default."""
    usual = BuilderOptions()
    values = {
        "optimization-level": (options.optimization_level, usual.optimization_level),
        "workspace": (_size(options.workspace_bytes), None),
        "profile-memory": (options.profile_memory, usual.profile_memory),
        "tiling": (options.tiling, usual.tiling),
        "auxiliary-streams": (options.auxiliary_streams, None),
        "hardware-compatibility": (options.compatibility, usual.compatibility),
        "build-route": (options.build_route, usual.build_route),
    }
    found = {name: str(value) for name, (value, default) in values.items() if value != default}
    switches = {
        "version-compatible": options.version_compatible,
        "stripped": options.stripped,
        "no-tf32": not options.tf32,
    }
    return found | {name: "" for name, on in switches.items() if on}


def bucket_of(name: str) -> Bucket:
    """The bucket that a profile is named after, such as 1152x896."""
    width, height = name.split("x")
    return Bucket(int(width), int(height))


def _size(count: int | None) -> str | None:
    """Bytes as a flag spells them, such as 8G."""
    if count is None:
        return None
    power = max(power for power in range(5) if count % (1 << 10 * power) == 0)
    return f"{count >> 10 * power}{('', 'K', 'M', 'G', 'T')[power]}"
