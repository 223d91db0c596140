"""What a measurement was made on: processor, versions, commit. No host name, no path."""

import os
import platform
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

from diffusion_rt import __version__
from diffusion_rt.engines.typed_json import Between, Line

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "diffusers", "transformers")
ROOT = Path(__file__).resolve().parent.parent  # of a checkout; of the package where installed
SOURCES = ("bench", "engines", "export", "kernels", "runtime", "src")
CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The processor, as far as a measurement depends on it."""

    kind: Literal["cpu", "gpu"]
    name: Line
    cores: Annotated[int, Between(1, 1 << 20)]  # that this process may use
    memory: Annotated[int, Between(0, 1 << 50)]  # bytes
    model: Line | None = None  # of a CPU, whose name may be a whole family's
    # As they stood when the record was made; they do not make it another device.
    driver: Line | None = field(default=None, compare=False)
    sm_mhz: Annotated[int, Between(0, 1 << 20)] | None = field(default=None, compare=False)
    memory_mhz: Annotated[int, Between(0, 1 << 20)] | None = field(default=None, compare=False)
    mhz: Annotated[int, Between(0, 1 << 20)] | None = field(default=None, compare=False)

    @property
    def key(self) -> tuple[str | int, ...]:
        """What tells devices apart: of memory the GiB, since twins differ by some kilobytes."""
        return self.kind, self.name, self.model or "", self.cores, round(self.memory / (1 << 30))

    def __str__(self) -> str:
        """Such as `AMD EPYC (family 25, model 17), 2 cores` or `NVIDIA H200, 132 SMs`."""
        unit = "SM" if self.kind == "gpu" else "core"
        model = f" ({self.model})" if self.model else ""
        return f"{self.name}{model}, {self.cores} {unit}{'s' if self.cores > 1 else ''}"


def this_cpu() -> Device:
    """The processor that this process runs on, and its clock where the kernel tells it."""
    numbers = _entry(CPUINFO, "cpu family"), _entry(CPUINFO, "model")
    clock = _entry(CPUINFO, "cpu MHz")
    return Device(
        kind="cpu",
        name=_entry(CPUINFO, "model name") or platform.machine() or "unknown",
        cores=len(os.sched_getaffinity(0)),
        memory=int((_entry(MEMINFO, "MemTotal") or "0").split()[0]) * 1024,
        model="family {}, model {}".format(*numbers) if all(numbers) else None,
        mhz=None if clock is None else round(float(clock)),
    )


def versions() -> dict[str, str]:
    """Of the kernel, Python, this package and the measured packages, those that are installed."""
    found = {
        "linux": platform.release().partition("-")[0],  # what follows is whoever built it
        "python": platform.python_version(),
        "diffusion-rt": __version__,
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def checkout() -> Path | None:
    """The clone that this program runs from; None where it is installed."""
    inside = (ROOT / "pyproject.toml").is_file() and (ROOT / "src" / "diffusion_rt").is_dir()
    return ROOT if inside else None


def commit() -> tuple[str | None, bool]:
    """The commit of the checkout, and whether its sources were changed since."""
    root = checkout()
    head = _git(root, "rev-parse", "HEAD") if root else None
    if root is None or head is None:
        return None, False
    # Records and what is made of them change with every run, and change nothing that is measured.
    changes = _git(root, "status", "--porcelain", "--", *SOURCES, ":!bench/results", ":!*.md")
    return head, changes != ""


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _entry(path: Path, key: str) -> str | None:
    """The value of the first line `key : value` of a file in /proc."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip() or None
    return None
