"""Measured tactics: chosen, kept, and dropped where the file is not to be trusted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.native import tactics
from diffusion_rt.engines.native.tactics import Key, Tactics, hash_of_kernels, key_of
from diffusion_rt.engines.native.ways import Way, Ways
from diffusion_rt.kernels.driver.simulator import Simulator

KEY = Key(chip="NVIDIA H200", arch=90, driver="13.0", kernels="0123")


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
