"""The tables of `hhtld inspect FILE`: what a file holds, encoded tensors before the kept ones.

Nothing is computed here but widths: every number is one of those that `--json` gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from hhtld.display.numbers import counted, human_nbytes, joined, rates_text, reached, shape_text, shortened
from hhtld.display.tables import FactGrid, Table, alike, print_titled, tensor_table
from hhtld.display.terminal import safe
from hhtld.gates import N_QUANTILES

__all__ = ["print_listing"]

Facts = Mapping[str, Any]

_MANY = 12  # metadata entries that are shown


def print_listing(facts: Facts, out: Console, every: bool = True) -> None:
    """Print the tables of a source: totals, what they are made of, then its tensors, encoded ones first.

    Where not `every` tensor is asked for, those whose names differ in numbers alone share a line.
    """
    ascii_only = out.options.ascii_only
    out.print(_heading(facts, ascii_only), highlight=False)
    out.print(FactGrid([*_total_facts(facts), *_origin_facts(facts, out.width, ascii_only)]))
    if "regimes" in facts:
        _print_pack_tables(facts, out)
    for title, table in _tensor_tables(facts, every, ascii_only):
        print_titled(title, table, out)
    if facts.get("files"):
        rows = ((safe(file["name"], ascii_only), human_nbytes(file["nbytes"])) for file in facts["files"])
        print_titled(f"Side files: {len(facts['files']):,}", Table(("file", ">bytes"), rows), out)


def _heading(facts: Facts, ascii_only: bool) -> Text:
    path, n_tensors = safe(facts["path"], ascii_only), len(facts["tensors"])
    if "version" not in facts:
        return Text.assemble((path.plain, "bold"), f": {counted(n_tensors, 'tensor')}")
    profile = safe(facts["profile"], ascii_only)
    size = f"{human_nbytes(facts['nbytes'])}, {counted(n_tensors, 'tensor')}"
    return Text.assemble((path.plain, "bold"), f": .hhtld version {facts['version']}, profile ", profile, f", {size}")


def _total_facts(facts: Facts) -> Iterator[tuple[str, Any]]:
    totals = facts["totals"]
    if "ratio" not in totals:
        bf16 = human_nbytes(totals["bf16_nbytes"])
        yield "size", f"{human_nbytes(totals['nbytes'])}, as bfloat16 {bf16}, {totals['n_elements']:,} elements"
        yield (
            "types",
            "; ".join(
                f"{name} {counted(of_dtype['count'], 'tensor')}, {human_nbytes(of_dtype['nbytes'])}"
                for name, of_dtype in facts["dtypes"].items()
            ),
        )
        if "quantized" in facts:
            listed = "; ".join(f"{name} {counted(count, 'tensor')}" for name, count in facts["quantized"].items())
            yield "quantized", f"{listed}: never coded (see --quantized)"
        return
    yield (
        "size",
        f"source {human_nbytes(totals['source_nbytes'])}, as bfloat16 {human_nbytes(totals['bf16_nbytes'])}"
        + (f", {reached(totals['ratio'], 2)} times the file" if totals["ratio"] is not None else ""),
    )
    yield (
        "bits/weight",
        f"{totals['bits_per_weight']:.3f} for the whole file"
        + (f", {totals['encoded_bits_per_weight']:.3f} for what is encoded" if totals["encoded"] else ""),
    )
    yield (
        "tensors",
        f"{totals['encoded']:,} encoded in {human_nbytes(totals['encoded_nbytes'])}"
        f" and {human_nbytes(totals['shared_nbytes'])} that groups share, "
        f"{totals['kept']:,} kept in {human_nbytes(totals['kept_nbytes'])}"
        + (f", {totals['tied']:,} tied" if totals["tied"] else ""),
    )


def _origin_facts(facts: Facts, width: int, ascii_only: bool) -> Iterator[tuple[str, Any]]:
    """Metadata and description of the source, long ones cut."""
    for title in ("metadata", "source"):
        entries = list(facts[title].items())
        for i, (key, value) in enumerate(entries[:_MANY]):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            name = shortened(key, 40)
            room = max(24, width - len(name) - 40)  # beside the title and the length of what is cut
            yield "" if i else title, safe(f"{name}: {shortened(text, room)}", ascii_only)
        if len(entries) > _MANY:
            yield "", f"and {len(entries) - _MANY:,} more (--json shows them)"


def _print_pack_tables(facts: Facts, out: Console) -> None:
    ascii_only = out.options.ascii_only
    totals = facts["totals"]
    rows = [
        (
            safe(kind, ascii_only),
            f"{of_kind['count']:,}",
            human_nbytes(of_kind["nbytes"]),
            f"{100 * of_kind['share']:.1f} %",
        )
        for kind, of_kind in facts["section_kinds"].items()
    ]
    rest = (Text("table and padding"), "", human_nbytes(totals["table_nbytes"]), f"{100 * totals['table_share']:.1f} %")
    table = Table(("section", ">count", ">bytes", ">share"), [*rows, rest])
    print_titled(f"Sections: {totals['n_sections']:,}", table, out)
    if facts["groups"]:
        whole = ("group", "role", "rows x columns", ">tensors", ">bits", ">states", ">entries", "slot L")
        headings = (*whole, ">bytes", ">shared", ">bits/weight")
        spared = ("slot L", "states", "shared", "entries", "tensors", "rows x columns", "bytes")
        table = Table(headings, _group_rows(facts, ascii_only), spared=spared)
        print_titled("Groups, with what their tensors share", table, out)
    if facts["regimes"]:
        grid = FactGrid((kind, _regime_text(of_kind, ascii_only)) for kind, of_kind in facts["regimes"].items())
        print_titled("Recorded row cosines, ranges over tensors", grid, out)


def _group_rows(facts: Facts, ascii_only: bool) -> Iterator[tuple[Any, ...]]:
    for number, group in enumerate(facts["groups"]):
        yield (
            number,
            safe(f"{group['component']}/{group['role']}", ascii_only),
            shape_text(group["shape"]),
            group["n_tensors"],
            rates_text(group),
            joined(group.get("states", ())),
            group.get("entries", ""),
            "yes" if "basis" in group["sections"] else "",
            human_nbytes(group["nbytes"]),
            human_nbytes(group["shared_nbytes"]),
            f"{group['bits_per_weight']:.3f}",
        )


def _regime_text(found: Facts, ascii_only: bool) -> Text:
    head = f"{counted(found['n_tensors'], 'tensor')}, {counted(found['n_rows'], 'row')}"
    if "n_zero_rows" in found:
        lost = found.get("n_zero_rows_lost", 0)
        head += f", {found['n_zero_rows']:,} of them zeros" + (f" ({lost:,} not given back as zeros)" if lost else "")
    if "worst" not in found:
        return Text(head)
    median, p5 = (f"{reached(found[key]['min'])} to {reached(found[key]['max'])}" for key in ("median", "p5"))
    worst = found["worst"]
    return Text.assemble(
        f"{head}: median {median}, p5 {p5}\nworst row {reached(found['min'])}: ",
        safe(worst["tensor"], ascii_only),
        f" row {worst['row']}",
    )


def _tensor_tables(facts: Facts, every: bool, ascii_only: bool) -> Iterator[tuple[str, Table]]:
    tensors = {tensor["name"]: tensor for tensor in facts["tensors"]}
    tied = [name for name, t in tensors.items() if "alias_of" in t]
    encoded = [name for name, t in tensors.items() if "group" in t]
    kept = [name for name, t in tensors.items() if "alias_of" not in t and "group" not in t]
    unreached = [name for name in kept if "unreached" in tensors[name]]
    kept = [name for name in kept if "unreached" not in tensors[name]]
    if encoded:
        lines, notes = alike(encoded, lambda name: _kind(tensors[name]), every)
        headings = (
            "tensor",
            ">tensors",
            ">group",
            "regime",
            "type",
            "shape",
            "codec",
            ">bytes",
            ">bits",
            ">median",
            ">p5",
            ">min",
            "why",
        )
        rows = [_encoded_row(name, [tensors[each] for each in names], ascii_only) for name, names in lines]
        spared = ("why", "codec", "type", "group", "shape", "min", "regime", "p5")
        yield f"Encoded tensors: {len(encoded):,}", tensor_table(headings, rows, spared=spared, notes=notes)
    if kept:
        title = f"Kept byte for byte: {len(kept):,}" if "profile" in facts else "Tensors"
        lines, notes = alike(kept, lambda name: _kind(tensors[name]), every)
        rows = [_kept_row(name, [tensors[each] for each in names], ascii_only) for name, names in lines]
        yield (
            title,
            tensor_table(("tensor", ">tensors", "type", "shape", ">bytes"), rows, spared=("type",), notes=notes),
        )
    if unreached:
        lines, notes = alike(unreached, lambda name: _kind(tensors[name]), every)
        asked = [
            (
                *_kept_row(name, [tensors[each] for each in names], ascii_only),
                _asked_text(tensors[names[0]]["unreached"]),
            )
            for name, names in lines
        ]
        asking = ("tensor", ">tensors", "type", "shape", ">bytes", ">median / p5 asked")
        yield (
            f"Kept byte for byte because 6 bits do not reach what was asked: {len(unreached):,}",
            tensor_table(asking, asked, spared=("type", "shape"), notes=notes),
        )
    if tied:
        lines, notes = alike(tied, lambda name: re.sub(r"\d+", "*", tensors[name]["alias_of"]), every)
        rows = [(safe(name, ascii_only), safe(tensors[names[0]]["alias_of"], ascii_only)) for name, names in lines]
        yield f"Tied: {len(tied):,}", Table(("tensor", "shares the bytes of"), rows, notes=notes)


def _asked_text(unreached: Facts) -> str:
    return f"{unreached['regime']} {unreached['median']:g} / {unreached['p5']:g}"


def _kind(tensor: Facts) -> tuple[Any, ...]:
    """What tensors of one line have in common."""
    return tensor.get("group"), tensor.get("stored_as", tensor["dtype"]), tuple(tensor["shape"]), tensor.get("codec")


def _kept_row(name: str, tensors: Sequence[Facts], ascii_only: bool) -> tuple[Any, ...]:
    first = tensors[0]
    nbytes = human_nbytes(sum(tensor["nbytes"] for tensor in tensors))
    dtype = first.get("stored_as", first["dtype"])
    return safe(name, ascii_only), f"{len(tensors):,}", dtype, shape_text(first["shape"]), nbytes


def _encoded_row(name: str, tensors: Sequence[Facts], ascii_only: bool) -> tuple[Any, ...]:
    first = tensors[0]
    recorded = [
        summary["quantiles"]
        for tensor in tensors
        if (summary := tensor.get("gates")) and summary["n_rows"] > summary.get("n_zero_rows", 0)
    ]
    places = (N_QUANTILES // 2, 1, 0)
    cosines = [reached(min(quantiles[i] for quantiles in recorded)) if recorded else "" for i in places]
    return (
        safe(name, ascii_only),
        f"{len(tensors):,}",
        first["group"],
        first["regime"],
        first["dtype"],
        shape_text(first["shape"]),
        first["codec"],
        human_nbytes(sum(tensor["nbytes"] for tensor in tensors)),
        f"{sum(tensor['bits_per_weight'] for tensor in tensors) / len(tensors):.3f}",
        *cosines,
        safe(first["regime_reason"], ascii_only),
    )
