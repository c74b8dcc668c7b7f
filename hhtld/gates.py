"""Quality measured on every row: what the gates ask for and what a pack reached.

Gate 1 is the cosine of every row with what the file gives back for it, in float64, split by regime. Rows of zeros have
no direction: they are counted apart, and one that does not come back as zeros fails its gate whatever the others reach.
A row that is not finite counts -1. Gate 3 is storage: the source as bfloat16 over the file's size. Printed and recorded
numbers are rounded down to a millionth, and judged as they are recorded, so that no claim exceeds what was measured.
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
    "Unreached",
    "checked_thresholds",
    "is_live",
    "judged_cosines",
    "rounded_down",
    "row_cosines",
    "summarize",
]

N_QUANTILES = 21  # 0 %, 5 %, ... 100 %
_P5, _MEDIAN = 1, N_QUANTILES // 2
ZERO_KEPT, ZERO_LOST = 2.0, -2.0  # in place of the cosine of a row of zeros, which has none
_PENDING = 1 << 16  # counted values that wait to be sorted in


@dataclass(frozen=True)
class Threshold:
    """What the cosines of one regime must reach: two numbers of -1 to 1.

    Raises
    ------
    TypeError, ValueError
        For what is no cosine.
    """

    median: float
    p5: float

    def __post_init__(self) -> None:
        for name, value in (("median", self.median), ("p5", self.p5)):
            if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
                raise TypeError(f"a threshold's {name} must be a number, got {type(value).__name__}")
            if not -1 <= value <= 1:  # neither is NaN
                raise ValueError(f"a threshold's {name} must be a cosine, -1 to 1, got {value}")


THRESHOLDS: dict[str, Threshold] = {"argmax": Threshold(0.95, 0.90), "index": Threshold(0.98, 0.95)}


@dataclass(frozen=True)
class Unreached:
    """What was asked of a tensor that no rate reaches, and that is kept byte for byte for that."""

    regime: str
    threshold: Threshold

    def to_json(self) -> dict[str, Any]:
        """Return what the table of a file records."""
        return {"regime": self.regime, "median": self.threshold.median, "p5": self.threshold.p5}

    @classmethod
    def from_json(cls, record: object) -> Self:
        """Read `to_json()` back, or raise ValueError."""
        if not isinstance(record, dict) or record.get("regime") not in THRESHOLDS:
            raise ValueError("unreached must be an object with a regime")
        try:
            return cls(record["regime"], Threshold(record["median"], record["p5"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError("unreached must hold two cosines, median and p5") from None


def checked_thresholds(asked: Mapping[str, Threshold] | None) -> dict[str, Threshold]:
    """Return thresholds by regime as they were asked for; an unknown regime is a ValueError, not ignored."""
    if asked is None:
        return {}
    if not isinstance(asked, Mapping):
        raise TypeError(f"gates must map regimes to thresholds, got {type(asked).__name__}")
    for regime, threshold in asked.items():
        if regime not in THRESHOLDS:
            raise ValueError(f"no regime {regime!r}; gates are for {' and '.join(map(repr, THRESHOLDS))}")
        if not isinstance(threshold, Threshold):
            raise TypeError(f"the gate of regime {regime!r} must be a Threshold, got {type(threshold).__name__}")
    return dict(asked)


def rounded_down(value: float) -> float:
    """Return `value` with six decimals, never more than it is."""
    return math.floor(value * 1e6) / 1e6


def _cosines(
    original: NDArray[np.float32], returned: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Cosines of row pairs, and which rows of either are zeros."""
    dots = np.empty((len(original), 3))
    _dot.row_dots(original, returned, dots)
    cross, own, other = dots.T
    scale = np.sqrt(own) * np.sqrt(other)
    with np.errstate(invalid="ignore"):
        cosines = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
    cosines[~np.isfinite(dots).all(axis=1)] = -1.0
    return np.clip(cosines, -1.0, 1.0), own == 0, other == 0  # the square of the smallest float32 is no zero


def row_cosines(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of every row pair of two float32 arrays (n, n_cols); 1 for two rows of zeros, 0 for one."""
    cosines, own, other = _cosines(original, decoded)
    cosines[own & other] = 1.0
    return cosines


def judged_cosines(original: NDArray[np.float32], returned: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `row_cosines`, and for rows of zeros whether they came back as such: `ZERO_KEPT` or `ZERO_LOST`."""
    cosines, own, other = _cosines(original, returned)
    cosines[own] = np.where(other[own], ZERO_KEPT, ZERO_LOST)
    return cosines


def is_live(cosines: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each of `judged_cosines` is one: the row is not all zeros."""
    return np.asarray(np.abs(cosines) <= 1, np.bool_)


@dataclass(frozen=True)
class CosineSummary:
    """Row cosines of one tensor.

    Attributes
    ----------
    n_rows : int
        All rows, those of zeros among them.
    quantiles : tuple of 21 floats
        The 0 %, 5 %, ... 100 % quantiles over the rows that are not zeros, each the cosine of a real row, rounded down;
        1 where there is no such row.
    worst_row : int
        The first row of zeros that did not come back as such, else the first of the smallest cosine.
    n_zero_rows : int
        Rows of zeros.
    n_zero_rows_lost : int
        Those of them that did not come back as zeros.
    """

    n_rows: int
    quantiles: tuple[float, ...]
    worst_row: int
    n_zero_rows: int = 0
    n_zero_rows_lost: int = 0

    @property
    def n_live_rows(self) -> int:
        """Rows that the quantiles are over."""
        return self.n_rows - self.n_zero_rows

    @property
    def minimum(self) -> float:
        """The worst row's cosine."""
        return self.quantiles[0]

    @property
    def p5(self) -> float:
        """19 rows in 20 are at least this good."""
        return self.quantiles[_P5]

    @property
    def median(self) -> float:
        """Half of the rows are at least this good."""
        return self.quantiles[_MEDIAN]

    def passes(self, threshold: Threshold) -> bool:
        """Whether median and p5 reach a threshold, and rows of zeros came back as such."""
        return not self.n_zero_rows_lost and self.median >= threshold.median and self.p5 >= threshold.p5

    def to_json(self) -> dict[str, Any]:
        """Return what the table of a file records; counts of rows of zeros only where there are some."""
        record = {"n_rows": self.n_rows, "quantiles": list(self.quantiles), "worst_row": self.worst_row}
        return record | _zeros_json(self.n_zero_rows, self.n_zero_rows_lost)

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
        zeros, lost = record.get("n_zero_rows", 0), record.get("n_zero_rows_lost", 0)
        if type(zeros) is not int or type(lost) is not int or not 0 <= lost <= zeros <= n_rows:
            raise ValueError("gates must count no more rows of zeros than there are rows, nor lose more than these")
        return cls(n_rows, tuple(float(q) for q in quantiles), worst, zeros, lost)


def _zeros_json(n_zero_rows: int, n_lost: int) -> dict[str, Any]:
    counts = {"n_zero_rows": n_zero_rows, "n_zero_rows_lost": n_lost}
    return {name: count for name, count in counts.items() if count}


def summarize(cosines: NDArray[np.float64]) -> CosineSummary:
    """Summarize the `judged_cosines` of a tensor's rows, in row order; no rows count as perfect."""
    live = is_live(cosines)
    n_zeros, n_lost = len(cosines) - int(live.sum()), int((cosines == ZERO_LOST).sum())
    if n_zeros == len(cosines):
        worst = int(cosines.argmin()) if n_lost else 0
        return CosineSummary(len(cosines), (1.0,) * N_QUANTILES, worst, n_zeros, n_lost)
    ranked = np.sort(cosines[live])
    # The lower of two neighbours: a quantile is a real row's cosine.
    picks = [(len(ranked) - 1) * i // (N_QUANTILES - 1) for i in range(N_QUANTILES)]
    quantiles = tuple(rounded_down(float(ranked[p])) for p in picks)
    return CosineSummary(len(cosines), quantiles, int(cosines.argmin()), n_zeros, n_lost)


class RegimeCosines:
    """Row cosines of many tensors, counted by millionths: what differs less is one number, as in files.

    Counts are held for values that occur, so memory does not grow with the number of tensors, and with rows only as far
    as they differ: 12 bytes a value, of two million at most.

    Attributes
    ----------
    worst : (float, str, int)
        The smallest cosine, its tensor and row.
    n_zero_rows, n_zero_rows_lost : int
        Rows of zeros, which the quantiles leave out, and those that did not come back as such.
    lost : (str, int) or None
        The first of the latter.
    """

    def __init__(self) -> None:
        self._values = np.empty(0, np.int32)  # millionths, ascending
        self._counts = np.empty(0, np.int64)
        self._pending: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []
        self._n_pending = 0
        self.worst: tuple[float, str, int] = (2.0, "", 0)
        self.n_zero_rows = self.n_zero_rows_lost = 0
        self.lost: tuple[str, int] | None = None

    def add(self, name: str, cosines: NDArray[np.float64]) -> None:
        """Count a tensor's rows, given their `judged_cosines`."""
        live = is_live(cosines)
        if not live.all():
            self.n_zero_rows += int((~live).sum())
            lost = np.flatnonzero(cosines == ZERO_LOST)
            self.n_zero_rows_lost += len(lost)
            if len(lost):
                self._lose((name, int(lost[0])))
        if live.any():
            millionths = np.floor(cosines[live] * 1e6).astype(np.int32)  # as `rounded_down`
            values, counts = np.unique(millionths, return_counts=True)
            self._take(values, counts.astype(np.int64))
            row = int(np.where(live, cosines, 2.0).argmin())
            self.worst = min(self.worst, (float(cosines[row]), name, row))

    def merge(self, other: RegimeCosines) -> None:
        """Count what another has counted."""
        self._take(*other.counted())
        self.worst = min(self.worst, other.worst)
        self.n_zero_rows += other.n_zero_rows
        self.n_zero_rows_lost += other.n_zero_rows_lost
        if other.lost is not None:
            self._lose(other.lost)

    def _lose(self, lost: tuple[str, int]) -> None:
        self.lost = lost if self.lost is None else min(self.lost, lost)

    def _take(self, values: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
        self._pending.append((values, counts))
        self._n_pending += len(values)
        if self._n_pending > max(_PENDING, len(self._values)):
            self.counted()

    def counted(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the cosines that occur, in millionths and ascending, and how many rows have each."""
        if self._pending:
            values, counts = zip((self._values, self._counts), *self._pending, strict=True)
            self._values, places = np.unique(np.concatenate(values), return_inverse=True)
            self._counts = np.zeros(len(self._values), np.int64)
            np.add.at(self._counts, places.reshape(-1), np.concatenate(counts))
            self._pending, self._n_pending = [], 0
        return self._values, self._counts

    @property
    def n_live_rows(self) -> int:
        """Rows that the quantiles are over."""
        return int(self.counted()[1].sum())

    @property
    def n_rows(self) -> int:
        """Rows counted, those of zeros among them."""
        return self.n_live_rows + self.n_zero_rows

    def _quantile(self, number: int) -> float:
        values, counts = self.counted()
        place = (self.n_live_rows - 1) * number // (N_QUANTILES - 1)
        return int(values[np.searchsorted(np.cumsum(counts), place + 1)]) / 1e6

    @property
    def median(self) -> float:
        """Half of the rows are at least this good; there must be some that are not zeros."""
        return self._quantile(_MEDIAN)

    @property
    def p5(self) -> float:
        """19 rows in 20 are at least this good."""
        return self._quantile(_P5)

    def passes(self, threshold: Threshold) -> bool:
        """Whether median and p5 reach a threshold and no row of zeros was lost; no rows do."""
        if self.n_zero_rows_lost:
            return False
        return self.n_live_rows == 0 or (self.median >= threshold.median and self.p5 >= threshold.p5)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers that are printed; no quantiles where every row is zeros."""
        record: dict[str, Any] = {"n_rows": self.n_rows} | _zeros_json(self.n_zero_rows, self.n_zero_rows_lost)
        if self.lost is not None:
            record["lost"] = {"tensor": self.lost[0], "row": self.lost[1]}
        if self.n_live_rows == 0:
            return record
        cosine, name, row = self.worst
        quantiles = {"median": self.median, "p5": self.p5, "min": rounded_down(cosine)}
        return record | quantiles | {"worst": {"tensor": name, "row": row}}


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
            rounded = np.floor(held[is_live(held)] * 1e6) / 1e6  # as `rounded_down`
            self._below_median += int((rounded < self._threshold.median).sum())
            self._below_p5 += int((rounded < self._threshold.p5).sum())

    def passes(self) -> bool:
        """Whether all rows together reach the threshold: exactly what `summarize` of them would say."""
        if self._threshold is not None and self.counts.n_zero_rows_lost:
            return False
        last = max(0, self.counts.n_live_rows - 1)
        below_median = last * _MEDIAN // (N_QUANTILES - 1)
        return self._below_median <= below_median and self._below_p5 <= last // (N_QUANTILES - 1)


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
    source_ratio : float
        Source as it is stored over the file; a file that is larger misses the gate too, unless `min_ratio` is below 1.
    ratio_advice : str
        What takes the bytes, and what would help, where the ratio is missed.
    unreached : dict of name to Unreached
        Tensors that are kept because no rate reaches what is asked.
    out_of_range : list of str
        Tensors that are kept because their values lie near the end of float32's range.
    allow_keep : bool
        Whether the former are no failure.
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
    source_ratio: float = math.inf
    ratio_advice: str = ""
    unreached: dict[str, Unreached] = field(default_factory=dict)
    out_of_range: list[str] = field(default_factory=list)
    allow_keep: bool = False
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
    def n_unreached(self) -> int:
        """Judged tensors that are kept because no rate reaches what is asked."""
        return len(set(self.unreached) - self.exempt)

    @property
    def ratio_reached(self) -> bool:
        """Whether the file is small enough; where nothing was encoded, that is not asked."""
        return not self.tensors or (self.ratio >= self.min_ratio and self.source_ratio >= min(1, self.min_ratio))

    @property
    def reached(self) -> bool:
        """Whether every gate's number is reached, enforced or not."""
        cosines_reached = all(cosines.passes(self.thresholds[regime]) for regime, cosines in self.regimes.items())
        return cosines_reached and self.ratio_reached and (self.allow_keep or not self.n_unreached)

    def __bool__(self) -> bool:
        return self.reached or not self.enforced

    def verdict(self) -> str:
        """Return what was missed, in words."""
        missed = []
        for regime, cosines in self.regimes.items():
            asked = self.thresholds[regime]
            if cosines.n_live_rows and (cosines.median < asked.median or cosines.p5 < asked.p5):
                missed.append(
                    f"regime {regime} has median {cosines.median:g} and p5 {cosines.p5:g} "
                    f"where {asked.median:g} and {asked.p5:g} are asked"
                )
            if cosines.lost is not None:
                name, row = cosines.lost
                missed.append(
                    f"regime {regime} has {cosines.n_zero_rows_lost} rows of zeros that do not come back as zeros, "
                    f"the first of them row {row} of {name}"
                )
        if self.n_unreached and not self.allow_keep:
            first = min(set(self.unreached) - self.exempt)
            asked = self.unreached[first].threshold
            missed.append(
                f"6 bits a weight do not reach {asked.median:g} and {asked.p5:g} for {first}"
                + (f" and {self.n_unreached - 1} more" if self.n_unreached > 1 else "")
                + ", kept byte for byte (--allow-keep, in Python allow_keep=True, takes that for a pass)"
            )
        if not self.ratio_reached:
            if self.ratio < self.min_ratio:
                told = f"the source as bfloat16 is {self.ratio:.3f} times the file, {self.min_ratio:g} is asked"
            else:
                told = f"the file is larger than its source, which is {self.source_ratio:.3f} times the file as stored"
            missed.append(told + (f": {self.ratio_advice}" if self.ratio_advice else ""))
        return "; ".join(missed) or "every gate passed"

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "enforced": self.enforced,
            "passed": bool(self),
            "reached": self.reached,
            "ratio": rounded_down(self.ratio),
            "min_ratio": self.min_ratio,
            **({"source_ratio": rounded_down(self.source_ratio)} if math.isfinite(self.source_ratio) else {}),
            "ratio_reached": self.ratio_reached,
            **({"ratio_advice": self.ratio_advice} if self.ratio_advice and not self.ratio_reached else {}),
            "allow_keep": self.allow_keep,
            "unreached": {name: asked.to_json() for name, asked in sorted(self.unreached.items())},
            "regimes": {
                regime: cosines.to_json()
                | {"required": {"median": self.thresholds[regime].median, "p5": self.thresholds[regime].p5}}
                for regime, cosines in self.regimes.items()
            },
            "groups": {group: cosines.to_json() for group, cosines in sorted(self.groups.items())},
        }
