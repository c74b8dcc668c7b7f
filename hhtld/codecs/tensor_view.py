"""An encoded tensor taken apart for people: what `inspect` counts and HDF5 exports plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld.slots.class_layout import class_order

if TYPE_CHECKING:
    from hhtld.slots.fisher_z import FisherZTable
    from hhtld.slots.palette import HhtlCache
    from hhtld.slots.slot_l import SvdBasis
    from hhtld.slots.slot_t import Trellis

__all__ = ["TensorView"]


@dataclass(frozen=True)
class TensorView:
    """The slots of a tensor, or of some of its rows, and what its group shares; what a codec lacks is None or empty.

    Attributes
    ----------
    shapes : mapping of kind to shape
        Of all sections, the tensor's own and the group's.
    slot_d, magnitudes : ndarray of uint16, shape (n_rows,), or None
        Slots D and V of the lookup codec.
    gains : mapping of kind to ndarray of uint16, shape (n_rows,)
        Slot V of each level of Slot T: bfloat16 bits of 64 gains.
    codes : mapping of kind to ndarray of uint8, shape (n_rows, row_nbytes)
        Slot T of each level; flat, class after class, if rows have classes.
    trellises : mapping of suffix to Trellis
        The code of each level: "" and "_2", or of each class: "_class_0" and so on.
    row_class : ndarray of uint8, shape (n_rows,), or None
        The class of every row.
    n_cols : int
        Of a tensor with classes.
    twigs : ndarray of uint8, shape (n_rows,), or None
    n_entries : int or None
        Of what twigs choose from.
    palette : ndarray of float32, shape (n_entries, n_cols), or None
        The tensor's own.
    centroids : ndarray of float32, shape (n_entries, n_cols), or None
        The group's.
    column_scale : ndarray of uint16, shape (n_cols,), or None
        bfloat16 bits.
    slot_l : ndarray of int8, shape (n_rows, 8), or None
    slot_l_scale : float or None
    basis : SvdBasis or None
    cache : HhtlCache or None
        The group's palette of folded rows.
    fisher_z : FisherZTable or None
    seed : int or None
        Of the rotation.
    """

    shapes: Mapping[str, tuple[int, ...]]
    slot_d: NDArray[np.uint16] | None = None
    magnitudes: NDArray[np.uint16] | None = None
    gains: Mapping[str, NDArray[np.uint16]] = field(default_factory=dict)
    codes: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    trellises: Mapping[str, Trellis] = field(default_factory=dict)
    twigs: NDArray[np.uint8] | None = None
    n_entries: int | None = None
    palette: NDArray[np.float32] | None = None
    centroids: NDArray[np.float32] | None = None
    column_scale: NDArray[np.uint16] | None = None
    slot_l: NDArray[np.int8] | None = None
    slot_l_scale: float | None = None
    basis: SvdBasis | None = None
    cache: HhtlCache | None = None
    fisher_z: FisherZTable | None = None
    seed: int | None = None
    row_class: NDArray[np.uint8] | None = None
    n_cols: int = 0

    def code_rows(self, kind: str) -> NDArray[np.uint8]:
        """Return the codes of a level as a matrix, a line a row; those of classes end in zeros up to the widest."""
        if self.row_class is None:
            return self.codes[kind]
        n_cols, trellises = self.n_cols, list(self.trellises.values())
        widths = [trellis.row_nbytes(n_cols) for trellis in trellises]
        out, done = np.zeros((len(self.row_class), max(widths)), np.uint8), 0
        for width, rows in zip(widths, class_order(self.row_class, len(widths)), strict=True):
            end = done + width * len(rows)
            out[rows, :width] = self.codes[kind][done:end].reshape(len(rows), width)
            done = end
        return out

    @classmethod
    def of_parts(cls, parts: Mapping[str, NDArray[Any]], **slots: Any) -> TensorView:
        """Return the view of a tensor whose own arrays are given."""
        return cls({kind: array.shape for kind, array in parts.items()}, **slots)
