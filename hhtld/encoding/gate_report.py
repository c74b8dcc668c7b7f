"""How well a pack came back: cosines of rows by regime and group, and whether they reach what is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.cosines import is_live
from hhtld.gates import (
    MEDIAN,
    N_QUANTILES,
    P5,
    THRESHOLDS,
    ZERO_LOST,
    CosineSummary,
    Threshold,
    Unreached,
    rounded_down,
    zeros_json,
)

__all__ = ["GateReport", "GroupCosines", "RegimeCosines"]

_PENDING = 1 << 16  # counted values that wait to be sorted in


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

    def add(self, name: str, cosines: NDArray[np.float64], start: int = 0) -> None:
        """Count rows of a tensor from `start` on, given their `judged_cosines`; runs of rows may come in any order."""
        live = is_live(cosines)
        if not live.all():
            self.n_zero_rows += int((~live).sum())
            lost = np.flatnonzero(cosines == ZERO_LOST)
            self.n_zero_rows_lost += len(lost)
            if len(lost):
                self._lose((name, start + int(lost[0])))
        if live.any():
            millionths = np.floor(cosines[live] * 1e6).astype(np.int32)  # as `rounded_down`
            values, counts = np.unique(millionths, return_counts=True)
            self._take(values, counts.astype(np.int64))
            row = int(np.where(live, cosines, 2.0).argmin())
            self.worst = min(self.worst, (float(cosines[row]), name, start + row))

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

    def _quantiles(self, *numbers: int) -> list[float]:
        values, counts = self.counted()
        places = [(self.n_live_rows - 1) * number // (N_QUANTILES - 1) + 1 for number in numbers]
        return [int(value) / 1e6 for value in values[np.searchsorted(np.cumsum(counts), places)]]

    def summary(self) -> CosineSummary:
        """Return what `hhtld.cosines.summarize` says of a tensor's rows, if no other tensor's were counted."""
        worst_row = self.worst[2] if self.lost is None else self.lost[1]
        quantiles = self._quantiles(*range(N_QUANTILES)) if self.n_live_rows else [1.0] * N_QUANTILES
        return CosineSummary(self.n_rows, tuple(quantiles), worst_row, self.n_zero_rows, self.n_zero_rows_lost)

    @property
    def median(self) -> float:
        """Half of the rows are at least this good; there must be some that are not zeros."""
        return self._quantiles(MEDIAN)[0]

    @property
    def p5(self) -> float:
        """19 rows in 20 are at least this good."""
        return self._quantiles(P5)[0]

    def passes(self, threshold: Threshold) -> bool:
        """Whether median and p5 reach a threshold and no row of zeros was lost; no rows do."""
        if self.n_zero_rows_lost:
            return False
        return self.n_live_rows == 0 or (self.median >= threshold.median and self.p5 >= threshold.p5)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers that are printed; no quantiles if every row is zeros."""
        record: dict[str, Any] = {"n_rows": self.n_rows} | zeros_json(self.n_zero_rows, self.n_zero_rows_lost)
        if self.lost is not None:
            record["lost"] = {"tensor": self.lost[0], "row": self.lost[1]}
        if self.n_live_rows == 0:
            return record
        cosine, name, row = self.worst
        quantiles = {"median": self.median, "p5": self.p5, "min": rounded_down(cosine)}
        return record | quantiles | {"worst": {"tensor": name, "row": row}}


class GroupCosines:
    """Row cosines of the tensors of one group, which come in runs of rows and in any order.

    They are counted as they come, so that memory does not grow with a tensor's rows.

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
        self._under_way: dict[str, tuple[RegimeCosines, int]] = {}
        self.tensors: dict[str, CosineSummary] = {}
        self.counts = RegimeCosines()

    def add(self, name: str, n_rows: int, start: int, cosines: NDArray[np.float64]) -> None:
        """Take the cosines of a tensor's rows from `start` on; the tensor has `n_rows`."""
        counted, missing = self._under_way.pop(name, (None, n_rows))
        counted = RegimeCosines() if counted is None else counted
        counted.add(name, cosines, start)
        missing -= len(cosines)
        if missing:
            self._under_way[name] = counted, missing
            return
        self.tensors[name] = counted.summary()
        self.counts.merge(counted)
        if self._threshold is not None:
            millionths, counts = counted.counted()
            self._below_median += int(counts[millionths / 1e6 < self._threshold.median].sum())
            self._below_p5 += int(counts[millionths / 1e6 < self._threshold.p5].sum())

    def passes(self) -> bool:
        """Whether all rows together reach the threshold: exactly what `summarize` of them would say."""
        if self._threshold is not None and self.counts.n_zero_rows_lost:
            return False
        last = max(0, self.counts.n_live_rows - 1)
        below_median = last * MEDIAN // (N_QUANTILES - 1)
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
        What takes the bytes, and what would help, if the ratio is missed.
    unreached : dict of name to Unreached
        Tensors that are kept because no rate reaches what is asked.
    out_of_range : list of str
        Tensors that are kept because their values lie near an end of float32's range.
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
        counted = RegimeCosines()
        counted.add(name, cosines)
        self.add_counted(name, regime, counted, group)

    def add_counted(self, name: str, regime: str, cosines: RegimeCosines, group: str = "") -> None:
        """Count the rows of one tensor, all of which `cosines` has counted, as `add` does."""
        self.tensors[name] = cosines.summary()
        self.groups.setdefault(group, RegimeCosines()).merge(cosines)
        if name not in self.exempt:
            self.regimes[regime].merge(cosines)

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
        """Whether the file is small enough; if nothing was encoded, that is not asked."""
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
                + "; they are kept byte for byte, which allow_keep=True (--allow-keep) takes for a pass"
            )
        if not self.ratio_reached:
            if self.ratio < self.min_ratio:
                missed_ratio = f"the source as bfloat16 is {self.ratio:.3f} times the file, {self.min_ratio:g} is asked"
            else:
                missed_ratio = (
                    f"the file is larger than its source, which is {self.source_ratio:.3f} times the file as stored"
                )
            missed.append(missed_ratio + (f": {self.ratio_advice}" if self.ratio_advice else ""))
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
