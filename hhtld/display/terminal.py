"""How results look in a terminal: numbers, charts and the gates on stdout, progress on stderr."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from hhtld.display.streams import silence_stdout

__all__ = [
    "EXPLAINED",
    "column_chart",
    "console",
    "counted",
    "human_nbytes",
    "joined",
    "merged",
    "progress_bar",
    "rates_text",
    "reached",
    "safe",
    "shape_text",
    "shortened",
    "sparkline",
]

EXPLAINED = (
    "regime: index for embeddings and heads, argmax for other weights; median, p5: cosines that half of the rows, "
    "and 19 of 20, reach"
)
_PIPE_WIDTH = 160  # of charts
_TELL_SECONDS = 30.0

# Nine heights of a cell, the first one empty; the second row for terminals that do not speak Unicode.
_LEVELS = {False: " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", True: " .:-=+*#@"}


class _Screen(Console):
    """Standard output."""

    def on_broken_pipe(self) -> None:
        """The reader went away, as `head` does: the command goes on and says by its exit code how it ended."""
        self.quiet = True
        silence_stdout()


def console() -> Console:
    """Return standard output. If it is no terminal and COLUMNS is not set, a line is as long as what it says."""
    columns = os.environ.get("COLUMNS", "")
    if sys.stdout.isatty():
        return _Screen()
    if columns.isdecimal() and int(columns):
        return _Screen(width=int(columns))
    return _Screen(width=_PIPE_WIDTH, soft_wrap=True)


def safe(name: str, ascii_only: bool = False) -> Text:
    """Return a name from a file without control characters or markup, and with `ascii_only` other letters escaped."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return Text(text.encode("ascii", "backslashreplace").decode() if ascii_only else text)


def shortened(text: str, limit: int) -> str:
    """Return `text`, or its beginning and its length if it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def reached(value: float, digits: int = 4) -> str:
    """Return a cosine, a share or a ratio with so many decimals, rounded down: what is printed was reached.

    A gate that asks 1 is not reached by 0.99996, and 99.96 % of the rows are not all of them; so neither may read so.
    """
    # 0.99 * 10**4 is a little less than 9900 in binary; the small term undoes that.
    return f"{math.floor(value * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def human_nbytes(nbytes: float) -> str:
    """Return a size in decimal units, as disks are sold and file managers count."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        nbytes /= 1000
        if nbytes < 1000:
            return f"{nbytes:.2f} {unit}"
    return f"{nbytes / 1000:.2f} TB"


def shape_text(shape: Sequence[int]) -> str:
    """Return a tensor's shape as "2 x 3", or "scalar"."""
    return " x ".join(map(str, shape)) or "scalar"


def counted(count: int, what: str) -> str:
    """Return "1 row" or "1,234 rows"."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def joined(numbers: Sequence[float]) -> str:
    """Return numbers that add up, as the rates of two levels do."""
    return " + ".join(f"{number:g}" for number in numbers)


def rates_text(group: Mapping[str, Any]) -> str:
    """Return the bits a weight of a group: one rate, the sum of two levels, or the range of the classes of rows."""
    if "classes" in group:
        return f"{min(group['classes']):g} to {max(group['classes']):g}"
    return joined(group.get("bits", ()))


def sparkline(values: Sequence[float], ascii_only: bool = False) -> str:
    """Return one character a value, from the lowest to the highest; all alike stand at half height."""
    levels = _LEVELS[ascii_only]
    low, high = min(values, default=0), max(values, default=0)
    if high == low:
        return levels[4] * len(values)
    return "".join(levels[1 + round((value - low) / (high - low) * 7)] for value in values)


def column_chart(counts: Sequence[float], height: int = 4, ascii_only: bool = False) -> list[str]:
    """Return lines, the top one first, of one column a count of 0 or more; whatever is not zero can be seen."""
    levels = _LEVELS[ascii_only]
    peak = max(counts, default=0) or 1
    heights = [math.ceil(count * height * 8 / peak) for count in counts]
    return ["".join(levels[min(max(tall - 8 * row, 0), 8)] for tall in heights) for row in range(height - 1, -1, -1)]


def merged(counts: Sequence[int], width: int) -> tuple[list[int], int]:
    """Return at most `width` sums of neighbours, and how many counts each adds up."""
    per = max(1, -(-len(counts) // max(1, width)))
    return [sum(counts[i : i + per]) for i in range(0, len(counts), per)], per


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
