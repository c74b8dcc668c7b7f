"""The cosine of every row with what its bytes give back, and a summary of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels
from hhtld.gates import N_QUANTILES, ZERO_KEPT, ZERO_LOST, CosineSummary, rounded_down

__all__ = ["is_live", "judged_cosines", "row_cosines", "summarize"]


def _cosines(
    original: NDArray[np.float32], returned: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Cosines of row pairs, and which rows of either are zeros."""
    dots = np.empty((len(original), 3))
    _kernels._dot.row_dots(original, returned, dots)
    cross, norms, other_norms = dots.T
    scale = np.sqrt(norms) * np.sqrt(other_norms)
    with np.errstate(invalid="ignore"):
        cosines = np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0)
    cosines[~np.isfinite(dots).all(axis=1)] = -1.0
    return np.clip(cosines, -1.0, 1.0), norms == 0, other_norms == 0  # the square of the smallest float32 is no zero


def row_cosines(original: NDArray[np.float32], decoded: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of every row pair of two float32 arrays (n, n_cols); 1 for two rows of zeros, 0 for one."""
    cosines, is_zero, decoded_is_zero = _cosines(original, decoded)
    cosines[is_zero & decoded_is_zero] = 1.0
    return cosines


def judged_cosines(original: NDArray[np.float32], returned: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `row_cosines`, and for rows of zeros whether they came back as such: `ZERO_KEPT` or `ZERO_LOST`."""
    cosines, is_zero, returned_is_zero = _cosines(original, returned)
    cosines[is_zero] = np.where(returned_is_zero[is_zero], ZERO_KEPT, ZERO_LOST)
    return cosines


def is_live(cosines: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each of `judged_cosines` is one: the row is not all zeros."""
    return np.asarray(np.abs(cosines) <= 1, np.bool_)


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
