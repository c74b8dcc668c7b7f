"""Base17: a row folded to 17 integers along the golden step.

Layout
------
17 little-endian int16 a row, 34 bytes. ``pos[i] = 11 * i mod 17``; ``dims[i]`` is the mean of columns
``pos[i], pos[i] + 17, pos[i] + 34, ...`` times 256.

Rounding
--------
The mean is the float64 sum in ascending column order divided by the count; times 256, rounded half
away from zero, clamped to int16. Unfolding gives column ``pos[i] + 17 j`` the value ``dims[i] / 256``,
exact in float32.

Error
-----
A lookup code: 17 means keep of a row only what is common to whole residue classes of columns, so rows do not come back
from it (docs/decisions/lookup-grades.md).

Edge cases
----------
Fewer than 17 columns leave the dims without a column at 0. Means beyond +-128 saturate.

Source
------
The fold of the HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld._kernels import _fold
from hhtld.identity import BASE17_NBYTES
from hhtld.sources.rows import Rows, as_rows, map_rows

__all__ = ["BASE17_NBYTES", "N_DIMS", "Base17"]

N_DIMS = 17
# Dim 0 carries the sign-like mean of the row's first residue class, 1..6 the coarse shape.
_WEIGHTS = np.array([20] + [3] * 6 + [1] * 10, np.int64)


def _folded(block: NDArray[np.float32], start: int, stop: int) -> NDArray[np.int16]:
    dims = np.empty((stop - start, N_DIMS), np.int16)
    _fold.base17_fold(block, dims)
    return dims


@dataclass(frozen=True, eq=False)
class Base17:
    """Folded rows.

    Attributes
    ----------
    dims : ndarray of int16, shape (n, 17)
    """

    dims: NDArray[np.int16]

    def __post_init__(self) -> None:
        dims = np.require(self.dims, "<i2", ["C", "A"])
        if dims.ndim != 2 or dims.shape[1] != N_DIMS:
            raise ValueError(f"dims must have shape (n, {N_DIMS}), got {dims.shape}")
        object.__setattr__(self, "dims", dims)

    @classmethod
    def fold(cls, rows: Rows | ArrayLike, executor: Executor | None = None) -> Self:
        """Fold finite rows (n, n_cols)."""
        rows = as_rows(rows)
        dims = np.empty((rows.n_rows, N_DIMS), np.int16)
        for start, stop, folded in map_rows(_folded, rows, executor):
            dims[start:stop] = folded
        return cls(dims)

    def unfold(self, n_cols: int) -> NDArray[np.float32]:
        """Return rows (n, n_cols) of the means."""
        rows = np.empty((len(self), n_cols), np.float32)
        _fold.base17_unfold(self.dims, rows)
        return rows

    def __len__(self) -> int:
        return len(self.dims)

    def l1(self, other: Base17) -> NDArray[np.int64]:
        """Return the L1 distance of every row here to every row there, shape (n, m)."""
        distances: NDArray[np.int64] = np.abs(self._differences(other)).sum(axis=2)
        return distances

    def l1_weighted(self, other: Base17) -> NDArray[np.int64]:
        """Return L1 distances in which dim 0 counts 20 times and dims 1..6 three times."""
        weighted: NDArray[np.int64] = np.abs(self._differences(other)) @ _WEIGHTS
        return weighted

    def bind(self, other: Base17) -> Base17:
        """Return the bitwise exclusive or of equally many rows."""
        return Base17(self.dims ^ other.dims)

    def to_bytes(self) -> bytes:
        """Return 34 bytes a row."""
        return self.dims.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Read 34 bytes a row."""
        if len(data) % BASE17_NBYTES:
            raise ValueError(f"{len(data)} bytes are not a multiple of {BASE17_NBYTES}")
        return cls(np.frombuffer(data, "<i2").reshape(-1, N_DIMS))

    def _differences(self, other: Base17) -> NDArray[np.int64]:
        return self.dims.astype(np.int64)[:, None] - other.dims.astype(np.int64)
