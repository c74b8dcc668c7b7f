"""Rate control: what a group's rows share and the smallest rate at which they pass a threshold.

A sample of rows, spread evenly over all tensors of the group, decides. Centroids and Slot L are kept when
the bits they save a row, ``n_cols * log2(|before| / |after|)`` in the median, pass the bits they cost. The rate
is predicted by coding the sample; the encoder verifies it on every row and goes up where it must.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _dot, _search
from hhtld.basis import SvdBasis
from hhtld.gates import Threshold, row_cosines
from hhtld.palette import MAX_PALETTE_K
from hhtld.rotation import Rotation
from hhtld.rows import ArrayRows, Rows
from hhtld.slots import SLOT_L_LANES
from hhtld.trellis import MAX_RATE, MIN_RATE, Trellis
from hhtld.trellis_tensor import HhtlTTensor, TrellisShared, bf16_bits

__all__ = [
    "DEFAULT_STATE_BITS",
    "Prediction",
    "decide_group",
    "decide_shared",
    "predict",
    "sample_rows",
    "smallest_rate",
]

DEFAULT_STATE_BITS = 10
CENTROIDS = (16, 64, 256)
STRUCTURE_ROWS = 8192  # decide centroids and basis: 32 rows a centroid at most
PREDICTION_ROWS = 1024  # decide the rate: the median's standard error is .0001 at 576 columns
LEAF_ROWS = 512
_TURNS = 6  # of k-means


def sample_rows(tensors: Sequence[Rows], count: int) -> NDArray[np.float32]:
    """Return about `count` rows spread evenly over tensors of one width, never twice the same."""
    total = sum(rows.n_rows for rows in tensors)
    picks = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
    parts, start = [], 0
    for rows in tensors:
        own = picks[(picks >= start) & (picks < start + rows.n_rows)] - start
        start += rows.n_rows
        if len(own) * 4 > rows.n_rows:
            parts.append(rows.read(0, rows.n_rows)[own])
        else:
            parts += [rows.read(int(row), int(row) + 1) for row in own]
    return np.ascontiguousarray(np.concatenate(parts))


def _norms2(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    dots = np.empty((len(rows), 3))
    _dot.row_dots(rows, rows, dots)  # in a fixed order: the centroids' bytes depend on it
    return np.ascontiguousarray(dots[:, 1])


def _median_saving(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Bits a weight that the median row saves when its energy falls from `before` to `after`."""
    live = before > 0
    if not live.any():
        return 0.0
    ratio = before[live] / np.maximum(after[live], 1e-12 * before[live])
    return float(np.median(np.log2(ratio))) / 2


def _centroids(sample: NDArray[np.float32], norms2: NDArray[np.float64], k: int) -> NDArray[np.uint16]:
    """k-means centroids of rows weighted as the cosine gate sees them, by 1 / |row|^2, as bfloat16 bits."""
    weights = np.divide(1.0, norms2, out=np.zeros_like(norms2), where=norms2 > 0)
    weighted = sample * weights[:, None]
    centroids = np.ascontiguousarray(sample[np.linspace(0, len(sample) - 1, k).astype(int)])
    nearest = np.empty(len(sample), np.int32)
    for _ in range(_TURNS):
        _search.nearest_l2(sample, centroids, nearest)
        for entry in range(k):
            members = np.flatnonzero(nearest == entry)
            share = weights[members].sum()
            if share > 0:  # axis 0 sums row after row, so the order is fixed
                centroids[entry] = (weighted[members].sum(axis=0) / share).astype(np.float32)
    return bf16_bits(centroids)


def _leaf(rows: NDArray[np.float32], norms2: NDArray[np.float64]) -> tuple[SvdBasis, float]:
    """The basis of rows scaled as the gate sees them, and the bits a weight that it saves on these rows."""
    scale = np.divide(1.0, np.sqrt(norms2), out=np.zeros_like(norms2), where=norms2 > 0)
    basis = SvdBasis.build((rows * scale[:, None]).astype(np.float32))
    left = rows - basis.reconstruct(basis.project(rows))
    return basis, _median_saving(_norms2(rows), _norms2(left))


def decide_shared(tensors: Sequence[Rows], trellis: Trellis, seed: int) -> TrellisShared:
    """Decide from measured energy whether a group's rows carry a centroid and Slot L."""
    n_cols, n_rows = tensors[0].n_cols, sum(rows.n_rows for rows in tensors)
    best = TrellisShared(trellis, Rotation(n_cols, seed))
    if n_rows < 4 * MAX_PALETTE_K or n_cols < 16:
        return best
    sample = sample_rows(tensors, STRUCTURE_ROWS)
    if np.abs(sample).max() > 1e37:  # a difference of two rows must stay finite
        return best
    norms2 = _norms2(sample)
    rest, gained = sample, 0.0
    for k in CENTROIDS:
        held = replace(best, centroid_bits=_centroids(sample, norms2, k))
        left = sample - held.centroids[held.assign(sample)]
        cost = 8 + 16 * k * n_cols / n_rows  # bits a row: the twig, and the row's share of the centroids
        gain = _median_saving(norms2, _norms2(left)) * n_cols - cost
        if gain <= gained:  # more centroids would not pay where fewer do not
            break
        best, rest, gained = held, left, gain
    leaf_cost = 8 * SLOT_L_LANES + 16 * SLOT_L_LANES * n_cols / n_rows
    # A few rows flatter a basis, so where it does not pay on them it does not pay at all; the whole
    # sample of a wide group would keep LAPACK busy for seconds.
    few = slice(None, None, max(1, len(rest) // LEAF_ROWS))
    if _leaf(np.ascontiguousarray(rest[few]), norms2[few])[1] * n_cols > leaf_cost:
        basis, saving = _leaf(rest, norms2)
        if saving * n_cols > leaf_cost:
            return replace(best, basis=basis)
    return best


@dataclass(frozen=True)
class Prediction:
    """What coding a sample of a group's rows came to."""

    rate: int
    median: float
    p5: float

    def passes(self, threshold: Threshold) -> bool:
        """Whether the sample passes."""
        return self.median >= threshold.median and self.p5 >= threshold.p5


def predict(sample: NDArray[np.float32], shared: TrellisShared) -> Prediction:
    """Code a sample and measure its cosines."""
    tensor = HhtlTTensor.encode("", ArrayRows(sample), shared)
    cosines = np.sort(row_cosines(sample, tensor.reconstruct_rows()))
    last = len(cosines) - 1
    return Prediction(shared.trellis.rate, float(cosines[last // 2]), float(cosines[last // 20]))


def smallest_rate(
    sample: NDArray[np.float32], shared: TrellisShared, threshold: Threshold, n_bits: int = DEFAULT_STATE_BITS
) -> Prediction | None:
    """Return the smallest rate at which a sample passes, or None where 6 bits do not suffice."""

    def at(rate: int) -> Prediction:
        code = Trellis.trained(rate, n_bits)
        return predict(sample, replace(shared, trellis=code))

    low, high = MIN_RATE, MAX_RATE
    best = at(high)
    if not best.passes(threshold):
        return None
    while low < high:
        middle = (low + high) // 2
        found = at(middle)
        if found.passes(threshold):
            high, best = middle, found
        else:
            low = middle + 1
    return best


def decide_group(
    rows: Sequence[Rows], rate: int | None, threshold: Threshold | None, seed: int
) -> tuple[TrellisShared, Prediction | None]:
    """Decide what a group shares and predict its rate, or the quality of a fixed one.

    Returns
    -------
    shared : TrellisShared
    prediction : Prediction or None
        None where no rate passes the threshold on the sample.
    """
    code = Trellis.trained(32 if rate is None else rate, DEFAULT_STATE_BITS)
    shared = decide_shared(rows, code, seed)
    sample = sample_rows(rows, PREDICTION_ROWS)
    if rate is not None or threshold is None:
        return shared, predict(sample, shared)
    return shared, smallest_rate(sample, shared, threshold)
