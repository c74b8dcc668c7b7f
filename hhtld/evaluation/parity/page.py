"""Gate 2 as one HTML page: verdict, numbers, tables that sort, continuations side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hhtld.display.page import Cell, page, sizes, sorted_table, verdict, write_page
from hhtld.display.terminal import cosine
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
    OutputError
        When the file cannot be written.
    """
    beside = f"beside {report.model}, on {report.prompts} prompts"
    write_page(path, report.to_json(), page(report.pack, "argmax parity", beside, _body(report)))


def _body(report: ParityReport | EmbeddingReport) -> Iterator[str]:
    yield verdict("good" if report else "bad", f"{report.verdict}.")
    yield from _numbers(report)
    yield from sorted_table("By kind of text", *report.kind_table(), note=report.intervals)
    if isinstance(report, EmbeddingReport):
        rows = [(cosine(report.cosines[place]), report.sentences[place].text) for place in report.worst]
        yield from sorted_table("Embeddings furthest from their packed selves", (">cosine", "sentence"), rows)
    else:
        said = [
            (*map(_all_is_most, line), item.prompt.text)
            for line, item in zip(continuations(report), report.items, strict=True)
        ]
        headings = (">prompt", "kind", ">top-1", ">same", "source continues", "packed continues", "prompt's text")
        note = f"Up to {report.n_continued} tokens; same: tokens until the continuations part."
        yield from sorted_table("Prompts and their greedy continuations", headings, said, note=note)


def _all_is_most(cell: str) -> Cell:
    return (cell, 1e9) if cell == "all" else cell


def _numbers(report: ParityReport | EmbeddingReport) -> Iterator[str]:
    cells = [("top-1 agreement", cosine(report.top1.share), f"{report.top1.agreed:,} of {report.top1.total:,}")]
    if isinstance(report, EmbeddingReport):
        median, p5, low = (cosine(value) for value in cosine_facts(report.cosines).values())
        cells.append(("cosine of an embedding with its packed self", median, f"median; p5 {p5}, min {low}"))
    else:
        facts = report.scores.to_json()
        source, packed = report.scores.perplexities
        cells += [
            ("top-5 agreement", cosine(facts["top5"]), "source's first among the packed five"),
            ("KL divergence", number(facts["kl_nats"]), "nats a token, source to packed"),
            ("perplexity", number(source), f"packed {number(packed)}"),
        ]
    yield from sizes(cells)
