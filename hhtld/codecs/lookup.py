"""The lookup codec: a tree address and a magnitude a row, 4 bytes, and 8 more with Slot L.

Its bytes are specified. It routes and looks up; rows of trained matrices are nearly orthogonal, so that it does not
reconstruct them.

Layout
------
Of a tensor: entries (`hhtld.slots.slot_d_v`), Slot L. Of a group: palette, Fisher z table, basis. All of what a group
shares is built from its first tensor: the palette and the Fisher z representatives from all rows, the basis from the
first 4096.

Edge cases
----------
The palette is found in folded rows of the group's first tensor: a row of zeros comes back as its entry, which is
mostly, but not always, one of zeros.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld import _kernels, slots
from hhtld.codecs.base import (
    Coder,
    EncodedTensor,
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
from hhtld.codecs.section_kinds import LOOKUP
from hhtld.errors import HeaderError
from hhtld.identity import (
    BASE17_NBYTES,
    ENTRY_NBYTES,
    INDEX_ROLES,
    MAX_PALETTE_K,
    SLOT_L_LANES,
    PaletteGroupKey,
    should_use_leaf,
)
from hhtld.registry import later

if TYPE_CHECKING:
    from hhtld.codecs.tensor_view import TensorView
    from hhtld.sources.rows import Rows
else:
    TensorView = later("hhtld.codecs.tensor_view:TensorView")
    Rows = later("hhtld.sources.rows:Rows")

__all__ = [
    "HhtlDTensor",
    "LeafTensor",
    "LookupCodec",
    "LookupGroup",
    "SharedPaletteGroup",
    "build_group_with_fisher_z",
    "build_group_with_leaf",
    "representatives",
]


class LookupCodec(SpecifiedCodec):
    """Slots D and V, and Slot L where rows are looked up by index."""

    id: ClassVar[str] = LOOKUP
    word: ClassVar[str] = "lookup"
    summary: ClassVar[str] = "tree address and magnitude (Slots D and V)"
    profiles: ClassVar[tuple[str, ...]] = ("lookup",)
    required: ClassVar[frozenset[str]] = frozenset({"entries"})
    optional: ClassVar[frozenset[str]] = frozenset({"slot_l"})

    def check_group(self, record: RecordCheck) -> dict[str, int]:
        if "palette" in record.nbytes:
            k = record.palette_size("palette", BASE17_NBYTES, f"entries of {BASE17_NBYTES} bytes")
            if "fisher_z" not in record.nbytes:
                raise HeaderError(f"{record.where}: a palette comes with its fisher_z table")
            record.size("fisher_z", 8 + k * k)
        elif "fisher_z" in record.nbytes:
            raise HeaderError(f"{record.where}: fisher_z without a palette")
        return {}

    def check_tensor(self, record: RecordCheck, group: RecordCheck) -> None:
        if "palette" not in group.nbytes:
            raise HeaderError(f"{record.where}: {group.where} has no palette")
        record.size("entries", record.n_rows * ENTRY_NBYTES)

    def find(self, request: GroupRequest) -> tuple[Callable[..., GroupCode | None], tuple[Any, ...]]:
        return LookupGroup.found, (request.key, request.rows[0])

    def read_group(self, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, int]) -> LookupGroup:
        return LookupGroup.read(key, sections)

    def finding_nbytes(self, key: PaletteGroupKey, n_tensors: int) -> int:
        n_rows, n_cols = key.shape
        return max(self.basis_nbytes(key), n_rows * 200 + 16 * MAX_PALETTE_K * n_cols)

    def predicted_nbytes(self, key: PaletteGroupKey) -> tuple[int, int]:
        (n_rows, n_cols), leaf = key.shape, should_use_leaf(key.role)
        k, vectors = min(MAX_PALETTE_K, n_rows), min(SLOT_L_LANES, n_rows, n_cols)
        shared = BASE17_NBYTES * k + 8 + k * k + (8 + vectors * (4 + 2 * n_cols) if leaf else 0)
        return n_rows * (ENTRY_NBYTES + (SLOT_L_LANES if leaf else 0)), shared

    def decoding_nbytes(self, group_nbytes: Mapping[str, int], n_cols: int) -> int:
        return 4 * (group_nbytes["palette"] // BASE17_NBYTES) * n_cols


class LeafTensor(EncodedTensor):
    """Rows of one entry each and an optional Slot L upon it."""

    budget: int | None
    twigs: Any

    slot_l: NDArray[np.int8] | None
    slot_l_scale: float | None
    svd_basis: slots.SvdBasis | None

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
            _kernels._leaf.reconstruct(centroids, picked, None, 0.0, None, out)
        else:
            codes = np.ascontiguousarray(self.slot_l[rows])
            _kernels._leaf.reconstruct(centroids, picked, codes, self.slot_l_scale, self.svd_basis.vectors, out)
        return out

    def _leaf_view(self, parts: Mapping[str, NDArray[Any]], **slots: Any) -> TensorView:
        from hhtld.codecs.tensor_view import TensorView

        leaf: dict[str, Any] = {}
        if self.slot_l is not None and self.svd_basis is not None:
            parts = {**parts, "slot_l": self.slot_l, "basis": self.svd_basis.bits}
            leaf = {"slot_l": self.slot_l, "slot_l_scale": self.slot_l_scale}
        return TensorView.of_parts(parts, twigs=self.twigs, basis=self.svd_basis, **leaf, **slots)

    def _leaf_terms(self, centroids: NDArray[np.float32], twigs: NDArray[np.uint8]) -> SearchTerms:
        return SearchTerms(centroids, twigs, self.svd_basis, self.slot_l, self.slot_l_scale)

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
            If the length is no multiple of 8.
        """
        if len(data) % SLOT_L_LANES:
            raise ValueError(f"{len(data)} bytes are not a multiple of {SLOT_L_LANES}")
        return np.frombuffer(data, np.int8).reshape(-1, SLOT_L_LANES)


@dataclass(frozen=True, eq=False)
class _LookupCoder(Coder):
    group: LookupGroup

    @property
    def has_leaf(self) -> bool:
        return self.group.basis is not None

    def layout(self) -> Layout:
        entries: Layout = {"entries": slots.ENTRY_DTYPE.itemsize}
        return entries | {"slot_l": SLOT_L_LANES} if self.has_leaf else entries

    def _plain(self, block: NDArray[np.float32]) -> HhtlDTensor:
        group = self.group
        basin, dims = slots.HeelBasin.from_role(group.role), slots.Base17.fold(block)
        entries = slots.encode_entries(basin, dims, group.cache, group.families)
        return HhtlDTensor(group.role, group.cache, entries, (len(block), block.shape[1]), group.fisher_z)

    def _coefficients(self, block: NDArray[np.float32], twigs: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert self.group.basis is not None
        return slots.leaf_coefficients(block, self.group.cache.unfolded(block.shape[1]), twigs, self.group.basis)

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        found = self._coefficients(block, self._plain(block).twigs)
        return float(np.abs(found).max(initial=np.float32(0)))

    def encode(self, block: NDArray[np.float32], start: int, leaf_scale: float | None) -> HhtlDTensor:
        tensor = self._plain(block)
        if leaf_scale is not None:
            codes = slots.quantized_leaf(self._coefficients(block, tensor.twigs), leaf_scale)
            tensor = replace(tensor, slot_l=codes, slot_l_scale=leaf_scale, svd_basis=self.group.basis)
        return tensor


@dataclass(frozen=True, eq=False)
class LookupGroup(GroupCode):
    """Slots D and V: a palette, its cosines, and a basis by role."""

    palette: slots.Palette
    fisher_z: slots.FisherZTable
    basis: slots.SvdBasis | None

    @classmethod
    def found(cls, key: PaletteGroupKey, rows: Rows) -> Self:
        """Return what a group shares, from its first tensor's rows."""
        group = SharedPaletteGroup.found(key, rows, should_use_leaf(key.role))
        return cls(key, slots.Palette(group.cache.palette.entries), group.fisher_z, group.svd_basis)

    @classmethod
    def read(cls, key: PaletteGroupKey, sections: Mapping[str, Any]) -> Self:
        """Return the code whose sections are given, or raise `ValueError`."""
        basis = read_basis(key, sections)
        palette = slots.Palette(slots.Base17.from_bytes(sections["palette"]))
        return cls(key, palette, slots.FisherZTable.from_bytes(sections["fisher_z"], len(palette)), basis)

    def sections(self) -> dict[str, bytes]:
        shared = {"palette": self.palette.entries.to_bytes(), "fisher_z": self.fisher_z.to_bytes()}
        return shared if self.basis is None else shared | {"basis": self.basis.to_bytes()}

    @cached_property
    def cache(self) -> slots.HhtlCache:
        """The palette with its tables."""
        return slots.HhtlCache(self.palette)

    @cached_property
    def families(self) -> NDArray[np.uint8]:
        """The HIP family of every palette entry."""
        return slots.build_hip_families(self.palette)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what is computed from them

    def coder(self, tensor_code: None) -> Coder:
        return _LookupCoder(self)

    def tensor(
        self, part: ReadPart, leaf_scale: float | None, kinds: Mapping[str, int], budget: int | None, levels: int = 2
    ) -> HhtlDTensor:
        entries = slots.entries_from_bytes(part("entries", ENTRY_NBYTES))
        shape = (len(entries), self.key.shape[1])
        leaf = read_leaf(part, leaf_scale, self.basis)
        return HhtlDTensor(self.role, self.cache, entries, shape, self.fisher_z, **leaf, budget=budget)

    @property
    def decoding_nbytes(self) -> int:
        return 0 if self.held_nbytes else 4 * self.cache.k * self.key.shape[1]

    @property
    def held_nbytes(self) -> int:
        return self.cache.unfolded_nbytes

    def forget(self) -> None:
        self.cache.forget_unfolded()


@dataclass(eq=False, repr=False)
class HhtlDTensor(LeafTensor):
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
    cache: slots.HhtlCache
    entries: slots.Entries
    original_shape: tuple[int, int]
    fisher_z: slots.FisherZTable | None = None
    slot_l: NDArray[np.int8] | None = field(default=None, kw_only=True)
    slot_l_scale: float | None = field(default=None, kw_only=True)
    svd_basis: slots.SvdBasis | None = field(default=None, kw_only=True)
    budget: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        n_rows = self.original_shape[0]
        if self.entries.dtype != slots.ENTRY_DTYPE or self.entries.shape != (n_rows,):
            raise ValueError(
                f"entries must be {n_rows} of {slots.ENTRY_DTYPE}, got {self.entries.shape} {self.entries.dtype}"
            )
        high = int(self.twigs.max(initial=0))
        if n_rows and high >= self.cache.k:
            row = int((self.twigs >= self.cache.k).argmax())
            raise ValueError(f"row {row} has twig {self.twigs[row]}, but the palette has {self.cache.k} entries")
        self._check_leaf()

    @property
    def basin(self) -> slots.HeelBasin:
        """The basin of the role."""
        return slots.HeelBasin.from_role(self.role)

    @cached_property
    def twigs(self) -> NDArray[np.uint8]:
        """Palette entry of every row."""
        return slots.twig(self.entries["slot_d"])

    @classmethod
    def encode(
        cls,
        role: str,
        rows: Rows | ArrayLike,
        cache: slots.HhtlCache,
        hip_assignments: NDArray[np.uint8],
        fisher_z: slots.FisherZTable | None = None,
        executor: Executor | None = None,
    ) -> Self:
        """Encode finite rows (n_rows, n_cols) against a palette.

        Without `fisher_z` the table is built from these rows; a group passes its own.
        """
        return cls._encode(role, rows, cache, hip_assignments, None, fisher_z, executor)

    @classmethod
    def encode_with_leaf(
        cls,
        role: str,
        rows: Rows | ArrayLike,
        cache: slots.HhtlCache,
        hip_assignments: NDArray[np.uint8],
        svd_basis: slots.SvdBasis,
        fisher_z: slots.FisherZTable | None = None,
        executor: Executor | None = None,
    ) -> Self:
        """Encode with Slot L on a shared basis: 12 bytes a row that keep its identity."""
        return cls._encode(role, rows, cache, hip_assignments, svd_basis, fisher_z, executor)

    @classmethod
    def _encode(
        cls,
        role: str,
        rows: Rows | ArrayLike,
        cache: slots.HhtlCache,
        hip_assignments: NDArray[np.uint8],
        svd_basis: slots.SvdBasis | None,
        fisher_z: slots.FisherZTable | None,
        executor: Executor | None,
    ) -> Self:
        from hhtld.sources.rows import as_rows

        rows = as_rows(rows)
        dims = slots.Base17.fold(rows, executor)
        entries = slots.encode_entries(slots.HeelBasin.from_role(role), dims, cache, hip_assignments)
        if fisher_z is None and rows.n_rows:
            fisher_z = slots.FisherZTable.build(representatives(rows, dims, cache))
        shape = (rows.n_rows, rows.n_cols)
        if svd_basis is None:
            return cls(role, cache, entries, shape, fisher_z)
        twigs = slots.twig(entries["slot_d"])
        slot_l, scale = slots.encode_leaf(rows, cache.unfolded(rows.n_cols), twigs, svd_basis, executor)
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

    def entry(self, row: int) -> slots.HhtlDEntry:
        """Return one row's slots, taken apart."""
        return slots.HhtlDEntry(int(self.entries[row]["slot_d"]), int(self.entries[row]["slot_v"]))

    def parts(self) -> dict[str, NDArray[Any]]:
        parts: dict[str, NDArray[Any]] = {"entries": self.entries}
        return parts if self.slot_l is None else parts | {"slot_l": self.slot_l}

    def view(self) -> TensorView:

        parts: dict[str, NDArray[Any]] = {"entries": self.entries, "palette": self.cache.palette.entries.dims}
        if self.fisher_z is not None:
            parts["fisher_z"] = self.fisher_z.codes
        return self._leaf_view(
            parts,
            slot_d=self.entries["slot_d"],
            magnitudes=self.entries["slot_v"],
            n_entries=self.cache.k,
            cache=self.cache,
            fisher_z=self.fisher_z,
        )

    def search_terms(self, levels: int = 2) -> SearchTerms:
        terms = self._leaf_terms(self.cache.unfolded(self.original_shape[1]), self.twigs)
        return replace(terms, routes=self.cache)

    def entries_to_bytes(self) -> bytes:
        """Return 4 bytes a row."""
        return self.entries.tobytes()

    @staticmethod
    def entries_from_bytes(data: bytes | memoryview) -> slots.Entries:
        """Read 4 bytes a row."""
        return slots.entries_from_bytes(data)

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


def representatives(rows: Rows, dims: slots.Base17, cache: slots.HhtlCache) -> NDArray[np.float32]:
    """Return for every palette entry the row nearest to it (first wins), or its unfold if it has none."""
    twigs, distances = cache.nearest(dims)
    out = cache.unfolded(rows.n_cols).copy()
    order = np.lexsort((np.arange(len(twigs)), distances, twigs))
    entries, first = np.unique(twigs[order], return_index=True)
    for entry, row in zip(entries, order[first], strict=True):
        out[entry] = rows.read(int(row), int(row) + 1)[0]
    return out


@dataclass(eq=False)
class SharedPaletteGroup:
    """What a group shares, and its tensors' rows.

    Attributes
    ----------
    key : PaletteGroupKey
    cache : HhtlCache
    hip_assignments : ndarray of uint8, shape (k,)
    fisher_z : FisherZTable
    svd_basis : SvdBasis or None
        None means a group without Slot L.
    tensor_entries : dict of str to structured ndarray (n_rows,)
    tensor_slot_l : dict of str to (ndarray of int8 (n_rows, 8), scale)
    """

    key: PaletteGroupKey
    cache: slots.HhtlCache
    hip_assignments: NDArray[np.uint8]
    fisher_z: slots.FisherZTable
    svd_basis: slots.SvdBasis | None = None
    tensor_entries: dict[str, slots.Entries] = field(default_factory=dict)
    tensor_slot_l: dict[str, tuple[NDArray[np.int8], float]] = field(default_factory=dict)

    @classmethod
    def found(
        cls,
        key: PaletteGroupKey,
        rows: Rows | ArrayLike,
        leaf: bool,
        k: int = MAX_PALETTE_K,
        executor: Executor | None = None,
    ) -> Self:
        """Build what the group shares from its first tensor's rows: a palette of at most k entries, with its tables."""
        from hhtld.sources.rows import as_rows  # decoding reads no source

        rows = as_rows(rows)
        dims = slots.Base17.fold(rows, executor)
        cache = slots.HhtlCache(slots.Palette.build(dims, k))
        table = slots.FisherZTable.build(representatives(rows, dims, cache))
        basis = sample_basis(rows) if leaf else None
        return cls(key, cache, slots.build_hip_families(cache.palette), table, basis)

    def encode(self, rows: Rows | ArrayLike, executor: Executor | None = None) -> HhtlDTensor:
        """Encode one tensor's rows with what the group shares."""
        from hhtld.sources.rows import as_rows

        rows = as_rows(rows)
        if (rows.n_rows, rows.n_cols) != self.key.shape:
            raise ValueError(f"group {self.key} cannot hold rows of shape ({rows.n_rows}, {rows.n_cols})")
        role = f"{self.key.component}_{self.key.role}"
        shared = (role, rows, self.cache, self.hip_assignments)
        if self.svd_basis is None:
            return HhtlDTensor.encode(*shared, self.fisher_z, executor)
        return HhtlDTensor.encode_with_leaf(*shared, self.svd_basis, self.fisher_z, executor)

    def add(self, name: str, rows: Rows | ArrayLike, executor: Executor | None = None) -> HhtlDTensor:
        """Encode one tensor and keep it under `name`."""
        if name in self.tensor_entries:
            raise ValueError(f"group {self.key} already holds {name!r}")
        tensor = self.encode(rows, executor)
        self.tensor_entries[name] = tensor.entries
        if tensor.slot_l is not None and tensor.slot_l_scale is not None:
            self.tensor_slot_l[name] = (tensor.slot_l, tensor.slot_l_scale)
        return tensor

    @property
    def tensor_names(self) -> list[str]:
        """Names in the order they were added."""
        return list(self.tensor_entries)

    def tensor(self, name: str) -> HhtlDTensor:
        """Return a kept tensor."""
        slot_l, scale = self.tensor_slot_l.get(name, (None, None))
        return HhtlDTensor(
            f"{self.key.component}_{self.key.role}",
            self.cache,
            self.tensor_entries[name],
            self.key.shape,
            self.fisher_z,
            slot_l=slot_l,
            slot_l_scale=scale,
            svd_basis=None if slot_l is None else self.svd_basis,
        )

    def slot_l_for(self, name: str) -> tuple[NDArray[np.int8], float] | None:
        """Return a tensor's Slot L and scale, or None."""
        return self.tensor_slot_l.get(name)

    def slot_l_byte_size(self) -> int:
        """Bytes of Slot L of all tensors."""
        return sum(slot_l.size for slot_l, _ in self.tensor_slot_l.values())

    def svd_basis_byte_size(self) -> int:
        """Bytes of the shared basis; 0 without Slot L."""
        return 0 if self.svd_basis is None else self.svd_basis.byte_size()

    def palette_byte_size(self) -> int:
        """Bytes of the shared palette."""
        return BASE17_NBYTES * self.cache.k


def _build(
    key: PaletteGroupKey,
    tensors: Mapping[str, Rows | ArrayLike] | Iterable[tuple[str, Rows | ArrayLike]],
    k: int,
    leaf: bool,
    executor: Executor | None,
) -> SharedPaletteGroup:
    k = slots.checked_palette_k(k)
    group: SharedPaletteGroup | None = None
    for name, rows in tensors.items() if isinstance(tensors, Mapping) else tensors:
        group = group or SharedPaletteGroup.found(key, rows, leaf, k, executor)
        group.add(name, rows, executor)
    if group is None:
        raise ValueError(f"group {key} has no tensors")
    return group


def build_group_with_fisher_z(
    key: PaletteGroupKey,
    tensors: Mapping[str, Rows | ArrayLike] | Iterable[tuple[str, Rows | ArrayLike]],
    k: int = MAX_PALETTE_K,
    executor: Executor | None = None,
) -> SharedPaletteGroup:
    """Build a group without Slot L: 4 bytes a row.

    Parameters
    ----------
    key : PaletteGroupKey
    tensors : mapping of name to rows, or iterable of (name, rows)
        Finite rows of the key's shape; what is shared is built from the first.
    k : int
        Most entries of the palette, 1..256.
    executor : concurrent.futures.Executor, optional
        Threads to spread blocks of rows over.

    Raises
    ------
    ValueError
        If `k` is outside 1..256, rows have another shape than the key's, or there are no tensors.
    """
    return _build(key, tensors, k, False, executor)


def build_group_with_leaf(
    key: PaletteGroupKey,
    tensors: Mapping[str, Rows | ArrayLike] | Iterable[tuple[str, Rows | ArrayLike]],
    k: int = MAX_PALETTE_K,
    executor: Executor | None = None,
) -> SharedPaletteGroup:
    """Build a group as its role asks: with Slot L on a shared basis, 12 bytes a row, where rows are looked up by index.

    Every other role gives what `build_group_with_fisher_z` gives, which also tells the parameters and errors.
    """
    return _build(key, tensors, k, key.role in INDEX_ROLES, executor)
