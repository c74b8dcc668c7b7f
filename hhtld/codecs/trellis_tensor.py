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
from hhtld.sources.rows import Rows, map_rows

if TYPE_CHECKING:
    from hhtld.codecs.view import TensorView

__all__ = ["HhtlTTensor", "ScaledRows", "TrellisShared", "leaf_peak", "scaled_rows"]


@dataclass(frozen=True, eq=False)
class TrellisShared:
    """What the tensors of a group share.

    Attributes
    ----------
    trellis : Trellis
    rotation : Rotation
    centroid_bits : ndarray of uint16, shape (k, n_cols), or None
        bfloat16, 1 <= k <= 256.
    basis : SvdBasis or None
    second : Trellis or None
        Of the second level.
    """

    trellis: slots.Trellis
    rotation: slots.Rotation
    centroid_bits: NDArray[np.uint16] | None = None
    basis: slots.SvdBasis | None = None
    second: slots.Trellis | None = None

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

    def tensor_nbytes(self, n_rows: int) -> int:
        """Return the bytes of the own sections of a tensor of `n_rows` rows."""
        twig, leaf = self.centroid_bits is not None, 0 if self.basis is None else SLOT_L_LANES
        second = 0 if self.second is None else 2 + self.second.row_nbytes(self.n_cols)
        return n_rows * (2 + self.trellis.row_nbytes(self.n_cols) + twig + leaf + second)

    def shared_nbytes(self) -> int:
        """Return the bytes of what the group shares."""
        centroids = 0 if self.centroid_bits is None else self.centroid_bits.nbytes
        second = 0 if self.second is None else self.second.codebook.nbytes
        return self.trellis.codebook.nbytes + second + centroids + (0 if self.basis is None else self.basis.byte_size())

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

    def __post_init__(self) -> None:
        n_rows, n_cols = self.original_shape
        nbytes = self.shared.trellis.row_nbytes(n_cols)
        if self.slot_t.shape != (n_rows, nbytes) or self.slot_v.shape != (n_rows,):
            raise ValueError(f"slot_t must be ({n_rows}, {nbytes}) and slot_v ({n_rows},), got {self.slot_t.shape}")
        if n_cols != self.shared.n_cols:
            raise ValueError(f"the group's rows have {self.shared.n_cols} columns, the tensor's {n_cols}")
        if (self.twigs is None) != (self.shared.centroid_bits is None):
            raise ValueError("twigs and centroids come together or not at all")
        if self.twigs is not None:
            k = len(self.shared.centroids)
            if self.twigs.shape != (n_rows,) or (n_rows and int(self.twigs.max()) >= k):
                raise ValueError(f"twigs must be {n_rows} numbers below {k}")
        if len({self.slot_l is None, self.slot_l_scale is None, self.shared.basis is None}) != 1:
            raise ValueError("slot_l, slot_l_scale and the group's basis come together or not at all")
        if self.slot_l is not None and self.slot_l.shape != (n_rows, SLOT_L_LANES):
            raise ValueError(f"slot_l must have shape ({n_rows}, {SLOT_L_LANES}), got {self.slot_l.shape}")
        if len({self.slot_v_2 is None, self.slot_t_2 is None, self.shared.second is None}) != 1:
            raise ValueError("slot_v_2, slot_t_2 and the group's second code come together or not at all")
        if self.slot_v_2 is not None and self.slot_t_2 is not None and self.shared.second is not None:
            nbytes = self.shared.second.row_nbytes(n_cols)
            if self.slot_t_2.shape != (n_rows, nbytes) or self.slot_v_2.shape != (n_rows,):
                raise ValueError(f"slot_t_2 must be ({n_rows}, {nbytes}), got {self.slot_t_2.shape}")
        for gains in (self.slot_v, self.slot_v_2):
            if gains is not None and (gains & 0x7F80 == 0x7F80).any():
                raise ValueError("a gain must be finite")
        if self.column_scale is not None:
            scale = self._scale
            if scale.shape != (n_cols,) or not (np.isfinite(scale) & (scale > 0)).all():
                raise ValueError(f"column_scale must be {n_cols} positive finite numbers")

    def __repr__(self) -> str:
        leaf = "" if self.slot_l is None else ", Slot L"
        return f"<HhtlTTensor {list(self.original_shape)}, {self.shared.trellis.rate / 16:g} bits{leaf}>"

    @cached_property
    def _scale(self) -> NDArray[np.float32]:
        assert self.column_scale is not None
        return bf16_values(self.column_scale)

    @classmethod
    def encode(
        cls,
        role: str,
        rows: Rows,
        shared: TrellisShared,
        column_scale: NDArray[np.uint16] | None = None,
        executor: Executor | None = None,
    ) -> Self:
        """Encode finite rows (n_rows, n_cols) with what their group shares.

        Raises
        ------
        RangeError
            When a row passes float32's range on its way: weights near 1e38.
        """
        scale: float | None = None
        if shared.basis is not None:
            peaks = [peak for _, _, peak in map_rows(_peak, rows, executor, shared, column_scale)]
            scale = slots.leaf_scale(float(np.max(peaks, initial=0)))
        arguments = (role, shared, column_scale, scale)
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
    ) -> Self:
        """Encode a block of a tensor's rows, whose Slot L scale is known; `first` is its first row, for errors.

        `feedback`: see `hhtld.slots.feedback`; of the first level only.
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
        slot_t, gains = shared.trellis.encode(residual, feedback)
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
        codes, gains = np.ascontiguousarray(self.slot_t[picked]), slots.gain_values(self.slot_v[picked])
        out = self.shared.trellis.decode(codes, gains, self.original_shape[1], out)
        second = self.shared.second
        with np.errstate(over="ignore", invalid="ignore"):
            if levels == 2 and second is not None and self.slot_t_2 is not None and self.slot_v_2 is not None:
                codes_2, gains_2 = np.ascontiguousarray(self.slot_t_2[picked]), slots.gain_values(self.slot_v_2[picked])
                out += second.decode(codes_2, gains_2, self.original_shape[1])
            self.shared.rotation.unrotate(out)
            if self.twigs is not None or self.slot_l is not None:
                twigs = np.zeros(len(codes), np.uint8) if self.twigs is None else self.twigs[picked]
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
        }
        return {kind: array for kind, array in named.items() if array is not None}

    def view(self) -> TensorView:
        from hhtld.codecs.view import TensorView

        shared, parts = self.shared, self.parts()
        parts["codebook"] = shared.trellis.codebook
        if shared.centroid_bits is not None:
            parts["centroids"] = shared.centroid_bits
        if shared.second is not None:
            parts["codebook_2"] = shared.second.codebook
        if self.slot_l is not None and shared.basis is not None:
            parts["basis"] = shared.basis.bits
        trellises = {"": shared.trellis} if shared.second is None else {"": shared.trellis, "_2": shared.second}
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
        )

    def search_terms(self, levels: int = 2) -> SearchTerms | None:
        """Return what a search needs; None for rows that are too wide for sums of integers."""
        if self.original_shape[1] > _kernels._score.MAX_COLS:
            return None
        shared, second = self.shared, None
        if shared.second is not None and self.slot_v_2 is not None and self.slot_t_2 is not None:
            second = TrellisLevel(shared.second, self.slot_v_2, self.slot_t_2)
        coded = [TrellisLevel(shared.trellis, self.slot_v, self.slot_t)]
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
) -> Any:
    return cls.encode_block(role, block, shared, column_scale, scale, start)


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
