"""Self-contained HTML pages, made from jinja2 templates that escape every name that a file gives.

The templates are the files `*.html.jinja`: `display/templates/page.html.jinja` is the frame of every page,
`parts.html.jinja` has the macros for tables and plots, and each page's own template stands beside the module that
writes it. A page asks nothing of the network: its style, script, plots, and sounds are inline, and its content
security policy allows no other script. The same facts give the same bytes with one release of matplotlib.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hhtld.display.numbers import human_nbytes, reached
from hhtld.display.plots import require_matplotlib
from hhtld.display.terminal import safe
from hhtld.errors import MissingExtraError, OutputError
from hhtld.storage.atomic import replacing, require_regular, writing

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["Cell", "SortedTable", "check_page", "write_page"]

Cell = str | tuple[str, object]  # a text, or a text and the value by which the column is sorted

_SUFFIXES = (".html", ".htm", ".json")
_LONG = 24  # characters from which a cell may break


class _ShownCell(NamedTuple):
    text: str
    value: object
    is_number: bool

    @property
    def is_long(self) -> bool:
        return len(self.text) > _LONG


@dataclass(frozen=True, slots=True)
class SortedTable:
    """A table whose rows a click on a heading sorts.

    Attributes
    ----------
    title : str
    headings : sequence of str
        A heading that starts with ">" is of numbers.
    rows : iterable of sequence of Cell
        As many cells a row as there are headings.
    note : str
        A sentence below the table.
    """

    title: str
    headings: Sequence[str]
    rows: Iterable[Sequence[Cell]]
    note: str = ""

    @property
    def columns(self) -> list[tuple[str, bool]]:
        """Each heading, and whether its column is of numbers."""
        return [(heading.removeprefix(">"), heading.startswith(">")) for heading in self.headings]

    def cells(self) -> Iterator[list[_ShownCell]]:
        """Yield the rows as the template shows them."""
        numbers = [is_number for _, is_number in self.columns]
        for row in self.rows:
            yield [_shown(cell, is_number) for cell, is_number in zip(row, numbers, strict=True)]


def _shown(cell: Cell, is_number: bool) -> _ShownCell:
    text, value = cell if isinstance(cell, tuple) else (cell, None)
    if value is None:  # as the page's script reads numbers: without commas and units
        value = text.replace(",", "").removesuffix(" %")
    return _ShownCell(text, value, is_number)


def check_page(path: str | os.PathLike[str], read: Iterable[object], draws: bool = False) -> None:
    """Refuse a page that could not be written, before the work that the page is about.

    Parameters
    ----------
    path : path
        It must end in .html, or in .json.
    read : iterable of paths and others
        What the page is about: none of these files, and no .json of these folders, is replaced.
    draws : bool
        Whether the page has plots.

    Raises
    ------
    ValueError
        If the name ends otherwise, or the page would replace what is read.
    MissingExtraError
        If jinja2, or matplotlib for a page with plots, is not installed; JSON needs neither.
    OutputError
        If the folder does not exist or cannot be written in.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"a report ends in .html, or in .json for its numbers alone; got {os.fspath(path)!r}")
    for source in (Path(source) for source in read if isinstance(source, str | os.PathLike)):
        is_inside = suffix == ".json" and source.is_dir() and source.resolve() in target.resolve().parents
        if target.exists() and (is_inside or (source.exists() and target.samefile(source))):
            raise ValueError(f"{target} is a file of what the report is about; give the report another name")
    with writing(target):
        require_regular(target)
        target.parent.stat()
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise OutputError(f"cannot write {target}: {target.parent} is no folder that can be written in")
    if suffix != ".json":
        _templates()
        if draws:
            require_matplotlib()


def write_page(
    path: str | os.PathLike[str],
    facts: Mapping[str, Any],
    template: str,
    subject: str,
    contents: Callable[[], Mapping[str, Any]],
) -> None:
    """Write a page, or its facts as JSON if `path` ends in .json.

    Parameters
    ----------
    path : path
        Replaced only by a complete file.
    facts : mapping
        What JSON tells.
    template : str
        The path of a template below the package hhtld; it extends display/templates/page.html.jinja.
    subject : str
        The path of the file that the page is about; its name is the page's heading.
    contents : callable
        Returns the variables of the template; it is not called for JSON.

    Raises
    ------
    MissingExtraError
        If jinja2, or matplotlib for a page with plots, is not installed; JSON needs neither.
    OutputError
        If the file cannot be written.
    """
    if Path(path).suffix.lower() == ".json":
        text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    else:
        name = Path(subject).name or subject
        text = _templates().get_template(template).render({**contents(), "name": name})
    with replacing(path) as file:
        file.write(text.encode())


def _templates() -> Environment:
    """Return what finds the templates in the package and escapes all that is put into them."""
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError("an HTML report is written with jinja2: pip install 'hhtld[report]'") from error

    def lines(text: str) -> Markup:
        """Keep the line ends of a text, which `_printable` would write as \\n."""
        return Markup("\n").join(safe(line).plain for line in text.split("\n"))

    templates = Environment(
        autoescape=True,
        finalize=_printable,
        keep_trailing_newline=True,
        loader=FunctionLoader(_packaged),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    style, script = (_packaged(f"display/templates/page.{suffix}") for suffix in ("css", "js"))
    templates.filters |= {"human_nbytes": human_nbytes, "lines": lines, "reached": reached}
    templates.globals |= {
        "script": Markup(script),
        "script_sha256": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": Markup(style),
        "version": version("hhtld"),
    }
    return templates


def _packaged(name: str) -> str:
    """Return the text of a file of the package."""
    return files("hhtld").joinpath(name).read_text(encoding="utf-8")


def _printable(value: object) -> object:
    """Return what a template prints without control characters; markup, which is escaped already, stays."""
    return value if hasattr(value, "__html__") else safe(str(value)).plain
