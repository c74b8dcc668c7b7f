"""Self-contained HTML pages: the frame, tables that sort, and plots.

A page asks nothing of the network: styles, script, plots (SVG, drawn by matplotlib of the extra `report`), pictures
and sounds are inline, and its content security policy allows no other script. The same facts give the same bytes,
for one release of matplotlib. Names come from files, so every one is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hhtld.display.terminal import safe
from hhtld.errors import MissingExtraError, OutputError
from hhtld.storage.atomic import replacing, require_regular, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "INK",
    "MARK",
    "OTHER",
    "Cell",
    "Plots",
    "check_page",
    "escaped",
    "page",
    "plots",
    "sizes",
    "sorted_table",
    "verdict",
    "write_page",
]

Cell = str | tuple[str, object]  # a text, or one and what the column is sorted by

# matplotlib knows no CSS variables, so it draws in these colours and the page puts the variables in.
INK, FAINT, ACCENT, MARK = "#010203", "#010204", "#010205", "#010206"
OTHER = "#010207"
_VARIABLES = {INK: "--ink", FAINT: "--faint", ACCENT: "--accent", MARK: "--mark", OTHER: "--other"}
_PLOT_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hhtld",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
}
_PLOT_WIDTH = 4.8  # inches; its 346 units are about a phone's width, so that text is legible there
_SUFFIXES = (".html", ".htm", ".json")
_LONG = 24  # characters from which a cell may break


def check_page(path: str | os.PathLike[str], draws: bool = False) -> None:
    """Refuse a page that could not be written, before the work that it is about.

    Parameters
    ----------
    path : path
        It must end in .html or .json.
    draws : bool
        Whether the page has plots.

    Raises
    ------
    ValueError, MissingExtraError, OutputError
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"a report ends in .html, or in .json for its numbers alone; got {os.fspath(path)!r}")
    with writing(target):
        require_regular(target)
        target.parent.stat()
    if not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise OutputError(f"cannot write {target}: {target.parent} is no folder that can be written in")
    if draws and suffix != ".json":
        _matplotlib()


def write_page(path: str | os.PathLike[str], facts: Mapping[str, Any], parts: Iterable[str]) -> None:
    """Write a page from its parts, or the facts as JSON when `path` ends in .json; the parts are then not asked for.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    is_json = Path(path).suffix.lower() == ".json"
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n" if is_json else "".join(parts)
    with replacing(path) as file:
        file.write(text.encode())


def escaped(value: object) -> str:
    """Return a value as text of a page."""
    return html.escape(safe(str(value)).plain)


def page(path: str, title: str, beside: str, body: Iterable[str], css: str = "") -> Iterator[str]:
    """Yield a page about the file at a path.

    Parameters
    ----------
    path, title, beside : str
        The file, what the page is to its name, and a line below it.
    body : iterable of str
        HTML.
    css : str
        The page's own.
    """
    name = escaped(Path(path).name or path)
    policy = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="color-scheme" content="light dark">\n'
    yield '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
    yield f"style-src 'unsafe-inline'; script-src 'sha256-{policy}'\">\n"
    yield f"<title>{name}: {title}</title>\n<style>{_CSS}{css}</style>\n</head>\n<body>\n<main>\n"
    yield f"<header>\n<h1>{name}</h1>\n<p>{escaped(beside)}</p>\n</header>\n"
    yield from body
    yield f"<footer><p>hhtld {escaped(version('hhtld'))}</p></footer>\n"
    yield f"</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"


def verdict(kind: str, words: str) -> str:
    """Return a framed sentence; `kind` is "good", "bad" or "plain"."""
    return f'<p class="verdict {kind}">{escaped(words)}</p>\n'


def sizes(cells: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Yield large numbers side by side: (label, number, note)."""
    yield '<dl class="sizes">\n'
    for cell in cells:
        label, number, note = map(escaped, cell)
        yield f"<div><dt>{label}</dt><dd>{number}<small>{note}</small></dd></div>\n"
    yield "</dl>\n"


def sorted_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, note: str = ""
) -> Iterator[str]:
    """Yield a table that a click on a heading sorts; headings with > in front are of numbers."""
    numbers = [heading.startswith(">") for heading in headings]
    yield f'<section>\n<h2>{escaped(title)}</h2>\n<div class="scroll"><table>\n<thead><tr>'
    for heading, number in zip(headings, numbers, strict=True):
        of = " class=n" if number else ""
        yield f'<th{of} aria-sort="none"><button type="button">{escaped(heading.lstrip(">"))}</button></th>'
    yield "</tr></thead>\n<tbody>\n"
    for row in rows:
        yield f"<tr>{''.join(_cell(cell, number) for cell, number in zip(row, numbers, strict=True))}</tr>\n"
    yield f"</tbody>\n</table></div>\n{f'<p><small>{escaped(note)}</small></p>' if note else ''}\n</section>\n"


def _cell(cell: Cell, is_number: bool) -> str:
    text, value = cell if isinstance(cell, tuple) else (cell, None)
    if is_number:
        if value is None:  # as the script reads numbers: without commas and units
            value = text.replace(",", "").removesuffix(" %")
        return f'<td class=n data-value="{escaped(value)}">{escaped(text)}</td>'
    lines = "\n".join(map(escaped, text.split("\n")))  # whole, its line ends would be escaped
    return f"<td{' class=long' if len(text) > _LONG else ''}>{lines}</td>"


class Plots:
    """Makes figures that look alike and tells their parts from one another."""

    def __init__(self) -> None:
        self._drawn = 0

    def figure(self, height: float) -> Figure:
        """Return an empty figure, `height` inches high."""
        from matplotlib.figure import Figure

        return Figure((_PLOT_WIDTH, height), layout="constrained")

    def framed(self, title: str, note: str, plot: Figure) -> str:
        """Return a figure as a part of the page, inline SVG."""
        self._drawn += 1
        file = io.StringIO()
        plot.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        svg = file.getvalue()
        svg = svg[svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
        # Inside HTML an SVG needs no namespaces, and a size of its own would keep it from scaling.
        head, rest = svg.split(">", 1)
        box = re.search(r'viewBox="([^"]*)"', head)
        svg = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escaped(title)}">{rest}'
        # Two plots on one page must not share ids.
        svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>plot{self._drawn}-", svg)
        for color, variable in _VARIABLES.items():
            svg = svg.replace(color, f"var({variable})")
        svg = re.sub(r"\n\s*", "\n", svg).strip()
        return f"<figure>\n<h2>{escaped(title)}</h2>\n{svg}\n<figcaption>{escaped(note)}</figcaption>\n</figure>\n"


@contextmanager
def plots() -> Iterator[Plots]:
    """Give what draws a page's plots.

    Raises
    ------
    MissingExtraError
        When matplotlib is not installed.
    """
    mpl = _matplotlib()
    with mpl.rc_context():
        mpl.rcdefaults()  # the page must not depend on a user's matplotlibrc
        mpl.rcParams.update(_PLOT_STYLE)
        yield Plots()


def _matplotlib() -> ModuleType:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("a report draws with matplotlib: pip install 'hhtld[report]'") from error
    return mpl


_CSS = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #ffffff; --ink: #25282c; --soft: #656b73;
  --faint: #b9bec5; --rule: #e6e4df; --accent: #3f78a8; --other: #c07a2c; --mark: #b4483f; --good: #2f7d54; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --card: #1d2024; --ink: #e4e6e9; --soft: #9aa1aa; --faint: #565c65; --rule: #2d3136;
    --accent: #7cb0dc; --other: #e0a35c; --mark: #e58178; --good: #74c69a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 16px 56px; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; font-weight: 650; overflow-wrap: anywhere; }
h2 { margin: 0 0 10px; font-size: 15px; font-weight: 650; }
header p { margin: 4px 0 0; color: var(--soft); overflow-wrap: anywhere; }
.verdict { margin: 18px 0 0; padding: 10px 14px; background: var(--card); border: 1px solid var(--rule);
  border-left: 4px solid var(--faint); border-radius: 6px; overflow-wrap: anywhere; }
.verdict.good { border-left-color: var(--good); }
.verdict.bad { border-left-color: var(--mark); }
.sizes { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 14px 0 0; }
.sizes div, section, figure { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; }
.sizes div { padding: 10px 14px; }
dt, small { color: var(--soft); font-size: 13px; }
dd { margin: 0; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
dd small { display: block; line-height: 1.5; }
section { margin: 14px 0 0; padding: 14px 14px 6px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 14px; }
.plots:not(:empty) { margin-top: 14px; }
figure { margin: 0; padding: 14px; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 600px; margin: 0 auto; }
figure svg text { font-family: inherit !important; }
figcaption { margin-top: 8px; color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; /* a shadow on the side where there is more, covered where there is none */
  background: linear-gradient(to right, var(--card) 40%, transparent) left / 40px 100%,
    linear-gradient(to left, var(--card) 40%, transparent) right / 40px 100%,
    linear-gradient(to right, var(--faint), transparent) left / 12px 100%,
    linear-gradient(to left, var(--faint), transparent) right / 12px 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }
@media (max-width: 700px) {
  .scroll th:first-child, .scroll td:first-child { position: sticky; left: 0; white-space: normal;
    min-width: 5.5em; max-width: 45vw; overflow-wrap: anywhere; background: var(--card); } }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; text-align: left; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--rule); }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; }
.n { text-align: right; }
td.long { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 12em; }
td.good { color: var(--good); }
td.bad { color: var(--mark); }
tbody tr:hover td { background: color-mix(in srgb, var(--accent) 8%, transparent); }
th button { all: unset; cursor: pointer; }
th[aria-sort=none] button::after { content: " ↕"; opacity: 0.5; }
footer { margin-top: 20px; color: var(--soft); font-size: 13px; }
th button:hover, th button:focus-visible { color: var(--ink); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
"""

_SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentNode, column = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    const numeric = heading.classList.contains("n");
    const order = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", order === 1 ? "ascending" : "descending");
    const words = new Intl.Collator("en", {numeric: true});
    const keyed = Array.from(body.rows, row => {
      const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent;
      return [text === "" || !numeric ? text : Number(text), row];
    });
    // What a tensor does not have stays at the end in both directions.
    keyed.sort(([a], [b]) => a === "" || b === "" ? (a === "") - (b === "")
      : order * (numeric ? a - b : words.compare(a, b)));
    body.append(...keyed.map(([, row]) => row));
  });
}
"""
