"""A tensor of a pack, sliced as safetensors slices: along the axes that count rows, without decoding the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import shown
from hhtld.pack.table import TensorRecord

if TYPE_CHECKING:
    from hhtld.pack.pack import HhtldPack

__all__ = ["PackSlice"]


class PackSlice:
    """A tensor to be sliced along the axes that count its rows without decoding the rest."""

    def __init__(self, pack: HhtldPack, record: TensorRecord) -> None:
        self._pack = pack
        self._record = record

    def __repr__(self) -> str:
        return f"<PackSlice {self._record.name!r}, {self.get_dtype()} {self.get_shape()}>"

    def get_shape(self) -> list[int]:
        """Return the source shape."""
        return list(self._record.info.shape)

    def get_dtype(self) -> str:
        """Return the source type's name."""
        return self._record.info.dtype.name

    def __getitem__(self, key: Any) -> NDArray[Any]:
        name, info = self._record.name, self._record.info
        if info.dtype.numpy is None:
            raise TypeError(f"tensor {shown(name)} is packed {info.dtype.name}; its bytes come with get_tensor")
        parts = key if isinstance(key, tuple) and key else (key,)
        of_rows, rest = parts[: info.row_axes], parts[info.row_axes :]
        by_row = all(isinstance(part, int | slice | np.integer) and not isinstance(part, bool) for part in of_rows)
        if not info.has_rows or not by_row or not info.nbytes:
            return np.asarray(self._pack.get_tensor(name)[key])
        if info.row_axes == 1 and isinstance(of_rows[0], slice):
            rows = self._pack.get_rows(name, of_rows[0])
            return np.asarray(rows.reshape(len(rows), *info.shape[1:])[(slice(None), *rest)])
        numbers = _row_numbers(info.shape[: info.row_axes], of_rows)
        rows = self._pack.get_rows(name, numbers.reshape(-1))
        rows = rows.reshape(*numbers.shape, *info.shape[info.row_axes :])
        # Beside lists and masks, numpy takes a number for a list: here it picks from the one row that was read for it.
        of_read = [slice(None) if isinstance(part, slice) else 0 for part in of_rows]
        return np.asarray(rows[(*of_read, *rest)])


def _row_numbers(sizes: Sequence[int], parts: Sequence[Any]) -> NDArray[np.intp]:
    """Return the numbers of the rows that numbers and slices of their axes pick, an axis for each of these."""
    numbers: NDArray[np.intp] = np.zeros((), np.intp)
    for axis, size in enumerate(sizes):
        part = parts[axis] if axis < len(parts) else slice(None)
        picked = np.arange(*part.indices(size)) if isinstance(part, slice) else np.array([range(size)[part]])
        numbers = np.asarray(np.add.outer(numbers * size, picked), np.intp)
    return numbers
