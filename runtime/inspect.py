"""What a PNG of ours or a model folder says of itself: plain data, and the same as text."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

from diffusion_rt.command import plain
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.manifest import GraphVariant
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.safetensors_file import read_table
from diffusion_rt.engines.spec import TensorSpec
from diffusion_rt.engines.typed_json import encode
from diffusion_rt.runtime.picture import COMMON, OURS, parse_metadata
from diffusion_rt.runtime.png_text import read_png_text
from diffusion_rt.runtime.redraw import command_of
from diffusion_rt.runtime.request import Request

Progress = Callable[[str, int, int], None]


def inspect(
    path: Path, *, verify: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """What is known of a picture or a model folder, as JSON can hold it; "kind" says which it is.

    `verify` hashes every file of a model folder whole, and `progress("verify", done, total)` hears
    of the bytes; without it weights are checked by size and table of tensors. Raises BadInput where
    the path is neither, or damaged.
    """
    if path.is_dir():
        return _model(path, verify, progress)
    if verify:
        raise BadInput(f"{path} is no model folder; --verify is for one of these")
    return _picture(path)


def report(found: Mapping[str, Any]) -> str:
    """What `inspect` found, as lines that are safe to print."""
    return "\n".join(_model_lines(found) if found["kind"] == "model" else _picture_lines(found))


def _picture(path: Path) -> dict[str, Any]:
    png = read_png_text(path, {OURS, COMMON})
    found: dict[str, Any] = {
        "kind": "picture",
        "file": str(path),
        "width": png.width,
        "height": png.height,
    }
    if OURS not in png.texts:
        if COMMON not in png.texts:
            raise BadInput(
                f"{path} does not say how it was drawn: not by diffusion-rt, or its metadata was "
                "stripped since"
            )
        return found | {"parameters": png.texts[COMMON]}
    metadata = parse_metadata(png.texts[OURS], f"{path}: {OURS}")
    request, command, reason = metadata.request, None, None
    try:
        command = command_of(metadata)
    except BadInput as error:
        reason = str(error)
    chosen = {
        field.name: encode(getattr(request, field.name))
        for field in fields(Request)
        if getattr(request, field.name) != field.default
    }
    found |= {**encode(metadata.origin), "request": chosen, "command": command}
    return found | ({"no_command": reason} if reason else {})


def _picture_lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(
        [("picture", found["file"]), ("size", f"{found['width']}x{found['height']}")]
        + [(name, found[name]) for name in ("program", "engine", "model") if name in found]
        + [(name, _plainly(value)) for name, value in found.get("request", {}).items()]
    )
    if "parameters" in found:
        yield "drawn by another program, which says:"
        yield from (f"  {plain(line)}" for line in found["parameters"].split("\n"))
    elif found["command"] is None:
        yield f"no command draws it again: {plain(found['no_command'])}"
    else:
        yield "drawn again by:"
        yield found["command"]


def _model(path: Path, verify: bool, progress: Progress | None) -> dict[str, Any]:
    folder = open_model(path)
    manifest = folder.manifest
    if verify:
        total, done = sum(record.size for record in manifest.files.values()), 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            if progress:
                progress("verify", done, total)

        folder.verify(full=True, progress=count)
    return {
        "kind": "model",
        "folder": str(folder.path),
        "name": manifest.name,
        "family": manifest.family,
        "sha256": folder.sha256,
        "checked": "every byte" if verify else "sizes, tables of tensors, and all small files",
        "bytes": sum(record.size for record in manifest.files.values()),
        "files": len(manifest.files),
        "defaults": encode(manifest.defaults),
        "schedule": encode(manifest.schedule),
        "text_encoders": encode(manifest.text_encoders),
        "unet": encode(manifest.unet),
        "vae": encode(manifest.vae),
        "force_zeros_for_empty_prompt": manifest.force_zeros_for_empty_prompt,
        "graphs": {
            graph: {p: _graph(folder, variant) for p, variant in variants.items()}
            for graph, variants in manifest.graphs.items()
        },
        "weights": [
            _weights(folder, name) for name in manifest.files if name.endswith(".safetensors")
        ],
        "exporter": dict(manifest.exporter),
    }


def _graph(folder: ModelFolder, variant: GraphVariant) -> dict[str, Any]:
    return {
        "file": variant.file,
        "bytes": folder.manifest.files[variant.file].size,
        "inputs": [_signature(spec) for spec in variant.inputs],
        "outputs": [_signature(spec) for spec in variant.outputs],
    }


def _signature(spec: TensorSpec) -> str:
    return f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _weights(folder: ModelFolder, name: str) -> dict[str, Any]:
    tensors = read_table(folder.path / name).tensors.values()
    values: Counter[str] = Counter()
    for tensor in tensors:
        values[tensor.dtype] += prod(tensor.shape)
    return {
        "file": name,
        "bytes": folder.manifest.files[name].size,
        "tensors": len(tensors),
        "values": dict(values),
    }


def _model_lines(found: Mapping[str, Any]) -> Iterator[str]:
    schedule, defaults = found["schedule"], found["defaults"]
    yield from _table(
        [
            ("model", f"{found['name']} ({found['family']})"),
            ("folder", found["folder"]),
            ("sha256", found["sha256"]),
            ("files", f"{found['files']}, {_size(found['bytes'])}"),
            ("checked", found["checked"]),
            ("defaults", _plainly(defaults)),
            ("sampler", f"{schedule['scheduler']}, {schedule['prediction_type']}"),
            *(("text encoder", _encoder(encoder)) for encoder in found["text_encoders"]),
            ("exported by", _plainly(found["exporter"])),
        ]
    )
    for graph, variants in found["graphs"].items():
        for precision, variant in variants.items():
            yield ""
            yield plain(f"{graph} {precision}: {variant['file']}, {_size(variant['bytes'])}")
            for arrow, specs in (("in ", variant["inputs"]), ("out", variant["outputs"])):
                yield from (f"  {arrow} {plain(spec)}" for spec in specs)
    yield ""
    for weights in found["weights"]:
        values = ", ".join(f"{count:,} {dtype}" for dtype, count in weights["values"].items())
        size = f"{_size(weights['bytes'])}, {weights['tensors']} tensors"
        yield plain(f"{weights['file']}: {size}, {values}")


def _encoder(encoder: Mapping[str, Any]) -> str:
    return (
        f"{encoder['graph']}: {encoder['layers']} layers of {encoder['width']}, "
        f"{encoder['max_length']} tokens, {encoder['tokenizer']}"
    )


def _table(rows: list[tuple[str, Any]]) -> Iterator[str]:
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"{name:<{wide}}  {plain(str(value))}"


def _plainly(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return str(value)


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count} bytes"
