"""Commands in fresh processes: their time, their memory, and how they fail."""

import sys

import pytest

from diffusion_rt.bench.launch import launch
from diffusion_rt.engines.errors import BadInput, Fault

PYTHON = (sys.executable, "-I", "-S", "-c")


def test_memory_is_that_of_the_command_alone() -> None:
    ours = bytearray(300 << 20)  # in this process, which must not count
    ours[::4096] = b"x" * len(ours[::4096])
    small = launch([*PYTHON, "print('words')"])
    large = launch([*PYTHON, "a = bytearray(100 << 20); a[::4096] = b'x' * len(a[::4096])"])
    assert small.peak_rss < 100 << 20
    assert large.peak_rss - small.peak_rss == pytest.approx(100 << 20, rel=0.1)
    assert len(ours) == 300 << 20


def test_time_passes_from_start_to_end() -> None:
    ran = launch([*PYTHON, "import time; time.sleep(0.2)"])
    assert ran.seconds >= 0.2
    assert ran.started_at > 1.7e9


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; sys.exit('first\\nlast words')", "status 1: last words"),
        ("import os; os.kill(os.getpid(), 9)", "status -9: no word"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
    ],
)
def test_a_failure_is_told(code: str, words: str) -> None:
    with pytest.raises(Fault, match=words):
        launch([*PYTHON, code], timeout=1 if "sleep" in code else 60)


def test_a_command_that_does_not_exist() -> None:
    with pytest.raises(Fault, match="no-such-command: cannot be started: FileNotFoundError"):
        launch(["no-such-command"])


def test_what_our_own_command_refuses_is_bad_input() -> None:
    code = 'import sys; print(\'{"error": "no GPU here", "status": 2}\'); sys.exit(2)'
    with pytest.raises(BadInput, match=r"^no GPU here$"):
        launch([*PYTHON, code])


def test_a_command_is_told_more_and_what_it_says_is_kept() -> None:
    code = "import os; print('first'); print(os.environ['MORE'])"
    assert launch([*PYTHON, code], more={"MORE": "and more"}).said == "first\nand more"
