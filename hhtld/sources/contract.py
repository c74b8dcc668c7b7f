"""Where tensors come from: the one door through which anything is read for encoding or writing.

A source knows names, element types and shapes, and gives rows as the bytes they are. Rows are those of the matrix
that `hhtld.matrix` finds in a shape; a tensor of fewer than two axes is one row. Formats implement `TensorSource`;
a dict of arrays is one too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels
from hhtld.dtypes import dtype_of, view, widen
from hhtld.errors import ClosedError, NonFiniteError, shown
from hhtld.matrix import TensorInfo, checked_name
from hhtld.sizes import MAX_DIMENSIONS
from hhtld.storage.file_names import check_together, checked_file_name

__all__ = [
    "ADDS",
    "ArraySource",
    "SourceRows",
    "TensorSource",
    "requested_tensor",
]

ADDS = "adds"  # among `TensorSource.uses`: the tensor is added, or a state, and not what a layer multiplies by


class TensorSource(ABC):
    """A readable collection of named tensors; a context manager that closes what it opened."""

    @property
    def metadata(self) -> dict[str, str]:
        """Free-form text that came with the tensors."""
        return {}

    @property
    def description(self) -> dict[str, Any]:
        """JSON-able facts of the collection that come back on decoding (config, shard names)."""
        return {}

    @property
    def is_stored(self) -> bool:
        """Whether it lies somewhere and can be looked at again: a pack then says which rows it was made from."""
        return True

    @abstractmethod
    def infos(self) -> Mapping[str, TensorInfo]:
        """Return every tensor by name, in the source's own order."""

    @abstractmethod
    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return rows [start, stop) as bytes, shape (stop - start, row_nbytes), C-contiguous."""

    def aliases(self) -> Mapping[str, str]:
        """Return names that share another tensor's storage, as the source itself declares."""
        return {}

    @property
    def notes(self) -> list[str]:
        """What a user should know of what is read, one sentence each."""
        return []

    @property
    def declared_quantization(self) -> str | None:
        """How the source says that its weights are quantized, if they are not given as what they mean."""
        return None

    def quantized(self) -> Mapping[str, str] | None:
        """Return the tensors that hold quantized weights, scales or zero points, and what uses them so.

        None if the source does not know: then names and types tell, see `hhtld.sources.quantized`.
        """
        return None

    def uses(self) -> Mapping[str, frozenset[str]]:
        """Return the operators that take a tensor, or `ADDS`, if the source comes with a graph."""
        return {}

    def decoded(self) -> frozenset[str]:
        """Return the tensors whose rows a pack gives back, so that coding them codes them a second time."""
        return frozenset()

    def regimes(self) -> Mapping[str, tuple[str, str]]:
        """Return the regimes that the source has on record for tensors, with what decided for them."""
        return {}

    def stored(self, name: str) -> tuple[str, int]:
        """Return the type and the bytes that a tensor has where it is stored, its scales included."""
        info = self.infos()[name]
        return info.dtype.name, info.nbytes

    def files(self) -> Mapping[str, int]:
        """Return the bytes of the model's files beside its weights, see `hhtld.storage.side_files`."""
        return {}

    def read_file(self, name: str) -> bytes:
        """Return the content of one of `files`."""
        raise KeyError(name)

    @property
    def file_notes(self) -> list[str]:
        """Which side files come along and what stays behind, for whoever takes them along, one sentence each."""
        return []

    def check_unchanged(self) -> None:
        """Raise where others who read it for this process may have read something else; reading itself looks, too."""

    def close(self) -> None:
        """Release what is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.infos())

    def __contains__(self, name: object) -> bool:
        return name in self.infos()

    def read_elements(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return elements [start, stop) of a type of whole bytes as flat bytes; the rows they lie in are read."""
        info = self.infos()[name]
        if start >= stop:
            return np.empty(0, np.uint8)
        first, last, width = start // info.n_cols, -(-stop // info.n_cols), info.dtype.nbits // 8
        rows = self.read_rows(name, first, last).reshape(-1)
        return rows[(start - first * info.n_cols) * width : (stop - first * info.n_cols) * width]

    def read_tensor(self, name: str) -> NDArray[Any]:
        """Return a whole tensor in its own element type and shape."""
        info = self.infos()[name]
        return view(self.read_rows(name, 0, info.n_rows), info.dtype, info.shape)


def requested_tensor(
    infos: Mapping[str, TensorInfo], name: str, start: int, stop: int, place: object, *, closed: bool = False
) -> TensorInfo:
    """Return the tensor whose rows [start, stop) a reader is asked for: what every `read_rows` of a file checks first.

    Parameters
    ----------
    infos : mapping of str to TensorInfo
        What the source holds.
    name : str
    start, stop : int
    place : path or Url
        Of the source, for messages.
    closed : bool
        Whether the source was closed.

    Raises
    ------
    ClosedError
        If the source was closed.
    ValueError
        For a tensor that the source does not hold, or rows that the tensor does not have.
    """
    if closed:
        raise ClosedError(f"{place} is closed")
    info = infos.get(name)
    if info is None:
        raise ValueError(f"{place}: no tensor {shown(name)}")
    if not 0 <= start <= stop <= info.n_rows:
        raise ValueError(f"tensor {shown(name)} has rows 0..{info.n_rows}, got [{start}, {stop})")
    return info


class SourceRows:
    """The float32 rows of one weight tensor, read on demand and refused when not finite.

    Parameters
    ----------
    source : TensorSource
    name : str
    n_cols : int, optional
        Elements of a row, if a pack has other rows than the tensor's shape says.

    Attributes
    ----------
    n_rows, n_cols : int
    """

    def __init__(self, source: TensorSource, name: str, n_cols: int | None = None) -> None:
        self._source = source
        self._info = source.infos()[name]
        self.n_rows, self.n_cols = self._info.n_rows, self._info.n_cols
        if n_cols is not None and n_cols != self.n_cols:
            self.n_rows, self.n_cols = math.prod(self._info.shape) // n_cols, n_cols

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), float32, shape (stop - start, n_cols).

        Raises
        ------
        NonFiniteError
            Naming the tensor, the row and the column.
        """
        if self.n_cols == self._info.n_cols:
            raw = self._source.read_rows(self._info.name, start, stop)
        else:
            raw = self._source.read_elements(self._info.name, start * self.n_cols, stop * self.n_cols)
        values = widen(raw, self._info.dtype)
        bad = _kernels._cast.first_nonfinite_f32(values)
        if bad >= 0:
            row, column = divmod(bad, self.n_cols)
            bad_value = view(raw, self._info.dtype, (-1,))[bad]
            is_finite = np.isfinite(bad_value)
            cause = "float32, which codecs compute in, ends at 3.4e38" if is_finite else "they must be finite"
            raise NonFiniteError(
                f"tensor {shown(self._info.name)} holds {bad_value} at row {start + row}, column {column}",
                f"such weights cannot be encoded: {cause}; nonfinite='keep' (--nonfinite keep) keeps the tensor as it "
                "is",
            )
        return values.reshape(stop - start, self.n_cols)


class ArraySource(TensorSource):
    """A dict of arrays, in any memory order and byte order; held, not copied, until rows are read."""

    def __init__(
        self,
        tensors: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        if not isinstance(tensors, Mapping):
            raise TypeError(f"expected a mapping of names to arrays, got {type(tensors).__name__}")
        self._arrays: dict[str, NDArray[Any]] = {}
        for name in sorted(map(checked_name, tensors)):
            array = tensors[name]
            if isinstance(array, np.ma.MaskedArray):
                raise TypeError(f"tensor {shown(name)} is a masked array; fill it first")
            self._arrays[name] = _as_array(name, array)
            if self._arrays[name].ndim > MAX_DIMENSIONS:  # numpy 2 has up to 64
                raise ValueError(
                    f"tensor {shown(name)} has {self._arrays[name].ndim} axes, and files hold at most {MAX_DIMENSIONS}"
                )
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(f"metadata must map str to str, got {type(metadata).__name__}")
        for part in [*(metadata or {}), *(metadata or {}).values()]:
            if not isinstance(part, str):
                raise TypeError(f"metadata must map str to str, got a {type(part).__name__}")
            if any("\ud800" <= letter <= "\udfff" for letter in part):
                raise ValueError(f"metadata {shown(part)} is not valid Unicode: it holds a lone surrogate")
        self._metadata = dict(metadata or {})
        self._files = {checked_file_name(name): bytes(data) for name, data in sorted((files or {}).items())}
        check_together(self._files)
        self._infos = {name: _info(name, array) for name, array in self._arrays.items()}

    @property
    def is_stored(self) -> bool:
        return False

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self._metadata)

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def files(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self._files.items()}

    def read_file(self, name: str) -> bytes:
        return self._files[name]

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info, array = requested_tensor(self._infos, name, start, stop, "the arrays"), self._arrays[name]
        if info.row_axes < 2:
            rows = array[start:stop] if info.row_axes else array.reshape(1, -1)[start:stop]
        elif array.size:
            rows = array[np.unravel_index(np.arange(start, stop), array.shape[: info.row_axes])]
        else:  # which may have 2**48 rows
            rows = array.reshape(-1)
        # Contiguous and little-endian here, once: a buffer handed on raw would be wrong in silence.
        plain = np.ascontiguousarray(rows, dtype=info.dtype.numpy)
        return plain.reshape(-1).view(np.uint8).reshape(stop - start, info.row_nbytes)


def _as_array(name: str, values: Any) -> NDArray[Any]:
    """Return what numpy makes of a value; what it cannot take, as torch's bfloat16, is refused by name."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        if type(values).__module__.partition(".")[0] == "torch":
            advice = "write a file with safetensors.torch.save_file and convert that"
        else:
            advice = "give an array, or lists of equal length"
        raise TypeError(
            f"numpy makes no array of tensor {shown(name)}, {type(values).__name__}: {error}; {advice}"
        ) from error


def _info(name: str, array: NDArray[Any]) -> TensorInfo:
    try:
        return TensorInfo(name, dtype_of(array), array.shape)
    except TypeError as error:
        raise TypeError(f"tensor {shown(name)}: {error}") from None
