"""What objects look like in a notebook: a title, facts and a table, as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

__all__ = ["card"]

_MOST_ROWS = 40


def card(
    title: str, facts: Mapping[str, object], headings: Sequence[str] = (), rows: Iterable[Sequence[object]] = ()
) -> str:
    """Return HTML of a title, facts by name, and a table of at most 40 rows that says how many there are more.

    Every text is escaped: names come from files.
    """
    rest = iter(rows)
    shown = list(islice(rest, _MOST_ROWS))
    n_more = sum(1 for _ in rest)
    parts = [f"<div><p><b>{html.escape(title)}</b></p>"]
    parts.append("<table>" + "".join(_row((name, fact)) for name, fact in facts.items()) + "</table>")
    if shown:
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
        parts.append(f"<table><tr>{head}</tr>{''.join(map(_row, shown))}</table>")
    if n_more:
        parts.append(f"<p>and {n_more:,} more</p>")
    return "".join(parts) + "</div>"


def _row(cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in cells)}</tr>"
