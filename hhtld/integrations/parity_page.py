"""Gate 2 as one self-contained HTML page: verdict, numbers, tables that sort, continuations side by side."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hhtld.atomic import replacing
from hhtld.formats.report import PAGE_CSS, PAGE_SCRIPT  # the pages of one program look alike
from hhtld.formats.terminal import cosine, safe
from hhtld.integrations.parity_report import (
    EmbeddingReport,
    ParityReport,
    continuations,
    cosine_facts,
    kind_table,
    number,
)

__all__ = ["write_parity_page"]

_OWN_CSS = """
.said td { vertical-align: top; }
.said td.long { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 14em; }
"""
_LONG = 24  # characters from which a cell may break


def write_parity_page(path: str | os.PathLike[str], report: ParityReport | EmbeddingReport) -> None:
    """Write a report as HTML, or as JSON when `path` ends in .json; the same report gives the same bytes.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    if Path(path).suffix.lower() == ".json":
        text = json.dumps(report.to_json(), indent=2, allow_nan=False) + "\n"
    else:
        text = "".join(_page(report))
    with replacing(path) as file:
        file.write(text.encode())


def _text(value: object) -> str:
    return html.escape(safe(str(value)).plain)


def _page(report: ParityReport | EmbeddingReport) -> Iterator[str]:
    name = _text(Path(report.pack).name or report.pack)
    policy = base64.b64encode(hashlib.sha256(PAGE_SCRIPT.encode()).digest()).decode()
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="color-scheme" content="light dark">\n'
    yield '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    yield f"style-src 'unsafe-inline'; script-src 'sha256-{policy}'\">\n"
    yield f"<title>{name}: argmax parity</title>\n<style>{PAGE_CSS}{_OWN_CSS}</style>\n</head>\n<body>\n<main>\n"
    yield f"<header>\n<h1>{name}</h1>\n<p>beside {_text(report.model)}, on {_text(report.prompts)} prompts</p>\n"
    yield f'</header>\n<p class="verdict {"good" if report else "bad"}">{_text(report.verdict)}.</p>\n'
    yield from _numbers(report)
    yield from _table("By kind of text", *kind_table(report), note=report.intervals)
    if isinstance(report, EmbeddingReport):
        rows = [(cosine(report.cosines[place]), report.sentences[place].text) for place in report.worst]
        yield from _table("Embeddings furthest from their packed selves", (">cosine", "sentence"), rows, kind="said")
    else:
        said = [(*line, item.prompt.text) for line, item in zip(continuations(report), report.items, strict=True)]
        headings = (">prompt", "kind", ">top-1", ">same", "source continues", "packed continues", "prompt's text")
        note = f"Up to {report.n_continued} tokens; same: tokens until the continuations part."
        yield from _table("Prompts and their greedy continuations", headings, said, kind="said", note=note)
    yield f"</main>\n<script>{PAGE_SCRIPT}</script>\n</body>\n</html>\n"


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
    yield '<dl class="sizes">\n'
    for label, value, note in cells:
        yield f"<div><dt>{label}</dt><dd>{value}<small>{note}</small></dd></div>\n"
    yield "</dl>\n"


def _table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "", note: str = ""
) -> Iterator[str]:
    classes = [" class=n" if heading.startswith(">") else "" for heading in headings]
    yield f'<section>\n<h2>{_text(title)}</h2>\n<div class="scroll"><table class="{kind}">\n<thead><tr>'
    for heading, of in zip(headings, classes, strict=True):
        yield f'<th{of} aria-sort="none"><button type="button">{_text(heading.lstrip(">"))}</button></th>'
    yield "</tr></thead>\n<tbody>\n"
    for row in rows:
        yield f"<tr>{''.join(_cell(cell, bool(of)) for cell, of in zip(row, classes, strict=True))}</tr>\n"
    yield f"</tbody>\n</table></div>\n{f'<p><small>{_text(note)}</small></p>' if note else ''}\n</section>\n"


def _cell(text: str, is_number: bool) -> str:
    if is_number:
        # What the script cannot read as a number: commas, and "all" tokens, which are more than any count.
        value = "1e9" if text == "all" else text.replace(",", "")
        return f'<td class=n data-value="{value}">{_text(text)}</td>'
    lines = "\n".join(map(_text, text.split("\n")))  # whole, its line ends would be escaped
    return f"<td{' class=long' if len(text) > _LONG else ''}>{lines}</td>"
