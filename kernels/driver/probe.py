"""Is there a driver and a GPU? Asked in a process of its own, so that nothing can hang or break.

Run as a file, it prints one JSON object; it imports nothing of ours for that.
"""

import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found: devices, or why there are none."""

    devices: tuple[str, ...]
    driver: str | None  # the newest CUDA it knows, such as 13.0
    missing: str | None  # one line, with the way out


def probe(timeout: float = TIMEOUT_SECONDS) -> Probe:
    """Ask in a subprocess; a driver that hangs or crashes is reported as missing."""
    command = [sys.executable, "-P", str(Path(__file__).resolve())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, text=True)
    except subprocess.TimeoutExpired:
        text = f"the NVIDIA driver did not answer in {timeout:g} s; look at nvidia-smi and dmesg"
        return Probe((), None, text)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        text = f"asking the NVIDIA driver ended with status {done.returncode}; reinstall the driver"
        return Probe((), None, text)
    found = json.loads(lines[-1])
    return Probe(tuple(found["devices"]), found["driver"], found["missing"])


def _look() -> dict[str, object]:
    found: dict[str, object] = {"devices": [], "driver": None, "missing": None}
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        found["missing"] = "cuda-bindings is not installed; pip install 'diffusion-rt[native]'"
        return found
    try:
        (status,) = driver.cuInit(0)
    except Exception as error:  # The bindings raise several kinds, SystemError among them.
        first = (str(error).splitlines() or [type(error).__name__])[0]
        found["missing"] = f"no NVIDIA driver ({first}); install one, in a container use --gpus all"
        return found
    if int(status) != 0:
        found["missing"] = f"the NVIDIA driver answers {status.name}; look at nvidia-smi"
        return found
    _, version = driver.cuDriverGetVersion()
    found["driver"] = f"{version // 1000}.{version % 1000 // 10}"
    _, count = driver.cuDeviceGetCount()
    names = []
    for ordinal in range(count):
        _, device = driver.cuDeviceGet(ordinal)
        _, name = driver.cuDeviceGetName(256, device)
        names.append(name.split(b"\0")[0].decode(errors="replace"))
    found["devices"] = names
    if not names:
        found["missing"] = "no NVIDIA GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return found


if __name__ == "__main__":
    print(json.dumps(_look()))
