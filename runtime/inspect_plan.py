"""What a picture of one size costs on a chip, from the plans of the native engine alone.

No weight is read and no device is asked: an exported folder suffices, with or without its
safetensors files, on any machine. Ways to run an operation are chosen as on such a chip: by what
was measured here on one of its kind, by a table that ships, or by the model that orders them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from diffusion_rt.command import plain
from diffusion_rt.engines.errors import BadInput, shown
from diffusion_rt.engines.model_folder import ModelFolder, open_model
from diffusion_rt.engines.native.chips import GAP, Roof, roof
from diffusion_rt.engines.native.counts import kernel_counts
from diffusion_rt.engines.native.lower import plan_of
from diffusion_rt.engines.native.plan import Plan
from diffusion_rt.engines.native.precision import arithmetic
from diffusion_rt.engines.native.reckon import limits_under
from diffusion_rt.engines.native.roofline import by_kind, total
from diffusion_rt.engines.native.tactics import Chosen, of_kind
from diffusion_rt.engines.spec import GRAPHS, Precision
from diffusion_rt.engines.trt.buckets import Bucket

MOST_IMAGES = 64
DETAILED = "unet_step"  # the graph whose operations are listed by kind, where none is named
# What one denoising step of a UNet in one piece would compute; the first two once a request.
STEP = ("unet_prompt", "unet_timestep", "unet_step")


def inspect_plan(
    path: Path,
    *,
    bucket: str | None = None,
    images: int = 1,
    chip: str = "h200",
    dtype: Precision | None = None,
) -> dict[str, Any]:
    """The plans of a model folder's graphs at one size, as JSON can hold it.

    `bucket` is a picture's WIDTHxHEIGHT, the model's own size where None; the UNet has two rows for
    each of `images`, unconditional and conditional, and the first window of a prompt. float16 where
    the folder has it. `refused` of a graph has a line for each operation that no kernel takes.
    Raises BadInput where the folder, the size or the chip is none, or where a graph cannot be
    lowered. `chosen` of a graph counts its operations by who chose their way.
    """
    size = None if bucket is None else _bucket(bucket)
    if not 1 <= images <= MOST_IMAGES:
        raise BadInput(f"--batch {images}, wants 1 to {MOST_IMAGES} images")
    top = roof(chip)
    folder = open_model(path, weights=False)
    defaults = folder.manifest.defaults
    size = size or Bucket(defaults.width, defaults.height)
    half = all("float16" in variants for variants in folder.manifest.graphs.values())
    usual: Precision = dtype or ("float16" if half else "float32")
    choose = of_kind(top.name, limits_under(top)).chosen
    graphs = {
        graph: _described(
            plan_of(folder, graph, sizes_of(folder, graph, size, images), kind), top, choose
        )
        for graph in GRAPHS
        if graph in folder.manifest.graphs and (kind := arithmetic(folder, graph, None, usual))
    }
    return {
        "kind": "plan",
        "folder": str(folder.path),
        "name": folder.manifest.name,
        "sha256": folder.sha256,
        "bucket": str(size),
        "images": images,
        "rows": 2 * images,
        "chip": {**asdict(top), "gap": GAP},
        "graphs": graphs,
        "step_flops": {
            "loop": graphs["unet_step"]["flops"],
            "once": sum(graphs[graph]["flops"] for graph in STEP if graph != "unet_step"),
            "whole": sum(graphs[graph]["flops"] for graph in STEP),
        },
        "request": {
            "steps": defaults.steps,
            "seconds": sum(
                graphs[graph]["seconds"] * count
                for graph, count in _counts(folder, defaults.steps, images).items()
            ),
        },
    }


def _counts(folder: ModelFolder, steps: int, images: int) -> dict[str, int]:
    """How often a request runs each graph, one evaluation a step."""
    once = dict.fromkeys([encoder.graph for encoder in folder.manifest.text_encoders], 1)
    return {**once, "unet_prompt": 1, "unet_timestep": 1, "unet_step": steps, "vae_decoder": images}


def _bucket(text: str) -> Bucket:
    match = re.fullmatch(r"([0-9]{1,6})[x×X]([0-9]{1,6})", text)
    if match is None:
        raise BadInput(f"--bucket {shown(text)}, wants WIDTHxHEIGHT such as 1024x1024")
    return Bucket(int(match[1]), int(match[2]))


def sizes_of(folder: ModelFolder, graph: str, bucket: Bucket, images: int) -> dict[str, int]:
    """The symbols of a graph's inputs: two rows an image, one evaluation, one window of tokens."""
    factor = folder.manifest.vae.factor
    side = 1 if graph == "vae_encoder" else factor
    encoders = {record.graph: record.max_length for record in folder.manifest.text_encoders}
    # The two prompts are encoded once, and pictures decoded one by one.
    batch = 2 if graph in encoders else 1 if graph.startswith("vae_") else 2 * images
    return {
        "batch": batch,
        "n": 2 * images,
        "tokens": encoders.get(graph, max(encoders.values())),
        "height": bucket.height // side,
        "width": bucket.width // side,
    }


def _described(plan: Plan, top: Roof, choose: Chosen) -> dict[str, Any]:
    counts = kernel_counts(plan, top, choose)
    kinds = by_kind(plan, top, counts.kernels)
    whole = asdict(total(kinds.values()))
    return {
        "dtype": plan.dtype,
        **whole,
        "arena": plan.arena_size,
        "arena_unshared": plan.unshared_size,
        "weights": plan.weights_size,
        "kinds": {kind: asdict(costs) for kind, costs in kinds.items()},
        "chosen": dict(counts.chosen),
        "refused": list(counts.refused),
    }


def report(found: Mapping[str, Any], graph: str = DETAILED, width: int = 110) -> str:
    """What `inspect_plan` found, as two tables; the second is of `graph`, by kind of operation.

    Raises BadInput where there is no such graph.
    """
    if graph not in found["graphs"]:
        raise BadInput(f"--graph {shown(graph)}, wants one of {', '.join(found['graphs'])}")
    text = StringIO()
    console = Console(file=text, width=width, color_system=None, highlight=False, markup=False)
    chip, flops = found["chip"], found["step_flops"]
    console.print(
        f"{plain(found['name'])}, {found['bucket']}, images: {found['images']} (two rows each)\n"
        f"{chip['name']}: {chip['half'] / 1e12:.0f} TFLOP/s of half precision, "
        f"{chip['single'] / 1e12:.0f} of float32, {chip['bandwidth'] / 1e12:.2f} TB/s, "
        f"{chip['exponentials'] / 1e12:.1f} T exponentials a second ({chip['source']}); "
        f"{chip['gap'] * 1e6:.1f} µs a kernel"
    )
    every = _table("graph", "arena MB", "weights MB", "type")
    for name, one in found["graphs"].items():
        every.add_row(name, *_cells(one), _mb(one["arena"]), _mb(one["weights"]), one["dtype"])
    console.print(every)
    detailed = found["graphs"][graph]
    kinds = _table(f"{graph}, by kind")
    for kind, one in detailed["kinds"].items():
        kinds.add_row(kind, *_cells(one))
    kinds.add_row("all", *_cells(detailed))
    console.print(kinds)
    console.print("\n".join(_notes(found, flops, graph)))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _notes(found: Mapping[str, Any], flops: Mapping[str, int], graph: str) -> Iterator[str]:
    yield (
        f"A step of the UNet in one piece: {flops['whole'] / 1e12:.3f} TFLOP, of which "
        f"{flops['once'] / 1e12:.3f} are computed once a request."
    )
    yield "GFLOP are the model's; a convolution over an enlarged picture is done with 4/9 of them."
    yield (
        f"A request of {found['request']['steps']} steps, prompt to pixels: "
        f"{found['request']['seconds']:.3f} s."
    )
    detailed = found["graphs"][graph]
    shared, apart = (_mb(detailed[key]) for key in ("arena", "arena_unshared"))
    yield f"The buffers of {graph} share {shared} MB; apart they would take {apart} MB."
    chosen = ", ".join(f"{count} {origin}" for origin, count in detailed["chosen"].items())
    yield f"Ways to run {graph}, by who chose them: {chosen}."
    yield "Times are reckoned at these rates, not measured; no cache is counted on."
    for name, one in found["graphs"].items():
        if one["refused"]:
            first, *others = one["refused"]
            more = f" (and {len(others)} more operations)" if others else ""
            tiles = ", or it decodes in tiles" if name == "vae_decoder" else ""
            yield plain(f"Cannot run: {first}{tiles}{more}")


def _table(first: str, *more: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for name in ("operations", "kernels", "GFLOP", "moved MB", "ms", *more):
        table.add_column(name, justify="right")
    return table


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(one["operations"]),
        str(one["kernels"]),
        f"{one['flops'] / 1e9:,.1f}",
        _mb(one["moved"]),
        f"{1e3 * one['seconds']:.3f}",
    )


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f}"
