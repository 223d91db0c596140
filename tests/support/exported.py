"""Exported tiny models, made once for all tests of a run, however many workers share it."""

import fcntl
from collections.abc import Callable
from pathlib import Path

from diffusion_rt.export.checkpoint import open_checkpoint
from diffusion_rt.export.pipeline import export
from support.checkpoints import VARIANTS, make_tiny_checkpoint
from support.tracing import tracer

ExportedModel = Callable[[str], Path]


def exported(variant: str, shared: Path) -> Path:
    """The exported folder of one of `checkpoints.VARIANTS` in `shared`, made if missing."""
    shared.mkdir(exist_ok=True)
    with (shared / f"{variant}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = shared / variant
        if not (folder / "manifest.json").exists():
            make_tiny_checkpoint(folder, **VARIANTS[variant])
            kept = tracer(shared.parent / "traces")
            export(
                open_checkpoint(folder), folder, precisions=["float32"], check=False, tracer=kept
            )
    return folder
