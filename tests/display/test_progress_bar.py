"""How far long work is, on a terminal and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from hhtld.display.progress_bar import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_counts_what_was_done_before_and_takes_back_what_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with progress_bar(8_000_000, True) as advance:
        advance("resume", "a", 4_000_000)
        advance("encode", "b", 4_000_000)
        advance("again", "b", 2_000_000)
    assert "encode" in terminal.getvalue()
    assert "6.0/8.0 MB" in terminal.getvalue()


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr("hhtld.display.progress_bar._TELL_SECONDS", 0.0)
    with progress_bar(8_000_000, True) as advance:
        advance("encode", "a", 8_000_000)
        advance("again", "a", 6_000_000)
    assert log.getvalue().splitlines() == ["encode: 8.00 MB of 8.00 MB, 100 %", "encode: 2.00 MB of 8.00 MB, 25 %"]


def test_nothing_is_told_where_nothing_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(8, False) as advance:
        advance("encode", "a", 8)
    assert capsys.readouterr() == ("", "")
