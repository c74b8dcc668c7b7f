"""Quality measured on every row: what the gates ask for and what a pack reached.

Gate 1 is the cosine of every row with its decoded self, in float64, split by regime. Gate 3 is
storage: the source as bfloat16 over the file's size. A zero row against a zero row counts 1, against
anything else 0; a row that is not finite counts -1. Printed and recorded numbers are rounded down, so
that no claim exceeds what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _dot

__all__ = [
    "THRESHOLDS",
    "CosineSummary",
    "GateReport",
    "GroupCosines",
    "RegimeCosines",
    "Threshold",
    "rounded_down",
    "row_cosines",
    "summarize",
]

N_QUANTILES = 21  # 0 %, 5 %, ... 100 %
_BINS = 200_000  # of the merged histogram, 1e-5 apart


@dataclass(frozen=True)
class Threshold:
    """What the cosines of one regime must reach."""

    median: float
    p5: float


THRESHOLDS: dict[str, Threshold] = {"argmax": Threshold(0.95, 0.90), "index": Threshold(0.98, 0.95)}


def rounded_down(value: float) -> float:
    """Return `value` with six decimals, never more than it is."""
    return math.floor(value * 1e6) / 1e6


def row_cosines(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of every row pair of two float32 arrays (n, n_cols)."""
    dots = np.empty((len(original), 3))
    _dot.row_dots(original, decoded, dots)
    cross, own, other = dots.T
    scale = np.sqrt(own) * np.sqrt(other)
    with np.errstate(invalid="ignore"):
        cosines = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
    cosines[(own == 0) & (other == 0)] = 1.0
    cosines[~np.isfinite(dots).all(axis=1)] = -1.0
    bounded: NDArray[np.float64] = np.clip(cosines, -1.0, 1.0)
    return bounded


@dataclass(frozen=True)
class CosineSummary:
    """Row cosines of one tensor.

    Attributes
    ----------
    n_rows : int
    quantiles : tuple of 21 floats
        The 0 %, 5 %, ... 100 % quantiles, each the cosine of a real row, rounded down.
    worst_row : int
    """

    n_rows: int
    quantiles: tuple[float, ...]
    worst_row: int

    @property
    def minimum(self) -> float:
        """The worst row's cosine."""
        return self.quantiles[0]

    @property
    def p5(self) -> float:
        """19 rows in 20 are at least this good."""
        return self.quantiles[1]

    @property
    def median(self) -> float:
        """Half of the rows are at least this good."""
        return self.quantiles[N_QUANTILES // 2]

    def passes(self, threshold: Threshold) -> bool:
        """Whether median and p5 reach a threshold."""
        return self.median >= threshold.median and self.p5 >= threshold.p5

    def to_json(self) -> dict[str, Any]:
        """Return what the table of a file records."""
        return {"n_rows": self.n_rows, "quantiles": list(self.quantiles), "worst_row": self.worst_row}

    @classmethod
    def from_json(cls, record: object) -> Self:
        """Read `to_json()` back, or raise ValueError."""
        if not isinstance(record, dict) or not {"n_rows", "quantiles", "worst_row"} <= set(record):
            raise ValueError("gates must be an object of n_rows, quantiles and worst_row")
        n_rows, quantiles, worst = record["n_rows"], record["quantiles"], record["worst_row"]
        if type(n_rows) is not int or type(worst) is not int or not 0 <= worst < max(n_rows, 1):
            raise ValueError("gates must name a row of the tensor")
        if not isinstance(quantiles, list) or len(quantiles) != N_QUANTILES:
            raise ValueError(f"gates must hold {N_QUANTILES} quantiles")
        if any(type(q) not in (int, float) or not -1.000001 <= q <= 1 for q in quantiles):
            raise ValueError("a quantile must be a cosine")
        return cls(n_rows, tuple(float(q) for q in quantiles), worst)


def summarize(cosines: NDArray[np.float64]) -> CosineSummary:
    """Summarize the cosines of a tensor's rows, in row order; no rows count as perfect."""
    if len(cosines) == 0:
        return CosineSummary(0, (1.0,) * N_QUANTILES, 0)
    ranked = np.sort(cosines)
    # The lower of two neighbours: a quantile is a real row's cosine.
    picks = [(len(ranked) - 1) * i // (N_QUANTILES - 1) for i in range(N_QUANTILES)]
    return CosineSummary(len(ranked), tuple(rounded_down(float(ranked[p])) for p in picks), int(cosines.argmin()))


@dataclass
class RegimeCosines:
    """Row cosines of many tensors, kept as a histogram so that memory does not grow with the model."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS + 1, np.int64))
    worst: tuple[float, str, int] = (2.0, "", 0)

    def add(self, name: str, cosines: NDArray[np.float64]) -> None:
        """Count a tensor's rows."""
        if len(cosines) == 0:
            return
        bins = ((cosines + 1.0) * (_BINS / 2)).astype(np.int64)
        self.counts += np.bincount(bins, minlength=_BINS + 1)
        self.worst = min(self.worst, (float(cosines.min()), name, int(cosines.argmin())))

    def merge(self, other: RegimeCosines) -> None:
        """Count what another has counted."""
        self.counts += other.counts
        self.worst = min(self.worst, other.worst)

    @property
    def n_rows(self) -> int:
        """Rows counted."""
        return int(self.counts.sum())

    def quantile(self, fraction: float) -> float:
        """Return the lower edge of the bin that holds the quantile, within 1e-5 below it."""
        rank = math.floor((self.n_rows - 1) * fraction)
        index = int(np.searchsorted(np.cumsum(self.counts), rank + 1))
        return rounded_down(index * 2 / _BINS - 1.0 + 1e-12)

    def passes(self, threshold: Threshold) -> bool:
        """Whether median and p5 reach a threshold; no rows do."""
        return self.n_rows == 0 or (self.quantile(0.5) >= threshold.median and self.quantile(0.05) >= threshold.p5)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers that are printed."""
        if self.n_rows == 0:
            return {"n_rows": 0}
        cosine, name, row = self.worst
        return {
            "n_rows": self.n_rows,
            "median": self.quantile(0.5),
            "p5": self.quantile(0.05),
            "min": rounded_down(cosine),
            "worst": {"tensor": name, "row": row},
        }


class GroupCosines:
    """Row cosines of the tensors of one group, which come in runs of rows and in any order.

    A tensor's are held until all of its rows have come.

    Attributes
    ----------
    tensors : dict of name to CosineSummary
        Of the tensors whose rows have all come.
    counts : RegimeCosines
        Of these.
    """

    def __init__(self, threshold: Threshold | None = None) -> None:
        self._threshold = threshold
        self._below_median = self._below_p5 = 0
        self._waiting: dict[str, tuple[NDArray[np.float64] | None, int]] = {}
        self.tensors: dict[str, CosineSummary] = {}
        self.counts = RegimeCosines()

    def add(self, name: str, n_rows: int, start: int, cosines: NDArray[np.float64]) -> None:
        """Take the cosines of a tensor's rows from `start` on; the tensor has `n_rows`."""
        held, missing = self._waiting.pop(name, (None, n_rows))
        held = np.empty(n_rows) if held is None else held
        held[start : start + len(cosines)] = cosines
        missing -= len(cosines)
        if missing:
            self._waiting[name] = held, missing
            return
        self.tensors[name] = summarize(held)
        self.counts.add(name, held)
        if self._threshold is not None:
            rounded = np.floor(held * 1e6) / 1e6  # as `rounded_down`
            self._below_median += int((rounded < self._threshold.median).sum())
            self._below_p5 += int((rounded < self._threshold.p5).sum())

    def passes(self) -> bool:
        """Whether all rows together reach the threshold: exactly what `summarize` of them would say."""
        last = self.counts.n_rows - 1
        return self._below_median <= last * 10 // (N_QUANTILES - 1) and self._below_p5 <= last // (N_QUANTILES - 1)


@dataclass
class GateReport:
    """Gates 1 and 3 of one pack.

    Attributes
    ----------
    regimes : dict of "argmax" and "index" to RegimeCosines
    tensors : dict of name to CosineSummary
        Encoded tensors only; what is kept as it came is equal by construction and checked by bytes.
    enforced : bool
        Lookup grades are measured, not judged: they are not meant to reconstruct.
    ratio : float
        Source as bfloat16 over the file, 0 until the file's size is known.
    exempt : set of str
        Tensors that a rule gave to a grade that is not judged.
    groups : dict of group's name to RegimeCosines
    """

    enforced: bool
    thresholds: Mapping[str, Threshold] = field(default_factory=lambda: dict(THRESHOLDS))
    min_ratio: float = 2.0
    regimes: dict[str, RegimeCosines] = field(
        default_factory=lambda: {"argmax": RegimeCosines(), "index": RegimeCosines()}
    )
    tensors: dict[str, CosineSummary] = field(default_factory=dict)
    ratio: float = 0.0
    exempt: set[str] = field(default_factory=set)
    groups: dict[str, RegimeCosines] = field(default_factory=dict)

    def add(self, name: str, regime: str, cosines: NDArray[np.float64], group: str = "") -> None:
        """Count one tensor's rows; an exempt tensor's are recorded but not judged."""
        self.tensors[name] = summarize(cosines)
        self.groups.setdefault(group, RegimeCosines()).add(name, cosines)
        if name not in self.exempt:
            self.regimes[regime].add(name, cosines)

    def add_group(self, cosines: GroupCosines, regime: str, group: str) -> None:
        """Count a group's tensors; all of them are exempt or none."""
        self.tensors |= cosines.tensors
        self.groups.setdefault(group, RegimeCosines()).merge(cosines.counts)
        if self.exempt.isdisjoint(cosines.tensors):
            self.regimes[regime].merge(cosines.counts)

    @property
    def reached(self) -> bool:
        """Whether every gate's number is reached, enforced or not."""
        return self.ratio >= self.min_ratio and all(
            cosines.passes(self.thresholds[regime]) for regime, cosines in self.regimes.items()
        )

    def __bool__(self) -> bool:
        return self.reached or not self.enforced

    def verdict(self) -> str:
        """Return what was missed, in words."""
        missed = [
            f"regime {regime} has median {cosines.quantile(0.5):.4f} and p5 {cosines.quantile(0.05):.4f} "
            f"where {self.thresholds[regime].median} and {self.thresholds[regime].p5} are asked"
            for regime, cosines in self.regimes.items()
            if not cosines.passes(self.thresholds[regime])
        ]
        if self.ratio < self.min_ratio:
            missed.append(f"the source as bfloat16 is {self.ratio:.3f} times the file, {self.min_ratio} is asked")
        return "; ".join(missed) or "every gate passed"

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "enforced": self.enforced,
            "passed": bool(self),
            "reached": self.reached,
            "ratio": rounded_down(self.ratio),
            "min_ratio": self.min_ratio,
            "regimes": {
                regime: cosines.to_json()
                | {"required": {"median": self.thresholds[regime].median, "p5": self.thresholds[regime].p5}}
                for regime, cosines in self.regimes.items()
            },
            "groups": {group: cosines.to_json() for group, cosines in sorted(self.groups.items())},
        }
