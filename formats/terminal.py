"""How results look in a terminal: tables on stdout, progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hhtld.gates import GateReport

__all__ = ["console", "gate_table", "human_nbytes", "plain_table", "progress_bar", "safe"]


def console() -> Console:
    """Return stdout; wide enough for whole names when it is not a terminal."""
    if sys.stdout.isatty():
        return Console()
    return Console(width=int(os.environ.get("COLUMNS") or 160))


def safe(name: str) -> Text:
    """Return a name from a file without control characters or markup."""
    return Text(name if name.isprintable() else repr(name)[1:-1])


def human_nbytes(nbytes: float) -> str:
    """Return a size in decimal units, as disks are sold and file managers count."""
    if nbytes < 1000:
        return f"{nbytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        nbytes /= 1000
        if nbytes < 1000:
            return f"{nbytes:.2f} {unit}"
    return f"{nbytes / 1000:.2f} TB"


def plain_table(headings: Iterable[str], rows: Iterable[Iterable[Any]], title: str | None = None) -> Table:
    """Return a table whose headings that begin with ">" are aligned right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(heading.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


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
                f"{record['median']:.4f}",
                f"{record['p5']:.4f}",
                f"{record['min']:.4f}",
                f"{asked.median:.2f} / {asked.p5:.2f}",
                verdict,
                Text.assemble(safe(worst["tensor"]), f" row {worst['row']}"),
            )

    headings = ("regime", ">rows", ">median", ">p5", ">min", ">gate 1 asks", "", "worst row")
    return plain_table(headings, rows(), "Cosine of every encoded row with itself")


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
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.advance(tasks[stage], nbytes)

        yield advance
