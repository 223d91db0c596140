"""Numbers as people read them, and tables that say what the records say."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_rt.bench.machine import Device
from diffusion_rt.bench.records import ALL, OURS, Record
from diffusion_rt.bench.shelves import digits, seconds, size
from diffusion_rt.bench.spread import spread
from diffusion_rt.bench.tables import TABLES, table
from support.races import drawn, origin

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
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]


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
    assert head[:4] == ["model", "size", "images", "steps"]
    assert [row[1:3] for row in rows] == [["16x16", "1"], ["32x32", "1"], ["16x16", "2"]]
    first = dict(zip(head, rows[0], strict=False))
    assert first["diffusion-rt"] == "100 ms"
    assert first["diffusers"] == "300 ms"
    assert rows[0][8] == "3.00 (2.70 to 3.30)"
    assert first["torch.compile"] == "200 ms"


def test_the_newer_record_stands() -> None:
    text = table("end-to-end", [drawn(0.1), drawn(0.5)])
    assert "500 ms" in text
    assert "100 ms" not in text


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
    assert "| old | 16x16 | 1 | 3 | not supported yet: old |  |  | 300 ms |" in text
    assert "times |\n" in text


def test_other_engines_have_columns_where_there_are_records_of_them() -> None:
    text = table("end-to-end", [drawn(0.1), drawn(0.3, "ort"), drawn(3.0, against="ort")])
    assert "torch.compile | times | ort | times |" in text
    assert "| 300 ms | 3.00 (2.70 to 3.30) |" in text
    assert "native" not in text


def test_downloads_do_not_tell_what_was_installed() -> None:
    setting: dict[str, str | int | float] = {"torch": "cuda", "engine": "native"}
    given = origin("startup").record(
        "download", OURS, setting, unit="bytes", spread=spread([1.2e8])
    )
    given = replace(given, versions={"torch": "9.9"}, time="2999-01-01T00:00:00Z")
    import_ = drawn(0.1, measure="import", benchmark="startup")
    text = table("startup", [import_, given])
    assert "| download, for `native` and PyTorch 9.9 on a GPU | 120 MB |" in text
    assert text.endswith("torch 2.0+cpu.")


def test_devices_are_told_apart() -> None:
    other = Device(kind="cpu", name="Other CPU", cores=8, memory=1 << 34)
    text = table("end-to-end", [drawn(0.1), drawn(0.2, device=other)])
    assert "Test CPU, 2 cores; onnxruntime 1.0, torch 2.0+cpu." in text
    assert "Other CPU, 8 cores; " in text
    assert len(cells(text)) == 6


def summary() -> list[Record]:
    """Something of everything that the summary tells."""
    step: dict[str, str | int | float] = {
        "model": "full",
        "size": "512x512",
        "images": 1,
        "guidance_scale": 5.0,
    }
    megabytes = spread([4e8])
    return [
        drawn(0.5, n=9),
        drawn(0.9, "diffusers", n=9),
        drawn(1.8, against="diffusers", n=9),
        drawn(0.02, measure="step", n=9),
        drawn(7.0, size="640x640"),
        drawn(1.5, measure="first-picture", benchmark="startup"),
        drawn(9.0, "diffusers", measure="first-picture", benchmark="startup"),
        drawn(6.0, measure="first-picture", benchmark="startup", against="diffusers"),
        origin("startup").record(
            "installed", OURS, {"torch": "cpu"}, unit="bytes", spread=megabytes
        ),
        origin("step").record("evaluation", OURS, step, spread=spread([30.0])),
        drawn(0.0005, measure="own", benchmark="stages", engine="null"),
        origin("export").record("export", OURS, FULL, spread=spread([99.0])),
    ]


def test_the_summary_tells_the_main_case_and_everything_else() -> None:
    text = table("summary", summary())
    for words in (
        "| prompt to picture: `tiny`, 16x16, 3 steps | 500 ms | 900 ms | 1.80 (1.62 to 1.98) |",
        "| one step of it: `tiny`, 16x16, 3 steps | 20.0 ms |  |  |",
        "| process start to first picture | 1.50 s | 9.00 s | 6.00 (5.40 to 6.60) |",
        "| 400 MB |",
        "| UNet of `full`, 512x512, with guidance | 30.0 s |",
        "| 500 µs |",
        "| export of `full`, without its check | 99.0 s |",
    ):
        assert words in text
    assert "640x640" not in text


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_as_wide_as_their_head(name: str) -> None:
    text = table(name, [*summary(), drawn(0.1, measure="text", benchmark="stages")])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) <= 1
