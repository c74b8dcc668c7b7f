"""Feedback for Slot T: how weights that are not coded yet make up for what those before them lost.

A row w is multiplied by inputs x of second moment H = mean of x^T x, so an error d of the row costs d H d^T. With H
(in the coordinates that are coded: scaled and rotated) = U U^T, U upper triangular, the best that the weights r to
come can do for errors e of the weights D before them is to move by ``e . (U[D, r] . inverse(U[r, r]))``. Errors of the
rest stay as white as they were, so the cost falls towards that of a basis in which H is diagonal, and the decoder
knows nothing of it.

Errors must be final before they are fed back; those of the cheapest path so far may still change. Moments that few
positions told are damped: a multiple of the mean of H's diagonal is added to it. docs/decisions/feedback.md has what
was measured.

Source: GPTQ (arXiv 2210.17323) and QuIP (arXiv 2307.13304, LDLQ); here in blocks, upon a trellis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _cholesky, _trellis
from hhtld.slots.moments import Moments
from hhtld.slots.rotation import Rotation

__all__ = ["MAX_FEEDBACK_COLS", "feedback_matrix", "feedback_nbytes"]

# Multiples of the mean of H's diagonal. More positions tell what a head reads than what a layer's gradients weigh.
HEAD_DAMPING, LAYER_DAMPING = 0.3, 1.0
MAX_FEEDBACK_COLS = 4096  # 600 MB while it is computed, 20 s, and 67 MB in a calibration


def feedback_nbytes(n_cols: int) -> int:
    """Return the bytes that `feedback_matrix` takes at most."""
    return 40 * n_cols * n_cols


def feedback_matrix(
    moments: NDArray[np.floating] | Moments,
    rotation: Rotation,
    column_scale: NDArray[np.float32],
    is_head: bool = True,
) -> NDArray[np.float32]:
    """Return what `Trellis.encode` takes, float32 (n_cols, n_cols): [j, k] is what target j takes of an error of k.

    Parameters
    ----------
    moments : ndarray, shape (n_cols, n_cols), or Moments
        Symmetric: mean products of the columns' inputs.
    rotation : Rotation
    column_scale : ndarray of float32, shape (n_cols,)
        What the columns are multiplied by before they are rotated.
    is_head : bool
        Whether the moments are those of a head's inputs; else of a layer's, weighted by gradients, which few positions
        tell and which are damped more.
    """
    n_cols, block = rotation.n_cols, _trellis.FEEDBACK_BLOCK
    if moments.shape != (n_cols, n_cols) or column_scale.shape != (n_cols,):
        raise ValueError(f"moments must be ({n_cols}, {n_cols}) and scales ({n_cols},), got {moments.shape}")
    inverse_scale = 1 / column_scale.astype(np.float64)
    products = moments.dense() if isinstance(moments, Moments) else moments.astype(np.float64)
    unscaled = inverse_scale[:, None] * products * inverse_scale
    coded = (unscaled / (np.abs(unscaled).max() or 1.0)).astype(np.float32)  # so that no step passes float32's range
    for _ in range(2):  # rows, then columns
        rotation.rotate(coded)
        coded = np.ascontiguousarray(coded.T)
    symmetric = (coded.astype(np.float64) + coded.T) / 2
    symmetric[np.diag_indices(n_cols)] += (HEAD_DAMPING if is_head else LAYER_DAMPING) * float(
        np.trace(symmetric)
    ) / n_cols + 1e-12
    # From the last weight to the first, U is a lower triangle: the kernel's, in one order on every processor, because
    # the last bits of these sums reach codes.
    lower = np.ascontiguousarray(symmetric[::-1, ::-1])
    _cholesky.cholesky(lower)
    feedback = np.zeros((n_cols, n_cols), np.float32)
    for start in range(block, n_cols, block):
        n_left = n_cols - start  # weights to come
        rows = np.ascontiguousarray(lower[n_left : n_left + block, :n_left])
        _cholesky.divide_rows(lower, rows)
        feedback[start:, start - block : start] = rows[::-1, ::-1].T
    return feedback
