"""Bars where somebody looks, silence elsewhere."""

import io
import sys

import pytest

from diffusion_rt.runtime.progress import progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bars() as progress:
        progress("text", 0, 1)
        progress("text", 1, 1)
        for step in range(31):
            progress("denoise", step, 30)
        progress("[red]odd", 0, 1)
        progress("verify", 3 << 30, 4 << 30)
    return stream.getvalue()


def test_a_terminal_sees_stages_steps_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = drawn(Terminal(), monkeypatch)
    assert "denoising" in text
    assert "30/30" in text
    assert "it/s" in text
    assert "75 %" in text
    assert "3221225472" not in text
    assert "[red]odd" in text
    assert "\x1b[3" in text  # a colour


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    text = drawn(Terminal(), monkeypatch)
    assert "30/30" in text
    assert "\x1b[3" not in text


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO, "xterm"), (Terminal, "dumb")])
def test_nothing_is_drawn_where_nobody_looks(
    stream: type[io.StringIO], term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setitem(sys.modules, "rich.progress", None)  # not even imported
    assert drawn(stream(), monkeypatch) == ""


def test_ctrl_c_gives_the_terminal_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def interrupted() -> None:
        with progress_bars() as progress:
            progress("denoise", 1, 30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1
