"""The GPU run as a command: parts in processes, what is kept, what the exit status says."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffusion_rt.bench import bare, gpu, gpu_part, gpu_suite, machine, records
from diffusion_rt.bench.gpu_rows import Row
from diffusion_rt.engines.errors import BadInput
from diffusion_rt.engines.spec import GRAPHS

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--output", str(tmp_path / "out")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return subprocess.run(
        [*command, *arguments],
        env=environment | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )


def test_the_script_runs_parts_and_keeps_their_records(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "simulator", "--parts", "chip,device")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right   device.graphs" in done.stdout
    assert "right: 6, wrong: 0, timed: 0\ntargets:\n" in done.stdout
    lines = (tmp_path / "out" / "gpu-right.jsonl").read_text().splitlines()
    assert len(lines) == 5
    assert all(json.loads(line)["simulated"] for line in lines)
    with pytest.raises(BadInput, match="simulated: unknown field"):
        records.read(tmp_path / "out")


def test_without_a_gpu_every_part_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    done = run(tmp_path, "--parts", "chip,device,times,tests")
    assert done.returncode == 1
    for part in ("chip", "device", "times", "tests"):
        assert f"not run {part}: no NVIDIA driver" in done.stdout
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "11"], "0.1 to 10 is wanted"),
        (["--parts", "device,cpu"], "'cpu' is no part"),
        (["--commit", "main"], "40 hexadecimal digits"),
    ],
)
def test_bad_flags_are_refused(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--output", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What runs as a part is a shell script."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(gpu, "GRACE", 0.2)


RIGHT = json.dumps({"row": {"part": "device", "name": "a", "outcome": "right", "note": "b"}})


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 60", "did not end in 1 s"),
        ("kill -SEGV $$", "ended with status -11"),
        ("echo words; echo '{}'; exit 1", "ended with status 1"),
    ],
)
def test_a_part_that_hangs_or_dies_is_lost_and_its_rows_stay(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(tmp_path, monkeypatch, f"echo '{RIGHT}'\n{script}")
    found = gpu._parser(tuple(gpu_part.PARTS)).parse_args(["--output", str(tmp_path)])
    rows = list(gpu.run_part("device", 1.0, found))
    assert [row.outcome for row in rows] == ["right", "lost"]
    assert said in rows[1].note
    assert not gpu.all_right(rows, ["device"])
    rows = list(gpu.run_part("yardsticks", 1.0, found))
    assert rows[-1].outcome == "not run", "a yardstick proves nothing"


def test_a_part_that_breaks_says_so_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RIGHT.replace('"right"', '"lost"')
    pretend(tmp_path, monkeypatch, f"echo '{lost}'; exit {gpu_part.BROKEN}")
    found = gpu._parser(tuple(gpu_part.PARTS)).parse_args(["--output", str(tmp_path)])
    assert [row.outcome for row in gpu.run_part("device", 5.0, found)] == ["lost"]


def test_no_time_left_is_said(tmp_path: Path) -> None:
    found = gpu._parser(tuple(gpu_part.PARTS)).parse_args(["--output", str(tmp_path)])
    assert [row.note for row in gpu.run_part("device", 0.5, found)] == ["out of time"]


def test_all_is_right_only_where_all_that_is_required_ran_whole() -> None:
    right, timed = Row("device", "a", "right", ""), Row("times", "b", "timed", "")
    assert gpu.all_right([right, timed], ["device"])
    assert not gpu.all_right([timed], ["device"])
    assert not gpu.all_right([right, Row("device", "c", "not run", "")], ["device"])
    assert gpu.all_right([right, Row("tests", "c", "not run", "")], ["device"])
    assert not gpu.all_right([right, Row("tests", "c", "wrong", "")], ["device"])


def test_what_is_right_comes_before_what_is_fast() -> None:
    names = [name for name, part in gpu_part.PARTS.items() if not part.beside]
    required = [name for name in names if gpu_part.PARTS[name].required]
    assert names[: len(required) + 1] == [*required[:2], "compile", *required[2:]]
    assert names.index("native") < names.index("eager") < names.index("compiled")
    assert names.index("compiled") < names.index("yardsticks")


def test_graphs_of_full_size_come_with_the_script(tmp_path: Path) -> None:
    """Whole but for their weights; unpacked once, and lowered as they are."""
    folder = gpu.unpacked(tmp_path)
    assert bare.is_bare(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert gpu.unpacked(tmp_path) == folder
    assert set(manifest["graphs"]) == set(GRAPHS)
    assert gpu.GRAPHS.stat().st_size < 1 << 20


def test_what_runs_beside_does_not_hold_up_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(tmp_path, monkeypatch, f"[ $3 = prepare ] && sleep 1; echo '{RIGHT}'")
    output = str(tmp_path / "out")
    (tmp_path / "out" / "graphs").mkdir(parents=True)
    (tmp_path / "out" / "graphs" / "manifest.json").write_text("{}")
    begun = time.monotonic()
    ended: dict[str, float] = {}
    run = gpu.run_part

    def noted(name: str, seconds: float, found: Any) -> Any:
        yield from run(name, seconds, found)
        ended[name] = time.monotonic() - begun

    monkeypatch.setattr(gpu, "run_part", noted)
    gpu.main(["--output", output, "--parts", "prepare,chip,device"])
    assert max(ended["chip"], ended["device"]) < ended["prepare"]
    assert "one step with guidance: not measured" in capsys.readouterr().out


def test_the_table_is_short_and_ends_with_what_is_wrong() -> None:
    rows = [Row("times", f"k{i}", "timed", "x" * 300, i < 5) for i in range(200)]
    rows += [Row("device", "d", "wrong", "off"), Row("times", "n", "not run", "no torch")] * 2
    text = gpu.table(rows)
    assert text.splitlines()[-3:] == [
        *["WRONG d: off"] * 2,
        "right: 0, wrong: 2, timed: 200",
    ]
    assert text.count("not run: n: no torch") == 1
    assert len(text) < 2000


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_part, "importable", lambda module: False)
    arguments = ["--output", str(tmp_path), "--deadline", "9e9", "--command", "c"]
    assert gpu_part.main(["yardsticks", *arguments, "--device", "simulator"]) == 0
    assert json.loads(capsys.readouterr().out)["row"]["note"] == "no torch"
    assert not gpu_part.importable("cuda.bindings")


def test_packages_inside_packages_are_looked_for() -> None:
    assert gpu_part.importable("json.decoder")
    assert not gpu_part.importable("json.nothing")
    assert not gpu_part.importable("nothing_at_all.inside")


def test_no_file_beside_the_script_hides_one_of_python() -> None:
    names = {path.stem for path in (ROOT / "bench").glob("*.py")} - {"__init__"}
    assert not names & set(sys.stdlib_module_names)


def test_the_tests_it_runs_are_there() -> None:
    root = machine.checkout()
    assert root is not None
    for file in (*gpu_suite.CONTRACT, *gpu_suite.KERNELS, *gpu_suite.TENSORRT):
        assert (root / file).exists()


def test_outcomes_are_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><skipped/></testcase>'
        '<testcase name="c"><failure/></testcase><testcase name="d"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    counts, broken = gpu_suite.outcomes(report)
    assert (counts["passed"], counts["skipped"], counts["failed"]) == (1, 1, 2)
    assert broken == ["c", "d"]
    report.write_text("<testsuites>")
    assert gpu_suite.outcomes(report) == ({}, [])
