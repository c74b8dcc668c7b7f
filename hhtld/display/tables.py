"""Tables and lists of facts as text, laid out here: rich's own tables take milliseconds a row.

On a terminal they fit its width: columns that can be spared are left out, names lose their middle and sentences are
wrapped, and what is not shown is said below. In a pipe every row is one line with nothing left out, without blanks at
its end.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

__all__ = ["FactGrid", "Table", "alike", "print_titled", "shortened_middle", "tensor_table"]

_GAP = 2
_MANY = 30  # rows of a model that a terminal shows
_BOLD = Style(bold=True)


class Table:
    """A table of text.

    Parameters
    ----------
    headings : sequence of str
        One that begins with ">" is of numbers, aligned right and never shortened; "~" of sentences, which are
        wrapped; all others are of names, which lose their middle where they do not fit.
    rows : iterable of sequences
        Cells: anything that `str` takes, or a `Text`, whose style is kept.
    title : str
    spared : sequence of str
        Columns that may be left out, the first named first.
    notes : sequence of str
        Sentences to print below.
    """

    def __init__(
        self,
        headings: Sequence[str],
        rows: Iterable[Sequence[Any]],
        title: str = "",
        *,
        spared: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.names = [heading.lstrip(">~") for heading in headings]
        self.kinds = [heading[:1] if heading[:1] in (">", "~") else "" for heading in headings]
        self.rows = [[cell if isinstance(cell, Text) else str(cell) for cell in row] for row in rows]
        self.title, self.spared, self.notes = title, spared, list(notes)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = None if options.no_wrap else options.max_width
        shown, widths = self._layout(width)
        if self.title:
            yield from _sentence(self.title, width, Style(italic=True))
        styled: list[tuple[Style | None, Sequence[str | Text]]] = [(_BOLD, self.names)]
        styled += ((None, row) for row in self.rows)
        for style, cells in styled:
            for line in self._lines([cells[i] for i in shown], [self.kinds[i] for i in shown], widths, options):
                if style is not None or all(isinstance(cell, str) for cell in line):
                    yield Segment("".join(map(str, line)).rstrip(), style)
                else:
                    yield from _styled(line, console)
                yield Segment.line()
        left_out = [name for i, name in enumerate(self.names) if i not in shown]
        for note in [*([f"not shown at this width: {', '.join(left_out)}"] if left_out else []), *self.notes]:
            yield from _sentence(note, width)

    def _layout(self, width: int | None) -> tuple[list[int], list[int]]:
        """Which columns are shown, and how wide they are."""
        needed = [
            max([cell_len(name), *(_length(row[i]) for row in self.rows)], default=0)
            for i, name in enumerate(self.names)
        ]
        shown = list(range(len(needed)))
        if width is None:
            return shown, [needed[i] for i in shown]
        elastic = [i for i, kind in enumerate(self.kinds) if kind != ">"]

        def least(i: int) -> int:
            """A column's width at least: of names what tells them apart, of the first more."""
            return min(needed[i], width * 2 // 5 if i == 0 else 16) if i in elastic else needed[i]

        spared = [self.names.index(name) for name in self.spared]
        for i in [*spared, *(i for i in reversed(shown[1:]) if i not in spared)]:
            if sum(least(i) + _GAP for i in shown) - _GAP > width:
                shown.remove(i)
        room = width - sum(least(i) + _GAP for i in shown) + _GAP
        widths = {i: least(i) for i in shown}
        for i in (i for i in shown if i in elastic):  # what is left goes to the first that can use it
            more = max(0, min(room, needed[i] - widths[i]))
            widths[i] += more
            room -= more
        return shown, [widths[i] for i in shown]

    def _lines(
        self, cells: Sequence[str | Text], kinds: Sequence[str], widths: Sequence[int], options: ConsoleOptions
    ) -> Iterator[list[str | Text]]:
        """A row's lines: one, or more if a sentence is wrapped."""
        wrapped: list[list[str | Text]] = []
        for cell, kind, width in zip(cells, kinds, widths, strict=True):
            if _length(cell) <= width:
                wrapped.append([cell])
            elif kind == "~":
                wrapped.append([*textwrap.wrap(str(cell), width)])
            else:
                wrapped.append([shortened_middle(str(cell), width, options.ascii_only)])
        for i in range(max(map(len, wrapped), default=0)):
            line: list[str | Text] = []
            for parts, kind, width in zip(wrapped, kinds, widths, strict=True):
                part = parts[i] if i < len(parts) else ""
                blanks = " " * (width - _length(part))
                line += [blanks, part] if kind == ">" else [part, blanks]
                line.append(" " * _GAP)
            yield line[:-1]


class FactGrid:
    """Names of facts beside what they are; a fact may have several lines.

    Parameters
    ----------
    facts : iterable of (name, fact)
    """

    def __init__(self, facts: Iterable[tuple[str, Any]]) -> None:
        self.facts = [(name, fact if isinstance(fact, Text) else Text(str(fact))) for name, fact in facts]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indent = max((cell_len(name) for name, _ in self.facts), default=0) + _GAP
        room = max(16, options.max_width - indent)
        for name, fact in self.facts:
            lines = fact.split("\n") if options.no_wrap else fact.wrap(console, room)
            for number, line in enumerate(lines or [fact]):
                yield Segment("" if number else name, _BOLD)
                yield Segment(" " * (indent if number else indent - cell_len(name)))
                line.rstrip()
                line.end = ""
                yield from line.render(console)
                yield Segment.line()


def print_titled(title: str, body: Any, out: Console) -> None:
    """Print an empty line, a title and what it stands over."""
    out.print()
    out.print(Text(title, "bold"))
    out.print(body)


def shortened_middle(text: str, width: int, ascii_only: bool = False) -> str:
    """Return a text without its middle if it is wider than `width` cells: names differ at both ends."""
    if cell_len(text) <= width:
        return text
    mark = "..." if ascii_only else "\u2026"
    left = max(0, width - len(mark))
    head = set_cell_size(text, left // 2).rstrip()
    tail = text[::-1]
    return head + mark + set_cell_size(tail, left - cell_len(head)).rstrip()[::-1]


def alike(
    names: Sequence[str], key: Callable[[str], Any], every: bool
) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Return the lines that a table of tensors has, and what to say below it.

    More than a screen holds are told together where their names differ in numbers alone; what are still more are cut.

    Parameters
    ----------
    names : sequence of str
    key : callable
        What tensors of one line have in common besides, of a name.
    every : bool
        A line for each, however many there are.

    Returns
    -------
    lines : list of (str, list of str)
        A name, numbers as "*" if it stands for several, and the names; in order of the first.
    notes : list of str
    """
    lines = [(name, [name]) for name in names]
    for number in (r"(?<![^\W_])\d+", r"\d+"):  # layers.0 but not fc1, then any
        if every or len(lines) <= _MANY:
            break
        patterns: dict[Any, list[str]] = {}
        for name in names:
            patterns.setdefault((re.sub(number, "*", name), key(name)), []).append(name)
        lines = [(pattern if len(members) > 1 else members[0], members) for (pattern, _), members in patterns.items()]
    notes = []
    if len(lines) < len(names):
        notes.append("names with * stand for several tensors: bytes of all, lowest cosines (--all shows each)")
    if not every and len(lines) > _MANY:
        notes.append(f"and {sum(len(members) for _, members in lines[_MANY:]):,} tensors more (--all shows them)")
        del lines[_MANY:]
    return lines, notes


def tensor_table(headings: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "", **more: Any) -> Table:
    """Return a table whose second column counts the tensors of a line, without it where each line has one."""
    if all(row[1] == "1" for row in rows):
        headings, rows = (*headings[:1], *headings[2:]), [(*row[:1], *row[2:]) for row in rows]
        more["spared"] = [name for name in more["spared"] if name != "tensors"]
    return Table(headings, rows, title, **more)


def _length(cell: str | Text) -> int:
    text = cell if isinstance(cell, str) else cell.plain
    return len(text) if text.isascii() else cell_len(text)


def _styled(line: Sequence[str | Text], console: Console) -> Iterator[Segment]:
    whole = Text.assemble(*line)
    whole.rstrip()
    whole.end = ""
    yield from whole.render(console)


def _sentence(text: str, width: int | None, style: Style | None = None) -> Iterator[Segment]:
    for line in [text] if width is None else textwrap.wrap(text, width):
        yield Segment(line, style)
        yield Segment.line()
