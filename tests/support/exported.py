"""Exported tiny models, made once for all tests of a run, however many workers share it."""

import fcntl
from collections.abc import Callable
from pathlib import Path

from diffusion_rt.export.checkpoint import open_checkpoint
from diffusion_rt.export.pipeline import export
from support.checkpoints import VARIANTS, make_tiny_checkpoint

ExportedModel = Callable[[str], Path]


def exported(variant: str, shared: Path) -> Path:
    """The exported folder of one of `checkpoints.VARIANTS` in `shared`, made if missing."""
    shared.mkdir(exist_ok=True)
    with (shared / f"{variant}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = shared / variant
        if not (folder / "manifest.json").exists():
            make_tiny_checkpoint(folder, **VARIANTS[variant])
            export(open_checkpoint(folder), folder, precisions=["float32"], check=False)
    return folder
