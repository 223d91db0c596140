"""Fixtures that the tests of several folders share."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Let Ctrl-C be Ctrl-C, here and in what is started from here: a shell's background job has it
    ignored, and some tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def exported_model(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str], Path]:
    """The exported folder of one of `support.checkpoints.VARIANTS`, by its name; read only."""
    from support.exported import exported  # only here: it imports torch

    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "exported"
    return lambda variant: exported(variant, shared)
