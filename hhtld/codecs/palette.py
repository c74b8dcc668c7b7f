"""The palette codec: the number of a palette's row, 1 byte a row, and 8 more with Slot L.

Every tensor has a palette of its own: at most 256 of its rows as bfloat16. Its bytes are specified.

Layout
------
Of a tensor: palette_f32, k * n_cols bfloat16 row-major; twigs, u8 a row; Slot L. Of a group: the basis.

Rounding
--------
The palette is picked by furthest-point sampling with squared L2: the row of largest squared norm, then the row
furthest from its nearest pick, the first on every tie, until k are picked or the furthest distance is 0. A row takes
its nearest entry, the first on a tie. Distances are float64. Entries are stored as bfloat16, rounded to
nearest even; Slot L codes what the stored entry leaves over.

Edge cases
----------
Rows of zeros come back as zeros: if none of two or more picks is one, the last gives way.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld import _kernels, slots
from hhtld.codecs.base import (
    Coder,
    GroupCode,
    GroupRequest,
    Layout,
    ReadPart,
    RecordCheck,
    RowIndex,
    SearchTerms,
    SpecifiedCodec,
    check_budget,
    read_basis,
    read_leaf,
    sample_basis,
    selected_rows,
)
from hhtld.codecs.lookup import LeafTensor
from hhtld.codecs.section_kinds import PALETTE
from hhtld.dtypes import bf16_bits, bf16_values
from hhtld.errors import RangeError
from hhtld.identity import MAX_PALETTE_K, SLOT_L_LANES, PaletteGroupKey, should_use_leaf
from hhtld.registry import later

if TYPE_CHECKING:
    from hhtld.codecs.tensor_view import TensorView
    from hhtld.slots.moments import Moments
    from hhtld.sources.rows import Rows
else:
    TensorView = later("hhtld.codecs.tensor_view:TensorView")
    Rows = later("hhtld.sources.rows:Rows")

__all__ = ["HhtlF32Tensor", "PaletteCodec", "PaletteGroup", "TensorPalette", "find_palette"]


class PaletteCodec(SpecifiedCodec):
    """One u8 a row into a palette of the tensor's own rows, and Slot L where rows are looked up by index."""

    id: ClassVar[str] = PALETTE
    word: ClassVar[str] = "palette"
    summary: ClassVar[str] = "palette of the tensor's own rows"
    profiles: ClassVar[tuple[str, ...]] = ("f32",)
    required: ClassVar[frozenset[str]] = frozenset({"twigs", "palette_f32"})
    optional: ClassVar[frozenset[str]] = frozenset({"slot_l"})
    reads_whole_tensors: ClassVar[bool] = True

    def check_tensor(self, record: RecordCheck, group: RecordCheck) -> None:
        record.size("twigs", record.n_rows)
        record.palette_size("palette_f32", 2 * record.n_cols, f"rows of {record.n_cols} columns")

    def find(self, request: GroupRequest) -> tuple[Callable[..., GroupCode | None], tuple[Any, ...]]:
        return PaletteGroup.found, (request.key, request.rows[0])

    def read_group(self, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, int]) -> PaletteGroup:
        return PaletteGroup.read(key, sections)

    def finding_nbytes(self, key: PaletteGroupKey, n_tensors: int) -> int:
        n_rows, n_cols = key.shape
        # Furthest-point sampling holds all rows, and their 8-bit shadow.
        return max(self.basis_nbytes(key), n_rows * (5 * n_cols + 64) + 12 * MAX_PALETTE_K * n_cols)

    def predicted_nbytes(self, key: PaletteGroupKey) -> tuple[int, int]:
        (n_rows, n_cols), leaf = key.shape, should_use_leaf(key.role)
        vectors = min(SLOT_L_LANES, n_rows, n_cols)
        tensor = n_rows * (1 + (SLOT_L_LANES if leaf else 0)) + 2 * min(MAX_PALETTE_K, n_rows) * n_cols
        return tensor, 8 + vectors * (4 + 2 * n_cols) if leaf else 0


class TensorPalette(NamedTuple):
    """What a tensor has of its own.

    Attributes
    ----------
    palette_bits : ndarray of uint16, shape (k, n_cols)
        bfloat16.
    twigs : ndarray of uint8, shape (n_rows,)
    """

    palette_bits: NDArray[np.uint16]
    twigs: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _PaletteCoder(Coder):
    role: str
    palette_bits: NDArray[np.uint16]
    twigs: NDArray[np.uint8]
    basis: slots.SvdBasis | None

    @property
    def has_leaf(self) -> bool:
        return self.basis is not None

    def layout(self) -> Layout:
        whole: Layout = {"palette_f32": self.palette_bits, "twigs": self.twigs}
        return whole if self.basis is None else whole | {"slot_l": SLOT_L_LANES}

    def _plain(self, block: NDArray[np.float32], start: int) -> HhtlF32Tensor:
        twigs = self.twigs[start : start + len(block)]
        return HhtlF32Tensor(self.role, self.palette_bits, twigs, (len(block), block.shape[1]))

    def _coefficients(self, block: NDArray[np.float32], plain: HhtlF32Tensor) -> NDArray[np.float32]:
        assert self.basis is not None
        return slots.leaf_coefficients(block, plain.palette_f32, plain.twigs, self.basis)

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        found = self._coefficients(block, self._plain(block, start))
        return float(np.abs(found).max(initial=np.float32(0)))

    def encode(self, block: NDArray[np.float32], start: int, leaf_scale: float | None) -> HhtlF32Tensor:
        tensor = self._plain(block, start)
        if leaf_scale is not None:
            codes = slots.quantized_leaf(self._coefficients(block, tensor), leaf_scale)
            tensor = replace(tensor, slot_l=codes, slot_l_scale=leaf_scale, svd_basis=self.basis)
        return tensor


@dataclass(frozen=True, eq=False)
class PaletteGroup(GroupCode):
    """The float32 sibling: a basis by role; every tensor has a palette of its own."""

    basis: slots.SvdBasis | None
    _palettes: dict[int, NDArray[np.uint16]] = field(default_factory=dict, init=False)

    @classmethod
    def found(cls, key: PaletteGroupKey, rows: Rows) -> Self:
        """Return what a group shares, from its first tensor's rows."""
        return cls(key, sample_basis(rows) if should_use_leaf(key.role) else None)

    @classmethod
    def read(cls, key: PaletteGroupKey, sections: Mapping[str, Any]) -> Self:
        """Return the code whose sections are given, or raise `ValueError`."""
        return cls(key, read_basis(key, sections))

    def sections(self) -> dict[str, bytes]:
        return {} if self.basis is None else {"basis": self.basis.to_bytes()}

    def coder(self, tensor_code: TensorPalette) -> Coder:
        return _PaletteCoder(self.role, *tensor_code, self.basis)

    def tensor_code(
        self,
        rows: Rows,
        column_scale: NDArray[np.uint16] | None,
        moments: NDArray[np.float32] | Moments | None,
        row_rates: NDArray[np.int32] | None,
        run: Callable[..., Any],
    ) -> TensorPalette:
        palette: TensorPalette = run(find_palette, self.role, rows)
        return palette

    def recalled_tensor_code(self, whole: Mapping[str, NDArray[np.uint8]]) -> TensorPalette:
        return TensorPalette(whole["palette_f32"].view("<u2").reshape(-1, self.key.shape[1]), whole["twigs"])

    def tensor(
        self, part: ReadPart, leaf_scale: float | None, kinds: Mapping[str, int], budget: int | None, levels: int = 2
    ) -> HhtlF32Tensor:
        section, n_cols = kinds["palette_f32"], self.key.shape[1]
        if section not in self._palettes:  # kept, so that reading single rows does not read it again
            bits = np.require(part("palette_f32", 0).view("<u2"), requirements="A").reshape(-1, n_cols)
            self._palettes[section] = bits
        twigs, palette = part("twigs", 1), self._palettes[section]
        leaf = read_leaf(part, leaf_scale, self.basis)
        return HhtlF32Tensor(self.role, palette, twigs, (len(twigs), n_cols), **leaf, budget=budget)


def find_palette(role: str, rows: Rows) -> TensorPalette:
    """Return a tensor's own palette and twigs, found in all of its rows at once."""
    tensor = HhtlF32Tensor.encode(role, rows)
    return TensorPalette(tensor.palette_bits, tensor.twigs)


@dataclass(eq=False, repr=False)
class HhtlF32Tensor(LeafTensor):
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
    svd_basis: slots.SvdBasis | None = field(default=None, kw_only=True)
    budget: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        n_rows, n_cols = self.original_shape
        k = slots.checked_palette_k(len(self.palette_bits))
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
        return bf16_values(self.palette_bits)

    @classmethod
    def encode(
        cls, role: str, rows: Rows | ArrayLike, k: int = MAX_PALETTE_K, executor: Executor | None = None
    ) -> Self:
        """Encode finite rows (n_rows >= 1, n_cols) with a palette of at most k entries."""
        return cls._encode(role, rows, k, None, executor)

    @classmethod
    def encode_with_leaf(
        cls,
        role: str,
        rows: Rows | ArrayLike,
        k: int,
        svd_basis: slots.SvdBasis,
        executor: Executor | None = None,
    ) -> Self:
        """Encode with a palette of at most k entries and Slot L on a shared basis: 9 bytes a row.

        Raises
        ------
        TypeError
            If `k` and `svd_basis` are given in the wrong order, or are not what they are called.
        """
        _check_order(k, svd_basis)
        return cls._encode(role, rows, k, svd_basis, executor)

    @classmethod
    def _encode(
        cls, role: str, rows: Rows | ArrayLike, k: int, svd_basis: slots.SvdBasis | None, executor: Executor | None
    ) -> Self:
        from hhtld.sources.rows import as_rows, row_ranges  # decoding reads no source

        rows = as_rows(rows)
        k = slots.checked_palette_k(k)
        if rows.n_rows == 0 or rows.n_cols == 0:
            raise ValueError(f"a palette needs at least one row and one column, got ({rows.n_rows}, {rows.n_cols})")
        # Furthest-point sampling compares every row with every pick, so all rows are held here.
        block = np.empty((rows.n_rows, rows.n_cols), np.float32)
        for start, stop in row_ranges(rows.n_rows, 4 * rows.n_cols):  # not at once: as read they take their bytes again
            block[start:stop] = rows.read(start, stop)
        picks = np.empty(min(k, rows.n_rows), np.int64)
        nearest = np.empty(rows.n_rows, np.int32)
        distances = np.empty(rows.n_rows)
        count = _kernels._l2.furthest_l2(block, picks, distances, nearest)
        entries = block[picks[:count]]
        zeros = np.flatnonzero(~block.any(axis=1))
        if count > 1 and len(zeros) and distances[zeros[0]] > 0:
            entries[-1] = 0
            _kernels._l2.nearest_l2(block, entries, nearest)
        bits = bf16_bits(entries)
        if (past := (bits & 0x7F80 == 0x7F80).any(axis=1)).any():
            row = int(picks[past.argmax()])
            raise RangeError(f"row {row} holds a weight that bfloat16 would round to infinity: above 3.389e38")
        shape = (rows.n_rows, rows.n_cols)
        tensor = cls(role, bits, nearest.astype(np.uint8), shape)
        if svd_basis is not None:
            tensor.slot_l, tensor.slot_l_scale = slots.encode_leaf(
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

    def parts(self) -> dict[str, NDArray[Any]]:
        parts: dict[str, NDArray[Any]] = {"palette_f32": self.palette_bits, "twigs": self.twigs}
        return parts if self.slot_l is None else parts | {"slot_l": self.slot_l}

    def view(self) -> TensorView:

        parts: dict[str, NDArray[Any]] = {"twigs": self.twigs, "palette_f32": self.palette_bits}
        return self._leaf_view(parts, n_entries=len(self.palette_bits), palette=self.palette_f32)

    def search_terms(self, levels: int = 2) -> SearchTerms:
        return self._leaf_terms(self.palette_f32, self.twigs)

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


def _check_order(k: object, svd_basis: object) -> None:
    """Refuse a palette size and a basis that have each other's place."""
    if isinstance(k, slots.SvdBasis) or not isinstance(svd_basis, slots.SvdBasis):
        raise TypeError(
            "the palette size comes before the basis: encode_with_leaf(role, rows, k, svd_basis); "
            f"got {type(k).__name__} as k and {type(svd_basis).__name__} as svd_basis"
        )
