"""Rates of rows as few classes: what is asked of every row, taken to rates that a group can hold.

A group holds at most 16 rates, each in sixteenths of a bit. If the rows of its tensors ask for no more than that many,
and for whole sixteenths, every row gets what it asks for. Else the classes are those between which rows are rounded
with the least square error: the lowest and the highest rate are among them, and the others are found exactly, by
dynamic programming over the 81 rates that there are. A row then gets the class below what it asks for or the one above,
and as many as the mean allows get the one above, those first that are nearest to it. So the mean of a tensor is
what was asked for, less at most one step of one row, and never more.

Rounding
--------
What is asked for is taken to integers of 2**-20 bits first, so that the classes are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld.identity import MAX_RATE, MIN_RATE
from hhtld.slots.class_layout import MAX_CLASSES

__all__ = ["class_rates", "classes_of_rows", "mean_rate", "row_rates"]

_UNIT = 1 << 16  # of a sixteenth of a bit: rates are integers of it


def row_rates(bits: ArrayLike, n_rows: int) -> NDArray[np.int32]:
    """Return bits of every row (n_rows,) as integers of 2**-20 bits, or raise ValueError if they are no rates."""
    given = np.asarray(bits)
    if given.shape != (n_rows,) or given.dtype.kind not in "fiu":
        raise ValueError(f"rates must be a number or {n_rows} numbers, got {given.dtype} of shape {given.shape}")
    wide = given.astype(np.float64)
    is_rate = (wide >= MIN_RATE / 16) & (wide <= MAX_RATE / 16)
    if not is_rate.all():
        row = int((~is_rate).argmax())
        raise ValueError(f"rates must lie in {MIN_RATE / 16:g}..{MAX_RATE / 16:g} bits, row {row} has {wide[row]:g}")
    return (wide * (16 * _UNIT)).astype(np.int32)


def class_rates(tensors: Sequence[NDArray[np.int32]]) -> list[int]:
    """Return the rates of the classes of rows, ascending, in sixteenths of a bit.

    Parameters
    ----------
    tensors : sequence of ndarray of int32, shape (n_rows,)
        What `row_rates` gives.
    """
    below, above = np.zeros(MAX_RATE + 2, np.int64), np.zeros(MAX_RATE + 2, np.bool_)
    for rates in tensors:
        below += np.bincount(rates // _UNIT, minlength=MAX_RATE + 2)
        above[rates[rates % _UNIT > 0] // _UNIT + 1] = True
    asked = np.flatnonzero((below > 0) | above)
    classes = asked.tolist() if len(asked) <= MAX_CLASSES else _chosen(below, int(asked[0]), int(asked[-1]))
    used: set[int] = set()
    for rates in tensors:
        used.update(np.unique(classes_of_rows(rates, classes)).tolist())
    return [classes[number] for number in sorted(used)]


def mean_rate(tensors: Sequence[NDArray[np.int32]]) -> int:
    """Return the mean of what all rows ask for, in sixteenths of a bit, rounded down."""
    n_rows = sum(len(rates) for rates in tensors)
    return sum(int(rates.sum(dtype=np.int64)) for rates in tensors) // (max(1, n_rows) * _UNIT)


def _chosen(below: NDArray[np.int64], low: int, high: int) -> list[int]:
    """Return the 16 rates from `low` to `high` between which rows are rounded with the least square error.

    `below` counts rows by the sixteenths that they ask for, rounded down.
    """
    n_rates = high - low + 1
    counts = below[low : low + n_rates].tolist()
    # costs[a][b]: of rows between neighbouring classes a and b, sum of (b - x)(x - a), what unbiased rounding costs.
    costs = [
        [sum(counts[x] * (b - x) * (x - a) for x in range(a + 1, b)) for b in range(n_rates)] for a in range(n_rates)
    ]
    best, chosen = costs[0], []
    for _ in range(MAX_CLASSES - 2):
        # The largest of equals, so that ties fall the same way everywhere.
        last = [-min((best[a] + costs[a][b], -a) for a in range(b + 1))[1] for b in range(n_rates)]
        best = [best[a] + costs[a][b] for b, a in enumerate(last)]
        chosen.append(last)
    classes = [n_rates - 1]
    for last in reversed(chosen):
        classes.append(last[classes[-1]])
    return sorted({low + place for place in (0, *classes)})


def classes_of_rows(rates: NDArray[np.int32], classes: Sequence[int]) -> NDArray[np.uint8]:
    """Return the class of every row of a tensor.

    Parameters
    ----------
    rates : ndarray of int32, shape (n_rows,)
        What `row_rates` gives.
    classes : sequence of int
        What `class_rates` gives for the tensors of the group.
    """
    bounds = np.array(classes, np.int64) * _UNIT
    # Of classes that no row was given, none is left, so that a row may ask for less than the lowest or more than all.
    lower = np.maximum(np.searchsorted(bounds, rates, side="right") - 1, 0)
    left = rates - bounds[lower]
    between = np.flatnonzero((left > 0) & (lower < len(classes) - 1))
    steps = bounds[lower[between] + 1] - bounds[lower[between]]
    # Nearest to the class above first: compared as integers, 2**20 of them from class to class.
    order = between[np.argsort(-(left[between] << 20) // steps, kind="stable")]
    raised = np.cumsum(bounds[lower[order] + 1] - bounds[lower[order]])
    lower[order[raised <= int(left.sum())]] += 1
    return lower.astype(np.uint8)
