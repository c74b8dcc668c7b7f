"""Gate 4 as one HTML page: verdict, scores, and two sentences to look at and to listen to."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hhtld.display.numbers import reached
from hhtld.display.page import SortedTable, write_page
from hhtld.display.plots import ACCENT, OTHER, Drawing, Plots, plots
from hhtld.evaluation.speech.metrics import FLOOR_DB, HOP, decibels, spectrogram
from hhtld.evaluation.speech.report import (
    BOUNDS,
    TAIL_BOUNDS,
    SpeechReport,
    SpokenSentence,
    Wave,
    percent,
    sentence_table,
)
from hhtld.evaluation.speech.wav import wav_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_speech_page"]

_COLUMNS = 600  # of a drawn waveform and of a spectrogram, at most
_ROWS = 128
_CAPTIONS = (
    ("Waveforms", "Lowest and highest sample of every moment, on one scale; 1 is full scale."),
    (
        "Spectrograms",
        f"Power by frequency, kHz; the brightest is the original's loudest, the darkest {-FLOOR_DB:g} dB less.",
    ),
)


def write_speech_page(path: str | os.PathLike[str], report: SpeechReport) -> None:
    """Write a report as HTML, or as JSON when `path` ends in .json.

    Raises
    ------
    MissingExtraError
        If jinja2 or matplotlib is not installed; JSON needs neither.
    OutputError
        If the file cannot be written.
    """
    write_page(path, report.to_json(), "evaluation/speech/page.html.jinja", report.pack, lambda: _contents(report))


def _contents(report: SpeechReport) -> dict[str, Any]:
    """Return the variables of page.html.jinja."""
    note = (
        "Envelopes are correlated after aligning both by their spectra; unaligned: without. "
        "Shift: how far the alignment moved, on average."
    )
    with plots() as drawn:
        shown = [_heard(drawn, place + 1, report.items[place], report.sample_rate) for place in _shown(report)]
    return {
        "figures": list(_figures(report)),
        "notes": [f"Sentence {number}: {item.note}" for number, item in enumerate(report.items, 1) if item.note],
        "report": report,
        "sentences": SortedTable("Every sentence", *sentence_table(report), note=note),
        "shown": shown,
    }


def _heard(drawn: Plots, number: int, item: SpokenSentence, rate: int) -> dict[str, Any]:
    """Return what the template shows of one sentence: its number, text, sounds in base64, and drawings."""
    sounds = [
        (kind, base64.b64encode(wav_bytes(samples, rate)).decode())
        for kind, samples in (("original", item.original), ("decoded", item.decoded))
    ]
    return {"number": number, "text": item.text, "sounds": sounds, "drawings": list(_drawings(drawn, item, rate))}


def _shown(report: SpeechReport) -> list[int]:
    """Return the places of the sentences whose envelopes are the furthest and the nearest."""
    ranked = sorted(range(len(report.items)), key=lambda place: report.items[place].scores.envelope)
    return list(dict.fromkeys((ranked[0], ranked[-1])))


def _figures(report: SpeechReport) -> Iterator[tuple[str, str, str]]:
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
    asked = f"asked {BOUNDS.envelope:g}; last twentieth {reached(tail.envelope)}, asked {TAIL_BOUNDS.envelope:g}"
    cells.append(("envelope", reached(median.envelope), asked))
    cells.append(("spectral distance", f"{median.spectral_db:.2f} dB", "told, not judged"))
    yield from ((f"{label}, median", value, note) for label, value, note in cells)


def _drawings(drawn: Plots, item: SpokenSentence, rate: int) -> Iterator[Drawing]:
    said = (("original", item.original, ACCENT), ("decoded", item.decoded, OTHER))
    longest = max(item.original.size, item.decoded.size) / rate
    for place, (title, note) in enumerate(_CAPTIONS):
        figure = drawn.figure(3.6)
        both = figure.subplots(2, sharex=True, sharey=True)
        for axes, (kind, samples, color) in zip(both, said, strict=True):
            if samples.size:
                _draw_wave(axes, samples, rate, color) if place == 0 else _draw_spectrum(axes, item, samples, rate)
            axes.set_title(kind, loc="left", fontsize=9)
        both[1].set_xlim(0, longest)
        both[1].set_xlabel("seconds")
        yield drawn.drawing(title, note, figure)


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
