"""Quality measured on every row: what the gates ask for and what a pack reached.

Gate 1 is the cosine of every row with what the file gives back for it, in float64, split by regime. Rows of zeros have
no direction: they are counted apart, and one that does not come back as zeros fails its gate whatever the others reach.
A row that is not finite counts -1. Gate 3 is storage: the source as bfloat16 over the file's size. Printed and recorded
numbers are rounded down to a millionth, and judged as they are recorded, so that no claim exceeds what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

__all__ = [
    "PARITY_THRESHOLD",
    "THRESHOLDS",
    "CosineSummary",
    "Threshold",
    "Unreached",
    "checked_thresholds",
    "rounded_down",
]

N_QUANTILES = 21  # 0 %, 5 %, ... 100 %
P5, MEDIAN = 1, N_QUANTILES // 2
ZERO_KEPT, ZERO_LOST = 2.0, -2.0  # in place of the cosine of a row of zeros, which has none


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
# What profile parity asks of every group if no model was run. It promises nothing about the model's answers; see
# docs/decisions/gates-and-answers.md.
PARITY_THRESHOLD = Threshold(0.9997, 0.999)


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
        return self.quantiles[P5]

    @property
    def median(self) -> float:
        """Half of the rows are at least this good."""
        return self.quantiles[MEDIAN]

    def passes(self, threshold: Threshold) -> bool:
        """Whether median and p5 reach a threshold, and rows of zeros came back as such."""
        return not self.n_zero_rows_lost and self.median >= threshold.median and self.p5 >= threshold.p5

    def to_json(self) -> dict[str, Any]:
        """Return what the table of a file records; counts of rows of zeros only if there are some."""
        record = {"n_rows": self.n_rows, "quantiles": list(self.quantiles), "worst_row": self.worst_row}
        return record | zeros_json(self.n_zero_rows, self.n_zero_rows_lost)

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


def zeros_json(n_zero_rows: int, n_lost: int) -> dict[str, Any]:
    counts = {"n_zero_rows": n_zero_rows, "n_zero_rows_lost": n_lost}
    return {name: count for name, count in counts.items() if count}
