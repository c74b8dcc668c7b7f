"""The examples of docs/ run as they stand and print what stands below them, times and sizes aside."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SEARCH = Path(__file__).parents[1] / "docs" / "search.md"
# What depends on the machine: "0.65 ms", "13 rows read". Shares and words must be the same.
MEASURED = re.compile(r"\d[\d,.]*(?= (?:µs|ms|MB|rows read))")


def examples(page: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the code and the shown output of every block of Python."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.DOTALL | re.MULTILINE):
        yield text.count("\n", 0, found.start()) + 2, found[1], found[2] or ""


def test_search_prints_what_it_shows(minilm_to_encode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    try:
        for line, code, shown in examples(SEARCH):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * (line - 1) + code, str(SEARCH), "exec"), names)
            assert MEASURED.sub("#", out.getvalue()) == MEASURED.sub("#", shown), f"{SEARCH}:{line}"
    finally:
        if "pack" in names:
            names["pack"].close()


def test_every_example_is_found() -> None:
    found = list(examples(SEARCH))
    assert len(found) == SEARCH.read_text(encoding="utf-8").count("```python")
    assert all(shown for _, _, shown in found)
