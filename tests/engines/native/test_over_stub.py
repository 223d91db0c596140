"""The native engine over the real bindings of CUDA, in a process whose driver is a stub."""

import subprocess
import sys
from pathlib import Path

import pytest

from support import stub_driver

HERE = Path(__file__).parent


def test_the_native_engine_calls_the_driver_as_it_should(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.driver", reason="skipped: no cuda-python")
    stub = stub_driver.build(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--import-mode=importlib"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(HERE / "over_stub.py")],
        cwd=HERE.parents[2],
        env=stub_driver.environment(stub, PYTHONSAFEPATH="1"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "3 passed" in done.stdout
