"""The card of `hhtld inspect FILE --tensor NAME`: what a tensor is, where it lies, what its slots hold.

Nothing is computed here but widths and heights: every number is one of those that `--json` gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from hhtld.codecs import codec
from hhtld.display.charts import column_chart, merged, sparkline
from hhtld.display.numbers import counted, human_nbytes, joined, rates_text, reached, shape_text
from hhtld.display.tables import FactGrid, Table, print_titled
from hhtld.display.terminal import safe
from hhtld.gates import N_QUANTILES

__all__ = ["print_tensor"]

Facts = Mapping[str, Any]

_DISTRIBUTIONS = {
    "slot_v": "Slot V: gains, which scale the levels of Slot T",
    "slot_v_2": "Slot V of the second level: gains",
    "column_scale": "Column scale: what columns were multiplied by",
}
_SKEWED = 16  # times the median column: above it linear heights show nothing but the largest
_INDENT = 2


def print_tensor(facts: Facts, out: Console) -> None:
    """Print the card of the one tensor that `facts` is about: what it is, where it lies, what its slots hold."""
    ascii_only = out.options.ascii_only
    tensor = facts["tensors"][0]
    out.print(safe(tensor["name"], ascii_only), style="bold", highlight=False)
    if "target" in tensor:
        tensor = tensor["target"]
        out.print(Text.assemble("tied: shares every byte of ", (safe(tensor["name"], ascii_only).plain, "bold")))
    out.print(FactGrid(_tensor_facts(tensor, facts, ascii_only)))
    slots = tensor.get("slots", {})
    if "stored" in tensor:
        table = _stored_table(tensor, slots.get("shapes", {"raw": tensor["shape"]}), ascii_only)
        print_titled("Sections it is read from", table, out)
    if tensor.get("gates", {}).get("n_rows"):
        _print_cosines(tensor["gates"], out)
    if "values" in tensor:
        print_titled("Values", FactGrid(_value_facts(tensor["values"])), out)
    _print_slots(slots, out)


def _tensor_facts(tensor: Facts, facts: Facts, ascii_only: bool) -> Iterator[tuple[str, Any]]:
    yield (
        "shape",
        f"{shape_text(tensor['shape'])}, {tensor['dtype']}"
        + (f" (stored as {tensor['stored_as']})" if "stored_as" in tensor else ""),
    )
    if "shard" in tensor:
        yield "shard", safe(tensor["shard"], ascii_only)
    if "codec" not in tensor:
        yield "bytes", human_nbytes(tensor["nbytes"])
        return
    yield "codec", f"{tensor['codec']}: {codec(tensor['codec']).summary}"
    if "group" in tensor:
        yield from _group_of(tensor, facts["groups"][tensor["group"]], ascii_only)
    yield (
        "bytes",
        f"{human_nbytes(tensor['nbytes'])}, {tensor['bits_per_weight']:.3f} bits/weight; "
        f"source {human_nbytes(tensor['source_nbytes'])}",
    )


def _group_of(tensor: Facts, group: Facts, ascii_only: bool) -> Iterator[tuple[str, Any]]:
    name = f"{group['component']}/{group['role']}"
    yield "regime", safe(f"{tensor['regime']} ({tensor['regime_reason']})", ascii_only)
    yield (
        "group",
        Text.assemble(
            f"{tensor['group']}: ",
            safe(name, ascii_only),
            f" {shape_text(group['shape'])}, {counted(group['n_tensors'], 'tensor')}, "
            f"{human_nbytes(group['shared_nbytes'])} shared",
        ),
    )
    if "states" in group:
        states = joined(group["states"])
        rings = ", rows closed to rings" if group.get("ring") else ""
        yield "rate", f"{rates_text(group)} bits, {states} states, rotation seed {group['seed']}{rings}"


def _stored_table(tensor: Facts, shapes: Facts, ascii_only: bool) -> Table:
    rows = (
        (
            safe(section["kind"], ascii_only),
            section["of"],
            section["index"],
            shape_text(shapes[section["kind"]]) if section["kind"] in shapes else "",
            human_nbytes(section["nbytes"]),
            f"{section['bits_per_weight']:.3f}" if "bits_per_weight" in section else "",
            f"{section['offset']:,}" if "offset" in section else "",
            section.get("crc32", ""),
        )
        for section in tensor["stored"]
    )
    headings = ("section", "of", ">number", "shape", ">bytes", ">bits/weight", ">offset", "crc32")
    return Table(headings, rows, spared=("number", "of", "shape", "crc32", "offset", "bits/weight"))


def _print_cosines(gates: Facts, out: Console) -> None:
    quantiles = gates["quantiles"]
    low, p5, median, high = (reached(quantiles[i]) for i in (0, 1, N_QUANTILES // 2, -1))
    line = f"{low} {sparkline(quantiles, out.options.ascii_only)} {high}"
    notes = f"min {low} (row {gates['worst_row']}), p5 {p5}, median {median}, max {high}"
    zeros, lost = gates.get("n_zero_rows", 0), gates.get("n_zero_rows_lost", 0)
    title = f"Recorded cosines of {counted(gates['n_rows'] - zeros, 'row')}, quantiles 0 % to 100 %"
    if zeros:
        notes += f"; {counted(zeros, 'row')} of zeros apart" + (
            f", {lost:,} of them not given back as zeros" if lost else ""
        )
    _print_lines(title, [line, notes], out)


def _value_facts(values: Facts) -> Iterator[tuple[str, Any]]:
    for key in ("min", "max", "mean", "std"):
        yield key, _number(values[key])
    yield "zeros", f"{values['n_zero']:,} of {values['n']:,}"
    if values["n_nonfinite"]:
        yield "not finite", f"{values['n_nonfinite']:,}"


def _print_slots(slots: Facts, out: Console) -> None:
    if "row_class" in slots:
        rates = [f"{row_class['bits']:g}" for row_class in slots["row_class"]]
        counts = [row_class["n_rows"] for row_class in slots["row_class"]]
        _print_usage("Rates: rows by class", counts, [f"bits a weight of the classes: {', '.join(rates)}"], out)
    if "twigs" in slots:
        _print_twigs(slots["twigs"], slots["twig_counts"], out)
    if "basins" in slots:
        _print_addresses(slots, out)
    titles = _DISTRIBUTIONS | ({"slot_v": "Slot V: magnitudes of residuals"} if "basins" in slots else {})
    for kind, title in titles.items():
        if kind in slots:
            _print_distribution(title, slots[kind], out)
    if "slot_l" in slots:
        _print_lanes(slots, out)


def _print_twigs(usage: Facts, counts: Sequence[int], out: Console) -> None:
    columns, per = merged(counts, out.width - 2 * _INDENT)
    notes = f"{usage['used']:,} used, {usage['unused']:,} unused, entropy {usage['entropy_bits']:.2f} bits"
    if usage["largest"] is not None:
        large, small = usage["largest"], usage["smallest"]
        notes += f"; most rows {large['n_rows']:,} (entry {large['entry']}), "
        notes += f"fewest of the used {small['n_rows']:,} (entry {small['entry']})"
    title = f"Twigs: rows by palette entry, 0 to {usage['entries'] - 1}"
    _print_usage(title + (f", {per} to a column" if per > 1 else ""), columns, [notes], out)


def _print_addresses(slots: Facts, out: Console) -> None:
    basins = ", ".join(f"{name} {rows:,}" for name, rows in slots["basins"].items() if rows) or "none"
    signs = slots["polarity"]
    polarity = f"{signs['positive']:,} rows positive, {signs['negative']:,} negative"
    print_titled("Slot D", FactGrid([("basin", basins), ("polarity", polarity)]), out)
    _print_usage("HIP families: rows by family, 0 to 15", slots["hip_families"], [], out)


def _print_usage(title: str, counts: Sequence[int], notes: Sequence[str], out: Console) -> None:
    """A chart of rows. If one column would flatten the others, the heights are logarithms, and the chart says so."""
    used = sorted(filter(None, counts))
    heights: Sequence[float] = counts
    if used and used[-1] > _SKEWED * used[len(used) // 2]:
        title, heights = f"{title}, log heights", [math.log1p(count) for count in counts]
    _print_lines(title, [*_chart(heights, out), *notes], out)


def _print_distribution(title: str, found: Facts, out: Console) -> None:
    low, high = _number(found["min"]), _number(found["max"])
    notes = f"min {low}, p5 {_number(found['p5'])}, median {_number(found['median'])}, max {high}"
    if found["n_nonfinite"]:
        notes += f"; {found['n_nonfinite']:,} not finite"
    counts = found["histogram"]["counts"]
    lines = []
    if len(counts) > 1:
        columns, _ = merged(counts, out.width - 2 * _INDENT)
        lines = [*_chart(columns, out), low + high.rjust(len(columns) - len(low))]
    _print_lines(title, [*lines, notes], out)


def _print_lanes(slots: Facts, out: Console) -> None:
    """Every lane of Slot L beside the direction it stands for."""
    values, energy = slots["singular_values"], slots["energy"]
    n_bins = 32 if out.width >= 100 else 16
    rows = (
        (
            lane,
            _number(values[lane]) if lane < len(values) else "",
            f"{100 * energy[lane]:.1f} %" if lane < len(values) else "",
            *("" if statistics[key] is None else statistics[key] for key in ("min", "max")),
            "" if statistics["rms"] is None else f"{statistics['rms']:.1f}",
            _number(statistics["rms_scaled"]),
            column_chart(merged(statistics["histogram"], n_bins)[0], 1, out.options.ascii_only)[0],
        )
        for lane, statistics in enumerate(slots["slot_l"]["lanes"])
    )
    headings = ("lane", ">singular", ">energy", ">min", ">max", ">rms", ">rms x scale", "codes -128 to 127")
    table = Table(headings, rows, spared=("codes -128 to 127", "energy", "rms x scale"))
    print_titled(f"Slot L: codes by lane, scale {_number(slots['slot_l']['scale'])}", table, out)


def _print_lines(title: str, lines: Sequence[str], out: Console) -> None:
    print_titled(title, Group(*(Padding(Text(line.rstrip()), (0, 0, 0, _INDENT), expand=False) for line in lines)), out)


def _chart(counts: Sequence[float], out: Console) -> list[str]:
    """A chart, few columns drawn wider."""
    wide = max(1, min(4, (out.width - 2 * _INDENT) // max(1, len(counts))))
    return column_chart([count for count in counts for _ in range(wide)], ascii_only=out.options.ascii_only)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
