"""How results look in a terminal: tables on stdout, progress on stderr."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hhtld.gates import GateReport

__all__ = [
    "column_chart",
    "console",
    "cosine",
    "counted",
    "fact_grid",
    "fitting_table",
    "gate_table",
    "human_nbytes",
    "joined",
    "merged",
    "plain_table",
    "print_titled",
    "progress_bar",
    "safe",
    "shape_text",
    "shortened",
    "sparkline",
]

# Nine heights of a cell, the first one empty; the second row for terminals that do not speak Unicode.
_LEVELS = {False: " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588", True: " .:-=+*#@"}


def console() -> Console:
    """Return stdout; wide enough for whole names when it is not a terminal."""
    if sys.stdout.isatty():
        return Console()
    columns = os.environ.get("COLUMNS", "")
    return Console(width=int(columns) if columns.isdecimal() and int(columns) else 160)


def safe(name: str, ascii_only: bool = False) -> Text:
    """Return a name from a file without control characters or markup, and with `ascii_only` other letters escaped."""
    text = name if name.isprintable() else repr(name)[1:-1]
    return Text(text.encode("ascii", "backslashreplace").decode() if ascii_only else text)


def shortened(text: str, limit: int) -> str:
    """Return `text`, or its beginning and its length where that is longer than `limit`."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def cosine(value: float) -> str:
    """Return a cosine with four decimals, rounded down: what is printed was reached."""
    return f"{math.floor(value * 1e4 + 1e-6) / 1e4:.4f}"  # the small term undoes the product's own rounding


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


def plain_table(headings: Iterable[str], rows: Iterable[Iterable[Any]], title: str | None = None) -> Table:
    """Return a table whose headings that begin with ">" are aligned right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(heading.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


def fitting_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Any]],
    optional: Sequence[str],
    width: int,
    title: str | None = None,
) -> Table:
    """Return a `plain_table` that leaves out optional columns, the first named first, where they do not fit.

    The first column folds; it gets what its longest cell needs, or three fifths of the width. What was
    left out is said below.
    """
    cells = [[cell if isinstance(cell, Text) else Text(str(cell)) for cell in row] for row in rows]
    names = [heading.lstrip(">") for heading in headings]
    needed = [max([cell_len(name), *(cell_len(row[i].plain) for row in cells)]) for i, name in enumerate(names)]
    wanted = min(needed[0], width * 3 // 5)
    shown = list(range(len(names)))
    for name in optional:
        if wanted + sum(needed[i] + 2 for i in shown[1:]) > width:
            shown.remove(names.index(name))
    table = plain_table([headings[i] for i in shown], ([row[i] for i in shown] for row in cells), title)
    left_out = [name for i, name in enumerate(names) if i not in shown]
    if left_out:
        table.caption = Text(f"not shown at this width: {', '.join(left_out)}")
        table.caption_justify = "left"
    return table


def print_titled(title: str, body: Any, out: Console) -> None:
    """Print an empty line, a title and what it stands over."""
    out.print()
    out.print(Text(title, "bold"))
    out.print(body)


def fact_grid(facts: Iterable[tuple[str, Any]]) -> Table:
    """Return names of facts beside what they are."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(Text(name), value if isinstance(value, Text) else Text(str(value)))
    return grid


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


def gate_table(gates: GateReport) -> Table:
    """Return the row cosines by regime beside what gate 1 asks."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for regime, cosines in gates.regimes.items():
            record = cosines.to_json()
            if not record["n_rows"]:
                continue
            asked = gates.thresholds[regime]
            verdict = "pass" if cosines.passes(asked) else "below"
            worst = record["worst"]
            yield (
                regime,
                f"{record['n_rows']:,}",
                cosine(record["median"]),
                cosine(record["p5"]),
                cosine(record["min"]),
                f"{_asked(asked.median)} / {_asked(asked.p5)}",
                verdict,
                Text.assemble(safe(worst["tensor"]), f" row {worst['row']}"),
            )

    headings = ("regime", ">rows", ">median", ">p5", ">min", ">gate 1 asks", "", "worst row")
    return plain_table(headings, rows(), "Cosine of every encoded row with itself")


def _asked(number: float) -> str:
    """A threshold with the digits that it has, two at least."""
    text = f"{number:g}"
    return text if len(text) > len("0.95") else f"{number:.2f}"


@contextmanager
def progress_bar(total: int, wanted: bool) -> Iterator[Callable[[str, str, int], None]]:
    """Give a progress callback over `total` bytes, drawn on stderr when that is a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield lambda stage, name, nbytes: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:8}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, name: str, nbytes: int) -> None:
            if stage in ("resume", "again"):  # parts of the same work: done before, and to be done once more
                stage, nbytes = "encode", nbytes if stage == "resume" else -nbytes
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.advance(tasks[stage], nbytes)

        yield advance
