"""The key of a plan: everything it depends on, and what is said where two keys differ."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated

from diffusion_rt.engines.trt.options import BuilderOptions, Edits
from diffusion_rt.engines.trt.profiles import Profile
from diffusion_rt.engines.typed_json import Between, Line, RelativePath, Sha256, Word

RECIPE = 1
"""How `builder.py` and `network.py` set TensorRT up: raised whenever they do it in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What of a machine a plan depends on."""

    gpu: Line  # such as NVIDIA H200
    arch: Annotated[int, Between(10, 999)]  # compute capability times ten
    driver: Line  # the newest CUDA the driver knows, such as 13.0
    tensorrt: Word  # such as 11.4.0.106


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """Everything a plan depends on: equal keys, the same plan.

    Weights are part of it for a stripped plan too: `REFIT_IDENTICAL` promises TensorRT the very
    weights that it saw when it built.
    """

    graph: Word
    onnx: Sha256  # of the exported graph's file
    weights: Mapping[RelativePath, Sha256]  # the files its initializers lie in
    edits: Edits
    network: Sha256  # of the bytes that TensorRT parses, and so of this program's edits
    plugin: Sha256 | None  # of the attention kernel, where it takes part
    profiles: tuple[Profile, ...]
    builder: BuilderOptions
    recipe: Annotated[int, Between(1, 1 << 30)] = RECIPE
    machine: Machine


def differences(have: Key, want: Key) -> list[str]:
    """Which parts of the key changed, in words, from the plan there is to the one wanted."""
    found = []
    if have.onnx != want.onnx:
        found.append("the exported graph changed")
    for name in sorted(have.weights.keys() | want.weights.keys()):
        if have.weights.get(name) != want.weights.get(name):
            found.append(f"{name} changed")
    if have.profiles != want.profiles:
        found.append(_profiles_differ(have.profiles, want.profiles))
    for part in ("edits", "builder", "machine"):
        found += _fields_differ(getattr(have, part), getattr(want, part))
    if have.plugin != want.plugin:
        found.append("the attention kernel changed")
    if have.recipe != want.recipe:
        found.append("this diffusion-rt builds in another way")
    if have != want and not found:
        found.append("this diffusion-rt prepares the graph in another way")
    return found


def _fields_differ(have: object, want: object) -> list[str]:
    found = []
    for field in fields(have):  # type: ignore[arg-type]  # both are of one dataclass
        before, after = getattr(have, field.name), getattr(want, field.name)
        if before != after:
            found.append(f"{field.name.replace('_', ' ')} {_word(before)}, now {_word(after)}")
    return found


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "unset" if value in (None, "") else str(value)


def _profiles_differ(have: tuple[Profile, ...], want: tuple[Profile, ...]) -> str:
    before, after = ({p.name: p.sizes for p in profiles} for profiles in (have, want))
    gone = [name for name in before if name not in after]
    new = [name for name in after if name not in before]
    told = [f"{_some(gone)} no longer wanted"] if gone else []
    told += [f"{_some(new)} not in the plan"] if new else []
    if told:
        return f"sizes: {', '.join(told)}"
    for name, sizes in after.items():
        for symbol, size in sizes.items():
            if before[name].get(symbol) != size:
                return f"{symbol} {before[name].get(symbol)}, now {size}"
    return "sizes in another order"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
