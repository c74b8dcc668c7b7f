"""What the rows of a trellis group share: the codes of Slot T, their rotation, centroids and the basis of Slot L."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels
from hhtld.dtypes import bf16_values
from hhtld.errors import RangeError
from hhtld.identity import SLOT_L_LANES
from hhtld.registry import later
from hhtld.slots.class_layout import class_starts
from hhtld.slots.rotation import Rotation
from hhtld.slots.slot_l import SvdBasis, leaf_coefficients
from hhtld.slots.slot_t import RowDecoder, Trellis

if TYPE_CHECKING:
    from hhtld.sources.rows import Rows
else:
    Rows = later("hhtld.sources.rows:Rows")

__all__ = ["ScaledRows", "TrellisShared", "leaf_peak", "scaled_rows", "shared_rows"]


@dataclass(frozen=True, eq=False)
class TrellisShared:
    """What the tensors of a group share.

    Attributes
    ----------
    trellis : Trellis
        Of all rows, or of those of the first class.
    rotation : Rotation
    centroid_bits : ndarray of uint16, shape (k, n_cols), or None
        bfloat16, 1 <= k <= 256.
    basis : SvdBasis or None
    second : Trellis or None
        Of the second level.
    classes : tuple of Trellis
        One for each class of rows, if rows have rates of their own; else empty.
    """

    trellis: Trellis
    rotation: Rotation
    centroid_bits: NDArray[np.uint16] | None = None
    basis: SvdBasis | None = None
    second: Trellis | None = None
    classes: tuple[Trellis, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what is computed from them

    @property
    def n_cols(self) -> int:
        """Width of the rows."""
        return self.rotation.n_cols

    @cached_property
    def centroids(self) -> NDArray[np.float32]:
        """The centroids, float32 (k, n_cols); one row of zeros if there are none."""
        if self.centroid_bits is None:
            return np.zeros((1, self.n_cols), np.float32)
        return bf16_values(self.centroid_bits)

    @cached_property
    def row_nbytes(self) -> int:
        """Bytes that the first level's codes of a row take if rows have no classes."""
        return self.trellis.row_nbytes(self.n_cols)

    @cached_property
    def class_widths(self) -> list[int]:
        """Bytes that the codes of a row of each class take."""
        return [trellis.row_nbytes(self.n_cols) for trellis in self.classes]

    @cached_property
    def decoders(self) -> tuple[RowDecoder, ...]:
        """What decodes rows of the first level and centroids alone, one for each class, or one for all rows."""
        centroids = None if self.centroid_bits is None else self.centroids
        return tuple(RowDecoder(trellis, self.rotation, centroids) for trellis in self.classes or (self.trellis,))

    def codebook(self) -> NDArray[Any]:
        """Return what a file holds of the codebook of all rows, or of those of the classes, one after another."""
        if not self.classes:
            return self.trellis.codebook
        return np.concatenate([trellis.codebook for trellis in self.classes])

    def tensor_nbytes(self, n_rows: int, class_rows: Sequence[int] = ()) -> int:
        """Return the bytes of the own sections of tensors of `n_rows` rows in all, so many of each class."""
        twig, leaf = self.centroid_bits is not None, 0 if self.basis is None else SLOT_L_LANES
        second = 0 if self.second is None else 2 + self.second.row_nbytes(self.n_cols)
        coded = n_rows * self.row_nbytes
        if self.classes:
            coded = n_rows + class_starts(class_rows, self.class_widths)[-1]
        return n_rows * (2 + twig + leaf + second) + coded

    def shared_nbytes(self) -> int:
        """Return the bytes of what the group shares."""
        centroids = 0 if self.centroid_bits is None else self.centroid_bits.nbytes
        second = 0 if self.second is None else self.second.codebook.nbytes
        return self.codebook().nbytes + second + centroids + (0 if self.basis is None else self.basis.byte_size())

    def assign(self, block: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the nearest centroid of every row."""
        twigs = np.zeros(len(block), np.int32)
        if self.centroid_bits is not None:
            _kernels._l2.nearest_l2(block, self.centroids, twigs)
        return twigs.astype(np.uint8)


def scaled_rows(
    block: NDArray[np.float32], column_scale: NDArray[np.uint16] | None, first: int = 0
) -> NDArray[np.float32]:
    """Return rows (n, n_cols) times a column scale's bfloat16 bits (n_cols,); the rows themselves without one.

    Raises
    ------
    RangeError
        If float32 does not hold a product; `first` is the number of the first row in its tensor.
    """
    if column_scale is None:
        return block
    with np.errstate(over="ignore"):
        scaled = block * bf16_values(column_scale)
    bad = _kernels._cast.first_nonfinite_f32(scaled.reshape(-1))
    if bad >= 0:
        raise RangeError(f"row {first + bad // block.shape[1]} passes float32's range times its column scales")
    return scaled


class ScaledRows:
    """Rows times a column scale, bfloat16 bits (n_cols,)."""

    def __init__(self, rows: Rows, column_scale: NDArray[np.uint16]) -> None:
        self._rows, self._column_scale = rows, column_scale
        self.n_rows, self.n_cols = rows.n_rows, rows.n_cols

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), scaled."""
        return scaled_rows(self._rows.read(start, stop), self._column_scale, start)


def leaf_peak(
    block: NDArray[np.float32], shared: TrellisShared, column_scale: NDArray[np.uint16] | None = None
) -> float:
    """Return the largest magnitude that Slot L must hold for a block of rows."""
    assert shared.basis is not None
    scaled = scaled_rows(block, column_scale)
    coefficients = leaf_coefficients(scaled, shared.centroids, shared.assign(scaled), shared.basis)
    return float(np.abs(coefficients).max(initial=np.float32(0)))


def shared_rows(
    shared: TrellisShared,
    twigs: NDArray[np.uint8],
    slot_l: NDArray[np.int8] | None,
    scale: float | None,
) -> NDArray[np.float32]:
    """Return what centroids and Slot L say of rows, exactly as the decoder computes it."""
    out = np.empty((len(twigs), shared.n_cols), np.float32)
    if slot_l is None or scale is None or shared.basis is None:
        _kernels._leaf.reconstruct(shared.centroids, np.ascontiguousarray(twigs), None, 0.0, None, out)
    else:
        codes = np.ascontiguousarray(slot_l)
        _kernels._leaf.reconstruct(
            shared.centroids, np.ascontiguousarray(twigs), codes, scale, shared.basis.vectors, out
        )
    return out
