"""Progress of a build: phases within phases, ends before their time, errors that must not pass."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from support.simulated_build import in_place_of_tensorrt


@pytest.fixture(autouse=True)
def tensorrt() -> Iterator[None]:
    with in_place_of_tensorrt():
        yield


def monitor_of(report: Any) -> Any:
    from diffusion_rt.engines.trt.monitor import Monitor

    return Monitor(report)


def test_phases_within_phases_make_one_share() -> None:
    shares: list[float] = []
    monitor = monitor_of(shares.append)
    monitor.phase_start("build", None, 4)
    assert monitor.step_complete("build", 0)
    monitor.phase_start("time", "build", 2)
    monitor.phase_start("one", "time", 10)
    monitor.step_complete("one", 4)
    monitor.phase_finish("one")  # before its steps were done
    monitor.step_complete("time", 0)
    monitor.step_complete("time", 1)
    monitor.phase_finish("time")
    monitor.step_complete("build", 3)
    monitor.phase_finish("build")
    assert shares == pytest.approx([0.25, 0.25 + 0.25 * 0.5 * 0.5, 0.375, 0.5, 1.0])


def test_a_second_outermost_phase_begins_anew() -> None:
    shares: list[float] = []
    monitor = monitor_of(shares.append)
    for name in ("first", "second"):
        monitor.phase_start(name, None, 2)
        monitor.step_complete(name, 0)
        monitor.phase_finish(name)
    assert shares == [0.5, 1.0, 0.5, 1.0]


def test_phases_that_were_never_started_do_no_harm() -> None:
    shares: list[float] = []
    monitor = monitor_of(shares.append)
    assert monitor.step_complete("unknown", 3)
    monitor.phase_finish("unknown")
    monitor.phase_start("orphan", "unknown", 0)
    assert monitor.step_complete("orphan", 7)
    assert shares == []


def test_cancelling_answers_the_next_step() -> None:
    monitor = monitor_of(lambda share: None)
    monitor.phase_start("build", None, 4)
    assert monitor.step_complete("build", 0) is True
    monitor.cancel()
    assert monitor.step_complete("build", 1) is False
    assert monitor.cancelled
    assert monitor.failure is None


def test_what_a_report_raises_is_kept_and_ends_the_build() -> None:
    def report(share: float) -> None:
        raise KeyboardInterrupt

    monitor = monitor_of(report)
    monitor.phase_start("build", None, 2)
    assert monitor.step_complete("build", 0) is False
    assert isinstance(monitor.failure, KeyboardInterrupt)


def test_many_threads_report_at_once() -> None:
    shares: list[float] = []
    monitor = monitor_of(shares.append)
    monitor.phase_start("build", None, 8)

    def work(index: int) -> None:
        name = f"part {index}"
        for _ in range(20):
            monitor.phase_start(name, "build", 50)
            for step in range(50):
                monitor.step_complete(name, step)
            monitor.phase_finish(name)
        monitor.step_complete("build", index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shares == sorted(shares)
    assert shares[-1] <= 1.0
