"""Second moments of a matrix's inputs in a few numbers: of low rank, with the rest of the diagonal.

Feedback (`hhtld.slots.feedback`) adds much to the diagonal, so only the directions in which inputs are far larger than
on average matter to it. A factor for each of them is kept as whole numbers of 8 bits with a power of two in common.
Products of such factors and their sums are exact in float64, in whatever order a library adds them. The same numbers
therefore give the same moments, and the same codes, on every processor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_RANK", "Moments"]

MAX_RANK = 256
_EXPONENTS = 15  # 2 * 7 bits of a product, twice this, and 8 bits of 256 sums: 52 of float64's 53
_TURNS = 3  # of subspace iteration: a direction that is hardly larger than others may be missed


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean products of a matrix's inputs, ``F^T F + diag(rest)``, where row k of F is ``factors[k] * 2**exponents[k]``.

    Attributes
    ----------
    factors : ndarray of int8, shape (rank, n_cols)
    exponents : ndarray of int16, shape (rank,)
        They differ by at most 15.
    rest : ndarray of float32, shape (n_cols,)
        Not negative.

    Raises
    ------
    ValueError
        If the numbers are none of that kind.
    """

    factors: NDArray[np.int8]
    exponents: NDArray[np.int16]
    rest: NDArray[np.float32]

    def __post_init__(self) -> None:
        rank, n_cols = self.factors.shape if self.factors.ndim == 2 else (-1, -1)
        if not 0 <= rank <= MAX_RANK or self.exponents.shape != (rank,) or self.rest.shape != (n_cols,):
            raise ValueError(
                f"moments of factors {self.factors.shape}, exponents {self.exponents.shape} and a rest "
                f"{self.rest.shape} do not fit each other"
            )
        if self.factors.dtype != np.int8 or self.exponents.dtype != np.int16 or self.rest.dtype != np.float32:
            raise ValueError("moments are factors of int8, exponents of int16 and a rest of float32")
        if rank and (np.ptp(self.exponents.astype(np.int64)) > _EXPONENTS or np.abs(self.exponents).max() > 60):
            raise ValueError(f"exponents of moments must lie within -60 to 60, and differ by at most {_EXPONENTS}")
        if not (np.isfinite(self.rest) & (self.rest >= 0)).all():
            raise ValueError("the rest of moments must be finite, with no negative mean square")

    @property
    def n_cols(self) -> int:
        """Columns of the matrix."""
        return int(self.factors.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the products, (n_cols, n_cols)."""
        return self.n_cols, self.n_cols

    def dense(self) -> NDArray[np.float64]:
        """Return the products, float64 (n_cols, n_cols), the same on every processor."""
        scaled = np.ldexp(self.factors.astype(np.float64), self.exponents[:, None].astype(np.int32))
        products = scaled.T @ scaled
        products[np.diag_indices(self.n_cols)] += self.rest
        return products

    def tobytes(self) -> bytes:
        """Return all of the numbers."""
        return self.factors.tobytes() + self.exponents.astype("<i2").tobytes() + self.rest.astype("<f4").tobytes()

    @classmethod
    def of(cls, products: NDArray[np.floating], rank: int) -> Moments:
        """Return the moments nearest to a symmetric matrix of mean products, at most `rank` factors of them.

        The largest directions are found by subspace iteration from a fixed start. The diagonal is kept as it is.
        """
        n_cols, rank = len(products), min(rank, MAX_RANK, len(products))
        products = products.astype(np.float64)
        diagonal = np.maximum(products.diagonal(), 0.0)
        largest = float(diagonal.max(initial=0.0))
        if not rank or largest <= 0:
            empty = np.zeros((0, n_cols), np.int8), np.zeros(0, np.int16)
            return cls(*empty, diagonal.astype(np.float32))
        basis = np.random.default_rng(0).standard_normal((n_cols, min(n_cols, rank + 8)))
        for _ in range(_TURNS):
            basis = np.linalg.qr(products @ basis)[0]
        sizes, turned = np.linalg.eigh(basis.T @ products @ basis)
        best = np.argsort(sizes)[::-1][:rank]
        best = best[sizes[best] > 0]
        factors = (basis @ turned[:, best]).T * np.sqrt(sizes[best])[:, None]
        exponents = np.array([math.frexp(peak)[1] - 7 for peak in np.abs(factors).max(axis=1)], np.int64)
        exponents = np.maximum(exponents, exponents.max() - _EXPONENTS)
        whole = np.clip(np.rint(np.ldexp(factors, -exponents[:, None].astype(np.int32))), -127, 127).astype(np.int8)
        told = np.ldexp(whole.astype(np.float64), exponents[:, None].astype(np.int32))
        rest = np.maximum(diagonal - (told * told).sum(axis=0), 0.0)
        return cls(whole, exponents.astype(np.int16), rest.astype(np.float32))
