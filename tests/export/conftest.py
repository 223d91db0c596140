"""Tiny checkpoints and what was exported of them, each made once."""

from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.export.checkpoint import open_checkpoint
from diffusion_rt.export.pipeline import Exported, export
from support.checkpoints import LEAST, MakeCheckpoint, make_tiny_checkpoint
from support.tracing import Tracer
from support.tracing import tracer as kept_traces


@pytest.fixture(scope="session")
def tracer(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Tracer:
    base = tmp_path_factory.getbasetemp()
    return kept_traces((base if worker_id == "master" else base.parent) / "traces")


@pytest.fixture
def checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Writes a tiny checkpoint into a folder of this test, by default the least."""

    def make(name: str = "checkpoint", **settings: Any) -> Path:
        return make_tiny_checkpoint(tmp_path / name, **{**LEAST, **settings})

    return make


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, tracer: Tracer) -> Exported:
    """The plain checkpoint, exported in both precisions and checked; read only."""
    folder = make_tiny_checkpoint(tmp_path_factory.mktemp("plain") / "model")
    return export(open_checkpoint(folder), folder, tracer=tracer)
