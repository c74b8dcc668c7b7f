"""Tensors of one role and shape that share a palette, its tables and a basis.

Everything shared is built from the first tensor: the palette and the Fisher z representatives from all
its rows, the basis from its first 4096.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld.codecs.tensors import HhtlDTensor, representatives
from hhtld.slots.base17 import BASE17_NBYTES, Base17
from hhtld.slots.basis import SAMPLE_ROWS, SvdBasis
from hhtld.slots.entries import Entries
from hhtld.slots.fisher_z import FisherZTable
from hhtld.slots.palette import MAX_PALETTE_K, HhtlCache, Palette, build_hip_families, checked_palette_k
from hhtld.sources.rows import Rows, as_rows

__all__ = [
    "INDEX_ROLES",
    "PaletteGroupKey",
    "SharedPaletteGroup",
    "build_group_with_fisher_z",
    "build_group_with_leaf",
    "sample_basis",
]

INDEX_ROLES = frozenset({"embed", "lm_head"})  # rows are looked up by index, so that each must keep its identity


@dataclass(frozen=True, order=True)
class PaletteGroupKey:
    """What tensors must agree in to share a group.

    Attributes
    ----------
    component, role : str
    shape : (int, int)
        Rows and columns.
    regime : str
        "index" or "argmax"; what the role implies, where none is given.
    """

    component: str
    role: str
    shape: tuple[int, int]
    regime: str = ""

    def __post_init__(self) -> None:
        if not self.regime:
            object.__setattr__(self, "regime", self.implied_regime)

    @property
    def implied_regime(self) -> str:
        """The regime that the role implies."""
        return "index" if self.role in INDEX_ROLES else "argmax"

    def __str__(self) -> str:
        text = f"{self.component}/{self.role} {self.shape[0]} x {self.shape[1]}"
        return text if self.regime == self.implied_regime else f"{text}, {self.regime}"


def sample_basis(rows: Rows) -> SvdBasis:
    """Build the lookup grade's basis of a group from its first tensor."""
    return SvdBasis.build(rows.read(0, min(rows.n_rows, SAMPLE_ROWS)))


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
    cache: HhtlCache
    hip_assignments: NDArray[np.uint8]
    fisher_z: FisherZTable
    svd_basis: SvdBasis | None = None
    tensor_entries: dict[str, Entries] = field(default_factory=dict)
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
        rows = as_rows(rows)
        dims = Base17.fold(rows, executor)
        cache = HhtlCache(Palette.build(dims, k))
        table = FisherZTable.build(representatives(rows, dims, cache))
        basis = sample_basis(rows) if leaf else None
        return cls(key, cache, build_hip_families(cache.palette), table, basis)

    def encode(self, rows: Rows | ArrayLike, executor: Executor | None = None) -> HhtlDTensor:
        """Encode one tensor's rows with what the group shares."""
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
    tensors: Iterable[tuple[str, Rows | ArrayLike]],
    k: int,
    leaf: bool,
    executor: Executor | None,
) -> SharedPaletteGroup:
    k = checked_palette_k(k)
    group: SharedPaletteGroup | None = None
    for name, rows in tensors:
        group = group or SharedPaletteGroup.found(key, rows, leaf, k, executor)
        group.add(name, rows, executor)
    if group is None:
        raise ValueError(f"group {key} has no tensors")
    return group


def build_group_with_fisher_z(
    key: PaletteGroupKey,
    tensors: Iterable[tuple[str, Rows | ArrayLike]],
    k: int = MAX_PALETTE_K,
    executor: Executor | None = None,
) -> SharedPaletteGroup:
    """Build a group without Slot L: 4 bytes a row.

    Parameters
    ----------
    key : PaletteGroupKey
    tensors : iterable of (name, rows)
        Finite rows of the key's shape; what is shared is built from the first.
    k : int
        Most entries of the palette, 1..256.
    executor : concurrent.futures.Executor, optional
        Threads to spread blocks of rows over.

    Raises
    ------
    ValueError
        When `k` is outside 1..256, rows have another shape than the key's, or there are no tensors.
    """
    return _build(key, tensors, k, False, executor)


def build_group_with_leaf(
    key: PaletteGroupKey,
    tensors: Iterable[tuple[str, Rows | ArrayLike]],
    k: int = MAX_PALETTE_K,
    executor: Executor | None = None,
) -> SharedPaletteGroup:
    """Build a group as its role asks: with Slot L on a shared basis, 12 bytes a row, where rows are looked up by index.

    Every other role gives what `build_group_with_fisher_z` gives, which also tells the parameters and errors.
    """
    return _build(key, tensors, k, key.role in INDEX_ROLES, executor)
