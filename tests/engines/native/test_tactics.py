"""Measured tactics: chosen, kept, and dropped where the file is not to be trusted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import tactics
from diffusion_rt.engines.native.shipped import Table, add_table
from diffusion_rt.engines.native.tactics import (
    Key,
    Tactics,
    hash_of_kernels,
    key_of,
    read_measured,
)
from diffusion_rt.engines.native.ways import Way, Ways
from diffusion_rt.kernels.driver import limits_of
from diffusion_rt.kernels.driver.simulator import Simulator

KEY = Key(chip="NVIDIA H200", arch=90, multiprocessors=132, driver="13.0", kernels="0123")


def some(*names: str, sizes: str = "Product(rows=2)") -> Ways:
    return Ways(
        sizes, tuple(Way(name=name, variants=(), calls=lambda places: ()) for name in names)
    )


def measured(folder: Path) -> Tactics:
    found = Tactics(folder, KEY)
    ways = some("first", "second", "third")
    found.put(ways, ways.ways[1], 12.5)
    found.save()
    return found


def test_without_a_measurement_it_is_the_first(tmp_path: Path) -> None:
    found = Tactics(tmp_path, KEY)
    assert found.choose(some("first", "second")).name == "first"
    assert not found.knows(some("first", "second"))
    assert found.knows(some("only"))
    assert not found.rebuilt


def test_what_was_measured_is_found_again(tmp_path: Path) -> None:
    measured(tmp_path)
    found = Tactics(tmp_path, KEY)
    assert len(found) == 1
    assert found.choose(some("first", "second")).name == "second"
    assert found.choose(some("first", "second", sizes="others")).name == "first"
    assert found.knows(some("first", "second"))


def test_a_way_that_is_gone_is_measured_again(tmp_path: Path) -> None:
    measured(tmp_path)
    found = Tactics(tmp_path, KEY)
    assert found.choose(some("first", "third")).name == "first"
    assert not found.knows(some("first", "third"))


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, chip="NVIDIA L4"),
        replace(KEY, arch=89),
        replace(KEY, multiprocessors=114),
        replace(KEY, driver="13.1"),
        replace(KEY, kernels="4567"),
    ],
)
def test_another_chip_driver_or_set_of_kernels_has_a_file_of_its_own(
    tmp_path: Path, other: Key
) -> None:
    measured(tmp_path)
    found = Tactics(tmp_path, other)
    assert len(found) == 0
    assert not found.rebuilt


def test_what_ships_is_taken_until_it_was_measured(tmp_path: Path) -> None:
    """Measured here, then measured elsewhere, then reckoned, then the order of the ways."""
    both = {"chip": "H200", "multiprocessors": 132}
    told = {"driver": "13.0", "date": "2026-12-01", "run": "0" * 16}
    names = {"gone": {"a": 1.0}, "third": {"b": 1.0}}
    tables = tmp_path / "tables"
    tables.mkdir()
    add_table(90, Table(source="measured", **both, **told, ways=names), tables)  # type: ignore[arg-type]
    names = {"second": {"a": 1.0, "b": 1.0, "c": 1.0}, "gone": {"d": 1.0}}
    add_table(90, Table(source="reckoned", **both, ways=names), tables)  # type: ignore[arg-type]
    found = Tactics(tmp_path, KEY, tables)

    def chosen(sizes: str, of: Tactics = found) -> tuple[str, str]:
        way, origin = of.chosen(some("first", "second", "third", sizes=sizes))
        return way.name, origin

    assert chosen("a") == ("second", "shipped (reckoned)")  # a measured way that is gone
    assert chosen("b") == ("third", "shipped (measured)")
    assert chosen("c") == ("second", "shipped (reckoned)")
    assert chosen("d") == chosen("e") == ("first", "cost model")
    assert found.chosen(some("only"))[1] == "no choice"
    ways = some("first", "second", "third", sizes="b")
    assert not found.knows(ways)
    assert len(found) == 0
    found.put(ways, ways.ways[0], 1.0)
    assert chosen("b") == ("first", "measured here")
    for other in (replace(KEY, multiprocessors=114), replace(KEY, arch=80)):
        assert chosen("c", Tactics(tmp_path, other, tables)) == ("first", "cost model")


def test_a_table_that_is_broken_is_said_and_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "sm_90.json").write_text("{}")
    found = Tactics(tmp_path, KEY, tmp_path)
    assert "install diffusion-rt again" in found.rebuilt[0]
    assert found.choose(some("first", "second")).name == "first"


def test_a_file_of_measurements_says_what_it_is_of(tmp_path: Path) -> None:
    path = measured(tmp_path).path
    key, known = read_measured(path)
    assert key == KEY
    assert [(one.way, one.microseconds) for one in known.values()] == [("second", 12.5)]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BadInput, match="measure again with diffusion-rt build"):
        read_measured(path)


def test_who_has_no_home_chooses_by_what_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Path:
        raise BadInput("user 7 has no home for a cache")

    monkeypatch.setattr(tactics, "cache_path", none)
    found = tactics.of_kind("H200", limits_of(90))
    assert len(found) == 0
    assert not found.rebuilt
    assert found.chosen(some("first", "second"))[1] == "cost model"


def test_a_file_copied_from_another_chip_is_not_used_and_said(tmp_path: Path) -> None:
    path = measured(tmp_path).path
    other = Tactics(tmp_path, replace(KEY, arch=89)).path
    other.write_bytes(path.read_bytes())
    found = Tactics(tmp_path, replace(KEY, arch=89))
    assert len(found) == 0
    assert len(found.rebuilt) == 1
    assert "measured on another chip" in found.rebuilt[0]


def test_a_damaged_file_is_said_once_and_made_again(tmp_path: Path) -> None:
    path = measured(tmp_path).path
    path.write_bytes(path.read_bytes()[:-20])
    found = Tactics(tmp_path, KEY)
    assert len(found.rebuilt) == 1
    assert str(path) in found.rebuilt[0]
    measured(tmp_path)
    assert not Tactics(tmp_path, KEY).rebuilt


@pytest.mark.parametrize(
    ("right", "wrong"), [(b'"second"', b'"first"'), (b'"microseconds": ', b'"microseconds": 1')]
)
def test_content_that_its_hash_is_not_of_is_not_believed(
    tmp_path: Path, right: bytes, wrong: bytes
) -> None:
    path = measured(tmp_path).path
    content = path.read_bytes()
    assert content.count(right) == 1
    path.write_bytes(content.replace(right, wrong))
    found = Tactics(tmp_path, KEY)
    assert len(found) == 0
    assert "damaged (sha256)" in found.rebuilt[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_is_believed(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    """Either the change means nothing (a blank), or the file counts as none."""
    folder = tmp_path_factory.mktemp("tactics")
    path = measured(folder).path
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    found = Tactics(folder, KEY)
    if found.rebuilt:
        assert len(found) == 0
    else:
        assert found.choose(some("first", "second")).name == "second"


def test_a_file_with_a_right_hash_and_wrong_content(tmp_path: Path) -> None:
    path = measured(tmp_path).path
    whole = json.loads(path.read_bytes())
    wrong: list[object] = [{"a": {"way": "b"}}, {"a": {"way": 3, "microseconds": 1.0}}, []]
    for operations in wrong:
        whole["content"]["operations"] = operations
        body = json.dumps(whole["content"], sort_keys=True)
        whole["sha256"] = tactics._hash(body)
        path.write_text(json.dumps(whole))
        assert len(Tactics(tmp_path, KEY).rebuilt) == 1


def test_a_second_measurer_is_told(tmp_path: Path) -> None:
    first, second = Tactics(tmp_path, KEY), Tactics(tmp_path, KEY)
    with first.locked(), pytest.raises(BadInput, match="in use"), second.locked():
        pass


def test_too_many_operations_do_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tactics, "MAX_OPERATIONS", 3)
    found = Tactics(tmp_path, KEY)
    for number in range(10):
        ways = some("first", "second", sizes=str(number))
        found.put(ways, ways.ways[1], 1.0)
    assert len(found) <= 3


def test_the_key_of_a_device() -> None:
    key = key_of(Simulator(arch=89))
    assert key.arch == 89
    assert key.kernels == hash_of_kernels()
    assert key.digest != replace(key, driver="other").digest
