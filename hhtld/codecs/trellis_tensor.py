"""Rows of the trellis codec: what a group shares of them, how they are coded and decoded.

The layout stands in `hhtld.codecs.trellis`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels, slots
from hhtld.codecs.base import (
    ByClass,
    CodeMatrix,
    EncodedTensor,
    RowIndex,
    SearchTerms,
    TrellisLevel,
    check_budget,
    selected_rows,
)
from hhtld.dtypes import bf16_values
from hhtld.errors import RangeError
from hhtld.identity import (
    SLOT_L_LANES,
)

if TYPE_CHECKING:
    from hhtld.codecs.tensor_view import TensorView
    from hhtld.sources.rows import Rows

__all__ = ["HhtlTTensor", "ScaledRows", "TrellisShared", "leaf_peak", "scaled_rows"]


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

    trellis: slots.Trellis
    rotation: slots.Rotation
    centroid_bits: NDArray[np.uint16] | None = None
    basis: slots.SvdBasis | None = None
    second: slots.Trellis | None = None
    classes: tuple[slots.Trellis, ...] = ()

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
            coded = n_rows + slots.class_starts(class_rows, self.class_widths)[-1]
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


@dataclass(eq=False)
class HhtlTTensor(EncodedTensor):
    """A trellis-coded tensor.

    Attributes
    ----------
    role : str
    shared : TrellisShared
    slot_v : ndarray of uint16, shape (n_rows,)
        Gains as bfloat16 bits.
    slot_t : ndarray of uint8, shape (n_rows, row_nbytes)
        Flat, class after class, if rows have classes.
    original_shape : (n_rows, n_cols)
    twigs : ndarray of uint8, shape (n_rows,), or None
    slot_l : ndarray of int8, shape (n_rows, 8), or None
    slot_l_scale : float or None
    column_scale : ndarray of uint16, shape (n_cols,), or None
        bfloat16 bits; what is coded is the weights times it.
    slot_v_2, slot_t_2 : as slot_v and slot_t, or None
        The second level.
    budget : int or None
        Bytes that decoding rows may take; a pack gives its own.
    row_class : ndarray of uint8, shape (n_rows,), or None
        The class of every row.
    """

    role: str
    shared: TrellisShared
    slot_v: NDArray[np.uint16]
    slot_t: NDArray[np.uint8]
    original_shape: tuple[int, int]
    twigs: NDArray[np.uint8] | None = None
    slot_l: NDArray[np.int8] | None = None
    slot_l_scale: float | None = None
    column_scale: NDArray[np.uint16] | None = None
    slot_v_2: NDArray[np.uint16] | None = None
    slot_t_2: NDArray[np.uint8] | None = None
    budget: int | None = None
    row_class: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        n_rows, n_cols = self.original_shape
        if (self.row_class is None) == bool(self.shared.classes):
            raise ValueError("row_class and the group's classes come together or not at all")
        shape: tuple[int, ...] = (n_rows, self.shared.row_nbytes)
        if self.row_class is not None:
            if self.row_class.shape != (n_rows,) or self.row_class.max(initial=0) >= len(self.shared.classes):
                raise ValueError(f"row_class must be {n_rows} numbers below {len(self.shared.classes)}")
            widths = self.shared.class_widths
            class_rows = np.bincount(self.row_class, minlength=len(widths)).tolist()
            shape = (slots.class_starts(class_rows, widths)[-1],)
        if self.slot_t.shape != shape or self.slot_v.shape != (n_rows,):
            raise ValueError(f"slot_t must be {shape} and slot_v ({n_rows},), got {self.slot_t.shape}")
        if n_cols != self.shared.n_cols:
            raise ValueError(f"the group's rows have {self.shared.n_cols} columns, the tensor's {n_cols}")
        if (self.twigs is None) != (self.shared.centroid_bits is None):
            raise ValueError("twigs and centroids come together or not at all")
        if self.twigs is not None:
            k = len(self.shared.centroids)
            if self.twigs.shape != (n_rows,) or (n_rows and int(self.twigs.max()) >= k):
                raise ValueError(f"twigs must be {n_rows} numbers below {k}")
        if not (self.slot_l is None) == (self.slot_l_scale is None) == (self.shared.basis is None):
            raise ValueError("slot_l, slot_l_scale and the group's basis come together or not at all")
        if self.slot_l is not None and self.slot_l.shape != (n_rows, SLOT_L_LANES):
            raise ValueError(f"slot_l must have shape ({n_rows}, {SLOT_L_LANES}), got {self.slot_l.shape}")
        if not (self.slot_v_2 is None) == (self.slot_t_2 is None) == (self.shared.second is None):
            raise ValueError("slot_v_2, slot_t_2 and the group's second code come together or not at all")
        if self.slot_v_2 is not None and self.slot_t_2 is not None and self.shared.second is not None:
            nbytes = self.shared.second.row_nbytes(n_cols)
            if self.slot_t_2.shape != (n_rows, nbytes) or self.slot_v_2.shape != (n_rows,):
                raise ValueError(f"slot_t_2 must be ({n_rows}, {nbytes}), got {self.slot_t_2.shape}")
        for gains in (self.slot_v, self.slot_v_2):
            if gains is not None and _kernels._cast.first_nonfinite_bf16(np.ascontiguousarray(gains)) >= 0:
                raise ValueError("a gain must be finite")
        if self.column_scale is not None:
            scale = self._scale
            if scale.shape != (n_cols,) or not (np.isfinite(scale) & (scale > 0)).all():
                raise ValueError(f"column_scale must be {n_cols} positive finite numbers")

    def __repr__(self) -> str:
        leaf = "" if self.slot_l is None else ", Slot L"
        rates = [trellis.rate / 16 for trellis in self.shared.classes] or [self.shared.trellis.rate / 16]
        bits = f"{rates[0]:g}" if len(rates) == 1 else f"{min(rates):g} to {max(rates):g}"
        return f"<HhtlTTensor {list(self.original_shape)}, {bits} bits{leaf}>"

    @cached_property
    def _scale(self) -> NDArray[np.float32]:
        assert self.column_scale is not None
        return bf16_values(self.column_scale)

    @cached_property
    def matrices(self) -> list[CodeMatrix]:
        """The codes of the first level, a matrix for every class, or one of all rows."""
        if self.row_class is None:
            return [CodeMatrix(self.shared.trellis, self.slot_t)]
        rows, widths = slots.class_order(self.row_class, len(self.shared.classes)), self.shared.class_widths
        starts = slots.class_starts([len(own) for own in rows], widths)
        return [
            CodeMatrix(trellis, self.slot_t[starts[c] : starts[c + 1]].reshape(len(rows[c]), widths[c]), rows[c])
            for c, trellis in enumerate(self.shared.classes)
        ]

    @cached_property
    def _ranks(self) -> NDArray[np.intp]:
        """The place of every row in the matrix of its class."""
        ranks = np.empty(self.original_shape[0], np.intp)
        for matrix in self.matrices:
            ranks[matrix.rows] = np.arange(len(matrix.slot_t))
        return ranks

    def _first_level(
        self, picked: NDArray[np.intp] | slice, gains: NDArray[np.float32], out: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """Return the first level of rows that were picked, rotated."""
        n_cols = self.original_shape[1]
        if self.row_class is None:
            return self.shared.trellis.decode(np.ascontiguousarray(self.slot_t[picked]), gains, n_cols, out)
        if len(self.row_class) == 1:  # what a lookup of one row asks for
            trellis = self.shared.classes[int(self.row_class[0])]
            return trellis.decode(np.ascontiguousarray(self.slot_t.reshape(1, -1)[picked]), gains, n_cols, out)
        out = np.empty((len(gains), n_cols), np.float32) if out is None else out
        classes, ranks = self.row_class[picked], self._ranks[picked]
        for number in np.unique(classes):
            matrix, own = self.matrices[number], np.flatnonzero(classes == number)
            codes = np.ascontiguousarray(matrix.slot_t[ranks[own]])
            out[own] = matrix.trellis.decode(codes, gains[own], n_cols)
        return out

    @classmethod
    def encode(
        cls,
        role: str,
        rows: Rows,
        shared: TrellisShared,
        column_scale: NDArray[np.uint16] | None = None,
        executor: Executor | None = None,
        row_class: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Encode finite rows (n_rows, n_cols) with what their group shares.

        Raises
        ------
        RangeError
            When a row passes float32's range on its way: weights near 1e38.
        """
        from hhtld.sources.rows import map_rows  # decoding reads no source

        scale: float | None = None
        if shared.basis is not None:
            peaks = [peak for _, _, peak in map_rows(_peak, rows, executor, shared, column_scale)]
            scale = slots.leaf_scale(float(np.max(peaks, initial=0)))
        arguments = (role, shared, column_scale, scale, row_class)
        coded = {start: block for start, _, block in map_rows(_coded, rows, executor, cls, *arguments)}
        blocks = [coded[start] for start in sorted(coded)]
        return cls.joined(blocks) if blocks else cls.encode_block(role, rows.read(0, 0), shared, column_scale, scale)

    @classmethod
    def encode_block(
        cls,
        role: str,
        block: NDArray[np.float32],
        shared: TrellisShared,
        column_scale: NDArray[np.uint16] | None = None,
        slot_l_scale: float | None = None,
        first: int = 0,
        feedback: NDArray[np.float32] | None = None,
        row_class: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Encode a block of a tensor's rows, whose Slot L scale is known; `first` is its first row, for errors.

        `feedback`: see `hhtld.slots.feedback`; of the first level only. `row_class` is the class of each of these rows.
        """
        n_rows, n_cols = block.shape
        scaled = scaled_rows(block, column_scale)
        twigs, slot_l = shared.assign(scaled), None
        if shared.basis is not None and slot_l_scale is not None:
            slot_l = slots.quantized_leaf(
                slots.leaf_coefficients(scaled, shared.centroids, twigs, shared.basis), slot_l_scale
            )
        residual = scaled - _base(shared, twigs, slot_l, slot_l_scale)
        shared.rotation.rotate(residual)
        bad = _kernels._cast.first_nonfinite_f32(residual.reshape(-1))
        if bad >= 0:
            raise RangeError(f"row {first + bad // n_cols} passes float32's range when it is rotated")
        slot_t, gains = _coded_levels(shared, residual, feedback, row_class)
        slot_v = slots.gain_bits(gains)
        slot_v_2, slot_t_2 = None, None
        if shared.second is not None:
            residual -= shared.trellis.decode(slot_t, slots.gain_values(slot_v), n_cols)
            slot_t_2, gains = shared.second.encode(residual)
            slot_v_2 = slots.gain_bits(gains)
        stored_twigs = twigs if shared.centroid_bits is not None else None
        return cls(
            role,
            shared,
            slot_v,
            slot_t,
            (n_rows, n_cols),
            stored_twigs,
            slot_l,
            slot_l_scale,
            column_scale,
            slot_v_2,
            slot_t_2,
            row_class=row_class,
        )

    @classmethod
    def joined(cls, blocks: Sequence[Self]) -> Self:
        """Return blocks of one tensor, in the order of their rows, as one."""
        if len(blocks) == 1:
            return blocks[0]
        first = blocks[0]
        parts: dict[str, Any] = {
            kind: array if kind == "column_scale" else np.concatenate([block.parts()[kind] for block in blocks])
            for kind, array in first.parts().items()
        }
        if first.row_class is not None:
            ends = np.cumsum([len(block.slot_v) for block in blocks]).tolist()
            coded = [(end - len(block.slot_v), end, block.slot_t) for end, block in zip(ends, blocks, strict=True)]
            parts["slot_t"] = ByClass(parts["row_class"], first.shared.class_widths).joined(coded)
        shape = (sum(block.original_shape[0] for block in blocks), first.original_shape[1])
        return replace(first, original_shape=shape, **parts)

    def reconstruct_rows(
        self, rows: RowIndex = None, levels: int = 2, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Decode the given rows, or all, to float32 (n, n_cols); `levels` of 1 leaves a second level out."""
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}")
        picked = selected_rows(self.original_shape[0], rows)
        check_budget(self.original_shape[0], picked, 4 * self.original_shape[1], 0, self.budget)
        out = self._first_level(picked, slots.gain_values(self.slot_v[picked]), out)
        second, rotation = self.shared.second if levels == 2 else None, self.shared.rotation
        if second is None and self.twigs is None and self.slot_l is None and self.column_scale is None:
            rotation.unrotate(out)
            return out  # what most packs hold, without numpy's own guard of arithmetic
        with np.errstate(over="ignore", invalid="ignore"):
            if second is not None and self.slot_t_2 is not None and self.slot_v_2 is not None:
                codes_2, gains_2 = np.ascontiguousarray(self.slot_t_2[picked]), slots.gain_values(self.slot_v_2[picked])
                out += second.decode(codes_2, gains_2, self.original_shape[1])
            rotation.unrotate(out)
            if self.twigs is not None or self.slot_l is not None:
                twigs = np.zeros(len(out), np.uint8) if self.twigs is None else self.twigs[picked]
                leaf = None if self.slot_l is None else self.slot_l[picked]
                out += _base(self.shared, twigs, leaf, self.slot_l_scale)
            if self.column_scale is not None:
                out /= self._scale
        return out

    def reconstruct_into(self, out: NDArray[np.float32], rows: RowIndex = None) -> None:
        self.reconstruct_rows(rows, out=out)

    def first_level_rows(self, rows: RowIndex = None) -> NDArray[np.float32]:
        return self.reconstruct_rows(rows, 1)

    def reconstruct_row(self, row: int) -> NDArray[np.float32]:
        """Decode one row to float32 (n_cols,)."""
        decoded: NDArray[np.float32] = self.reconstruct_rows([row])[0]
        return decoded

    def parts(self) -> dict[str, NDArray[Any]]:
        """Return the tensor's own arrays by section kind."""
        named: dict[str, NDArray[Any] | None] = {
            "slot_v": self.slot_v,
            "slot_t": self.slot_t,
            "twigs": self.twigs,
            "slot_l": self.slot_l,
            "column_scale": self.column_scale,
            "slot_v_2": self.slot_v_2,
            "slot_t_2": self.slot_t_2,
            "row_class": self.row_class,
        }
        return {kind: array for kind, array in named.items() if array is not None}

    def view(self) -> TensorView:
        from hhtld.codecs.tensor_view import TensorView

        shared, parts = self.shared, self.parts()
        parts["codebook"] = shared.codebook()
        if shared.centroid_bits is not None:
            parts["centroids"] = shared.centroid_bits
        if shared.second is not None:
            parts["codebook_2"] = shared.second.codebook
        if self.slot_l is not None and shared.basis is not None:
            parts["basis"] = shared.basis.bits
        trellises = {"": shared.trellis} if shared.second is None else {"": shared.trellis, "_2": shared.second}
        if shared.classes:
            trellises = {f"_class_{number}": trellis for number, trellis in enumerate(shared.classes)}
        return TensorView.of_parts(
            parts,
            gains={kind: parts[kind] for kind in ("slot_v", "slot_v_2") if kind in parts},
            codes={kind: parts[kind] for kind in ("slot_t", "slot_t_2") if kind in parts},
            trellises=trellises,
            twigs=self.twigs,
            n_entries=None if self.twigs is None else len(shared.centroids),
            centroids=None if shared.centroid_bits is None else shared.centroids,
            column_scale=self.column_scale,
            slot_l=self.slot_l,
            slot_l_scale=self.slot_l_scale,
            basis=shared.basis,
            seed=shared.rotation.seed,
            row_class=self.row_class,
            n_cols=shared.n_cols,
        )

    def search_terms(self, levels: int = 2) -> SearchTerms | None:
        """Return what a search needs; None for rows that are too wide for sums of integers."""
        if self.original_shape[1] > _kernels._score.MAX_COLS:
            return None
        shared, second = self.shared, None
        if shared.second is not None and self.slot_v_2 is not None and self.slot_t_2 is not None:
            second = TrellisLevel(self.slot_v_2, [CodeMatrix(shared.second, self.slot_t_2)])
        coded = [TrellisLevel(self.slot_v, self.matrices)]
        return SearchTerms(
            None if self.twigs is None else shared.centroids,
            self.twigs,
            shared.basis,
            self.slot_l,
            self.slot_l_scale,
            None if self.column_scale is None else self._scale,
            [*coded, second] if second is not None and levels == 2 else coded,
            shared.rotation,
            second if levels == 1 else None,
        )

    def total_byte_size(self) -> int:
        """Bytes of the tensor's own arrays; what the group shares is the group's."""
        return sum(array.nbytes for array in self.parts().values())

    def compression_ratio(self) -> float:
        """Bytes as bfloat16 over `total_byte_size()`."""
        size = self.total_byte_size()
        return 2 * self.original_shape[0] * self.original_shape[1] / size if size else 0.0


def scaled_rows(block: NDArray[np.float32], column_scale: NDArray[np.uint16] | None) -> NDArray[np.float32]:
    """Return rows (n, n_cols) times a column scale's bfloat16 bits (n_cols,); the rows themselves without one."""
    if column_scale is None:
        return block
    with np.errstate(over="ignore"):
        return block * bf16_values(column_scale)


class ScaledRows:
    """Rows times a column scale, bfloat16 bits (n_cols,)."""

    def __init__(self, rows: Rows, column_scale: NDArray[np.uint16]) -> None:
        self._rows, self._column_scale = rows, column_scale
        self.n_rows, self.n_cols = rows.n_rows, rows.n_cols

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), scaled."""
        return scaled_rows(self._rows.read(start, stop), self._column_scale)


def leaf_peak(
    block: NDArray[np.float32], shared: TrellisShared, column_scale: NDArray[np.uint16] | None = None
) -> float:
    """Return the largest magnitude that Slot L must hold for a block of rows."""
    assert shared.basis is not None
    scaled = scaled_rows(block, column_scale)
    coefficients = slots.leaf_coefficients(scaled, shared.centroids, shared.assign(scaled), shared.basis)
    return float(np.abs(coefficients).max(initial=np.float32(0)))


def _peak(
    block: NDArray[np.float32], start: int, stop: int, shared: TrellisShared, column_scale: NDArray[np.uint16] | None
) -> float:
    return leaf_peak(block, shared, column_scale)


def _coded(
    block: NDArray[np.float32],
    start: int,
    stop: int,
    cls: type[HhtlTTensor],
    role: str,
    shared: TrellisShared,
    column_scale: NDArray[np.uint16] | None,
    scale: float | None,
    row_class: NDArray[np.uint8] | None,
) -> Any:
    classes = None if row_class is None else row_class[start:stop]
    return cls.encode_block(role, block, shared, column_scale, scale, start, row_class=classes)


def _coded_levels(
    shared: TrellisShared,
    rotated: NDArray[np.float32],
    feedback: NDArray[np.float32] | None,
    row_class: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return the codes of rotated rows, which lie by class if there are classes, and the gains of the rows."""
    if row_class is None:
        return shared.trellis.encode(rotated, feedback)
    gains, codes = np.empty(len(rotated), np.float32), []
    for trellis, rows in zip(shared.classes, slots.class_order(row_class, len(shared.classes)), strict=True):
        own, gains[rows] = trellis.encode(np.ascontiguousarray(rotated[rows]), feedback)
        codes.append(own.reshape(-1))
    return np.concatenate(codes), gains


def _base(
    shared: TrellisShared,
    twigs: NDArray[np.uint8],
    slot_l: NDArray[np.int8] | None,
    scale: float | None,
) -> NDArray[np.float32]:
    """What centroid and Slot L say of rows, exactly as the decoder computes it."""
    out = np.empty((len(twigs), shared.n_cols), np.float32)
    if slot_l is None or scale is None or shared.basis is None:
        _kernels._leaf.reconstruct(shared.centroids, np.ascontiguousarray(twigs), None, 0.0, None, out)
    else:
        codes = np.ascontiguousarray(slot_l)
        _kernels._leaf.reconstruct(
            shared.centroids, np.ascontiguousarray(twigs), codes, scale, shared.basis.vectors, out
        )
    return out
