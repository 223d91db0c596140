"""Numbers as people read them, and tables that say what the records say."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import ALL, OURS, Record
from diffusion_rt.bench.shelves import digits, seconds, size
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.tables import HEADLINE, TABLES, table
from support.races import DEVICE, drawn, origin

FULL: dict[str, str | int | float] = {"model": "full", "weights": 3_500_000_000}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0.00 µs"),
        (4.2e-6, "4.20 µs"),
        (0.00012345, "123 µs"),
        (0.0099951, "10.0 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.00 s"),
        (99.96, "100 s"),
        (1234.5, "1234 s"),
    ],
)
def test_seconds(value: float, words: str) -> None:
    assert seconds(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(999, "1.00 kB"), (412_300_000, "412 MB"), (6.94e9, "6.94 GB")]
)
def test_bytes(value: float, words: str) -> None:
    assert size(value) == words


@given(st.floats(0.01, 1e6))
def test_three_digits_lose_less_than_a_percent(value: float) -> None:
    words = digits(value)
    assert "e" not in words
    assert float(words) == pytest.approx(value, rel=0.006, abs=0.0051)


def test_every_table_says_so_where_nothing_was_measured() -> None:
    for name in TABLES:
        assert table(name, []) == "Not measured yet."


def cells(text: str) -> list[list[str]]:
    lines = (line for line in text.splitlines() if line.startswith("|"))
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]


def test_a_row_for_each_case_in_order_of_size() -> None:
    records = [
        drawn(0.4, size="32x32"),
        drawn(0.1),
        drawn(0.3, "diffusers"),
        drawn(3.0, against="diffusers"),
        drawn(0.2, "compile"),
        drawn(0.2, images=2),
    ]
    head, _, *rows = cells(table("end-to-end", records))
    assert head[:5] == ["model", "size", "images", "steps", "n"]
    assert [row[1:3] for row in rows] == [["16x16", "1"], ["32x32", "1"], ["16x16", "2"]]
    first = dict(zip(head, rows[0], strict=False))
    assert first["diffusion-rt"] == "100 ms"
    assert first["diffusers"] == "300 ms"
    assert first["n"] == "3"
    assert rows[0][head.index("diffusers") + 1] == "3.00 (2.70 to 3.30)"
    assert first["torch.compile"] == "200 ms"


def test_the_newer_record_stands() -> None:
    text = table("end-to-end", [drawn(0.1), drawn(0.5)])
    assert "500 ms" in text
    assert "100 ms" not in text


def test_a_row_is_of_one_run() -> None:
    old = [drawn(0.1), drawn(0.3, "diffusers"), drawn(0.2, "compile")]
    new = [drawn(0.5, run="1" * 16), drawn(0.9, "diffusers", run="1" * 16)]
    (head, _, row) = cells(table("end-to-end", [*old, *new]))
    told = dict(zip(head, row, strict=False))
    assert (told["diffusion-rt"], told["diffusers"]) == ("500 ms", "900 ms")
    assert told["torch.compile"] == "", "it ran beside another of ours"


def test_percentiles_are_told_of_enough_values_alone() -> None:
    def told(n: int) -> dict[str, str]:
        head, _, row = cells(table("end-to-end", [drawn(0.1, n=n)]))
        return dict(zip(head, row, strict=False))

    assert told(9)["p90"] == ""
    assert told(10)["p90"] == "108 ms"
    assert "p99" not in told(99)
    assert told(100)["p99"] == "110 ms"


def test_a_caption_says_when_and_at_which_commits() -> None:
    one = replace(drawn(0.1), time="2026-01-01T00:00:00Z")
    assert table("end-to-end", [one]).endswith("torch 2.0+cpu; 2026-01-01 at 0000000.")
    two = replace(
        drawn(0.1, size="32x32"), time="2026-01-03T00:00:00Z", commit="1" * 40, changed=True
    )
    text = table("end-to-end", [one, two, drawn(0.2, measure="own", benchmark="stages")])
    assert text.endswith("; 2026-01-01 to 2026-01-03 at 0000000, 1111111 (changed).")


def test_a_wrong_contender_has_no_time() -> None:
    ours = drawn(0.1)
    wrong = origin().record(ALL, "compile", ours.setting, wrong="pixels differ by 9 of 255")
    text = table("end-to-end", [ours, drawn(0.2, "compile"), wrong])
    assert "| wrong: pixels differ by 9 of 255 |" in text
    assert "200 ms" not in text


def test_a_family_we_cannot_draw_has_a_row_that_says_so() -> None:
    theirs = drawn(0.3, "diffusers", model="old")
    ours = origin().record(ALL, OURS, theirs.setting, absent="not supported yet: old")
    text = table("end-to-end", [ours, theirs])
    assert "| old | 16x16 | 1 | 3 |  | not supported yet: old |  | 300 ms |" in text
    assert "times |\n" in text


def test_other_engines_have_columns_where_there_are_records_of_them() -> None:
    text = table("end-to-end", [drawn(0.1), drawn(0.3, "ort"), drawn(3.0, against="ort")])
    assert "torch.compile | times | ONNX Runtime | times |" in text
    assert "| 300 ms | 3.00 (2.70 to 3.30) |" in text
    assert "native" not in text


def test_sets_for_a_gpu_are_of_no_device_and_tell_no_versions_of_it() -> None:
    setting: dict[str, str | int | float] = {"torch": "cuda", "engine": "native"}

    def given(megabytes: float, device: Device, day: int) -> Record:
        record = origin("startup", device).record(
            "download", OURS, setting, unit="bytes", spread=spread([megabytes * 1e6])
        )
        return replace(record, versions={"torch": "9.9"}, time=f"2999-01-0{day}T00:00:00Z")

    other = Device(kind="cpu", name="Other CPU", cores=8, memory=1 << 34)
    import_ = drawn(0.1, measure="imported", benchmark="startup")
    text = table("startup", [import_, given(110, DEVICE, 1), given(120, other, 2)])
    assert "| download, for `native` and PyTorch 9.9 on a GPU | 120 MB |" in text
    assert "110 MB" not in text
    assert "Other CPU" not in text
    assert "Test CPU, 2 cores; onnxruntime 1.0, torch 2.0+cpu; 2" in text
    assert "2999" not in text


def test_devices_are_told_apart() -> None:
    other = Device(kind="cpu", name="Other CPU", cores=8, memory=1 << 34)
    text = table("end-to-end", [drawn(0.1), drawn(0.2, device=other)])
    assert "Test CPU, 2 cores; onnxruntime 1.0, torch 2.0+cpu; " in text
    assert "Other CPU, 8 cores; " in text
    assert len(cells(text)) == 6
    older = [drawn(0.1), drawn(0.2, device=other)]
    older[1] = replace(older[1], time="2020-01-01T00:00:00Z")
    text = table("end-to-end", older)
    assert text.index("200 ms") > text.index("100 ms"), "the latest device first"
    text = table("end-to-end", [replace(older[1], time="2099-01-01T00:00:00Z"), older[0]])
    assert text.index("200 ms") < text.index("100 ms")
    twin = replace(other, memory=other.memory - 400_000)
    text = table("end-to-end", [drawn(0.1, device=other), drawn(0.2, device=twin)])
    assert len(cells(text)) == 3, "one kind of machine, some kilobytes apart"
    assert "200 ms" in text


def shipped(seconds: float, contender: str = OURS, **changes: Any) -> Record:
    """A record of the model that ships at the settings the summary tells."""
    return drawn(seconds, contender, **{**HEADLINE, **changes})


def summary() -> list[Record]:
    """Something of everything that the summary tells."""
    step: dict[str, str | int | float] = {
        "model": "full",
        "size": "512x512",
        "guidance_scale": 5.0,
        "turns": "reopened",
    }
    megabytes = spread([4e8])
    return [
        shipped(0.5),
        shipped(0.9, "diffusers"),
        shipped(1.8, against="diffusers"),
        shipped(0.02, measure="step"),
        shipped(2.0, size="256x256"),
        shipped(3.0, images=8),
        shipped(7.0, size="640x640", n=99),
        shipped(8.0, engine="native", n=99),
        drawn(1.5, measure="first-picture", benchmark="startup"),
        drawn(9.0, "diffusers", measure="first-picture", benchmark="startup"),
        drawn(6.0, measure="first-picture", benchmark="startup", against="diffusers"),
        origin("startup").record(
            "installed", OURS, {"torch": "cpu"}, unit="bytes", spread=megabytes
        ),
        origin("step").record("evaluation", OURS, step, spread=spread([30.0])),
        shipped(0.0002, measure="own", benchmark="stages"),
        drawn(0.0005, measure="own", benchmark="stages", engine="null"),
        drawn(0.000005, measure="own", benchmark="stages", engine="idle"),
        drawn(0.00001, measure="own", benchmark="stages", engine="idle-cuda", sampler="euler-a"),
        origin("export").record("export", OURS, FULL, spread=spread([99.0])),
    ]


def test_the_summary_tells_the_main_case_and_everything_else() -> None:
    text = table("summary", summary())
    for words in (
        "| prompt to picture: `shapes-xl`, 128x128, 20 steps | 500 ms | 900 ms | "
        "1.80 (1.62 to 1.98) | 3 |",
        "| one step of it | 20.0 ms |  |  | 3 |",
        "| prompt to picture at 256x256 | 2.00 s |",
        "| 8 pictures together | 3.00 s |",
        "| process start to first picture | 1.50 s | 9.00 s | 6.00 (5.40 to 6.60) |",
        "| 400 MB |",
        "| UNet of `full`, 512x512, with guidance, opened in turn | 30.0 s |",
        "| our time around the UNet in a step of the first row | 200 µs |",
        "| the same at 16x16, with an engine that computes nothing | 500 µs |",
        "| the host's at 16x16, euler, captured, over a driver that does nothing: our own code | "
        "5.00 µs |",
        "| the host's at 16x16, euler-a, captured, over a driver that does nothing: our own code "
        "and the driver's real bindings | 10.0 µs |",
        "| export of `full`, without its check | 99.0 s |",
    ):
        assert words in text
    assert "7.00 s" not in text, "another setting, however often it was drawn"
    assert "8.00 s" not in text, "another engine"


def test_where_nobody_took_turns_there_is_no_range() -> None:
    setting: dict[str, str | int | float] = {"model": "full", "size": "8x8", "guidance_scale": 1.0}

    def told(turns: str) -> str:
        of = {**setting, "turns": turns}
        records = [
            origin("step").record("evaluation", OURS, of, spread=spread([2.0, 4.0])),
            origin("step").record("evaluation", "diffusers", of, spread=spread([3.0, 9.0])),
            drawn(1.9, measure="evaluation", benchmark="step", against="diffusers"),
        ]
        records[2] = replace(records[2], setting=of)
        return table("step", records)

    assert "| one after the other | 2 | 3.00 s | not measured | 6.00 s |" in told("apart")
    assert "| 2.00 |" in told("apart")
    assert "| 1.90 (1.71 to 2.09) |" in told("reopened")


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_as_wide_as_their_head(name: str) -> None:
    text = table(name, [*summary(), drawn(0.1, measure="text", benchmark="stages")])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) <= 1
