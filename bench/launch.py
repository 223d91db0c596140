"""A command in a fresh process: how long it took and how much memory it held at most."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusion_rt.engines.errors import Fault

LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """A command that succeeded."""

    started_at: float  # seconds since 1970
    seconds: float  # from its start to its end
    peak_rss: int  # bytes


def launch(command: Sequence[str], *, timeout: float = 3600) -> Ran:
    """Run a command to its end. Raises Fault with its last words where it fails."""
    launcher = [sys.executable, "-I", "-S", str(LAUNCHER)]
    try:
        done = subprocess.run([*launcher, *command], capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Fault(f"{_named(command)}: did not end within {timeout:.0f} s") from None
    words = done.stderr.decode(errors="replace").strip().splitlines() or ["no word"]
    if done.returncode:
        raise Fault(f"{_named(command)}: cannot be started: {words[-1][:300]}")
    found = json.loads(done.stdout)
    if found["status"]:
        raise Fault(f"{_named(command)}: status {found['status']}: {words[-1][:300]}")
    return Ran(started_at=found["started_at"], seconds=found["seconds"], peak_rss=found["peak_rss"])


def _named(command: Sequence[str]) -> str:
    return " ".join(Path(word).name for word in command[:4])[:100]
