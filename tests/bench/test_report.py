"""Documents filled from records, and those of this project held against theirs."""

from pathlib import Path

import pytest

from diffusion_rt.bench import machine
from diffusion_rt.bench.flags import RESULTS
from diffusion_rt.bench.records import read
from diffusion_rt.bench.report import filled, stale, write
from diffusion_rt.engines.errors import BadInput
from support.races import drawn

TEXT = """# Title

<!-- bench:end-to-end -->
old
<!-- /bench:end-to-end -->

Between.

<!-- bench:startup -->
<!-- /bench:startup -->
End."""


def test_only_what_is_between_marks_changes() -> None:
    text = filled(TEXT, [drawn(0.1)], "x")
    assert "old" not in text
    assert "| 100 ms |" in text
    assert text.startswith("# Title\n\n<!-- bench:end-to-end -->\n| model |")
    assert text.endswith(
        "\n<!-- /bench:end-to-end -->\n\nBetween.\n\n<!-- bench:startup -->\nNot measured yet.\n"
        "<!-- /bench:startup -->\nEnd."
    )
    assert filled(text, [drawn(0.1)], "x") == text
    assert filled("no marks", [], "x") == "no marks"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- bench:startup -->", "x: <!-- bench:startup --> has no end"),
        ("<!-- /bench:startup -->", "is out of place; nothing is open there"),
        ("<!-- bench:startup -->\n<!-- bench:step -->", "wants <!-- /bench:startup -->"),
        ("<!-- bench:startup -->\n<!-- /bench:step -->", "wants <!-- /bench:startup -->"),
        ("<!-- bench:starup -->\n<!-- /bench:starup -->", "there is no table 'starup'; one of"),
    ],
)
def test_marks_that_are_wrong_are_named(text: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        filled(text, [], "x")
    assert words in str(caught.value)


def test_what_is_stale_is_written_once(tmp_path: Path) -> None:
    document, plots = tmp_path / "A.md", tmp_path / "plots"
    document.write_text(TEXT)
    plots.mkdir()
    (plots / "left-over.png").touch()
    records = [drawn(side**2 / 1e3, size=f"{side}x{side}") for side in (16, 32, 64)]
    wanted = [document, plots / "growth-size.png", plots / "left-over.png"]
    assert stale(records, [document], plots) == wanted
    assert write(records, [document], plots) == wanted
    assert stale(records, [document], plots) == []
    assert [path.name for path in plots.iterdir()] == ["growth-size.png"]
    more = [*records, drawn(0.9, size="16x16")]
    assert stale(more, [document], plots) == wanted[:2]


def test_the_figures_of_this_project_are_what_its_records_say() -> None:
    root = machine.checkout()
    assert root is not None
    documents = [root / "README.md", root / "bench" / "README.md"]
    assert stale(read(RESULTS), documents, RESULTS / "plots") == []
