"""What an estimate may be off by.

Proved bound
------------
The rotated query is taken to int8: ``R y = s z + e``. What the estimate leaves out of ``<t, R y>`` is ``<t, e>``, at
most ``|t| |e|``; ``|e|`` is known, and ``|t| = gain * sqrt(sum of squared levels)`` is kept for every row. The rest is
float32 rounding, of the query on its way and of the decoded row itself: fewer than ``4 log2(n_cols) + 68``
operations one upon the other, each within 2^-24 of what it touches, and what is lost below float32's normal
range. Both are in the bound. Rows whose upper bound reaches the k-th largest lower bound survive, are decoded
and scored in float64, so arg-max and top-k are those of the decoded matrix, exactly, on every tier.

Probable bound
--------------
Against the source's rows the bound is a probable one. Slot T's gain is the least-squares one, so the rotated row
is ``r = t + d`` with d at right angles to t, and for a random rotation ``<t, R y> / cos^2`` estimates ``<r, R y>``
without bias and with deviation ``|t| |y| rho sqrt(1 + rho^2) / sqrt(n_cols)``, where rho = |d| / |t| is the tangent
of the angle between row and code. The angle comes from the cosines recorded in the file; `epsilon` deviations are
allowed for. Codecs without Slot T do not err in a random direction. For them the same formula is used with the whole
row's length, and promises nothing.

Source
------
Unbiased estimates and their deviation after a random rotation: RaBitQ (arXiv 2405.12497), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hhtld.errors import shown
from hhtld.gates import CosineSummary
from hhtld.search.estimates import Array32, Array64, SearchRows
from hhtld.search.queries import Queries

__all__ = ["Bounds", "ErrorTangents", "error_tangents", "probable_bounds", "proved_bounds"]


@dataclass(frozen=True)
class Bounds:
    """What the estimates of a batch may be off by: ``factors * spreads + slacks``.

    Attributes
    ----------
    factors, slacks : ndarray of float32, shape (n_queries,)
    spreads : ndarray of float32, shape (n_rows,)
    trellis_factor : float
        What Slot T's part of an estimate is to be multiplied by.
    """

    factors: Array32
    slacks: Array32
    spreads: Array32
    trellis_factor: float


class ErrorTangents(NamedTuple):
    """The error of a row over the length of its Slot T: of a typical row, and of one worse than 19 in 20."""

    typical: float
    wide: float


def proved_bounds(queries: Queries, rows: SearchRows) -> Bounds:
    """Return bounds on how far estimates are from the decoded rows' scores."""
    return _rounded(*_proved(queries, rows), rows.spreads, 1.0)


def probable_bounds(queries: Queries, rows: SearchRows, tangents: ErrorTangents, epsilon: float) -> Bounds:
    """Return what estimates are off the scores of the source's rows by, `epsilon` deviations included."""
    trellis_factor = 1 + tangents.typical**2
    deviation = tangents.wide * math.sqrt(1 + tangents.wide**2) / math.sqrt(rows.n_cols)
    factors, slacks = _proved(queries, rows)
    factors = trellis_factor * factors + epsilon * deviation * queries.norms
    return _rounded(factors, trellis_factor * slacks, rows.noise_spreads, trellis_factor)


def _proved(queries: Queries, rows: SearchRows) -> tuple[Array64, Array64]:
    """Return factors and slacks of the proved bound in float64."""
    # Query and row each go through 2 transforms of log2 + 1 steps, then 8 lanes of two, then sums: see the module.
    n_roundings = 4 * (math.log2(max(2, rows.n_cols)) + 1) + 64
    # The norm before the column scale divides it: it is larger if the scale is.
    batch_norms = np.sqrt((queries.batch.astype(np.float64) ** 2).sum(axis=1)) / queries.powers
    underflow = 2.0**-140 * rows.unit * math.sqrt(rows.n_cols)
    slack = 2.0**-24 * n_roundings * rows.longest + underflow + 2.0**-120
    return queries.lost_norms, queries.norms * slack + batch_norms * underflow


def _rounded(factors: Array64, slacks: Array64, spreads: Array32, trellis_factor: float) -> Bounds:
    # A little more than what float32 loses when the kernel multiplies and adds them.
    wider = 1 + 2e-6
    return Bounds((factors * wider).astype(np.float32), (slacks * wider).astype(np.float32), spreads, trellis_factor)


def error_tangents(rows: SearchRows, cosines: CosineSummary | None) -> ErrorTangents:
    """Derive the tangents from the cosines recorded for a tensor and the lengths of a sample of its rows.

    Raises
    ------
    ValueError
        If no cosines are recorded.
    """
    if cosines is None or not cosines.n_rows:
        raise ValueError(f"no cosines are recorded for tensor {shown(rows.name)}; rescoring needs them")
    lengths, noise_lengths, omitted_lengths = rows.sample_lengths()
    noise = float(np.sqrt((noise_lengths**2).mean())) or 1.0
    ratio = float(np.sqrt((lengths**2).mean())) / noise
    omitted = 0.0
    if omitted_lengths is not None:
        omitted = float(np.sqrt((omitted_lengths**2).mean())) / noise

    def tangent(cosine: float) -> float:
        clipped = min(max(cosine, 0.01), 1.0)
        return math.hypot(ratio * math.sqrt(1 - clipped**2) / clipped, omitted)

    return ErrorTangents(tangent(cosines.median), tangent(cosines.p5))
