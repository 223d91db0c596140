"""Records as lines: what is written is what is read, and nothing tells where it was made."""

import json
import platform
import re
from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_rt.bench import machine
from diffusion_rt.bench.flags import RESULTS
from diffusion_rt.bench.records import Origin, append, latest, parse, read
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.typed_json import encode
from support.races import drawn, origin


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    first, second = drawn(0.1), drawn(0.2, "diffusers")
    wrong = origin("stages").record("all", "compile", {"size": "8x8"}, wrong="pixels differ")
    append(tmp_path, [first])
    append(tmp_path, [second, wrong])
    assert read(tmp_path) == [first, second, wrong]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end-to-end.jsonl", "stages.jsonl"]
    assert len((tmp_path / "end-to-end.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": "ms"}, r'x:2: unit: got "ms", wants "s" or "bytes" or "ratio"'),
        ({"host": "here"}, "x:2: host: unknown field"),
        ({"version": 4}, "x:2: version: got 4, wants 1 to 3"),
        ({"commit": "abc"}, "x:2: commit: got"),
        ({"time": "yesterday"}, "x:2: time: got"),
        ({"spread": None}, "x:2: a record has one of a spread, a `wrong` and an `absent`"),
        ({"wrong": "so"}, "x:2: a record has one of a spread, a `wrong` and an `absent`"),
        ({"absent": "so"}, "x:2: a record has one of a spread, a `wrong` and an `absent`"),
        ({"run": "1"}, "x:2: run: got"),
        ({"flop": -1}, "x:2: flop: got -1, wants 0 to"),
        ({"setting": {"size": ["8x8"]}}, r'x:2: setting\["size"\]: got a list of 1'),
    ],
)
def test_what_is_no_record_is_named(change: dict[str, object], words: str) -> None:
    line = json.dumps(encode(drawn(0.1)) | change).encode()
    with pytest.raises(BadInput, match=f"^{words}"):
        parse(line, "x:2")


SINCE = {  # version -> fields of a record, and of its device, that it brought
    2: (("absent", "peak_device", "flop", "nbytes"), ("driver", "sm_mhz", "memory_mhz")),
    3: (("run", "parity", "load"), ("model", "mhz")),
}


@pytest.mark.parametrize("version", [1, 2])
def test_records_of_the_versions_before_are_still_read(version: int) -> None:
    fields = encode(drawn(0.1)) | {"version": version}
    for later, (of_record, of_device) in SINCE.items():
        if later > version:
            for name in of_record:
                del fields[name]
            for name in of_device:
                del fields["device"][name]
    found = parse(json.dumps(fields).encode(), "x")
    assert (found.version, found.spread) == (version, drawn(0.1).spread)
    assert latest([found, drawn(0.2)]) == [drawn(0.2)], "still the same measurement"


def test_records_of_one_run_belong_together() -> None:
    assert drawn(0.1).together == drawn(0.2, "diffusers", size="8x8").together
    assert drawn(0.1).together != drawn(0.1, run="1" * 16).together
    old, other = (replace(drawn(0.1), run=None, command=command) for command in ("a", "b"))
    assert old.together == replace(old, contender="diffusers").together
    assert old.together != other.together, "before runs had names they are told by their command"
    one, another = (Origin(benchmark="stages", command="x") for _ in range(2))
    assert one.run != another.run


def test_what_a_device_was_doing_makes_it_no_other_device(tmp_path: Path) -> None:
    one = drawn(0.1)
    device = replace(one.device, driver="580.1", sm_mhz=1980, memory_mhz=3201, mhz=2596)
    two = replace(one, device=device, absent="not supported yet", spread=None, flop=5, nbytes=6)
    append(tmp_path, [two])
    (found,) = read(tmp_path)
    assert encode(found) == encode(two)
    assert found.device == one.device
    assert found.device.sm_mhz == 1980
    assert str(found).endswith("not timed, not supported yet")


def test_a_broken_line_is_found(tmp_path: Path) -> None:
    append(tmp_path, [drawn(0.1)])
    path = tmp_path / "end-to-end.jsonl"
    path.write_bytes(path.read_bytes() + b"{\n")
    with pytest.raises(BadInput, match=r"^end-to-end.jsonl:2: no valid JSON"):
        read(tmp_path)
    path.rename(tmp_path / "startup.jsonl")
    with pytest.raises(BadInput, match=r"^startup.jsonl:1: a record of end-to-end"):
        read(tmp_path)


def test_the_newest_of_each_measurement_counts() -> None:
    old, other, new = drawn(0.1), drawn(0.1, size="32x32"), drawn(0.3)
    assert latest([old, other, new]) == [new, other]
    assert latest([drawn(0.1), drawn(0.1, "diffusers"), drawn(2, against="diffusers")]) != []
    assert len({record.key for record in (drawn(1), drawn(1, against="diffusers"))}) == 2


def test_a_record_says_what_it_ran_on_and_not_where() -> None:
    found = Origin(benchmark="stages", command="diffusion-rt bench stages")
    record = found.record("step", "diffusion-rt", {}, wrong="not run")
    text = json.dumps(encode(record))
    assert record.device.cores >= 1
    assert record.versions["python"] == platform.python_version()
    assert "numpy" in record.versions
    assert platform.node() not in text
    assert str(machine.ROOT) not in text


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_records_that_are_kept_are_whole_and_tell_no_paths(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines
    for number, line in enumerate(lines, start=1):
        record = parse(line.encode(), f"{path.name}:{number}")
        assert record.benchmark == path.stem
        assert record.commit is not None
        assert not re.search(r'(^|[\s"=:])[/~]\w', line), "a path of somebody's machine"
