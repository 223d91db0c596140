"""Parts of the GPU run: the native engine beside its peers, by the benchmark that anyone can run.

Same weights, same noise, thirty steps at 1024x1024; each is held against diffusers in float32
before its clock starts.
"""

import subprocess
import sys
import time
from importlib.util import find_spec

from diffusion_rt.bench.gpu_prepare import model_of
from diffusion_rt.bench.gpu_rows import Outcome, Sink
from diffusion_rt.bench.records import OURS

REPEATS = 3


def eager(sink: Sink) -> None:
    """diffusers with scaled dot-product attention."""
    _race(sink, "diffusers")


def compiled(sink: Sink) -> None:
    """diffusers under torch.compile, and ONNX Runtime where it has its provider for GPUs."""
    _race(sink, "compile", *(["ort"] if find_spec("onnxruntime") and _ort_sees_a_gpu() else []))


def _race(sink: Sink, *peers: str) -> None:
    folder = model_of(sink, peers[0])
    if folder is None:
        return
    if sink.chip.simulated:
        sink.not_run(peers[0], "on a simulator it is the test suite itself")
        return
    command = [sys.executable, "-m", "diffusion_rt", "bench", "stages"]
    command += ["--model", str(folder.path), "--device", "cuda", "--engine", "native"]
    command += ["--setting", "steps30", "--against", ",".join(peers)]
    command += ["--repeats", str(REPEATS), "--warm-up", "1", "--output", str(sink.output)]
    for line in told(sink, command).splitlines():
        outcome: Outcome = "wrong" if "not timed" in line else "timed"
        # A peer that cannot run here says nothing of what is right.
        if "not timed, failed:" in line and not line.startswith(OURS):
            outcome = "not run"
        sink.say(peers[0], outcome, line)


def told(sink: Sink, command: list[str]) -> str:
    """What a command prints; RuntimeError with its last words where it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=max(sink.deadline - time.time(), 1),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError("out of time") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"status {done.returncode}: {last}")
    return done.stdout


def _ort_sees_a_gpu() -> bool:
    from diffusion_rt.engines.ort.library import import_library

    return "CUDAExecutionProvider" in import_library().get_available_providers()
