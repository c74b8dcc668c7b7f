"""The tables of `hhtld inspect FILE`: what a file holds, encoded tensors before the kept ones.

Nothing is computed here but widths: every number is one of those that `--json` gives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from hhtld.formats.terminal import (
    cosine,
    counted,
    fact_grid,
    fitting_table,
    human_nbytes,
    joined,
    plain_table,
    print_titled,
    safe,
    shape_text,
    shortened,
)
from hhtld.gates import N_QUANTILES

__all__ = ["print_listing"]

Facts = Mapping[str, Any]

_MANY = 12  # metadata entries that are shown


def print_listing(facts: Facts, out: Console) -> None:
    """Print the tables of a source: totals, what they are made of, then every tensor, encoded ones first."""
    ascii_only = out.options.ascii_only
    out.print(_heading(facts, ascii_only), highlight=False)
    out.print(fact_grid([*_total_facts(facts), *_origin_facts(facts, out.width, ascii_only)]))
    if "regimes" in facts:
        _print_pack_tables(facts, out)
    for title, table in _tensor_tables(facts, out.width, ascii_only):
        print_titled(title, table, out)
    if facts.get("files"):
        rows = ((safe(file["name"], ascii_only), human_nbytes(file["nbytes"])) for file in facts["files"])
        print_titled(f"Side files: {len(facts['files']):,}", plain_table(("file", ">bytes"), rows), out)


def _heading(facts: Facts, ascii_only: bool) -> Text:
    path, n_tensors = safe(facts["path"], ascii_only), len(facts["tensors"])
    if "version" not in facts:
        return Text.assemble((path.plain, "bold"), f": {n_tensors:,} tensors")
    profile = safe(facts["profile"], ascii_only)
    size = f"{human_nbytes(facts['nbytes'])}, {n_tensors:,} tensors"
    return Text.assemble((path.plain, "bold"), f": .hhtld version {facts['version']}, profile ", profile, f", {size}")


def _total_facts(facts: Facts) -> Iterator[tuple[str, Any]]:
    totals = facts["totals"]
    if "ratio" not in totals:
        bf16 = human_nbytes(totals["bf16_nbytes"])
        yield "size", f"{human_nbytes(totals['nbytes'])}, as bfloat16 {bf16}, {totals['n_elements']:,} elements"
        yield (
            "types",
            "; ".join(
                f"{name} {counted(found['count'], 'tensor')}, {human_nbytes(found['nbytes'])}"
                for name, found in facts["dtypes"].items()
            ),
        )
        return
    yield (
        "size",
        f"source {human_nbytes(totals['source_nbytes'])}, as bfloat16 {human_nbytes(totals['bf16_nbytes'])}"
        + (f", {totals['ratio']:.2f} times the file" if totals["ratio"] is not None else ""),
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
        (safe(kind, ascii_only), f"{found['count']:,}", human_nbytes(found["nbytes"]), f"{100 * found['share']:.1f} %")
        for kind, found in facts["section_kinds"].items()
    ]
    rest = (Text("table and padding"), "", human_nbytes(totals["table_nbytes"]), f"{100 * totals['table_share']:.1f} %")
    table = plain_table(("section", ">count", ">bytes", ">share"), [*rows, rest])
    print_titled(f"Sections: {totals['n_sections']:,}", table, out)
    if facts["groups"]:
        whole = ("group", "role", "rows x columns", ">tensors", ">bits", ">states", ">entries", "slot L")
        headings = (*whole, ">bytes", ">shared", ">bits/weight")
        optional = ("slot L", "states", "shared", "entries", "tensors", "rows x columns", "bytes")
        table = fitting_table(headings, _group_rows(facts, ascii_only), optional, out.width)
        print_titled("Groups, with what their tensors share", table, out)
    if facts["regimes"]:
        grid = fact_grid((kind, _regime_text(found, ascii_only)) for kind, found in facts["regimes"].items())
        print_titled("Recorded row cosines, ranges over tensors", grid, out)


def _group_rows(facts: Facts, ascii_only: bool) -> Iterator[tuple[Any, ...]]:
    for number, group in enumerate(facts["groups"]):
        yield (
            number,
            safe(f"{group['component']}/{group['role']}", ascii_only),
            shape_text(group["shape"]),
            group["n_tensors"],
            joined(group.get("bits", ())),
            joined(group.get("states", ())),
            group.get("entries", ""),
            "yes" if "basis" in group["sections"] else "",
            human_nbytes(group["nbytes"]),
            human_nbytes(group["shared_nbytes"]),
            f"{group['bits_per_weight']:.3f}",
        )


def _regime_text(found: Facts, ascii_only: bool) -> Text:
    median, p5 = (f"{cosine(found[key]['min'])} to {cosine(found[key]['max'])}" for key in ("median", "p5"))
    worst = found["worst"]
    return Text.assemble(
        f"{counted(found['n_tensors'], 'tensor')}, {counted(found['n_rows'], 'row')}: "
        f"median {median}, p5 {p5}\nworst row {cosine(found['min'])}: ",
        safe(worst["tensor"], ascii_only),
        f" row {worst['row']}",
    )


def _tensor_tables(facts: Facts, width: int, ascii_only: bool) -> Iterator[tuple[str, Any]]:
    tensors = facts["tensors"]
    tied = [t for t in tensors if "alias_of" in t]
    encoded = [t for t in tensors if t.get("codec", "keep") != "keep"]
    kept = [t for t in tensors if "alias_of" not in t and t.get("codec", "keep") == "keep"]
    if encoded:
        headings = ("tensor", "group", "type", "shape", "codec", ">bytes", ">bits", ">median", ">p5", ">min")
        optional = ("codec", "type", "shape", "min", "group", "p5")
        rows = (_encoded_row(tensor, ascii_only) for tensor in encoded)
        yield f"Encoded tensors: {len(encoded):,}", fitting_table(headings, rows, optional, width)
    if kept:
        rows = (
            (
                safe(t["name"], ascii_only),
                t.get("stored_as", t["dtype"]),
                shape_text(t["shape"]),
                human_nbytes(t["nbytes"]),
            )
            for t in kept
        )
        title = f"Kept byte for byte: {len(kept):,}" if "profile" in facts else "Tensors"
        yield title, plain_table(("tensor", "type", "shape", ">bytes"), rows)
    if tied:
        rows = ((safe(t["name"], ascii_only), safe(t["alias_of"], ascii_only)) for t in tied)
        yield f"Tied: {len(tied):,}", plain_table(("tensor", "shares the bytes of"), rows)


def _encoded_row(tensor: Facts, ascii_only: bool) -> tuple[Any, ...]:
    quantiles = tensor.get("gates", {}).get("quantiles")
    cosines = [cosine(quantiles[i]) for i in (N_QUANTILES // 2, 1, 0)] if quantiles else [""] * 3
    return (
        safe(tensor["name"], ascii_only),
        tensor["group"],
        tensor["dtype"],
        shape_text(tensor["shape"]),
        tensor["codec"],
        human_nbytes(tensor["nbytes"]),
        f"{tensor['bits_per_weight']:.3f}",
        *cosines,
    )
