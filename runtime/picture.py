"""Pictures as PNG files that carry what drew them, and the reading of it back.

Two texts are stored: `parameters`, as AUTOMATIC1111 writes it and many programs read it, and
`diffusion_rt`, JSON with every setting, which is the one read back.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion_rt import __version__
from diffusion_rt.engines import strict_json
from diffusion_rt.engines.artefact import writing
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.model_folder import ModelFolder
from diffusion_rt.engines.typed_json import Between, Line, Sha256, decode, encode
from diffusion_rt.runtime.output import is_folder, names
from diffusion_rt.runtime.parameters import parameters
from diffusion_rt.runtime.png_text import read_png_text
from diffusion_rt.runtime.request import Request

OURS, COMMON = "diffusion_rt", "parameters"
VERSION = 1  # of the JSON
MODELS = Path(__file__).resolve().parent / "models"  # those that come with the program

_NO_PROMPT: dict[str, Any] = {"prompt": None}  # for Request to refuse where there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a picture comes from, beside its request."""

    program: Line  # with its version
    engine: Line
    model: Line
    model_sha256: Sha256  # of its manifest, and so of everything in it
    shipped: bool  # the model came with the program
    tile: Annotated[int, Between(1, 1 << 20)] | None  # latent pixels; None: decoded in one pass


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a PNG file of ours says of itself."""

    request: Request
    origin: Origin


def describe(
    request: Request, folder: ModelFolder, engine: str, *, tile: int | None = None
) -> dict[str, str]:
    """The texts that `save_png` stores, for `Image.info`.

    `request` is of this one picture, with every choice made; `engine` is the backend's name.
    """
    origin = Origin(
        program=f"diffusion-rt {__version__}",
        engine=engine,
        model=folder.manifest.name,
        model_sha256=folder.sha256,
        shipped=folder.path.is_relative_to(MODELS),
        tile=tile,
    )
    content = {"version": VERSION, **encode(origin), "request": encode(request)}
    return {
        COMMON: parameters(request, origin.model, origin.model_sha256, origin.program),
        OURS: json.dumps(content, ensure_ascii=False),
    }


def save_pictures(
    images: Sequence[Image.Image],
    output: str,
    *,
    overwrite: bool = False,
    strip_metadata: bool = False,
) -> Iterator[Path]:
    """Save each picture, and give its path as soon as it is there.

    `output` is as for `check_output`. A file that has appeared meanwhile is kept: in a folder the
    next number is taken, elsewhere BadInput is raised unless `overwrite`.
    """
    numbered = is_folder(output)
    free = names(output, len(images))
    if numbered:
        Path(output).mkdir(exist_ok=True)
    for image in images:
        for path in free:
            try:
                save_png(
                    image,
                    path,
                    strip_metadata=strip_metadata,
                    overwrite=overwrite and not numbered,
                )
            except FileExistsError:
                if numbered:
                    continue
                raise BadInput(
                    f"output: {path} exists and is kept; choose another name or ask to overwrite it"
                ) from None
            yield path
            break


def save_png(
    image: Image.Image, path: Path, *, strip_metadata: bool = False, overwrite: bool = True
) -> None:
    """Write a picture whole or not at all, with the texts of `describe` unless they are stripped.

    Nothing else of `Image.info` is stored. Raises BadInput where the file cannot be written, and
    FileExistsError where it exists and is not to be overwritten.
    """
    texts = PngInfo()
    if not strip_metadata:
        for key, add in ((COMMON, texts.add_text), (OURS, texts.add_itxt)):
            if key in image.info:
                add(key, image.info[key])
    bare = image.copy()
    bare.info = {}
    with writing(path, replace=overwrite) as file:
        bare.save(file, "PNG", pnginfo=texts, compress_level=1)  # 6 takes twice as long for 10 %


def read_metadata(path: Path) -> Metadata:
    """What `describe` stored in a PNG file; BadInput where it is damaged or not there."""
    texts = read_png_text(path, {OURS}).texts
    if OURS not in texts:
        raise BadInput(
            f"{path} does not say how it was drawn: not by diffusion-rt, or its metadata was "
            "stripped since"
        )
    return parse_metadata(texts[OURS], f"{path}: {OURS}")


def parse_metadata(text: str, what: str) -> Metadata:
    """The metadata that `text` spells; BadInput, beginning with `what`, where it is broken."""
    content = strict_json.parse(text.encode(), what)
    if not isinstance(content, dict):
        raise BadInput(f"{what}: got {shown(content)}, wants an object")
    version = content.pop("version", None)
    if version != VERSION:
        raise BadInput(
            f"{what}: version {shown(version)}, this program reads {VERSION}; use the version of "
            "diffusion-rt that drew the picture"
        )
    settings = content.pop("request", None)
    if not isinstance(settings, dict):
        raise BadInput(f"{what}: request: got {shown(settings)}, wants an object")
    known = {field.name for field in fields(Request)}
    if unknown := sorted(settings.keys() - known):
        raise BadInput(f"{what}: request: {shown(unknown[0])} is no setting of this version")
    for name, value in settings.items():
        if isinstance(value, list):
            settings[name] = tuple(value)
    try:
        return Metadata(Request(**_NO_PROMPT | settings), decode(Origin, content, ""))
    except BadInput as wrong:
        raise BadInput(f"{what}: {wrong}") from None
