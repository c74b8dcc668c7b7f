"""Gate 2 as one HTML page: verdict, numbers, tables that sort, continuations side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from hhtld.display.numbers import reached
from hhtld.display.page import Cell, SortedTable, write_page
from hhtld.evaluation.parity.report import (
    EmbeddingReport,
    ParityReport,
    continuations,
    cosine_facts,
    number,
)

__all__ = ["write_parity_page"]


def write_parity_page(path: str | os.PathLike[str], report: ParityReport | EmbeddingReport) -> None:
    """Write a report as HTML, or as JSON when `path` ends in .json; the same report gives the same bytes.

    Raises
    ------
    MissingExtraError
        If jinja2 is not installed; JSON does not need it.
    OutputError
        If the file cannot be written.
    """
    write_page(path, report.to_json(), "evaluation/parity/page.html.jinja", report.pack, lambda: _contents(report))


def _contents(report: ParityReport | EmbeddingReport) -> dict[str, Any]:
    """Return the variables of page.html.jinja."""
    by_kind = SortedTable("By kind of text", *report.kind_table(), note=report.intervals)
    single = _furthest_table(report) if isinstance(report, EmbeddingReport) else _continuation_table(report)
    return {"figures": list(_figures(report)), "report": report, "tables": [by_kind, single]}


def _furthest_table(report: EmbeddingReport) -> SortedTable:
    rows = [(reached(report.cosines[place]), report.sentences[place].text) for place in report.worst]
    return SortedTable("Embeddings furthest from their packed selves", (">cosine", "sentence"), rows)


def _continuation_table(report: ParityReport) -> SortedTable:
    rows = [
        (*map(_all_is_most, line), item.prompt.text)
        for line, item in zip(continuations(report), report.items, strict=True)
    ]
    headings = (">prompt", "kind", ">top-1", ">same", "source continues", "packed continues", "prompt's text")
    note = f"Up to {report.n_continued} tokens; same: tokens until the continuations part."
    return SortedTable("Prompts and their greedy continuations", headings, rows, note=note)


def _all_is_most(cell: str) -> Cell:
    return (cell, 1e9) if cell == "all" else cell


def _figures(report: ParityReport | EmbeddingReport) -> Iterator[tuple[str, str, str]]:
    yield "top-1 agreement", reached(report.top1.share), f"{report.top1.agreed:,} of {report.top1.total:,}"
    if isinstance(report, EmbeddingReport):
        median, p5, low = (reached(value) for value in cosine_facts(report.cosines).values())
        yield "cosine of an embedding with its packed self", median, f"median; p5 {p5}, min {low}"
        return
    facts = report.scores.to_json()
    source, packed = report.scores.perplexities
    yield "top-5 agreement", reached(facts["top5"]), "source's first among the packed five"
    yield "KL divergence", number(facts["kl_nats"]), "nats a token, source to packed"
    yield "perplexity", number(source), f"packed {number(packed)}"
