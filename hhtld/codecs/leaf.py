"""What the lookup and the palette codec share: one entry a row, and an optional Slot L upon it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _leaf
from hhtld.codecs.base import EncodedTensor, ReadPart, SearchTerms
from hhtld.codecs.view import TensorView
from hhtld.errors import HeaderError
from hhtld.identity import SLOT_L_LANES, PaletteGroupKey
from hhtld.slots.basis import SAMPLE_ROWS, SvdBasis
from hhtld.sources.rows import Rows

__all__ = ["LeafTensor", "read_basis", "read_leaf", "sample_basis"]


def sample_basis(rows: Rows) -> SvdBasis:
    """Build the basis of a group from its first tensor."""
    return SvdBasis.build(rows.read(0, min(rows.n_rows, SAMPLE_ROWS)))


def read_basis(key: PaletteGroupKey, sections: Mapping[str, Any]) -> SvdBasis | None:
    """Return a group's basis from its sections, None if it has none, or raise `ValueError`."""
    if "basis" not in sections:
        return None
    basis = SvdBasis.from_bytes(sections["basis"])
    if basis.n_cols != key.shape[1]:
        raise HeaderError(f"group {key}: the basis has {basis.n_cols} columns")
    return basis


def read_leaf(part: ReadPart, leaf_scale: float | None, basis: SvdBasis | None) -> dict[str, Any]:
    """Return the arguments of a tensor that say its Slot L; none without a scale."""
    if leaf_scale is None:
        return {}
    codes = part("slot_l", SLOT_L_LANES).view(np.int8).reshape(-1, SLOT_L_LANES)
    return {"slot_l": codes, "slot_l_scale": leaf_scale, "svd_basis": basis}


class LeafTensor(EncodedTensor):
    """Rows of one entry each and an optional Slot L upon it."""

    budget: int | None
    twigs: Any

    slot_l: NDArray[np.int8] | None
    slot_l_scale: float | None
    svd_basis: SvdBasis | None

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

    def _leaf_view(self, parts: Mapping[str, NDArray[Any]], **slots: Any) -> TensorView:
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
            When the length is no multiple of 8.
        """
        if len(data) % SLOT_L_LANES:
            raise ValueError(f"{len(data)} bytes are not a multiple of {SLOT_L_LANES}")
        return np.frombuffer(data, np.int8).reshape(-1, SLOT_L_LANES)
