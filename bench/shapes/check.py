"""Draw captions that were kept out of training, measure the pictures, and record what is right."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_rt.bench import machine
from diffusion_rt.bench.shapes.captions import (
    FORMS,
    Kind,
    Scene,
    Size,
    Wording,
    caption,
    held_out,
    sample_scene,
)
from diffusion_rt.bench.shapes.draw import PALETTE, Pixels, fits
from diffusion_rt.bench.shapes.see import PARTS, judge, see

SQUARE: Size = (128, 128)
OTHERS: tuple[Size, ...] = ((96, 160), (160, 96), (112, 144), (144, 112))


@dataclass(frozen=True, slots=True)
class Ask:
    """One picture to draw; None stands for the model's default."""

    prompt: str
    seed: int
    size: Size = SQUARE
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    original_size: Size | None = None


Artist = Callable[[Sequence[Ask]], list[Pixels]]


def held_out_scenes(kind: Kind, count: int, size: Size = SQUARE, seed: int = 0) -> list[Scene]:
    """The first `count` scenes of a stream that are held out and fit the picture."""
    rng = np.random.default_rng([77, seed])
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = sample_scene(rng, kind)
        if held_out(scene) and fits(scene, size):
            scenes.append(scene)
    return scenes


def ask_for(scene: Scene, number: int, size: Size = SQUARE) -> Ask:
    """The request for a scene, worded in full; the form of words goes round."""
    return Ask(caption(scene, Wording(form=number % FORMS)), seed=1000 + number, size=size)


def diffusers_artist(folder: Path) -> Artist:
    """Draw with diffusers' own pipeline, many captions at once."""
    import torch
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    defaults = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))

    def paint(asks: Sequence[Ask]) -> list[Pixels]:
        pictures: list[Pixels] = []
        for start in range(0, len(asks), 25):
            chunk = asks[start : start + 25]
            first = chunk[0]
            negative = [a.negative_prompt or "" for a in chunk]
            output = pipeline(
                prompt=[a.prompt for a in chunk],
                negative_prompt=negative if any(negative) else None,
                height=first.size[0],
                width=first.size[1],
                original_size=first.original_size,
                num_inference_steps=defaults["num_inference_steps"],
                guidance_scale=first.guidance_scale or defaults["guidance_scale"],
                generator=[torch.Generator("cpu").manual_seed(a.seed) for a in chunk],
                output_type="np",
            ).images
            pictures += list(np.rint(output * 255).astype(np.uint8))
        return pictures

    return paint


def runtime_artist(folder: Path, engine: str) -> Artist:
    """Draw with this project's runtime, one caption at a time."""
    from diffusion_rt import Pipeline, Request

    pipeline = Pipeline.open(folder, engine=engine)

    def paint(asks: Sequence[Ask]) -> list[Pixels]:
        pictures: list[Pixels] = []
        for ask in asks:
            options: dict[str, Any] = {}
            for name in ("negative_prompt", "guidance_scale", "original_size"):
                if getattr(ask, name) is not None:
                    options[name] = getattr(ask, name)
            height, width = ask.size
            request = Request(
                prompt=ask.prompt, seed=ask.seed, height=height, width=width, **options
            )
            pictures.append(np.asarray(pipeline.generate(request).images[0].convert("RGB")))
        return pictures

    return paint


def accuracy(
    scenes: Sequence[Scene], pictures: Sequence[Pixels]
) -> tuple[dict[str, float], list[bool]]:
    """The share of pictures right in each part and in all, and which ones are."""
    verdicts = [judge(s, see(p)) for s, p in zip(scenes, pictures, strict=True)]
    shares = {part: float(np.mean([v[part] for v in verdicts])) for part in ("all", *PARTS)}
    return shares, [v["all"] for v in verdicts]


def colour_share(pictures: Sequence[Pixels], colour: str) -> float:
    """How many of all things drawn have a colour."""
    drawn = [t.colour for p in pictures for t in see(p).things]
    return drawn.count(colour) / max(len(drawn), 1)


def sharpness(pictures: Sequence[Pixels]) -> float:
    """The steepest step between neighbours, as a share of the picture's contrast; mean over all."""
    steps = []
    for picture in pictures:
        image = picture.astype(np.float64)
        across = np.linalg.norm(np.diff(image, axis=1), axis=2)
        down = np.linalg.norm(np.diff(image, axis=0), axis=2)
        contrast = np.linalg.norm(image - np.median(image, axis=(0, 1)), axis=2).max()
        if contrast > 40:
            top = np.sort(np.concatenate([across.ravel(), down.ravel()]))[-100:]
            steps.append(top.mean() / contrast)
    return float(np.mean(steps)) if steps else 0.0


def sheet(
    pictures: Sequence[Pixels], right: Sequence[bool], columns: int = 10
) -> NDArray[np.uint8]:
    """All pictures of one size on one sheet; a red bar lies under those judged wrong."""
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // columns)
    board = np.zeros((rows * (height + 6), columns * (width + 2), 3), dtype=np.uint8)
    for i, (picture, is_right) in enumerate(zip(pictures, right, strict=True)):
        top, left = i // columns * (height + 6), i % columns * (width + 2)
        board[top : top + height, left : left + width] = picture
        board[top + height + 1 : top + height + 5, left : left + width] = (
            (0, 120, 0) if is_right else (255, 0, 0)
        )
    return board


def records(paint: Artist, count: int, full: bool, sheets: Path | None) -> list[dict[str, Any]]:
    """All measurements; `full` adds guidance, negative prompts, sharpness and the other buckets."""
    found: list[dict[str, Any]] = []

    def measure(name: str, scenes: list[Scene], asks: list[Ask]) -> None:
        pictures = paint(asks)
        shares, right = accuracy(scenes, pictures)
        found.append({"what": name, "n": len(scenes), **shares})
        print(
            f"{name:28s} n={len(scenes):4d}  "
            + "  ".join(f"{k} {v:.3f}" for k, v in shares.items())
        )
        if sheets is not None:
            sheets.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet(pictures, right)).save(sheets / f"{name.replace(' ', '-')}.png")
            wrong = [a.prompt for a, r in zip(asks, right, strict=True) if not r]
            (sheets / f"{name.replace(' ', '-')}.txt").write_text("\n".join(wrong) + "\n")

    one = held_out_scenes("single", count)
    half = count // 2
    two = held_out_scenes("relation", count - half) + held_out_scenes("pair", half)
    asks_one = [ask_for(s, i) for i, s in enumerate(one)]
    asks_two = [ask_for(s, i) for i, s in enumerate(two)]
    measure("one object", one, asks_one)
    measure("two objects", two, asks_two)
    if not full:
        return found
    few = max(count // 4, 4)
    row = held_out_scenes("row", few)
    measure("counts", row, [ask_for(s, i) for i, s in enumerate(row)])
    for scale in (1.0, 2.0, 5.0):
        for name, scenes, asks in (("one object", one, asks_one), ("two objects", two, asks_two)):
            at = slice(None, None, count // few)
            chosen = [replace(a, guidance_scale=scale) for a in asks[at]]
            measure(f"{name} guidance {scale:g}", scenes[at], chosen)
    for size in OTHERS:
        scenes = held_out_scenes("single", few // 2, size)
        scenes += held_out_scenes("relation", few // 2, size)
        asks = [ask_for(s, i, size) for i, s in enumerate(scenes)]
        measure(f"bucket {size[1]}x{size[0]}", scenes, asks)
    found += _negative(paint, few) + _sharp(paint, asks_one[:few])
    return found


def _negative(paint: Artist, count: int) -> list[dict[str, Any]]:
    """The share of each of three colours, where none was asked for, with and without a negative."""
    found = []
    plain = [Ask("a large circle on a white background", seed=5000 + i) for i in range(count)]
    free = paint(plain)
    for colour in ("red", "blue", "green"):
        avoided = paint([replace(a, negative_prompt=colour) for a in plain])
        shares = {"without": colour_share(free, colour), "with": colour_share(avoided, colour)}
        found.append({"what": f"negative prompt {colour}", "n": count, **shares})
        print(found[-1])
    others = {c: colour_share(free, c) for c in PALETTE}
    found.append({"what": "colours without negative prompt", "n": count, **others})
    print(found[-1])
    return found


def _sharp(paint: Artist, asks: list[Ask]) -> list[dict[str, Any]]:
    """Edge sharpness when the original is said to be small, and when it is not."""
    found = []
    for side in (32, 64, 128):
        value = sharpness(paint([replace(a, original_size=(side, side)) for a in asks]))
        found.append({"what": f"sharpness at original size {side}", "n": len(asks), "value": value})
        print(found[-1])
    return found


def circumstances(folder: Path, artist: str) -> dict[str, Any]:
    """Where and with what a record was made."""
    head, changed = machine.commit()
    return {
        "model": folder.name,
        "artist": artist,
        "device": str(machine.this_cpu()),
        "versions": machine.versions(),
        "commit": head,
        "changed": changed,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the checkpoint, or the exported model folder")
    parser.add_argument("--artist", choices=("runtime", "diffusers"), default="runtime")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets and wrong captions")
    parser.add_argument("--record", type=Path, help="JSON lines file to add the results to")
    options = parser.parse_args()
    if options.artist == "diffusers":
        paint = diffusers_artist(options.model)
    else:
        paint = runtime_artist(options.model, options.engine)
    found = records(paint, options.count, options.full, options.sheets)
    if options.record is not None:
        options.record.parent.mkdir(parents=True, exist_ok=True)
        where = circumstances(options.model, options.artist)
        with options.record.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**where, **record}) + "\n" for record in found)


if __name__ == "__main__":
    main()
