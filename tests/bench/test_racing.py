"""The sub-commands that take times, whole: what they measure and what they keep."""

from pathlib import Path

import pytest

from diffusion_rt.bench import cli, reading
from diffusion_rt.bench.case import Case
from diffusion_rt.bench.race import Lane
from diffusion_rt.bench.records import OURS, read
from support.exported import ExportedModel
from support.races import FakeContender, origin


def test_our_own_time_is_measured_and_kept(
    exported_model: ExportedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = exported_model("plain")
    flags = ["--sizes", "32x24", "--steps", "3", "--repeats", "2", "--warm-up", "0"]
    words = ["--model", str(model), "--engine", "null", "--threads", "1", *flags]
    assert cli.main(["stages", *words, "--output", str(tmp_path)]) == 0
    records = {record.measure: record for record in read(tmp_path)}
    own = records["own"]
    assert own.spread is not None
    assert own.spread.n == 2 * (3 - 1)
    assert own.setting["engine"] == "null"
    assert own.setting["size"] == "32x24"
    assert own.peak_rss is not None
    assert str(model.parent) not in own.command
    assert "--engine null" in own.command
    assert len(capsys.readouterr().out.splitlines()) == len(records)


def test_cases_go_together_unless_they_are_told_apart(
    exported_model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []

    def race(contenders: object, cases: list[Case], **_: object) -> list[list[Lane]]:
        told.append([f"{case.images} x {case.width}" for case in cases])
        return [[Lane(OURS)] for _ in cases]

    monkeypatch.setattr("diffusion_rt.bench.race.race", race)
    monkeypatch.setattr(
        "diffusion_rt.bench.worker.Worker", lambda *_, **__: FakeContender(OURS, [])
    )
    words = ["--model", str(exported_model("plain")), "--engine", "null", "--sizes", "32x32,48x48"]
    common = [*words, "--batches", "1,2", "--output", str(tmp_path)]
    assert cli.main(["stages", *common]) == 0
    assert cli.main(["stages", *common, "--case-by-case"]) == 0
    every = ["1 x 32", "2 x 32", "1 x 48", "2 x 48"]
    assert told == [every, *([one] for one in every)]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_onnx_runtime_by_itself_is_a_peer_of_our_engine(
    device: str, exported_model: ExportedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, str, object]] = []

    def worker(name: str, factory: str, **more: object) -> FakeContender:
        opened.append((name, factory.split(":")[1], more.get("device")))
        return FakeContender(name, [])

    monkeypatch.setattr("diffusion_rt.bench.worker.Worker", worker)
    monkeypatch.setattr(reading, "origin", lambda *_: origin())
    words = ["--model", str(exported_model("plain")), "--sizes", "64x64", "--against", "ort"]
    words += ["--device", device, "--repeats", "1", "--warm-up", "0", "--output", str(tmp_path)]
    assert cli.main(["end-to-end", *words]) == 0
    assert ("ort", "OrtGraphs", device) in opened
    assert {(r.contender, r.against) for r in read(tmp_path)} >= {(OURS, None), (OURS, "ort")}


def test_the_unet_alone_is_opened_in_turn(exported_model: ExportedModel, tmp_path: Path) -> None:
    words = ["--model", str(exported_model("plain")), "--sizes", "64x48", "--threads", "1"]
    words += ["--repeats", "3", "--warm-up", "0", "--apart", "--output", str(tmp_path)]
    assert cli.main(["step", *words]) == 0
    ours, theirs, ratio = sorted(
        read(tmp_path), key=lambda record: (record.against or "", record.contender != OURS)
    )
    assert ours.setting["turns"] == "reopened"
    for record in (ours, theirs, ratio):
        assert record.spread is not None
        assert record.spread.n == 3
    assert ours.parity is not None
    assert 0 < ours.parity <= 1
    assert theirs.parity == 0
    assert ours.flop
    assert ours.peak_rss
