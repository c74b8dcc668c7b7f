"""Encoded tensors: rows as slots, and the one decoder of each codec.

`HhtlDTensor` is the lookup grade: Slots D and V, 4 bytes a row, and 8 more with Slot L.
`HhtlF32Tensor` is its reconstruction-grade sibling: one u8 TWIG into a palette of float32 rows, and
8 more with Slot L.

Layout
------
HhtlDTensor: entries (`hhtld.slots.entries`), Slot L; palette, Fisher z table and basis are the group's.
HhtlF32Tensor: twigs, u8 a row; palette k * n_cols bfloat16 row-major; Slot L; basis of the group.

Rounding
--------
The float32 palette is picked by furthest-point sampling with squared L2: the row of largest squared
norm, then the row furthest from its nearest pick, the first on every tie, until k are picked or the
furthest distance is 0. A row takes its nearest entry, the first on a tie. Distances are float64
(`search.h`). Entries are stored as bfloat16, rounded to nearest even; Slot L codes what the stored
entry leaves over.

Edge cases
----------
Rows of zeros come back as zeros from HhtlF32Tensor: where no pick of two or more is one, the last gives way. The lookup
grade's palette is found in folded rows of the group's first tensor and its bytes are specified: there a row of zeros
comes back as its entry, which is mostly, but not always, one of zeros.

Error
-----
Rows of trained matrices are nearly orthogonal, so neither codec reconstructs them: the README prints
the cosines. They route and look up; Slot T reconstructs.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld._kernels import _cast, _leaf, _search
from hhtld.errors import HeaderError, RangeError
from hhtld.slots.base17 import Base17
from hhtld.slots.basis import SvdBasis
from hhtld.slots.entries import (
    ENTRY_DTYPE,
    SLOT_L_LANES,
    Entries,
    HeelBasin,
    HhtlDEntry,
    encode_entries,
    encode_leaf,
    entries_from_bytes,
    twig,
)
from hhtld.slots.fisher_z import FisherZTable
from hhtld.slots.palette import MAX_PALETTE_K, HhtlCache, checked_palette_k
from hhtld.sources.rows import Rows, as_rows, row_ranges

__all__ = [
    "MAX_PALETTE_K",
    "HhtlDTensor",
    "HhtlF32Tensor",
    "RowIndex",
    "check_budget",
    "representatives",
    "selected_rows",
]

RowIndex = Sequence[int] | NDArray[Any] | slice | None


def selected_rows(n_rows: int, rows: RowIndex) -> NDArray[np.intp] | slice:
    """Return row numbers as an index, negative ones counted from the end, or raise."""
    if rows is None:
        return slice(None)
    if isinstance(rows, slice):
        return rows
    index = np.asarray(rows)
    if index.size == 0:
        return np.zeros(0, np.intp)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise TypeError(f"rows must be a flat sequence of integers, got {index.dtype} of shape {index.shape}")
    if index.min() < -n_rows or index.max() >= n_rows:
        raise IndexError(f"rows must lie in 0..{n_rows - 1}, got {index.min()}..{index.max()}")
    if index.size == 1:  # a slice reads without a copy: one row is what lookups ask for
        row = int(index[0]) % n_rows
        return slice(row, row + 1)
    return index.astype(np.intp) % n_rows


def _check_order(k: object, svd_basis: object) -> None:
    """Refuse a palette size and a basis that have each other's place."""
    if isinstance(k, SvdBasis) or not isinstance(svd_basis, SvdBasis):
        raise TypeError(
            "the palette size comes before the basis: encode_with_leaf(role, rows, k, svd_basis); "
            f"got {type(k).__name__} as k and {type(svd_basis).__name__} as svd_basis"
        )


def check_budget(
    n_rows: int, index: NDArray[np.intp] | slice, row_nbytes: int, shared: int, budget: int | None
) -> None:
    """Refuse to decode rows that take more than a budget, `shared` bytes of it for what they have in common.

    Raises
    ------
    HeaderError
        Naming both numbers.
    """
    if budget is None:
        return
    count = len(range(*index.indices(n_rows))) if isinstance(index, slice) else len(index)
    needed = count * row_nbytes + shared
    if needed > budget:
        raise HeaderError(f"{count} rows take {needed} bytes to decode, the budget is {budget}")


class _LeafTensor:
    """What both codecs share: an optional Slot L upon one entry a row."""

    budget: int | None

    slot_l: NDArray[np.int8] | None
    slot_l_scale: float | None
    svd_basis: SvdBasis | None
    original_shape: tuple[int, int]

    def __repr__(self) -> str:
        leaf = "" if self.slot_l is None else ", Slot L"
        return f"<{type(self).__name__} {list(self.original_shape)}{leaf}>"

    def _check_leaf(self) -> None:
        present = [self.slot_l is not None, self.slot_l_scale is not None, self.svd_basis is not None]
        if any(present) != all(present):
            raise ValueError("slot_l, slot_l_scale and svd_basis come together or not at all")
        n_rows, n_cols = self.original_shape
        if self.slot_l is not None and self.slot_l.shape != (n_rows, SLOT_L_LANES):
            raise ValueError(f"slot_l must have shape ({n_rows}, {SLOT_L_LANES}), got {self.slot_l.shape}")
        if self.slot_l_scale is not None and not 0 < self.slot_l_scale < float("inf"):
            raise ValueError(f"slot_l_scale must be finite and positive, got {self.slot_l_scale}")
        if self.svd_basis is not None and self.svd_basis.n_cols != n_cols:
            raise ValueError(f"the basis has {self.svd_basis.n_cols} columns, the tensor {n_cols}")

    def _decode(
        self, centroids: NDArray[np.float32], twigs: NDArray[np.uint8], rows: NDArray[np.intp] | slice
    ) -> NDArray[np.float32]:
        picked = np.ascontiguousarray(twigs[rows])
        out = np.empty((len(picked), self.original_shape[1]), np.float32)
        if self.slot_l is None or self.slot_l_scale is None or self.svd_basis is None:
            _leaf.reconstruct(centroids, picked, None, 0.0, None, out)
        else:
            codes = np.ascontiguousarray(self.slot_l[rows])
            _leaf.reconstruct(centroids, picked, codes, self.slot_l_scale, self.svd_basis.vectors, out)
        return out

    def slot_l_byte_size(self) -> int:
        """Bytes of Slot L, without basis and scale; 0 without it."""
        return 0 if self.slot_l is None else self.slot_l.size

    def slot_l_to_bytes(self) -> tuple[bytes, float] | None:
        """Return 8 bytes a row and the scale that they are multiplied by, or None without Slot L."""
        if self.slot_l is None or self.slot_l_scale is None:
            return None
        return self.slot_l.tobytes(), self.slot_l_scale

    @staticmethod
    def slot_l_from_bytes(data: bytes | memoryview) -> NDArray[np.int8]:
        """Read the 8 bytes a row that `slot_l_to_bytes` gives into shape (n, 8).

        Raises
        ------
        ValueError
            When the length is no multiple of 8.
        """
        if len(data) % SLOT_L_LANES:
            raise ValueError(f"{len(data)} bytes are not a multiple of {SLOT_L_LANES}")
        return np.frombuffer(data, np.int8).reshape(-1, SLOT_L_LANES)


@dataclass(eq=False, repr=False)
class HhtlDTensor(_LeafTensor):
    """A lookup-grade tensor.

    Attributes
    ----------
    role : str
        Decides the basin; groups pass "<component>_<role>".
    cache : HhtlCache
        The group's palette.
    entries : structured ndarray (slot_d, slot_v: uint16), shape (n_rows,)
    original_shape : (n_rows, n_cols)
    fisher_z : FisherZTable or None
    slot_l : ndarray of int8, shape (n_rows, 8), or None
    slot_l_scale : float or None
    svd_basis : SvdBasis or None
    budget : int or None
        Bytes that decoding rows may take; a pack gives its own.
    """

    role: str
    cache: HhtlCache
    entries: Entries
    original_shape: tuple[int, int]
    fisher_z: FisherZTable | None = None
    slot_l: NDArray[np.int8] | None = field(default=None, kw_only=True)
    slot_l_scale: float | None = field(default=None, kw_only=True)
    svd_basis: SvdBasis | None = field(default=None, kw_only=True)
    budget: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        n_rows = self.original_shape[0]
        if self.entries.dtype != ENTRY_DTYPE or self.entries.shape != (n_rows,):
            raise ValueError(
                f"entries must be {n_rows} of {ENTRY_DTYPE}, got {self.entries.shape} {self.entries.dtype}"
            )
        high = int(self.twigs.max(initial=0))
        if n_rows and high >= self.cache.k:
            row = int((self.twigs >= self.cache.k).argmax())
            raise ValueError(f"row {row} has twig {self.twigs[row]}, but the palette has {self.cache.k} entries")
        self._check_leaf()

    @property
    def basin(self) -> HeelBasin:
        """The basin of the role."""
        return HeelBasin.from_role(self.role)

    @cached_property
    def twigs(self) -> NDArray[np.uint8]:
        """Palette entry of every row."""
        return twig(self.entries["slot_d"])

    @classmethod
    def encode(
        cls,
        role: str,
        rows: Rows | ArrayLike,
        cache: HhtlCache,
        hip_assignments: NDArray[np.uint8],
        fisher_z: FisherZTable | None = None,
        executor: Executor | None = None,
    ) -> Self:
        """Encode finite rows (n_rows, n_cols) against a palette.

        Without `fisher_z` the table is built from these rows; a group passes its own.
        """
        return cls._encode(role, as_rows(rows), cache, hip_assignments, None, fisher_z, executor)

    @classmethod
    def encode_with_leaf(
        cls,
        role: str,
        rows: Rows | ArrayLike,
        cache: HhtlCache,
        hip_assignments: NDArray[np.uint8],
        svd_basis: SvdBasis,
        fisher_z: FisherZTable | None = None,
        executor: Executor | None = None,
    ) -> Self:
        """Encode with Slot L on a shared basis: 12 bytes a row that keep its identity."""
        return cls._encode(role, as_rows(rows), cache, hip_assignments, svd_basis, fisher_z, executor)

    @classmethod
    def _encode(
        cls,
        role: str,
        rows: Rows,
        cache: HhtlCache,
        hip_assignments: NDArray[np.uint8],
        svd_basis: SvdBasis | None,
        fisher_z: FisherZTable | None,
        executor: Executor | None,
    ) -> Self:
        dims = Base17.fold(rows, executor)
        entries = encode_entries(HeelBasin.from_role(role), dims, cache, hip_assignments)
        if fisher_z is None and rows.n_rows:
            fisher_z = FisherZTable.build(representatives(rows, dims, cache))
        shape = (rows.n_rows, rows.n_cols)
        if svd_basis is None:
            return cls(role, cache, entries, shape, fisher_z)
        twigs = twig(entries["slot_d"])
        slot_l, scale = encode_leaf(rows, cache.unfolded(rows.n_cols), twigs, svd_basis, executor)
        return cls(role, cache, entries, shape, fisher_z, slot_l=slot_l, slot_l_scale=scale, svd_basis=svd_basis)

    def reconstruct_rows(self, rows: RowIndex = None) -> NDArray[np.float32]:
        """Decode the given rows, or all, to float32 (n, n_cols)."""
        n_rows, n_cols = self.original_shape
        index = selected_rows(n_rows, rows)
        check_budget(n_rows, index, 4 * n_cols, 4 * self.cache.k * n_cols, self.budget)
        return self._decode(self.cache.unfolded(n_cols), self.twigs, index)

    def reconstruct_row(self, row: int) -> NDArray[np.float32]:
        """Decode one row to float32 (n_cols,)."""
        decoded: NDArray[np.float32] = self.reconstruct_rows([row])[0]
        return decoded

    def entry(self, row: int) -> HhtlDEntry:
        """Return one row's slots, taken apart."""
        return HhtlDEntry(int(self.entries[row]["slot_d"]), int(self.entries[row]["slot_v"]))

    def entries_to_bytes(self) -> bytes:
        """Return 4 bytes a row."""
        return self.entries.tobytes()

    @staticmethod
    def entries_from_bytes(data: bytes | memoryview) -> Entries:
        """Read 4 bytes a row."""
        return entries_from_bytes(data)

    def entries_byte_size(self) -> int:
        """Bytes of the entries."""
        return self.entries.nbytes

    def total_byte_size(self) -> int:
        """Bytes of entries, Slot L and Fisher z table; palette and basis are the group's."""
        table = 0 if self.fisher_z is None else self.fisher_z.byte_size()
        return self.entries_byte_size() + self.slot_l_byte_size() + table

    def compression_ratio(self) -> float:
        """Bytes as bfloat16 over bytes of entries and Slot L."""
        size = self.entries_byte_size() + self.slot_l_byte_size()
        return 2 * self.original_shape[0] * self.original_shape[1] / size if size else 0.0

    def cosine_lookup(self, a: int, b: int) -> float:
        """Return the table's cosine between the entries of rows `a` and `b`."""
        if self.fisher_z is None:
            raise ValueError("this tensor has no Fisher z table")
        return self.fisher_z.lookup(int(self.twigs[a]), int(self.twigs[b]))


def representatives(rows: Rows, dims: Base17, cache: HhtlCache) -> NDArray[np.float32]:
    """Return for every palette entry the row nearest to it (first wins), or its unfold where it has none."""
    twigs, distances = cache.nearest(dims)
    out = cache.unfolded(rows.n_cols).copy()
    order = np.lexsort((np.arange(len(twigs)), distances, twigs))
    entries, first = np.unique(twigs[order], return_index=True)
    for entry, row in zip(entries, order[first], strict=True):
        out[entry] = rows.read(int(row), int(row) + 1)[0]
    return out


@dataclass(eq=False, repr=False)
class HhtlF32Tensor(_LeafTensor):
    """A tensor of one palette entry a row, the palette being float32 rows of its own.

    Attributes
    ----------
    role : str
    palette_bits : ndarray of uint16, shape (k, n_cols)
        Entries as bfloat16 bits, 1 <= k <= 256.
    twigs : ndarray of uint8, shape (n_rows,)
    original_shape : (n_rows, n_cols)
    slot_l, slot_l_scale, svd_basis, budget : as in `HhtlDTensor`
    """

    role: str
    palette_bits: NDArray[np.uint16]
    twigs: NDArray[np.uint8]
    original_shape: tuple[int, int]
    slot_l: NDArray[np.int8] | None = field(default=None, kw_only=True)
    slot_l_scale: float | None = field(default=None, kw_only=True)
    svd_basis: SvdBasis | None = field(default=None, kw_only=True)
    budget: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        n_rows, n_cols = self.original_shape
        k = checked_palette_k(len(self.palette_bits))
        if self.palette_bits.shape != (k, n_cols):
            raise ValueError(f"the palette must have {n_cols} columns, got shape {self.palette_bits.shape}")
        if self.twigs.shape != (n_rows,) or self.twigs.dtype != np.uint8:
            raise ValueError(f"twigs must be {n_rows} of uint8, got {self.twigs.shape} of {self.twigs.dtype}")
        if n_rows and int(self.twigs.max()) >= k:
            row = int((self.twigs >= k).argmax())
            raise ValueError(f"row {row} has twig {self.twigs[row]}, but the palette has {k} entries")
        if (self.palette_bits & 0x7F80 == 0x7F80).any():
            raise ValueError("a palette must hold finite values")
        self._check_leaf()

    @cached_property
    def palette_f32(self) -> NDArray[np.float32]:
        """The entries, float32 (k, n_cols)."""
        out = np.empty(self.palette_bits.shape, np.float32)
        _cast.widen_bf16(self.palette_bits.reshape(-1), out.reshape(-1))
        return out

    @classmethod
    def encode(
        cls, role: str, rows: Rows | ArrayLike, k: int = MAX_PALETTE_K, executor: Executor | None = None
    ) -> Self:
        """Encode finite rows (n_rows >= 1, n_cols) with a palette of at most k entries."""
        return cls._encode(role, as_rows(rows), k, None, executor)

    @classmethod
    def encode_with_leaf(
        cls,
        role: str,
        rows: Rows | ArrayLike,
        k: int,
        svd_basis: SvdBasis,
        executor: Executor | None = None,
    ) -> Self:
        """Encode with a palette of at most k entries and Slot L on a shared basis: 9 bytes a row.

        Raises
        ------
        TypeError
            When `k` and `svd_basis` are given in the wrong order, or are not what they are called.
        """
        _check_order(k, svd_basis)
        return cls._encode(role, as_rows(rows), k, svd_basis, executor)

    @classmethod
    def _encode(cls, role: str, rows: Rows, k: int, svd_basis: SvdBasis | None, executor: Executor | None) -> Self:
        k = checked_palette_k(k)
        if rows.n_rows == 0 or rows.n_cols == 0:
            raise ValueError(f"a palette needs at least one row and one column, got ({rows.n_rows}, {rows.n_cols})")
        # Furthest-point sampling compares every row with every pick, so all rows are held here.
        block = np.empty((rows.n_rows, rows.n_cols), np.float32)
        for start, stop in row_ranges(rows.n_rows, 4 * rows.n_cols):  # not at once: as read they take their bytes again
            block[start:stop] = rows.read(start, stop)
        picks = np.empty(min(k, rows.n_rows), np.int64)
        nearest = np.empty(rows.n_rows, np.int32)
        distances = np.empty(rows.n_rows)
        count = _search.furthest_l2(block, picks, distances, nearest)
        entries = block[picks[:count]]
        zeros = np.flatnonzero(~block.any(axis=1))
        if count > 1 and len(zeros) and distances[zeros[0]] > 0:
            entries[-1] = 0
            _search.nearest_l2(block, entries, nearest)
        bits = np.empty(entries.shape, np.uint16)
        _cast.narrow_f32_bf16(entries.reshape(-1), bits.reshape(-1))
        if (past := (bits & 0x7F80 == 0x7F80).any(axis=1)).any():
            row = int(picks[past.argmax()])
            raise RangeError(f"row {row} holds a weight that bfloat16 would round to infinity: above 3.389e38")
        shape = (rows.n_rows, rows.n_cols)
        tensor = cls(role, bits, nearest.astype(np.uint8), shape)
        if svd_basis is not None:
            tensor.slot_l, tensor.slot_l_scale = encode_leaf(
                rows, tensor.palette_f32, tensor.twigs, svd_basis, executor
            )
            tensor.svd_basis = svd_basis
        return tensor

    def reconstruct_rows(self, rows: RowIndex = None) -> NDArray[np.float32]:
        """Decode the given rows, or all, to float32 (n, n_cols)."""
        n_rows, n_cols = self.original_shape
        index = selected_rows(n_rows, rows)
        check_budget(n_rows, index, 4 * n_cols, 0, self.budget)
        return self._decode(self.palette_f32, self.twigs, index)

    def reconstruct_row(self, row: int) -> NDArray[np.float32]:
        """Decode one row to float32 (n_cols,)."""
        decoded: NDArray[np.float32] = self.reconstruct_rows([row])[0]
        return decoded

    def entries_to_bytes(self) -> bytes:
        """Return one twig a row."""
        return self.twigs.tobytes()

    @staticmethod
    def entries_from_bytes(data: bytes | memoryview) -> NDArray[np.uint8]:
        """Read one twig a row."""
        return np.frombuffer(data, np.uint8)

    def entries_byte_size(self) -> int:
        """Bytes of the twigs."""
        return self.twigs.nbytes

    def total_byte_size(self) -> int:
        """Bytes of twigs, Slot L and palette; the basis is the group's."""
        return self.entries_byte_size() + self.slot_l_byte_size() + self.palette_bits.nbytes

    def compression_ratio(self) -> float:
        """Bytes as bfloat16 over `total_byte_size()`."""
        return 2 * self.original_shape[0] * self.original_shape[1] / self.total_byte_size()

    def cosine_lookup(self, a: int, b: int) -> float:
        """Return the cosine between the palette entries of rows `a` and `b`; zero entries give 0."""
        x, y = (self.palette_f32[self.twigs[row]].astype(np.float64) for row in (a, b))
        scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
        return float((x * y).sum() / scale) if scale > 0 else 0.0
