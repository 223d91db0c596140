"""The command line that draws a picture again."""

import shlex
import unicodedata
from dataclasses import fields
from typing import Any

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.runtime.flags import FLAGS
from diffusion_rt.runtime.picture import Metadata
from diffusion_rt.runtime.request import Request

UNSAFE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # Unicode categories a terminal may act on


def arguments_of(metadata: Metadata) -> list[str]:
    """The arguments of `diffusion-rt` that ask for this picture from this model.

    The engine is left to the machine at hand. A model that did not ship with the program is named
    as its manifest names it, since a picture does not tell the folders of who drew it. A picture
    decoded in tiles asks for tiles; only memory makes them smaller than the model's own size.
    Raises BadInput where a text holds a NUL, which no argument can.
    """
    request = metadata.request
    found = ["generate"]
    # The prompt stands alone, unless it would be read as a flag or as standard input.
    found.append(f"--prompt={request.prompt}" if request.prompt[:1] == "-" else request.prompt)
    if not metadata.origin.shipped:
        found += _flag("model", metadata.origin.model)
    flags = {name: flag for group in FLAGS.values() for name, flag in group.items()}
    for field in fields(Request):
        value = getattr(request, field.name)
        if field.name != "prompt" and value != field.default:
            name = flags[field.name].short or field.name
            found += _flag(name, _written(field.name, value))
    if metadata.origin.tile is not None:
        found += ["--vae-tiling", "on"]
    for argument in found:
        if "\0" in argument:
            raise BadInput("a prompt holds a NUL character, which no command line can; use Python")
    return found


def command_of(metadata: Metadata) -> str:
    """The command, in one line that is safe to print and that bash or zsh reads back exactly."""
    return " ".join(["diffusion-rt", *(quoted(argument) for argument in arguments_of(metadata))])


def quoted(text: str) -> str:
    """`text` for a shell; as `$'…'` where it holds what could move a terminal's cursor."""
    if not any(unicodedata.category(c) in UNSAFE for c in text):
        return shlex.quote(text)
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if unicodedata.category(character) in UNSAFE:
        return "".join(f"\\x{byte:02x}" for byte in character.encode())
    return character


def _flag(name: str, value: str) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    return [f"{flag}={value}"] if value[:1] == "-" else [flag, value]


def _written(field: str, value: Any) -> str:
    if isinstance(value, tuple):
        return ("x" if field.endswith("_size") else ",").join(str(part) for part in value)
    return str(value)
