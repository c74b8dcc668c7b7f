"""A conversion as one HTML page: verdict, plots and a table that sorts."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hhtld.api.advice import GATES_NOTE
from hhtld.api.conversion_report import ConversionReport, TensorOutcome, as_bf16_nbytes, tell_as_stored, tied_too
from hhtld.codecs import codecs
from hhtld.commands.arguments import add_jobs, add_json
from hhtld.commands.exit_codes import DONE, FAILED
from hhtld.commands.verify import verify
from hhtld.display.numbers import human_nbytes, reached
from hhtld.display.page import Cell, SortedTable, write_page
from hhtld.display.plots import ACCENT, INK, MARK, OTHER, Drawing, plots
from hhtld.display.streams import emit
from hhtld.display.terminal import EXPLAINED
from hhtld.encoding.gate_report import RegimeCosines
from hhtld.errors import HeaderError
from hhtld.formats import open_source
from hhtld.pack.container import ContainerReader
from hhtld.pack.opening import open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "report_facts", "run", "section_nbytes", "write_report"]

_RATES = (
    "Each mark is a tensor and counts that tensor's own bytes only. The curve is the best that any code can do on "
    "independent Gaussian weights, √(1 - 2^(-2b)) at b bits; structure in a tensor may carry it above the curve."
)
_TIMES = "\N{MULTIPLICATION SIGN}"


def write_report(
    path: str | os.PathLike[str], facts: Mapping[str, Any], cosines: Mapping[str, RegimeCosines] | None = None
) -> None:
    """Write a report of a conversion, as HTML, or as JSON when `path` ends in .json.

    Parameters
    ----------
    path : path
        Replaced only by a complete file.
    facts : dict
        `ConversionReport.to_json()`, and optionally "sections", bytes by kind of section, and
        "differences", sentences about what is not as the file says.
    cosines : dict of regime to RegimeCosines, optional
        Without them no distribution is drawn.

    Raises
    ------
    MissingExtraError
        If jinja2 or matplotlib is not installed; JSON needs neither.
    OutputError
        If the file cannot be written.
    """
    write_page(path, facts, "commands/report.html.jinja", facts["target"], lambda: _contents(facts, cosines or {}))


def report_facts(
    path: str | os.PathLike[str],
    src: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], dict[str, RegimeCosines]]:
    """Return what `write_report` needs of a `.hhtld` file and its source, every row measured anew.

    Raises
    ------
    FormatError
        If the file is damaged or was not made from that source.
    """
    verified = verify(path, src, jobs=jobs, progress=progress)
    if verified.gates is None:
        raise HeaderError(f"{verified.path} was not made from {verified.source}: {'; '.join(verified.differences[:3])}")
    with open_pack(path) as pack:
        profile = pack.table.profile
        verified.gates.enforced = profile in ("gates", "parity")
        files_nbytes = sum(pack.files().values())
        report = ConversionReport(
            verified.source or "", verified.path, profile, verified.gates, target_nbytes=verified.nbytes
        )
        report.files_nbytes = report.source_nbytes = report.bf16_nbytes = files_nbytes
        report.notes = [GATES_NOTE] if profile == "gates" else []
        for name, record in pack.table.tensors.items():
            regime_facts = (pack.table.regime(name), pack.table.regime_reason(name), record.alias_of)
            quality = verified.gates.tensors.get(name)
            nbytes, unreached = pack.nbytes(name), record.unreached
            outcome = TensorOutcome(record.info, record.codec, nbytes, *regime_facts, quality, unreached=unreached)
            report.tensors.append(outcome)
            report.source_nbytes += record.info.nbytes
            if record.alias_of is None:
                report.bf16_nbytes += as_bf16_nbytes(record.info)
        report.tensors = tied_too(report.tensors)
        with open_source(src) as source:
            tell_as_stored(report, source)
        verified.gates.source_ratio = report.source_nbytes / report.target_nbytes
        facts = report.to_json() | {"sections": section_nbytes(pack)}
    if verified.differences:
        facts["differences"] = verified.differences
    return facts, verified.gates.regimes


def section_nbytes(pack: HhtldPack) -> dict[str, int]:
    """Return the bytes of an open file by kind of section; empty for a pack in memory."""
    sizes: dict[str, int] = defaultdict(int)
    if isinstance(pack.sections, ContainerReader):
        for record in pack.sections.records:
            sizes[record.kind] += record.nbytes
    return dict(sorted(sizes.items()))


def _contents(facts: Mapping[str, Any], cosines: Mapping[str, RegimeCosines]) -> dict[str, Any]:
    """Return the variables of report.html.jinja."""
    return {
        "drawings": _drawings(facts, cosines),
        "explained": EXPLAINED,
        "facts": facts,
        "figures": _figures(facts),
        "measured": {name: regime for name, regime in facts["gates"]["regimes"].items() if regime["n_rows"]},
        "tensors": _tensor_table(facts["tensors"]),
        "unreached": facts["gates"].get("unreached", {}),
        "verdicts": list(_verdicts(facts)),
    }


def _verdicts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the sentences that stand first on the page: what kind each is of, and its words."""
    yield _gate_verdict(facts)
    for difference in facts.get("differences", ()):
        yield "bad", difference
    for note in facts.get("notes", ()):
        yield "plain", f"Note: {note}."


def _gate_verdict(facts: Mapping[str, Any]) -> tuple[str, str]:
    gates = facts["gates"]
    if facts.get("dry_run"):
        return "plain", "A dry run: sizes are predicted, nothing was written and no row was measured."
    if not gates.get("unreached") and not any(regime["n_rows"] for regime in gates["regimes"].values()):
        return "plain", "No tensor was encoded; every one was kept byte for byte."
    missed = "; ".join(_missed(gates))
    if not missed:
        return "good", "Every gate is reached."
    if gates["enforced"]:
        return "bad", f"Gates missed: {missed}."
    shown = f"The gates are shown, not enforced, for profile {facts.get('profile')}."
    return "plain", f"{shown} Below what profile gates must reach: {missed}."


def _missed(gates: Mapping[str, Any]) -> Iterator[str]:
    for name, regime in gates["regimes"].items():
        for quantile in ("median", "p5"):
            if quantile in regime and regime[quantile] < regime["required"][quantile]:
                yield f"{name} {quantile} {reached(regime[quantile])}, asked {regime['required'][quantile]:g}"
        if "lost" in regime:
            lost = regime["lost"]
            yield (
                f"{regime['n_zero_rows_lost']:,} rows of zeros of regime {name} do not come back as zeros, the "
                f"first of them row {lost['row']} of {lost['tensor']}"
            )
    unreached = gates.get("unreached", {})
    if unreached and not gates.get("allow_keep"):
        first = min(unreached)
        more = f" and {len(unreached) - 1:,} more" if len(unreached) > 1 else ""
        asked = unreached[first]
        both = f"{asked['median']:g} and {asked['p5']:g}"
        yield f"6 bits a weight do not reach {both} for {first}{more}, kept byte for byte"
    if gates["ratio"] < gates["min_ratio"]:
        yield f"{reached(gates['ratio'], 2)} times smaller than bfloat16, asked {gates['min_ratio']:g}"
    elif not gates.get("ratio_reached", True):
        yield f"larger than its source, which is {reached(gates['source_ratio'], 2)} times the file as stored"
    if gates.get("ratio_advice"):
        yield gates["ratio_advice"]


def _figures(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    ratio = f"asked {facts['gates']['min_ratio']:g}"
    n_encoded = sum("regime" in tensor and "alias_of" not in tensor for tensor in facts["tensors"])
    return [
        ("smaller than bfloat16", f"{reached(facts['ratio'], 2)}{_TIMES}", ratio),
        ("file", human_nbytes(facts["target_nbytes"]), f"{facts['target_nbytes']:,} bytes"),
        ("source as bfloat16", human_nbytes(facts["bf16_nbytes"]), f"{facts['bf16_nbytes']:,} bytes"),
        ("source", human_nbytes(facts["source_nbytes"]), f"{facts['source_nbytes']:,} bytes"),
        ("tensors", f"{len(facts['tensors']):,}", f"{n_encoded:,} encoded"),
    ]


def _tensor_table(tensors: Iterable[Mapping[str, Any]]) -> SortedTable:
    headings = (
        "name",
        ">shape",
        "type",
        "codec",
        "regime",
        "why",
        ">bytes",
        ">bits/weight",
        ">median",
        ">p5",
        ">min",
        ">worst row",
    )

    def row(tensor: Mapping[str, Any]) -> Iterator[Cell]:
        shape, quality = tensor["shape"], tensor.get("cosine")
        yield tensor["name"]
        yield f" {_TIMES} ".join(map(str, shape)) or "scalar", math.prod(shape)
        yield tensor.get("stored_as", tensor["dtype"])
        yield f"= {tensor['alias_of']}" if "alias_of" in tensor else tensor["codec"]
        yield tensor.get("regime", "")
        yield tensor.get("regime_reason", "")
        yield human_nbytes(tensor["nbytes"]), tensor["nbytes"]
        yield f"{tensor['bits_per_weight']:.3f}", tensor["bits_per_weight"]
        for quantile in ("median", "p5", "min"):
            yield (reached(quality[quantile]), quality[quantile]) if quality else ""
        yield str(quality["worst_row"]) if quality else ""

    codecs_told = "; ".join(f"{codec.id}: {codec.summary}" for codec in codecs())
    return SortedTable("Tensors", headings, (tuple(row(tensor)) for tensor in tensors), note=f"codec: {codecs_told}")


def _drawings(facts: Mapping[str, Any], cosines: Mapping[str, RegimeCosines]) -> list[Drawing]:
    drawings = []
    with plots() as drawn:
        for name, regime in cosines.items():
            if regime.n_live_rows:
                figure = drawn.figure(2.5)
                note = _draw_cosines(figure.add_subplot(), regime, facts["gates"]["regimes"][name]["required"])
                title = f"Row cosines, {name} regime"
                drawings.append(drawn.drawing(title, f"{regime.n_live_rows:,} rows. {note}", figure))
        points = [tensor for tensor in facts["tensors"] if "cosine" in tensor and tensor["bits_per_weight"] > 0]
        if points:
            figure = drawn.figure(2.9)
            _draw_rates(figure.add_subplot(), points)
            drawings.append(drawn.drawing("Bits a weight and median cosine", _RATES, figure))
        sections = {kind: nbytes for kind, nbytes in facts.get("sections", {}).items() if nbytes}
        if sections:
            figure = drawn.figure(0.6 + 0.26 * len(sections))
            _draw_sections(figure.add_subplot(), sections)
            note = f"{human_nbytes(sum(sections.values()))} in all."
            drawings.append(drawn.drawing("Bytes by kind of section", note, figure))
    return drawings


def _draw_cosines(axes: Axes, regime: RegimeCosines, required: Mapping[str, float]) -> str:
    median, p5 = regime.median, regime.p5
    values, counts = regime.counted()
    cosines, below = values / 1e6, np.concatenate([[0], np.cumsum(counts)])
    # A handful of stray rows would press the rest into one bar; they are counted in the note instead.
    low = float(cosines[np.searchsorted(below[1:], max(1, below[-1] // 1000))])
    high = float(cosines[-1])
    span = max(high - low, 2e-4)
    asked = {"median asked": required["median"], "p5 asked": required["p5"]}
    near = {label: value for label, value in asked.items() if low - 3 * span <= value <= high + 3 * span}
    shown = [low, high, *near.values()]
    margin = max(1e-4, (max(shown) - min(shown)) / 25)
    start, stop = max(-1.0, min(shown) - margin), min(1.0, max(shown) + margin)
    edges = np.linspace(start, stop, 121)
    heights, _ = np.histogram(cosines, edges, weights=counts)
    axes.stairs(heights, edges, fill=True, color=ACCENT, alpha=0.75, linewidth=0)
    for label, value, style in (("median", median, "-"), ("p5", p5, (0, (4, 2)))):
        axes.axvline(value, color=INK, linewidth=1.1, linestyle=style, label=f"{label} {reached(value)}")
    for label, value in near.items():
        style = "-" if label.startswith("median") else (0, (4, 2))
        axes.axvline(value, color=MARK, linewidth=1.1, linestyle=style, label=f"{label} {value:g}")
    axes.set_xlim(start, stop)
    axes.set_ylim(0, 1.08 * max(1, int(heights.max())))
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("cosine of a row with what the file gives back")
    axes.set_ylabel("rows")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=8.5, handlelength=1.8, borderpad=0.1)
    stray = int(below[np.searchsorted(cosines, start)])
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


# ---- the command ----


DESCRIPTION = "Measure FILE against SRC anew and write one self-contained HTML page, or JSON."
EXAMPLES = """\
  hhtld report model.hhtld model.safetensors
  hhtld report model.hhtld snapshot/ page.html
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("file", metavar="FILE", help="a .hhtld file")
    command.add_argument("src", metavar="SRC", help="what FILE was made from")
    command.add_argument("out", metavar="OUT", nargs="?", help="page to write (default: FILE with .html)")
    add_jobs(command)
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from hhtld.display.page import check_page
    from hhtld.display.progress_bar import progress_bar
    from hhtld.pack.opening import open_pack
    from hhtld.storage.locations import locate

    place = locate(arguments.file)  # the page about a file behind a URL stands here, under its name
    out = arguments.out or (place if isinstance(place, Path) else Path(place.name)).with_suffix(".html")
    check_page(out, [arguments.file, arguments.src], draws=True)
    with open_pack(arguments.file) as pack:
        total = sum(pack.info(name).info.nbytes for name in pack)
    with progress_bar(total, wanted=not arguments.json) as progress:
        facts, cosines = report_facts(arguments.file, arguments.src, jobs=arguments.jobs, progress=progress)
    write_report(out, facts, cosines)
    if arguments.json:
        emit(json.dumps(facts, indent=2, allow_nan=False))
    else:
        emit(f"{out} is written")
    return FAILED if facts.get("differences") else DONE
