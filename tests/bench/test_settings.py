"""Settings by name are the flags that they stand for, and nothing else."""

import shlex

import pytest

from diffusion_rt.bench import reading
from diffusion_rt.bench.flags import FLAGS, command_of, parser_of
from diffusion_rt.bench.settings import SETTINGS, expanded
from diffusion_rt.engines.errors import BadInput

ALL = {name for _, flags in SETTINGS.values() for name in flags}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_that_is_kept_shows_every_flag(name: str) -> None:
    found = reading.read("end-to-end", ["--setting", name], *FLAGS)
    words = shlex.split(command_of("end-to-end", found, None))
    assert "--setting" not in words
    again = parser_of("end-to-end", "", FLAGS).read(words[3:])
    for flag, value in SETTINGS[name][1].items():
        given = [part for part in (f"--{flag}", value) if part]
        attribute = flag.replace("-", "_")
        wanted = getattr(parser_of("end-to-end", "", FLAGS).read(given), attribute)
        assert getattr(again, attribute) == wanted


def test_what_is_given_wins_and_settings_go_together() -> None:
    words = ["--steps", "7", "--setting=mlperf,batches", "--seed", "1"]
    found = reading.read("end-to-end", words, *FLAGS)
    assert found.steps == [7]
    assert found.batches == [1, 2, 4, 8]
    assert found.sizes == [(1024, 1024)]
    assert found.guidance_scale == 8
    assert found.samplers == ["euler"]
    assert len(reading.read("stages", ["--setting", "buckets"], *FLAGS).sizes) == 9


def test_growth_is_two_series_and_not_every_combination() -> None:
    found = reading.read("end-to-end", ["--setting", "growth"], *FLAGS)
    _, cases = reading.subject_and_cases(found)
    drawn = [(case.width, case.images) for case in cases]
    assert drawn == [*((side, 1) for side in (64, 96, 128, 192, 256)), (128, 2), (128, 4), (128, 8)]


def test_flags_that_a_benchmark_lacks_are_left_out() -> None:
    assert expanded(["--setting", "turbo4"], {"sizes"}) == ["--sizes", "512x512"]
    assert expanded(["--seed", "1"], ALL) == ["--seed", "1"]


@pytest.mark.parametrize("words", [["--setting"], ["--setting", "mlperf,turbo"], ["--setting="]])
def test_what_is_no_setting_is_named(words: list[str]) -> None:
    with pytest.raises(BadInput, match=r"^--setting: '.*' is no setting; of mlperf, steps30"):
        expanded(words, ALL)
