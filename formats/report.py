"""A conversion as one self-contained HTML page: verdict, plots and a table that sorts.

The page asks nothing of the network: styles, script and plots (SVG, drawn by matplotlib of the extra
`report`) are inline, and its content security policy allows no other script. The same facts give the
same bytes, for one release of matplotlib. Names come from files, so every one is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import HeaderError, MissingExtraError
from hhtld.formats.convert import ConversionReport, TensorOutcome, as_bf16_nbytes
from hhtld.formats.hhtld import open_pack
from hhtld.formats.hhtld.container import ContainerReader
from hhtld.formats.terminal import human_nbytes, safe
from hhtld.formats.verify import verify
from hhtld.gates import RegimeCosines
from hhtld.pack import HhtldPack
from hhtld.progress import Progress
from hhtld.roles import regime

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "PAGE_CSS",
    "PAGE_SCRIPT",
    "PLOT_STYLE",
    "PLOT_WIDTH",
    "framed",
    "report_facts",
    "section_nbytes",
    "write_report",
]

Counts = NDArray[np.int64]

# matplotlib knows no CSS variables, so it draws in these colours and the page puts the variables in.
INK, FAINT, ACCENT, MARK = "#010203", "#010204", "#010205", "#010206"
OTHER = "#010207"
_VARIABLES = {INK: "--ink", FAINT: "--faint", ACCENT: "--accent", MARK: "--mark", OTHER: "--other"}
PLOT_STYLE: dict[Any, Any] = {
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
PLOT_WIDTH = 4.8  # inches; its 346 units are about a phone's width, so that text is legible there


def write_report(
    path: str | os.PathLike[str], facts: Mapping[str, Any], cosines: Mapping[str, Counts] | None = None
) -> None:
    """Write a report of a conversion, as HTML, or as JSON when `path` ends in .json.

    Parameters
    ----------
    path : path
        Replaced only by a complete file.
    facts : dict
        `ConversionReport.to_json()`, and optionally "sections", bytes by kind of section, and
        "differences", sentences about what is not as the file says.
    cosines : dict of regime to int64 array, optional
        Histograms as in `hhtld.gates.RegimeCosines.counts`. Without them no distribution is drawn.

    Raises
    ------
    MissingExtraError
        When matplotlib is not installed; JSON does without.
    OutputError
        When the file cannot be written.
    """
    from hhtld.atomic import replacing

    if Path(path).suffix.lower() == ".json":
        text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    else:
        text = _page(facts, cosines or {})
    with replacing(path) as file:
        file.write(text.encode())


def report_facts(
    path: str | os.PathLike[str],
    src: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, Counts]]:
    """Return what `write_report` needs of a `.hhtld` file and its source, every row measured anew.

    Raises
    ------
    FormatError
        When the file is damaged or was not made from that source.
    """
    found = verify(path, src, jobs=jobs, progress=progress)
    if found.gates is None:
        raise HeaderError(f"{found.path} was not made from {found.source}: {'; '.join(found.differences[:3])}")
    with open_pack(path) as pack:
        profile = pack.table.profile
        found.gates.enforced = profile == "gates"
        report = ConversionReport(found.source or "", found.path, profile, found.gates, target_nbytes=found.nbytes)
        for name, record in pack.table.tensors.items():
            role = None if record.group is None else regime(pack.table.groups[record.group].key.role)
            quality = found.gates.tensors.get(name)
            outcome = TensorOutcome(record.info, record.codec, pack.nbytes(name), role, record.alias_of, quality)
            report.tensors.append(outcome)
            report.source_nbytes += record.info.nbytes
            if record.alias_of is None:
                report.bf16_nbytes += as_bf16_nbytes(record.info)
        facts = report.to_json() | {"sections": section_nbytes(pack)}
    if found.differences:
        facts["differences"] = found.differences
    return facts, {name: held.counts for name, held in found.gates.regimes.items()}


def section_nbytes(pack: HhtldPack) -> dict[str, int]:
    """Return the bytes of an open file by kind of section; empty for a pack in memory."""
    sizes: dict[str, int] = defaultdict(int)
    if isinstance(pack.sections, ContainerReader):
        for record in pack.sections.records:
            sizes[record.kind] += record.nbytes
    return dict(sorted(sizes.items()))


def _text(value: object) -> str:
    return html.escape(safe(str(value)).plain)


def _down(value: float, digits: int = 4) -> str:
    """Rounded down, as every printed cosine is; the small term undoes the binary error of the product."""
    return f"{math.floor(value * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def _page(facts: Mapping[str, Any], cosines: Mapping[str, Counts]) -> str:
    name = Path(facts["target"]).name or facts["target"]
    policy = base64.b64encode(hashlib.sha256(PAGE_SCRIPT.encode()).digest()).decode()
    profile = f", profile {_text(facts['profile'])}" if facts.get("profile") else ""
    seconds = f", in {facts['seconds']:.1f} s" if facts.get("seconds") else ""
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        '<meta name="color-scheme" content="light dark">\n',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; ',
        f"style-src 'unsafe-inline'; script-src 'sha256-{policy}'\">\n",
        f"<title>{_text(name)}: conversion report</title>\n<style>{PAGE_CSS}</style>\n</head>\n<body>\n<main>\n",
        f"<header>\n<h1>{_text(name)}</h1>\n<p>from {_text(facts['source'])}{profile}{seconds}</p>\n</header>\n",
        *_verdict(facts),
        *_sizes(facts),
        *_gates(facts["gates"]),
        '<div class="plots">\n',
        *_plots(facts, cosines),
        "</div>\n",
        *_table(facts["tensors"]),
        f"</main>\n<script>{PAGE_SCRIPT}</script>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _verdict(facts: Mapping[str, Any]) -> Iterator[str]:
    gates = facts["gates"]
    missed = list(_missed(gates))
    measured = any(found["n_rows"] for found in gates["regimes"].values())
    if facts.get("dry_run"):
        kind, words = "plain", "A dry run: sizes are predicted, nothing was written and no row was measured."
    elif not measured:
        kind, words = "plain", "No tensor was encoded; every one was kept byte for byte."
    elif not missed:
        kind, words = "good", "Every gate is reached."
    elif gates["enforced"]:
        kind, words = "bad", "Gates missed: " + "; ".join(missed) + "."
    else:
        kind = "plain"
        words = (
            f"The gates are shown, not enforced, for profile {facts.get('profile')}. "
            f"Below what profile gates must reach: {'; '.join(missed)}."
        )
    yield f'<p class="verdict {kind}">{_text(words)}</p>\n'
    for difference in facts.get("differences", ()):
        yield f'<p class="verdict bad">{_text(difference)}</p>\n'


def _missed(gates: Mapping[str, Any]) -> Iterator[str]:
    for regime_name, found in gates["regimes"].items():
        for quantile in ("median", "p5"):
            if found["n_rows"] and found[quantile] < found["required"][quantile]:
                yield f"{regime_name} {quantile} {_down(found[quantile])}, asked {found['required'][quantile]:g}"
    if gates["ratio"] < gates["min_ratio"]:
        yield f"{_down(gates['ratio'], 2)} times smaller than bfloat16, asked {gates['min_ratio']:g}"


def _sizes(facts: Mapping[str, Any]) -> Iterator[str]:
    ratio = f"asked {facts['gates']['min_ratio']:g}"
    encoded = sum("regime" in tensor for tensor in facts["tensors"])
    cells = (
        ("smaller than bfloat16", f"{_down(facts['ratio'], 2)}&times;", ratio),
        ("file", human_nbytes(facts["target_nbytes"]), f"{facts['target_nbytes']:,} bytes"),
        ("source as bfloat16", human_nbytes(facts["bf16_nbytes"]), f"{facts['bf16_nbytes']:,} bytes"),
        ("source", human_nbytes(facts["source_nbytes"]), f"{facts['source_nbytes']:,} bytes"),
        ("tensors", f"{len(facts['tensors']):,}", f"{encoded:,} encoded"),
    )
    yield '<dl class="sizes">\n'
    for label, number, note in cells:
        yield f"<div><dt>{label}</dt><dd>{number}<small>{note}</small></dd></div>\n"
    yield "</dl>\n"


def _gates(gates: Mapping[str, Any]) -> Iterator[str]:
    measured = {name: found for name, found in gates["regimes"].items() if found["n_rows"]}
    if not measured:
        return
    yield '<section>\n<h2>Cosine of every encoded row with itself</h2>\n<div class="scroll"><table>\n<thead><tr>'
    for heading in ("regime", "rows", "median", "asked", "p5", "asked", "min", "worst row"):
        yield f"<th{'' if heading in ('regime', 'worst row') else ' class=n'}>{heading}</th>"
    yield "</tr></thead>\n<tbody>\n"
    for name, found in measured.items():
        asked, worst = found["required"], found["worst"]
        yield f"<tr><td>{_text(name)}</td><td class=n>{found['n_rows']:,}</td>"
        for quantile in ("median", "p5"):
            passed = "good" if found[quantile] >= asked[quantile] else "bad"
            yield f'<td class="n {passed}">{_down(found[quantile], 6)}</td><td class=n>{asked[quantile]:g}</td>'
        yield f"<td class=n>{_down(found['min'], 6)}</td><td>{_text(worst['tensor'])} row {worst['row']}</td></tr>\n"
    yield "</tbody>\n</table></div>\n</section>\n"


def _table(tensors: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    columns = ("name", "shape", "type", "codec", "regime", "bytes", "bits/weight", "median", "p5", "min", "worst row")
    words = {"name", "type", "codec", "regime"}
    yield '<section>\n<h2>Tensors</h2>\n<div class="scroll"><table class="tensors">\n<thead><tr>'
    for column in columns:
        kind = "" if column in words else " class=n"
        yield f'<th{kind} aria-sort="none"><button type="button">{column}</button></th>'
    yield "</tr></thead>\n<tbody>\n"
    for tensor in tensors:
        shape, found = tensor["shape"], tensor.get("cosine")
        codec = f"= {tensor['alias_of']}" if "alias_of" in tensor else tensor["codec"]
        yield f"<tr><td>{_text(tensor['name'])}</td>"
        yield f'<td class=n data-value="{math.prod(shape)}">{" &times; ".join(map(str, shape)) or "scalar"}</td>'
        yield f"<td>{_text(tensor['dtype'])}</td><td>{_text(codec)}</td><td>{_text(tensor.get('regime', ''))}</td>"
        yield f'<td class=n data-value="{tensor["nbytes"]}">{human_nbytes(tensor["nbytes"])}</td>'
        yield f'<td class=n data-value="{tensor["bits_per_weight"]}">{tensor["bits_per_weight"]:.3f}</td>'
        for quantile in ("median", "p5", "min"):
            yield f'<td class=n data-value="{found[quantile]}">{_down(found[quantile])}</td>' if found else "<td></td>"
        yield (f"<td class=n>{found['worst_row']}</td>" if found else "<td></td>") + "</tr>\n"
    yield "</tbody>\n</table></div>\n</section>\n"


def _plots(facts: Mapping[str, Any], cosines: Mapping[str, Counts]) -> Iterator[str]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a report draws with matplotlib: pip install 'hhtld[report]'") from error
    drawn = 0

    def figure(height: float) -> tuple[Figure, Axes]:
        nonlocal drawn
        drawn += 1
        plot = Figure((PLOT_WIDTH, height), layout="constrained")
        return plot, plot.add_subplot()

    with mpl.rc_context():
        mpl.rcdefaults()  # the page must not depend on a user's matplotlibrc
        mpl.rcParams.update(PLOT_STYLE)
        for name, counts in cosines.items():
            if counts.any():
                plot, axes = figure(2.5)
                note = _draw_cosines(axes, counts, facts["gates"]["regimes"][name]["required"])
                title = f"Row cosines, {name} regime"
                yield framed(title, f"{int(counts.sum()):,} rows. {note}", plot, drawn)
        points = [tensor for tensor in facts["tensors"] if "cosine" in tensor and tensor["bits_per_weight"] > 0]
        if points:
            plot, axes = figure(2.9)
            _draw_rates(axes, points)
            note = (
                "One mark a tensor, its own bytes only. The curve is the best that any code can do on "
                "independent Gaussian weights, √(1 - 2^(-2b)) at b bits; structure in a tensor may carry it above."
            )
            yield framed("Bits a weight and median cosine", note, plot, drawn)
        sections = {kind: nbytes for kind, nbytes in facts.get("sections", {}).items() if nbytes}
        if sections:
            plot, axes = figure(0.6 + 0.26 * len(sections))
            _draw_sections(axes, sections)
            yield framed("Bytes by kind of section", f"{human_nbytes(sum(sections.values()))} in all.", plot, drawn)


def _draw_cosines(axes: Axes, counts: Counts, required: Mapping[str, float]) -> str:
    held = RegimeCosines(counts)
    median, p5 = held.quantile(0.5), held.quantile(0.05)
    last = len(counts) - 1
    below = np.concatenate([[0], np.cumsum(counts)])

    def cosine(index: int) -> float:
        return index * 2 / last - 1

    # A handful of stray rows would press the rest into one bar; they are counted in the note instead.
    low = int(np.searchsorted(below[1:], max(1, below[-1] // 1000)))
    high = int(counts.nonzero()[0][-1])
    span = max(high - low, 20)
    asked = {"median asked": required["median"], "p5 asked": required["p5"]}
    near = {
        label: value for label, value in asked.items() if cosine(low - 3 * span) <= value <= cosine(high + 3 * span)
    }
    indices = [low, high, *(round((value + 1) * last / 2) for value in near.values())]
    margin = max(10, (max(indices) - min(indices)) // 25)
    start, stop = max(0, min(indices) - margin), min(last, max(indices) + margin) + 1
    step = max(1, -(-(stop - start) // 120))
    edges = np.arange(start, stop + step, step)
    heights = np.diff(below[np.minimum(edges, len(counts))])
    axes.stairs(heights, [cosine(edge) for edge in edges.tolist()], fill=True, color=ACCENT, alpha=0.75, linewidth=0)
    for label, value, style in (("median", median, "-"), ("p5", p5, (0, (4, 2)))):
        axes.axvline(value, color=INK, linewidth=1.1, linestyle=style, label=f"{label} {_down(value)}")
    for label, value in near.items():
        style = "-" if label.startswith("median") else (0, (4, 2))
        axes.axvline(value, color=MARK, linewidth=1.1, linestyle=style, label=f"{label} {value:g}")
    axes.set_xlim(cosine(start), cosine(stop))
    axes.set_ylim(0, 1.08 * max(1, int(heights.max())))
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("cosine of a row with itself, decoded")
    axes.set_ylabel("rows")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=8.5, handlelength=1.8, borderpad=0.1)
    stray = int(below[start])
    notes = [f"{stray:,} of them left of the plot"] if stray else []
    notes += [f"{label}: {value:g}, outside the plot" for label, value in asked.items() if label not in near]
    return "; ".join(notes).capitalize() + "." if notes else ""


def _draw_rates(axes: Axes, tensors: list[Mapping[str, Any]]) -> None:
    styles = {"argmax": (ACCENT, "o"), "index": (OTHER, "s")}
    for name, (color, marker) in styles.items():
        chosen = [tensor for tensor in tensors if tensor.get("regime") == name]
        if chosen:
            bits, medians = zip(*((t["bits_per_weight"], t["cosine"]["median"]) for t in chosen), strict=True)
            axes.scatter(bits, medians, 22, color=color, marker=marker, alpha=0.7, linewidths=0, label=name, zorder=3)
    largest = max(tensor["bits_per_weight"] for tensor in tensors)
    lowest = min(tensor["cosine"]["median"] for tensor in tensors)
    rates = np.linspace(0, 1.15 * largest, 400)
    axes.plot(rates, np.sqrt(1 - 2.0 ** (-2 * rates)), color=INK, linewidth=1.1, label="Gaussian bound")
    axes.set_xlim(0, rates[-1])
    axes.set_ylim(max(-1.02, lowest - 0.12 * max(0.02, 1 - lowest)), 1 + 0.06 * max(0.02, 1 - lowest))
    axes.locator_params(axis="x", nbins=6)
    axes.locator_params(axis="y", nbins=5)
    axes.set_xlabel("bits a weight")
    axes.set_ylabel("median cosine")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, fontsize=8.5, handlelength=1.4, borderpad=0.1)


def _draw_sections(axes: Axes, sections: Mapping[str, int]) -> None:
    ranked = sorted(sections.items(), key=lambda item: (item[1], item[0]))
    labels = [ascii(kind)[1:-1] for kind, _ in ranked]
    bars = axes.barh(range(len(ranked)), [nbytes for _, nbytes in ranked], 0.62, color=ACCENT, alpha=0.75)
    axes.bar_label(bars, [human_nbytes(nbytes) for _, nbytes in ranked], padding=4, fontsize=8.5)
    axes.set_yticks(range(len(ranked)), labels)
    axes.set_xlim(0, 1.25 * ranked[-1][1])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["bottom", "left"]].set_visible(False)


def framed(title: str, note: str, plot: Figure, number: int) -> str:
    """Return a plot as a figure of the page, inline SVG; `number` tells it from the others of the page."""
    file = io.StringIO()
    plot.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    # Inside HTML an SVG needs no namespaces, and a size of its own would keep it from scaling.
    head, rest = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    svg = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{_text(title)}">{rest}'
    # Two plots on one page must not share ids.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>plot{number}-", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    svg = re.sub(r"\n\s*", "\n", svg).strip()
    return f"<figure>\n<h2>{_text(title)}</h2>\n{svg}\n<figcaption>{_text(note)}</figcaption>\n</figure>\n"


PAGE_CSS = """
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
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--rule); }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 500; }
.n { text-align: right; }
.tensors td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9.5em; }
td.good { color: var(--good); }
td.bad { color: var(--mark); }
tbody tr:hover td { background: color-mix(in srgb, var(--accent) 8%, transparent); }
th button { all: unset; cursor: pointer; }
th button:hover, th button:focus-visible { color: var(--ink); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " ↑"; }
th[aria-sort=descending] button::after { content: " ↓"; }
"""

PAGE_SCRIPT = """
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
