"""What gate 4 measured, of one pack or of many rates: as JSON and in a terminal."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from hhtld.display.numbers import counted, human_nbytes, reached
from hhtld.display.tables import Table, print_titled
from hhtld.display.terminal import safe
from hhtld.evaluation.speech.metrics import SpeechScores

__all__ = ["BOUNDS", "TAIL_BOUNDS", "Bounds", "RateSearch", "RateTrial", "SpeechReport", "SpokenSentence"]

SCHEMA = "hhtld.speech/1"
RATES_SCHEMA = "hhtld.speech-rates/1"

Wave = NDArray[np.float32]


@dataclass(frozen=True)
class Bounds:
    """What scores must be: the first three are relative differences at most, the last is a correlation at least."""

    rms: float = 0.05
    zero_crossings: float = 0.05
    duration: float = 0.05
    envelope: float = 0.95

    def hold(self, scores: SpeechScores) -> bool:
        """Whether scores are within these bounds."""
        differences = ("rms", "zero_crossings", "duration")
        near = all(abs(getattr(scores, name)) <= getattr(self, name) for name in differences)
        return near and scores.envelope >= self.envelope


# As gate 1 asks 0.95 of the median and 0.90 of the last twentieth: a bound for every single sentence would be harder
# the more sentences there are, and one pause that a rounded duration made longer would decide.
BOUNDS = Bounds()
TAIL_BOUNDS = Bounds(0.10, 0.10, 0.10, 0.90)
_TAIL = 0.05


@dataclass(frozen=True)
class SpokenSentence:
    """One sentence, said twice.

    Attributes
    ----------
    text : str
    original, decoded : float32 array
        Samples; there are no decoded ones if the decoded voice could not speak.
    scores : SpeechScores
    note : str
        Why the decoded voice could not speak, or "".
    """

    text: str
    original: Wave = field(repr=False)
    decoded: Wave = field(repr=False)
    scores: SpeechScores
    note: str = ""

    @property
    def within(self) -> bool:
        """Whether this sentence alone is within `BOUNDS`."""
        return not self.note and BOUNDS.hold(self.scores)


@dataclass(frozen=True)
class SpeechReport:
    """A voice's speech beside its pack's.

    It is truthy if the medians are within `BOUNDS`, all but a twentieth of the sentences within `TAIL_BOUNDS`, and the
    decoded voice could speak every sentence.

    Attributes
    ----------
    voice, pack, text : str
        Where they come from.
    sample_rate : int
    items : list of SpokenSentence
    """

    voice: str
    pack: str
    text: str
    sample_rate: int
    items: list[SpokenSentence]

    def __bool__(self) -> bool:
        return BOUNDS.hold(self.median) and TAIL_BOUNDS.hold(self.tail) and not any(item.note for item in self.items)

    @cached_property
    def median(self) -> SpeechScores:
        """Medians over the sentences, of differences without their signs, so that no two cancel each other."""
        return self._quantiles(0.5)

    @cached_property
    def tail(self) -> SpeechScores:
        """Where the twentieth furthest from the original begins: 95th percentiles, of correlations 5th ones."""
        return self._quantiles(1 - _TAIL)

    @cached_property
    def worst(self) -> SpeechScores:
        """The worst value of each score."""
        return self._quantiles(1)

    def _quantiles(self, q: float) -> SpeechScores:
        records = [item.scores.to_json() for item in self.items]
        quantiles = {}
        for name in records[0]:
            values = np.array([record[name] for record in records])
            is_correlation = name.startswith("envelope")  # the higher, the nearer
            if is_correlation:
                quantiles[name] = float(np.quantile(values, 1 - q))
            else:
                quantiles[name] = float(np.quantile(np.abs(values), q))
        return SpeechScores(**quantiles)

    @property
    def n_within(self) -> int:
        """Sentences that are within `BOUNDS`."""
        return sum(item.within for item in self.items)

    @property
    def verdict(self) -> str:
        """One sentence."""
        silent = sum(bool(item.note) for item in self.items)
        return (
            f"median: {_told(self.median)} (asked {BOUNDS.rms * 100:g} %, {BOUNDS.envelope:g}); "
            f"last twentieth: {_told(self.tail)} (asked {TAIL_BOUNDS.rms * 100:g} %, {TAIL_BOUNDS.envelope:g}); "
            + (f"{counted(silent, 'sentence')} not spoken; " if silent else "")
            + f"{self.n_within} of {counted(len(self.items), 'sentence')} within {BOUNDS.rms * 100:g} %: "
            + ("pass" if self else "below")
        )

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts; no time is among them, so that equal runs give equal text."""
        return {
            "schema": SCHEMA,
            "passed": bool(self),
            "voice": self.voice,
            "pack": self.pack,
            "sentences_from": self.text,
            "sample_rate": self.sample_rate,
            "bounds": {"median": asdict(BOUNDS), "tail": asdict(TAIL_BOUNDS)},
            "n_within": self.n_within,
            "median": self.median.to_json(),
            "tail": self.tail.to_json(),
            "worst": self.worst.to_json(),
            "items": [
                {
                    "text": item.text,
                    "within": item.within,
                    "seconds": round(item.original.size / self.sample_rate, 4),
                    **item.scores.to_json(),
                    **({"note": item.note} if item.note else {}),
                }
                for item in self.items
            ],
        }


@dataclass(frozen=True)
class RateTrial:
    """A voice converted at one profile, and how it speaks then."""

    profile: str
    nbytes: int
    ratio: float
    report: SpeechReport

    def to_json(self) -> dict[str, Any]:
        """Return sizes and the report's sums."""
        facts = self.report.to_json()
        sums = {key: facts[key] for key in ("passed", "n_within", "median", "tail", "worst")}
        return {"profile": self.profile, "nbytes": self.nbytes, "ratio": round(self.ratio, 4), **sums}


@dataclass(frozen=True)
class RateSearch:
    """How a voice speaks at every rate that was tried; truthy if one passes.

    Attributes
    ----------
    voice, text : str
        Where they come from.
    trials : list of RateTrial
        By size.
    """

    voice: str
    text: str
    trials: list[RateTrial]

    def __bool__(self) -> bool:
        return self.smallest is not None

    @property
    def smallest(self) -> RateTrial | None:
        """The smallest from which on all pass: one that passes among failures was lucky."""
        smallest = None
        for trial in reversed(self.trials):
            if not trial.report:
                break
            smallest = trial
        return smallest

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": RATES_SCHEMA,
            "passed": bool(self),
            "voice": self.voice,
            "sentences_from": self.text,
            "bounds": {"median": asdict(BOUNDS), "tail": asdict(TAIL_BOUNDS)},
            "smallest": self.smallest.profile if self.smallest else None,
            "trials": [trial.to_json() for trial in self.trials],
        }


# ---- tables ----

_TAILS = "95th percentile, of correlations 5th"
_SCORES = (">RMS", ">zero crossings", ">duration", ">envelope", ">unaligned", ">spectrum, dB", ">shift, ms")


def percent(difference: float, sign: str = "+") -> str:
    """Return a relative difference rounded away from 0 to tenths of a percent: none is larger than it reads."""
    return f"{math.copysign(math.ceil(abs(difference) * 1000 - 1e-6) / 10, difference):{sign}.1f} %"


def _told(scores: SpeechScores) -> str:
    differences = (("RMS", scores.rms), ("zero crossings", scores.zero_crossings), ("duration", scores.duration))
    words = ", ".join(f"{name} {percent(value, '')}" for name, value in differences)
    return f"{words} off, envelope {reached(scores.envelope)}"


def score_cells(scores: SpeechScores, sign: str = "+") -> tuple[str, ...]:
    """Return the cells under `_SCORES`."""
    differences = (scores.rms, scores.zero_crossings, scores.duration)
    correlations = (scores.envelope, scores.envelope_unaligned)
    return (
        *(percent(value, sign) for value in differences),
        *map(reached, correlations),
        f"{scores.spectral_db:.2f}",
        f"{scores.shift_ms:.1f}",
    )


def sentence_table(report: SpeechReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings (">": numbers) and one row a sentence."""
    rows = [
        (
            str(number),
            f"{item.original.size / report.sample_rate:.2f}",
            *score_cells(item.scores),
            "yes" if item.within else "no",
            item.text,
        )
        for number, item in enumerate(report.items, 1)
    ]
    return (">no.", ">seconds", *_SCORES, "within 5 %", "sentence"), rows


def print_speech(report: SpeechReport, out: Console) -> None:
    """Print the scores of every sentence and the verdict."""
    out.print(Text(f"{safe(report.pack)} beside {safe(report.voice)}, on {safe(report.text)} sentences"))
    headings, rows = sentence_table(report)
    rows += [
        ("", "", *score_cells(report.median, ""), "", "median"),
        ("", "", *score_cells(report.tail, ""), "", _TAILS),
    ]
    out.print(Table((*headings[:-1], "~sentence"), ((*cells, safe(text)) for *cells, text in rows)))
    for number, item in enumerate(report.items, 1):
        if item.note:
            out.print(Text(f"sentence {number}: {safe(item.note)}"))
    out.print(Text(f"{'' if report else 'FAILED: '}{report.verdict}"))


def print_rates(search: RateSearch, out: Console) -> None:
    """Print medians and tails at every rate, and the smallest that passes."""
    rows = [
        (
            trial.profile,
            human_nbytes(trial.nbytes),
            reached(trial.ratio, 2),
            *(score_cells(trial.report.median, "")[place] for place in (0, 1, 2, 3, 5)),
            *score_cells(trial.report.tail, "")[:4],
            f"{trial.report.n_within}/{len(trial.report.items)}",
            "pass" if trial.report else "below",
        )
        for trial in search.trials
    ]
    medians = (">RMS", ">crossings", ">duration", ">envelope", ">dB")
    tails = (">RMS, p95", ">crossings", ">duration", ">envelope, p5")
    headings = ("profile", ">file", ">ratio", *medians, *tails, ">within 5 %", "")
    title = f"{safe(search.voice)} by rate: medians and last twentieths of {safe(search.text)} sentences"
    print_titled(title, Table(headings, rows), out)
    smallest = search.smallest
    if smallest is None:
        out.print(Text("FAILED: the largest tried does not pass"))
    else:
        size, ratio = human_nbytes(smallest.nbytes), reached(smallest.ratio, 2)
        out.print(Text(f"the smallest from which on all pass: {smallest.profile}, {size}, {ratio} times smaller"))
