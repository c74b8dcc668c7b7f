"""Gate 4 as one self-contained HTML page: verdict, scores, and two sentences to look at and to listen to."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hhtld.atomic import replacing
from hhtld.errors import MissingExtraError
from hhtld.formats.report import (  # the pages of one program look alike
    ACCENT,
    OTHER,
    PAGE_CSS,
    PAGE_SCRIPT,
    PLOT_STYLE,
    PLOT_WIDTH,
    framed,
)
from hhtld.formats.terminal import cosine, safe
from hhtld.integrations.speech_metrics import FLOOR_DB, HOP, decibels, spectrogram
from hhtld.integrations.speech_report import (
    BOUNDS,
    TAIL_BOUNDS,
    SpeechReport,
    SpokenSentence,
    Wave,
    percent,
    sentence_table,
)
from hhtld.integrations.speech_wav import wav_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_speech_page"]

_OWN_CSS = """.said td:last-child { white-space: normal; min-width: 16em; }
.heard { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 12px; }
audio { display: block; width: 100%; margin: 4px 0 8px; }
"""
_COLUMNS = 600  # of a drawn waveform and of a spectrogram, at most
_ROWS = 128


def write_speech_page(path: str | os.PathLike[str], report: SpeechReport) -> None:
    """Write a report as HTML, or as JSON when `path` ends in .json.

    Raises
    ------
    MissingExtraError
        When matplotlib is not installed; JSON does without.
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


def _page(report: SpeechReport) -> Iterator[str]:
    name = _text(Path(report.pack).name or report.pack)
    policy = base64.b64encode(hashlib.sha256(PAGE_SCRIPT.encode()).digest()).decode()
    yield '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    yield '<meta name="color-scheme" content="light dark">\n'
    yield '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
    yield f"style-src 'unsafe-inline'; script-src 'sha256-{policy}'\">\n"
    yield f"<title>{name}: speech</title>\n<style>{PAGE_CSS}{_OWN_CSS}</style>\n</head>\n<body>\n<main>\n"
    yield f"<header>\n<h1>{name}</h1>\n<p>beside {_text(report.voice)}, on {_text(report.text)} sentences</p>\n"
    yield f'</header>\n<p class="verdict {"good" if report else "bad"}">{_text(report.verdict)}.</p>\n'
    for number, item in enumerate(report.items, 1):
        if item.note:
            yield f'<p class="verdict bad">Sentence {number}: {_text(item.note)}</p>\n'
    yield from _numbers(report)
    yield from _table(report)
    drawn = 0
    for number in _shown(report):
        item = report.items[number]
        yield f"<section>\n<h2>Sentence {number + 1}: {_text(item.text)}</h2>\n"
        yield from _heard(item, report.sample_rate)
        yield '<div class="plots">\n'
        for plot in _plots(item, report.sample_rate, drawn):
            drawn += 1
            yield plot
        yield "</div>\n</section>\n"
    yield f"</main>\n<script>{PAGE_SCRIPT}</script>\n</body>\n</html>\n"


def _shown(report: SpeechReport) -> list[int]:
    """Return the places of the sentences whose envelopes are the furthest and the nearest."""
    ranked = sorted(range(len(report.items)), key=lambda place: report.items[place].scores.envelope)
    return list(dict.fromkeys((ranked[0], ranked[-1])))


def _numbers(report: SpeechReport) -> Iterator[str]:
    median, tail = report.median, report.tail
    differences = ("RMS", "rms"), ("zero crossings", "zero_crossings"), ("duration", "duration")
    cells = [
        (
            label,
            percent(getattr(median, name), ""),
            f"asked {getattr(BOUNDS, name) * 100:g} %; last twentieth {percent(getattr(tail, name), '')}, "
            f"asked {getattr(TAIL_BOUNDS, name) * 100:g} %",
        )
        for label, name in differences
    ]
    asked = f"asked {BOUNDS.envelope:g}; last twentieth {cosine(tail.envelope)}, asked {TAIL_BOUNDS.envelope:g}"
    cells.append(("envelope", cosine(median.envelope), asked))
    cells.append(("spectral distance", f"{median.spectral_db:.2f} dB", "told, not judged"))
    yield '<dl class="sizes">\n'
    for label, value, note in cells:
        yield f"<div><dt>{label}, median</dt><dd>{value}<small>{note}</small></dd></div>\n"
    yield "</dl>\n"


def _table(report: SpeechReport) -> Iterator[str]:
    headings, rows = sentence_table(report)
    classes = [" class=n" if heading.startswith(">") else "" for heading in headings]
    yield '<section>\n<h2>Every sentence</h2>\n<div class="scroll"><table class="said">\n<thead><tr>'
    for heading, of in zip(headings, classes, strict=True):
        yield f'<th{of} aria-sort="none"><button type="button">{_text(heading.lstrip(">"))}</button></th>'
    yield "</tr></thead>\n<tbody>\n"
    for row in rows:
        cells = ((cell, of, _value(cell) if of else "") for cell, of in zip(row, classes, strict=True))
        yield "<tr>" + "".join(f"<td{of}{value}>{_text(cell)}</td>" for cell, of, value in cells) + "</tr>\n"
    yield "</tbody>\n</table></div>\n<p><small>Envelopes are correlated after aligning both by their spectra; "
    yield "unaligned: without. Shift: how far the alignment moved, on average.</small></p>\n</section>\n"


def _value(cell: str) -> str:
    """Return what the script sorts by: the number without its unit."""
    return f' data-value="{cell.removesuffix(" %")}"'


def _heard(item: SpokenSentence, rate: int) -> Iterator[str]:
    yield '<div class="heard">\n'
    for kind, samples in (("original", item.original), ("decoded", item.decoded)):
        sound = base64.b64encode(wav_bytes(samples, rate)).decode()
        yield f'<div><small>{kind}</small><audio controls src="data:audio/wav;base64,{sound}"></audio></div>\n'
    yield "</div>\n"


def _plots(item: SpokenSentence, rate: int, drawn: int) -> Iterator[str]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("a report draws with matplotlib: pip install 'hhtld[report]'") from error
    said = (("original", item.original, ACCENT), ("decoded", item.decoded, OTHER))
    longest = max(item.original.size, item.decoded.size) / rate
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(PLOT_STYLE)
        for place, (title, note) in enumerate(_CAPTIONS):
            plot = Figure((PLOT_WIDTH, 3.6), layout="constrained")
            both = plot.subplots(2, sharex=True, sharey=True)
            for axes, (kind, samples, color) in zip(both, said, strict=True):
                if samples.size:
                    _draw_wave(axes, samples, rate, color) if place == 0 else _draw_spectrum(axes, item, samples, rate)
                axes.set_title(kind, loc="left", fontsize=9)
            both[1].set_xlim(0, longest)
            both[1].set_xlabel("seconds")
            yield framed(title, note, plot, drawn + place + 1)


_CAPTIONS = (
    ("Waveforms", "Lowest and highest sample of every moment, on one scale; 1 is full scale."),
    (
        "Spectrograms",
        f"Power by frequency, kHz; the brightest is the original's loudest, the darkest {-FLOOR_DB:g} dB less.",
    ),
)


def _draw_wave(axes: Axes, samples: Wave, rate: int, color: str) -> None:
    per = max(1, -(-samples.size // _COLUMNS))
    starts = np.arange(0, samples.size, per)
    low, high = np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)
    axes.fill_between(starts / rate, low, high, color=color, linewidth=0.3)


def _draw_spectrum(axes: Axes, item: SpokenSentence, samples: Wave, rate: int) -> None:
    top = float(spectrogram(item.original, rate).max())
    power = spectrogram(samples, rate)
    # The loudest of neighbours: a picture of few rows must not lose a thin line.
    for axis, limit in ((0, _COLUMNS), (1, _ROWS)):
        per = max(1, -(-power.shape[axis] // limit))
        power = np.maximum.reduceat(power, np.arange(0, power.shape[axis], per), axis=axis)
    extent = (0.0, max(HOP, samples.size / rate), 0.0, rate / 2000)
    axes.imshow(
        decibels(power, top).T, aspect="auto", origin="lower", extent=extent, cmap="magma", vmin=FLOOR_DB, vmax=0
    )
