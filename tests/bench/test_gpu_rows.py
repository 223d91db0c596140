"""Rows and records of the GPU run, and the measure of an error."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.bench import records
from diffusion_rt.bench.gpu_chip import SIMULATOR, Chip
from diffusion_rt.bench.gpu_rows import RIGHT, TIME, Sink, excess, one_line, parse_row

CHIP = Chip(name="a chip", arch=90, multiprocessors=132, memory=1 << 37, l2_bytes=1, cuda="13.0")


def sink(folder: Path, chip: Chip = CHIP) -> Sink:
    return Sink("device", chip, folder, time.time() + 60, "python bench/gpu.py", "a" * 40)


def test_what_is_right_wrong_and_timed_is_kept_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    it = sink(tmp_path)
    it.checked("norm.float16", 0.5, {"rows": 2})
    assert len(records.read(tmp_path)) == 1
    it.checked("norm.float16", math.inf, {"rows": 3})
    it.checked("norm.float16", math.nan, {"rows": 4})
    it.timed("norm.float16", [3e-6, 1e-6, 2e-6], {"rows": 2}, nbytes=4_000_000)
    kept = records.read(tmp_path)
    right, wrong, other, timed = sorted(kept, key=lambda r: (r.benchmark, str(r.setting)))
    assert (right.benchmark, right.unit, timed.benchmark) == (RIGHT, "ratio", TIME)
    assert right.spread is not None
    assert wrong.wrong == "inf times the error allowed"
    assert other.spread is None
    assert timed.spread is not None
    assert (timed.spread.n, timed.spread.p50) == (3, 2e-6)
    assert timed.setting == {"rows": 2}
    assert (timed.nbytes, timed.flop) == (4_000_000, None)
    assert (timed.device.kind, timed.device.name) == ("gpu", "a chip")
    assert timed.versions["cuda"] == "13.0"
    assert timed.commit == "a" * 40
    rows = [parse_row(line) for line in capsys.readouterr().out.splitlines()]
    assert [row.outcome for row in rows if row] == ["right", "wrong", "wrong", "timed"]
    assert rows[3] is not None
    assert rows[3].note.startswith("2.00 µs, 2.00 TB/s; rows=2")


def test_a_simulator_keeps_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    it = sink(tmp_path, SIMULATOR)
    it.timed("norm.float16", [1.0], {})
    assert not list(tmp_path.iterdir())
    assert "1.0" not in capsys.readouterr().out


@pytest.mark.parametrize("line", ["", "words", "{}", "[]", '{"row": 1}', '{"row": {"a": 1}}'])
def test_what_libraries_print_is_no_row(line: str) -> None:
    assert parse_row(line) is None


def test_an_outcome_that_there_is_not_is_no_row() -> None:
    assert parse_row('{"row": {"part": "a", "name": "b", "outcome": "fast", "note": ""}}') is None


@given(st.text())
def test_any_text_becomes_a_line_that_a_record_takes(text: str) -> None:
    line = one_line(text)
    assert 1 <= len(line) <= 300
    assert line.isprintable()


def test_the_error_allowed_is_twice_that_of_plain_code() -> None:
    truth = np.linspace(-1, 1, 1001)
    plain = (truth + 1e-4).astype(np.float32)
    assert excess(plain, plain, truth) == pytest.approx(0.5, rel=1e-3)
    assert excess(truth + 3e-4, plain, truth) == pytest.approx(1.5, rel=1e-3)


def test_one_bad_element_and_a_slight_loss_all_over_are_both_seen() -> None:
    truth = np.random.default_rng(0).normal(size=100_000)
    plain = truth.astype(np.float16)
    assert excess(plain, plain, truth) <= 1
    one = plain.copy()
    one[5] += np.float16(0.05)
    assert excess(one, plain, truth) > 1
    # A tenth of that is within the worst rounding of the largest, but no rounding does it often.
    assert excess((truth * (1 + 2.0**-9)).astype(np.float16), plain, truth) > 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_result_that_is_not_finite_is_never_right(value: float) -> None:
    truth = np.ones(10)
    found = truth.astype(np.float32)
    found[3] = value
    assert excess(found, truth.astype(np.float32), truth) == math.inf
    assert excess(truth[:5], truth, truth) == math.inf


def test_nothing_allowed_and_nothing_wrong_is_right() -> None:
    zero = np.zeros(4)
    assert excess(zero, zero, zero) == 0
    assert excess(zero + 1, zero, zero) == math.inf
