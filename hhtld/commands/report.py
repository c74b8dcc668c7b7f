"""A conversion as one HTML page: verdict, plots and a table that sorts."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hhtld.api.convert import GATES_NOTE, ConversionReport, TensorOutcome, as_bf16_nbytes, tell_as_stored, tied_too
from hhtld.commands.verify import verify
from hhtld.display.page import (
    ACCENT,
    INK,
    MARK,
    OTHER,
    Cell,
    escaped,
    page,
    plots,
    sizes,
    sorted_table,
    verdict,
    write_page,
)
from hhtld.display.terminal import EXPLAINED, human_nbytes
from hhtld.encoding.quality import RegimeCosines
from hhtld.errors import HeaderError
from hhtld.formats import open_source
from hhtld.pack.container import ContainerReader
from hhtld.pack.opening import open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["report_facts", "section_nbytes", "write_report"]

_CODECS = (
    "codec: hhtl_t holds trellis codes and a gain a row (Slots T and V); hhtl_d a tree address and a magnitude; "
    "hhtl_f32 the number of a palette's row; keep is as it came, byte for byte"
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
        When matplotlib is not installed; JSON does without.
    OutputError
        When the file cannot be written.
    """
    write_page(path, facts, _page(facts, cosines or {}))


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
        When the file is damaged or was not made from that source.
    """
    found = verify(path, src, jobs=jobs, progress=progress)
    if found.gates is None:
        raise HeaderError(f"{found.path} was not made from {found.source}: {'; '.join(found.differences[:3])}")
    with open_pack(path) as pack:
        profile = pack.table.profile
        found.gates.enforced = profile in ("gates", "parity")
        files_nbytes = sum(pack.files().values())
        report = ConversionReport(found.source or "", found.path, profile, found.gates, target_nbytes=found.nbytes)
        report.files_nbytes = report.source_nbytes = report.bf16_nbytes = files_nbytes
        report.notes = [GATES_NOTE] if profile == "gates" else []
        for name, record in pack.table.tensors.items():
            told = (pack.table.regime(name), pack.table.regime_reason(name), record.alias_of)
            quality = found.gates.tensors.get(name)
            nbytes, unreached = pack.nbytes(name), record.unreached
            outcome = TensorOutcome(record.info, record.codec, nbytes, *told, quality, unreached=unreached)
            report.tensors.append(outcome)
            report.source_nbytes += record.info.nbytes
            if record.alias_of is None:
                report.bf16_nbytes += as_bf16_nbytes(record.info)
        report.tensors = tied_too(report.tensors)
        with open_source(src) as source:
            tell_as_stored(report, source)
        found.gates.source_ratio = report.source_nbytes / report.target_nbytes
        facts = report.to_json() | {"sections": section_nbytes(pack)}
    if found.differences:
        facts["differences"] = found.differences
    return facts, found.gates.regimes


def section_nbytes(pack: HhtldPack) -> dict[str, int]:
    """Return the bytes of an open file by kind of section; empty for a pack in memory."""
    sizes: dict[str, int] = defaultdict(int)
    if isinstance(pack.sections, ContainerReader):
        for record in pack.sections.records:
            sizes[record.kind] += record.nbytes
    return dict(sorted(sizes.items()))


def _down(value: float, digits: int = 4) -> str:
    """Rounded down, as every printed cosine is; the small term undoes the binary error of the product."""
    return f"{math.floor(value * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def _page(facts: Mapping[str, Any], cosines: Mapping[str, RegimeCosines]) -> Iterator[str]:
    profile = f", profile {facts['profile']}" if facts.get("profile") else ""
    seconds = f", in {facts['seconds']:.1f} s" if facts.get("seconds") else ""
    return page(
        facts["target"], "conversion report", f"from {facts['source']}{profile}{seconds}", _body(facts, cosines)
    )


def _body(facts: Mapping[str, Any], cosines: Mapping[str, RegimeCosines]) -> Iterator[str]:
    yield from _verdicts(facts)
    yield from _sizes(facts)
    yield from _gates(facts["gates"])
    yield '<div class="plots">\n'
    yield from _plots(facts, cosines)
    yield "</div>\n"
    yield from _table(facts["tensors"])


def _verdicts(facts: Mapping[str, Any]) -> Iterator[str]:
    gates = facts["gates"]
    missed = list(_missed(gates))
    measured = any(found["n_rows"] for found in gates["regimes"].values())
    if facts.get("dry_run"):
        kind, words = "plain", "A dry run: sizes are predicted, nothing was written and no row was measured."
    elif not measured and not gates.get("unreached"):
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
    yield verdict(kind, words)
    for difference in facts.get("differences", ()):
        yield verdict("bad", difference)
    for note in facts.get("notes", ()):
        yield verdict("plain", f"Note: {note}.")


def _missed(gates: Mapping[str, Any]) -> Iterator[str]:
    for regime_name, found in gates["regimes"].items():
        for quantile in ("median", "p5"):
            if quantile in found and found[quantile] < found["required"][quantile]:
                yield f"{regime_name} {quantile} {_down(found[quantile])}, asked {found['required'][quantile]:g}"
        if "lost" in found:
            lost = found["lost"]
            yield (
                f"{found['n_zero_rows_lost']:,} rows of zeros of regime {regime_name} do not come back as zeros, the "
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
        yield f"{_down(gates['ratio'], 2)} times smaller than bfloat16, asked {gates['min_ratio']:g}"
    elif not gates.get("ratio_reached", True):
        yield f"larger than its source, which is {_down(gates['source_ratio'], 2)} times the file as stored"
    if gates.get("ratio_advice"):
        yield gates["ratio_advice"]


def _sizes(facts: Mapping[str, Any]) -> Iterator[str]:
    ratio = f"asked {facts['gates']['min_ratio']:g}"
    encoded = sum("regime" in tensor and "alias_of" not in tensor for tensor in facts["tensors"])
    yield from sizes(
        [
            ("smaller than bfloat16", f"{_down(facts['ratio'], 2)}{_TIMES}", ratio),
            ("file", human_nbytes(facts["target_nbytes"]), f"{facts['target_nbytes']:,} bytes"),
            ("source as bfloat16", human_nbytes(facts["bf16_nbytes"]), f"{facts['bf16_nbytes']:,} bytes"),
            ("source", human_nbytes(facts["source_nbytes"]), f"{facts['source_nbytes']:,} bytes"),
            ("tensors", f"{len(facts['tensors']):,}", f"{encoded:,} encoded"),
        ]
    )


def _gates(gates: Mapping[str, Any]) -> Iterator[str]:
    measured = {name: found for name, found in gates["regimes"].items() if found["n_rows"]}
    unreached = gates.get("unreached", {})
    if not measured and not unreached:
        return
    yield "<section>\n<h2>Cosine of every encoded row with what the file gives back</h2>\n"
    yield '<div class="scroll"><table>\n<thead><tr>'
    for heading in ("regime", "rows", "zeros", "median", "asked", "p5", "asked", "min", "worst row"):
        yield f"<th{'' if heading in ('regime', 'worst row') else ' class=n'}>{heading}</th>"
    yield "</tr></thead>\n<tbody>\n"
    for name, found in measured.items():
        asked, worst = found["required"], found.get("lost", found.get("worst"))
        yield f"<tr><td>{escaped(name)}</td><td class=n>{found['n_rows']:,}</td>"
        yield f"<td class=n>{found.get('n_zero_rows', 0):,}</td>"
        for quantile in ("median", "p5"):
            if quantile not in found:
                yield f"<td></td><td class=n>{asked[quantile]:g}</td>"
                continue
            passed = "good" if found[quantile] >= asked[quantile] else "bad"
            words = "" if passed == "good" else "below: "
            yield f'<td class="n {passed}">{words}{_down(found[quantile], 6)}</td><td class=n>{asked[quantile]:g}</td>'
        lowest = _down(found["min"], 6) if "min" in found else ""
        place = f"{escaped(worst['tensor'])} row {worst['row']}" if worst else ""
        yield f"<td class=n>{lowest}</td><td>{place}</td></tr>\n"
    for name, asked in unreached.items():
        yield f"<tr><td>{escaped(asked['regime'])}</td><td></td><td></td>"
        for quantile in ("median", "p5"):
            yield f"<td class=n>kept</td><td class=n>{asked[quantile]:g}</td>"
        yield f"<td></td><td>{escaped(name)}</td></tr>\n"
    yield "</tbody>\n</table></div>\n"
    if unreached:
        yield "<p>Kept: 6 bits a weight do not reach what is asked, so that tensor is stored byte for byte.</p>\n"
    yield "<p>Rows of zeros must come back as zeros; the cosines are those of the other rows.</p>\n"
    yield f"<p><small>{escaped(EXPLAINED)}</small></p>\n</section>\n"


def _table(tensors: Iterable[Mapping[str, Any]]) -> Iterator[str]:
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
        shape, found = tensor["shape"], tensor.get("cosine")
        yield tensor["name"]
        yield f" {_TIMES} ".join(map(str, shape)) or "scalar", math.prod(shape)
        yield tensor.get("stored_as", tensor["dtype"])
        yield f"= {tensor['alias_of']}" if "alias_of" in tensor else tensor["codec"]
        yield tensor.get("regime", "")
        yield tensor.get("regime_reason", "")
        yield human_nbytes(tensor["nbytes"]), tensor["nbytes"]
        yield f"{tensor['bits_per_weight']:.3f}", tensor["bits_per_weight"]
        for quantile in ("median", "p5", "min"):
            yield (_down(found[quantile]), found[quantile]) if found else ""
        yield str(found["worst_row"]) if found else ""

    return sorted_table("Tensors", headings, (tuple(row(tensor)) for tensor in tensors), note=_CODECS)


def _plots(facts: Mapping[str, Any], cosines: Mapping[str, RegimeCosines]) -> Iterator[str]:
    with plots() as drawn:
        for name, held in cosines.items():
            if held.n_live_rows:
                plot = drawn.figure(2.5)
                note = _draw_cosines(plot.add_subplot(), held, facts["gates"]["regimes"][name]["required"])
                title = f"Row cosines, {name} regime"
                yield drawn.framed(title, f"{held.n_live_rows:,} rows. {note}", plot)
        points = [tensor for tensor in facts["tensors"] if "cosine" in tensor and tensor["bits_per_weight"] > 0]
        if points:
            plot = drawn.figure(2.9)
            _draw_rates(plot.add_subplot(), points)
            note = (
                "One mark a tensor, its own bytes only. The curve is the best that any code can do on "
                "independent Gaussian weights, √(1 - 2^(-2b)) at b bits; structure in a tensor may carry it above."
            )
            yield drawn.framed("Bits a weight and median cosine", note, plot)
        sections = {kind: nbytes for kind, nbytes in facts.get("sections", {}).items() if nbytes}
        if sections:
            plot = drawn.figure(0.6 + 0.26 * len(sections))
            _draw_sections(plot.add_subplot(), sections)
            yield drawn.framed("Bytes by kind of section", f"{human_nbytes(sum(sections.values()))} in all.", plot)


def _draw_cosines(axes: Axes, held: RegimeCosines, required: Mapping[str, float]) -> str:
    median, p5 = held.median, held.p5
    values, counts = held.counted()
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
        axes.axvline(value, color=INK, linewidth=1.1, linestyle=style, label=f"{label} {_down(value)}")
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
