"""What a group's tensors are coded with, and the tasks that code their rows.

A group code is what the tensors of a group share: it goes to sections and comes back from them. A coder is that
for one tensor: it turns any block of its rows into the bytes of its sections. Coders and the functions here can be
pickled, so that rows are coded in other processes and on other machines; a task gives the checksums of its bytes
and the cosines of its rows with what those bytes decode to.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hhtld.codecs.group import PaletteGroupKey, SharedPaletteGroup, sample_basis
from hhtld.codecs.tensors import HhtlDTensor, HhtlF32Tensor
from hhtld.codecs.trellis_tensor import HhtlTTensor, ScaledRows, TrellisShared, leaf_peak
from hhtld.dtypes import FLOAT32, DType, rounded
from hhtld.encoding.plan import Profile
from hhtld.encoding.rate import decide_group, decide_nbytes
from hhtld.gates import Threshold, judged_cosines
from hhtld.pack.sections import as_bytes
from hhtld.roles import should_use_leaf
from hhtld.slots.base17 import Base17
from hhtld.slots.basis import SAMPLE_ROWS, SvdBasis, basis_nbytes
from hhtld.slots.entries import (
    ENTRY_DTYPE,
    SLOT_L_LANES,
    HeelBasin,
    encode_entries,
    leaf_coefficients,
    quantized_leaf,
)
from hhtld.slots.fisher_z import FisherZTable
from hhtld.slots.palette import MAX_PALETTE_K, HhtlCache, Palette, build_hip_families
from hhtld.slots.rotation import Rotation
from hhtld.slots.trellis import MAX_RATE, Trellis, search_cols
from hhtld.sources.rows import BLOCK_NBYTES, Rows

__all__ = [
    "Coded",
    "Coder",
    "ColumnCode",
    "GroupCode",
    "LookupGroup",
    "PaletteGroup",
    "TrellisGroup",
    "block_rows",
    "code_rows",
    "found_nbytes",
    "found_palette",
    "peak_of_rows",
    "result_nbytes",
    "span_rows",
    "task_nbytes",
]

Layout = dict[str, "int | NDArray[Any]"]
Palettes = tuple[NDArray[np.uint16], NDArray[np.uint8]]
SPAN_NBYTES = 8 << 20  # of float32 rows a task: 0.2 s of Slot T, and what a task lost with its machine costs
_LANES = 32  # rows that the trellis search takes at once


class Coder(ABC):
    """What codes the rows of one tensor."""

    codec: ClassVar[str]

    @property
    @abstractmethod
    def has_leaf(self) -> bool:
        """Whether a first pass over the rows must find Slot L's scale."""

    @abstractmethod
    def layout(self) -> Layout:
        """Return the tensor's own sections in order: bytes a row, or an array that is a whole section."""

    @abstractmethod
    def peak(self, block: NDArray[np.float32], start: int) -> float:
        """Return the largest magnitude that Slot L must hold for rows from `start` on."""

    @abstractmethod
    def encode(
        self, block: NDArray[np.float32], start: int, scale: float | None
    ) -> HhtlTTensor | HhtlDTensor | HhtlF32Tensor:
        """Encode rows from `start` on."""


class ColumnCode(NamedTuple):
    """What a tensor of Slot T has of its own: what is known of its columns.

    Attributes
    ----------
    scale : ndarray of uint16, shape (n_cols,), or None
        bfloat16 bits.
    feedback : ndarray of float32, shape (n_cols, n_cols), or None
        See `hhtld.slots.feedback`; the decoder needs nothing of it.
    """

    scale: NDArray[np.uint16] | None = None
    feedback: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class _TrellisCoder(Coder):
    codec = "hhtl_t"
    role: str
    shared: TrellisShared
    columns: ColumnCode

    @property
    def has_leaf(self) -> bool:
        return self.shared.basis is not None

    def layout(self) -> Layout:
        shared = self.shared
        layout: Layout = {"slot_v": 2, "slot_t": shared.trellis.row_nbytes(shared.n_cols)}
        if shared.centroid_bits is not None:
            layout["twigs"] = 1
        if shared.basis is not None:
            layout["slot_l"] = SLOT_L_LANES
        if self.columns.scale is not None:
            layout["column_scale"] = self.columns.scale
        if shared.second is not None:
            layout |= {"slot_v_2": 2, "slot_t_2": shared.second.row_nbytes(shared.n_cols)}
        return layout

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        return leaf_peak(block, self.shared, self.columns.scale)

    def encode(self, block: NDArray[np.float32], start: int, scale: float | None) -> HhtlTTensor:
        return HhtlTTensor.encode_block(
            self.role, block, self.shared, self.columns.scale, scale, start, self.columns.feedback
        )


@dataclass(frozen=True, eq=False)
class _LookupCoder(Coder):
    codec = "hhtl_d"
    group: LookupGroup

    @property
    def has_leaf(self) -> bool:
        return self.group.basis is not None

    def layout(self) -> Layout:
        entries: Layout = {"entries": ENTRY_DTYPE.itemsize}
        return entries | {"slot_l": SLOT_L_LANES} if self.has_leaf else entries

    def _plain(self, block: NDArray[np.float32]) -> HhtlDTensor:
        group = self.group
        basin, dims = HeelBasin.from_role(group.role), Base17.fold(block)
        entries = encode_entries(basin, dims, group.cache, group.families)
        return HhtlDTensor(group.role, group.cache, entries, (len(block), block.shape[1]), group.fisher_z)

    def _coefficients(self, block: NDArray[np.float32], twigs: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.group.basis is not None
        return leaf_coefficients(block, self.group.cache.unfolded(block.shape[1]), twigs, self.group.basis)

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        found = self._coefficients(block, self._plain(block).twigs)
        return float(np.abs(found).max(initial=np.float32(0)))

    def encode(self, block: NDArray[np.float32], start: int, scale: float | None) -> HhtlDTensor:
        tensor = self._plain(block)
        if scale is not None:
            codes = quantized_leaf(self._coefficients(block, tensor.twigs), scale)
            tensor = replace(tensor, slot_l=codes, slot_l_scale=scale, svd_basis=self.group.basis)
        return tensor


@dataclass(frozen=True, eq=False)
class _PaletteCoder(Coder):
    codec = "hhtl_f32"
    role: str
    palette_bits: NDArray[np.uint16]
    twigs: NDArray[np.uint8]
    basis: SvdBasis | None

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
        return leaf_coefficients(block, plain.palette_f32, plain.twigs, self.basis)

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        found = self._coefficients(block, self._plain(block, start))
        return float(np.abs(found).max(initial=np.float32(0)))

    def encode(self, block: NDArray[np.float32], start: int, scale: float | None) -> HhtlF32Tensor:
        tensor = self._plain(block, start)
        if scale is not None:
            codes = quantized_leaf(self._coefficients(block, tensor), scale)
            tensor = replace(tensor, slot_l=codes, slot_l_scale=scale, svd_basis=self.basis)
        return tensor


# ---- groups ----


@dataclass(frozen=True, eq=False)
class GroupCode(ABC):
    """What the tensors of a group share."""

    key: PaletteGroupKey

    @property
    def role(self) -> str:
        """The role of the group's tensors, with their component."""
        return f"{self.key.component}_{self.key.role}"

    @property
    def numbers(self) -> tuple[int | None, int | None, int | None]:
        """Rate, rotation seed and second rate, of Slot T alone."""
        return None, None, None

    @abstractmethod
    def sections(self) -> dict[str, bytes]:
        """Return the shared sections in order."""

    @abstractmethod
    def coder(self, own: Any) -> Coder:
        """Return the coder of a tensor, given what it has of its own.

        That is a `ColumnCode` or None for `TrellisGroup`, palette and twigs for `PaletteGroup`, and None else.
        """


@dataclass(frozen=True, eq=False)
class TrellisGroup(GroupCode):
    """Slot T: a code, and centroids and a basis where they pay."""

    shared: TrellisShared

    @classmethod
    def decided(
        cls,
        key: PaletteGroupKey,
        rows: Sequence[Rows],
        scales: Sequence[NDArray[np.uint16] | None],
        profile: Profile,
        threshold: Threshold | None,
        seed: int,
        dtype: DType = FLOAT32,
    ) -> Self | None:
        """Return a group's code at the predicted rate, or None where no rate passes on its sample."""
        scaled = [own if s is None else ScaledRows(own, s) for own, s in zip(rows, scales, strict=True)]
        shared, prediction = decide_group(scaled, profile.rate, threshold, seed, profile.state_bits, dtype)
        if prediction is None:
            return None
        second = None if profile.rate_2 is None else Trellis.trained(profile.rate_2, profile.state_bits)
        return cls(key, replace(shared, trellis=Trellis.trained(prediction.rate, profile.state_bits), second=second))

    @classmethod
    def restored(
        cls, key: PaletteGroupKey, sections: Mapping[str, bytes], rate: int, profile: Profile, seed: int
    ) -> Self:
        """Return the code whose sections are given."""
        bits = None
        if "centroids" in sections:
            bits = np.frombuffer(sections["centroids"], "<u2").reshape(-1, key.shape[1])
        basis = SvdBasis.from_bytes(sections["basis"]) if "basis" in sections else None
        second = None if profile.rate_2 is None else Trellis.trained(profile.rate_2, profile.state_bits)
        code = Trellis.trained(rate, profile.state_bits)
        return cls(key, TrellisShared(code, Rotation(key.shape[1], seed), bits, basis, second))

    @property
    def rate(self) -> int:
        """Sixteenths of a bit a weight."""
        return self.shared.trellis.rate

    @property
    def numbers(self) -> tuple[int | None, int | None, int | None]:
        second = self.shared.second
        return self.rate, self.shared.rotation.seed, None if second is None else second.rate

    def richer(self) -> Self | None:
        """Return the code one rate up, or None at the top."""
        if self.rate == MAX_RATE:
            return None
        trellis = Trellis.trained(self.rate + 1, self.shared.trellis.n_bits)
        return replace(self, shared=replace(self.shared, trellis=trellis))

    def nbytes(self, scales: Sequence[NDArray[np.uint16] | None]) -> int:
        """Return the bytes of all sections of the group and its tensors."""
        own = self.shared.tensor_nbytes(self.key.shape[0])
        return self.shared.shared_nbytes() + sum(own + (0 if scale is None else scale.nbytes) for scale in scales)

    def sections(self) -> dict[str, bytes]:
        shared = self.shared
        sections = {"codebook": shared.trellis.levels.tobytes()}
        if shared.centroid_bits is not None:
            sections["centroids"] = shared.centroid_bits.tobytes()
        if shared.second is not None:
            sections["codebook_2"] = shared.second.levels.tobytes()
        return sections if shared.basis is None else sections | {"basis": shared.basis.to_bytes()}

    def coder(self, own: ColumnCode | None) -> Coder:
        return _TrellisCoder(self.role, self.shared, own or ColumnCode())


@dataclass(frozen=True, eq=False)
class LookupGroup(GroupCode):
    """Slots D and V: a palette, its cosines, and a basis by role."""

    palette: Palette
    fisher_z: FisherZTable
    basis: SvdBasis | None

    @classmethod
    def found(cls, key: PaletteGroupKey, rows: Rows) -> Self:
        """Return what a group shares, from its first tensor's rows."""
        group = SharedPaletteGroup.found(key, rows, should_use_leaf(key.role))
        return cls(key, Palette(group.cache.palette.entries), group.fisher_z, group.svd_basis)

    @classmethod
    def restored(cls, key: PaletteGroupKey, sections: Mapping[str, bytes]) -> Self:
        """Return the code whose sections are given."""
        palette = Palette(Base17.from_bytes(sections["palette"]))
        basis = SvdBasis.from_bytes(sections["basis"]) if "basis" in sections else None
        return cls(key, palette, FisherZTable.from_bytes(sections["fisher_z"], len(palette)), basis)

    def sections(self) -> dict[str, bytes]:
        shared = {"palette": self.palette.entries.to_bytes(), "fisher_z": self.fisher_z.to_bytes()}
        return shared if self.basis is None else shared | {"basis": self.basis.to_bytes()}

    @cached_property
    def cache(self) -> HhtlCache:
        """The palette with its tables."""
        return HhtlCache(self.palette)

    @cached_property
    def families(self) -> NDArray[np.uint8]:
        """The HIP family of every palette entry."""
        return build_hip_families(self.palette)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what is computed from them

    def coder(self, own: None) -> Coder:
        return _LookupCoder(self)


@dataclass(frozen=True, eq=False)
class PaletteGroup(GroupCode):
    """The float32 sibling: a basis by role; every tensor has a palette of its own."""

    basis: SvdBasis | None

    @classmethod
    def found(cls, key: PaletteGroupKey, rows: Rows) -> Self:
        """Return what a group shares, from its first tensor's rows."""
        return cls(key, sample_basis(rows) if should_use_leaf(key.role) else None)

    @classmethod
    def restored(cls, key: PaletteGroupKey, sections: Mapping[str, bytes]) -> Self:
        """Return the code whose sections are given."""
        return cls(key, SvdBasis.from_bytes(sections["basis"]) if "basis" in sections else None)

    def sections(self) -> dict[str, bytes]:
        return {} if self.basis is None else {"basis": self.basis.to_bytes()}

    def coder(self, own: Palettes) -> Coder:
        return _PaletteCoder(self.role, *own, self.basis)


def found_palette(role: str, rows: Rows) -> Palettes:
    """Return a tensor's own palette and twigs, found in all of its rows at once."""
    tensor = HhtlF32Tensor.encode(role, rows)
    return tensor.palette_bits, tensor.twigs


def block_rows(codec: str, n_cols: int) -> int:
    """Return how many rows are read and coded together."""
    rows = max(1, BLOCK_NBYTES // (4 * n_cols))
    if codec != "hhtl_t" or search_cols(n_cols) < n_cols:
        return rows
    # The trellis search takes 32 rows side by side, and as long for fewer; of wide rows, as many pieces of one.
    return max(1, rows // _LANES) * _LANES


def span_rows(codec: str, n_cols: int) -> int:
    """Return how many rows a task codes."""
    block = block_rows(codec, n_cols)
    return max(1, SPAN_NBYTES // (4 * n_cols * block)) * block


def result_nbytes(codec: str, n_rows: int, n_cols: int) -> int:
    """Return the bytes of what coding `n_rows` rows gives at most: two levels of 6 bits, slots, cosines."""
    return min(n_rows, span_rows(codec, n_cols)) * ((3 * n_cols // 2 if codec == "hhtl_t" else 0) + 64)


def task_nbytes(profile: Profile, n_rows: int, n_cols: int, source_row_nbytes: int) -> int:
    """Return the bytes that a task takes at most, its result included."""
    codec = profile.codec
    # A block as it is read and as float32, scaled, less its entry, decoded, and what these turn through.
    block = min(n_rows, block_rows(codec, n_cols)) * (source_row_nbytes + 8 * 4 * n_cols)
    # 2 KiB a column are the way back of 32 rows through 1024 states, 128 bytes a state what their costs take.
    scratch = (
        ((2200 * search_cols(n_cols)) << (profile.state_bits - 10)) + (128 << profile.state_bits) + n_cols
        if codec == "hhtl_t"
        else 8 * MAX_PALETTE_K * n_cols
    )
    return block + scratch + 2 * result_nbytes(codec, n_rows, n_cols)


def found_nbytes(codec: str, key: PaletteGroupKey, n_tensors: int) -> int:
    """Return the bytes that finding what a group shares takes at most; with "hhtl_f32" also a tensor's palette."""
    n_rows, n_cols = key.shape
    if codec == "hhtl_t":
        return decide_nbytes(n_rows * n_tensors, n_cols)
    basis = basis_nbytes(min(n_rows, SAMPLE_ROWS), n_cols) if should_use_leaf(key.role) else 0
    if codec == "hhtl_f32":  # furthest-point sampling holds all rows, and their 8-bit shadow
        return max(basis, n_rows * (5 * n_cols + 64) + 12 * MAX_PALETTE_K * n_cols)
    return max(basis, n_rows * 200 + 16 * MAX_PALETTE_K * n_cols)


# ---- tasks ----


class Coded(NamedTuple):
    """What coding a run of rows gave.

    Attributes
    ----------
    parts : dict of kind to bytes as an array
    crcs : dict of kind to CRC-32 of these bytes
    cosines : ndarray of float64, shape (n_rows,)
        Of every row with what the bytes decode to, in the type of the source.
    source_crc : int
        CRC-32 of the rows that were read, as float32.
    """

    parts: dict[str, NDArray[Any]]
    crcs: dict[str, int]
    cosines: NDArray[np.float64]
    source_crc: int


def _blocks(coder: Coder, rows: Rows, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = block_rows(coder.codec, rows.n_cols)
    for first in range(start, stop, step):
        yield first, rows.read(first, min(first + step, stop))


def peak_of_rows(code: GroupCode, own: Any, rows: Rows, start: int, stop: int) -> float:
    """Return the largest magnitude that Slot L must hold for rows [start, stop)."""
    coder = code.coder(own)
    return float(np.max([coder.peak(block, first) for first, block in _blocks(coder, rows, start, stop)], initial=0))


def code_rows(
    code: GroupCode, own: Any, rows: Rows, start: int, stop: int, scale: float | None, dtype: DType = FLOAT32
) -> Coded:
    """Code rows [start, stop) and measure what is given back of them in the source's type."""
    coder = code.coder(own)
    kinds = [kind for kind, width in coder.layout().items() if isinstance(width, int)]
    parts: dict[str, list[NDArray[Any]]] = {kind: [] for kind in kinds}
    cosines, source_crc = [], 0
    for first, block in _blocks(coder, rows, start, stop):
        source_crc = zlib.crc32(as_bytes(block), source_crc)
        tensor = coder.encode(block, first, scale)
        for kind in kinds:
            parts[kind].append(getattr(tensor, kind))
        cosines.append(judged_cosines(block, rounded(tensor.reconstruct_rows(), dtype)))
    whole = {kind: np.concatenate(blocks) for kind, blocks in parts.items()}
    crcs = {kind: zlib.crc32(as_bytes(array)) for kind, array in whole.items()}
    return Coded(whole, crcs, np.concatenate(cosines), source_crc)
