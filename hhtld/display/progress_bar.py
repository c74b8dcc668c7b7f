"""Progress of long work on stderr: a bar in a terminal, now and then a line in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from hhtld.display.numbers import human_nbytes

__all__ = ["progress_bar"]

_TELL_SECONDS = 30.0


@contextmanager
def progress_bar(total: int, wanted: bool) -> Iterator[Callable[[str, str, int], None]]:
    """Give a progress callback over `total` bytes: a bar on stderr, or now and then a line in a log."""
    if not wanted:
        yield lambda stage, name, nbytes: None
        return
    if not sys.stderr.isatty():
        yield _ProgressLines(total).advance
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, name: str, nbytes: int) -> None:
            stage, nbytes = _told(stage, nbytes)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.advance(tasks[stage], nbytes)

        yield advance


def _told(stage: str, nbytes: int) -> tuple[str, int]:
    """Parts of the same work: done before, and to be done once more."""
    if stage in ("resume", "again"):
        return "encode", nbytes if stage == "resume" else -nbytes
    return stage, nbytes


class _ProgressLines:
    """Progress for logs: a line every half minute, none for what is done sooner."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done: dict[str, int] = {}
        self._told = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, stage: str, name: str, nbytes: int) -> None:
        stage, nbytes = _told(stage, nbytes)
        with self._lock:
            done = self._done[stage] = self._done.get(stage, 0) + nbytes
            if time.monotonic() - self._told < _TELL_SECONDS:
                return
            self._told = time.monotonic()
        share = f", {100 * done // self._total} %" if self._total else ""
        print(f"{stage}: {human_nbytes(done)} of {human_nbytes(self._total)}{share}", file=sys.stderr, flush=True)
