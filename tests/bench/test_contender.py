"""The watch, by clocks that show what the test says."""

import pytest

from diffusion_rt.bench.contender import Watch, forget_peak_rss, own_peak_rss
from support.races import ticking


def test_stages_are_summed_and_steps_are_not() -> None:
    # picture 0 to 20; text twice; two evaluations of 2 s and 3 s, in steps that end at 10 and 15
    watch = Watch(ticking(0, 1, 2, 3, 5, 6, 8, 10, 11, 14, 15, 20))
    with watch("picture"):
        for _ in range(2):
            with watch("text"):
                pass
        for _ in range(2):
            with watch("evaluation"):
                pass
            watch.mark("step")
    assert watch.result() == {
        "picture": [20],
        "text": [1 + 2],
        "step": [15 - 10],
        "evaluation": [2, 3],
        "own": [5 - 3],
    }


def test_one_step_has_no_length() -> None:
    watch = Watch(ticking(0, 1, 2))
    with watch("evaluation"):
        pass
    watch.mark("step")
    assert watch.result() == {"evaluation": [1]}


def test_a_block_that_fails_is_no_lap() -> None:
    watch = Watch(ticking(0, 1))
    with pytest.raises(KeyError), watch("text"):
        raise KeyError
    assert watch.result() == {}


def test_this_process_has_held_memory() -> None:
    peak = own_peak_rss()
    assert peak is None or 1 << 20 < peak < 1 << 40


def test_a_peak_that_is_forgotten_is_counted_anew() -> None:
    large = bytearray(64 << 20)
    large[::4096] = b"x" * len(large[::4096])
    before = own_peak_rss()
    del large
    forget_peak_rss()
    after = own_peak_rss()
    if before is None or after is None:
        pytest.skip("this system does not tell")
    assert before - after > 48 << 20
