"""Parts of the GPU run: the project's own tests of devices, kernels and engines, on it."""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from diffusion_rt.bench import machine
from diffusion_rt.bench.gpu_rows import Sink

NEEDS = ("pytest", "hypothesis")
CONTRACT = ("tests/kernels/driver/test_contract.py",)
KERNELS = (
    "tests/engines/native/test_graphs.py",
    *(
        f"tests/kernels/test_{name}.py"
        for name in (
            "step_loop",
            "gemm_sm90",
            "conv_sm90",
            "attention_sm90",
            "gemm",
            "conv",
            "attention",
            "elementwise",
            "prepare",
            "select_rows",
            "layer_norm",
            "group_norm",
            "guided_step",
        )
    ),
)
TENSORRT = ("tests/engines/trt",)
SECONDS_A_TEST = 60


def contract(sink: Sink) -> None:
    """What every device does, the simulator's half of those tests included."""
    # On a simulator they are what the test suite runs anyway, so only a few of them.
    words = "copies or event" if sink.chip.simulated else "cuda"
    suite(sink, "contract", CONTRACT, ("-k", words))


def kernels(sink: Sink) -> None:
    """The kernels' tests."""
    if sink.chip.simulated:
        sink.not_run("tests.kernels", "on a simulator they are the test suite itself")
        return
    suite(sink, "kernels", KERNELS, ())


def tensorrt(sink: Sink) -> None:
    """What the TensorRT engine's tests do with a real TensorRT."""
    if sink.chip.simulated:
        sink.not_run("tests.tensorrt", "on a simulator they are the test suite itself")
        return
    suite(sink, "tensorrt", TENSORRT, ("-m", "trt"))


def suite(sink: Sink, name: str, files: Sequence[str], more: Sequence[str]) -> None:
    """Run tests in a process of their own; one row, and the log beside the records."""
    what = f"tests.{name}"
    root = machine.checkout()
    if root is None or not all((root / file).exists() for file in files):
        sink.not_run(what, "no tests here: not a checkout")
        return
    if sink.output is None:
        sink.not_run(what, "nowhere to keep its log")
        return
    for module in NEEDS:
        if find_spec(module) is None:
            sink.not_run(what, f"no {module}")
            return
    environment = os.environ | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    environment["DIFFUSION_RT_TEST_RESULTS"] = str(sink.output.resolve())
    if not sink.chip.simulated:
        environment["DIFFUSION_RT_TEST_DEVICE"] = "cuda"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-ra", "--tb=short"]
        command += [f"--junitxml={report}"]
        command += ["-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
        if find_spec("pytest_timeout") is not None:
            command += [f"--timeout={SECONDS_A_TEST}"]
        left = max(sink.deadline - time.time(), 1)
        log = sink.output / f"tests-{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            try:
                done = subprocess.run(
                    [*command, *files, *more],
                    cwd=root,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=left,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                sink.failed(what, f"did not end in {left:.0f} s, see {log.name}", {})
                return
        counts, broken = outcomes(report)
    facts = {key: counts[key] for key in ("passed", "skipped", "failed")}
    if broken or done.returncode or not counts["passed"]:
        first = f"; first {broken[0]}" if broken else ""
        sink.failed(what, f"pytest ends with {done.returncode}{first}, see {log.name}", facts)
    else:
        sink.checked(what, 0.0, facts)


def outcomes(report: Path) -> "tuple[Counter[str], list[str]]":
    """How many tests passed, were skipped and failed, and the names of those that failed."""
    counts: Counter[str] = Counter()
    broken: list[str] = []
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return counts, broken
    for case in cases:
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            counts["failed"] += 1
            broken.append(case.get("name", "without a name"))
        else:
            counts["skipped" if "skipped" in kinds else "passed"] += 1
    return counts, broken
