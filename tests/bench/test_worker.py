"""A contender in another process: it answers, fails in words, and may die."""

import os
from collections.abc import Iterator

import pytest

from diffusion_rt.bench.worker import Worker
from diffusion_rt.engines.errors import BadInput, Fault
from support.races import case

FACTORY = "support.races:Elsewhere"


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("elsewhere", FACTORY)
    yield worker
    worker.close()


def test_cases_are_carried_out_elsewhere(worker: Worker) -> None:
    found = worker.run(case(steps=4))
    assert found.seconds == {"picture": [4.0]}
    assert int(found.arrays["process"]) != os.getpid()
    assert worker.peak_device() == 456
    with pytest.raises(Fault, match=r"^elsewhere: ZeroDivisionError: by zero$"):
        worker.run(case(prompt="fail"))
    assert worker.run(case()).seconds == {"picture": [3.0]}, "a failure is not the end"
    with pytest.raises(Fault, match=r"its process ended early \(status 7\)"):
        worker.run(case(prompt="die"))
    with pytest.raises(Fault, match=r"its process ended early \(status 7\)"):
        worker.run(case())


def test_a_peak_is_that_of_the_last_case(worker: Worker) -> None:
    peaks = []
    for images in (1, 100, 1):  # as many megabytes
        worker.run(case(images=images))
        peaks.append(worker.peak_rss())
    first, large, last = peaks
    if first is None or large is None or last is None:
        pytest.skip("this system does not tell")
    assert large - first > 80 << 20
    assert last - first < 20 << 20


def test_what_cannot_be_opened_is_said_at_once() -> None:
    with pytest.raises(BadInput, match=r"^elsewhere: no such model$"):
        Worker("elsewhere", FACTORY, fault="no such model")
