"""A pack: named tensors, encoded or kept, read row by row without unpacking the rest."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from hhtld import pack, storage
from hhtld.codecs.base import EncodedTensor, RowIndex, selected_rows
from hhtld.dtypes import DTYPES
from hhtld.errors import ClosedError, FormatError, HeaderError, did_you_mean, shown
from hhtld.pack.table import PackTable, TensorRecord
from hhtld.registry import later

if TYPE_CHECKING:
    from hhtld.pack.decoded_rows import HeldRows
    from hhtld.pack.group_codes import GroupCodes
    from hhtld.pack.prefetch import Ahead, Ready
    from hhtld.pack.row_cache import CacheInfo, RowCache
    from hhtld.pack.row_request import RowRequest
    from hhtld.pack.section_interfaces import SectionReader
    from hhtld.pack.slices import PackSlice
    from hhtld.search.scorer import Scorer
    from hhtld.slots.class_layout import RowPlaces
    from hhtld.storage.thread_pool import Threads
else:
    CacheInfo = later("hhtld.pack.row_cache:CacheInfo")
    SectionReader = later("hhtld.pack.section_interfaces:SectionReader")
    PackSlice = later("hhtld.pack.slices:PackSlice")
    Scorer = later("hhtld.search.scorer:Scorer")

__all__ = [
    "HhtldPack",
]

DEFAULT_BUDGET = 64 << 30
_FLOAT64 = DTYPES["F64"]
_SEARCHED_NBYTES = 64 << 20  # of a tensor that a search may hold if it has to read it


def check_budget_option(budget: object) -> None:
    """Raise `TypeError` or `ValueError` for what is no number of bytes."""
    if isinstance(budget, bool) or not isinstance(budget, SupportsIndex):
        raise TypeError(f"budget must be a whole number of bytes, got {budget!r}")
    if operator.index(budget) < 0:
        raise ValueError(f"budget must be a number of bytes, 0 or more, got {budget!r}")


class HhtldPack:
    """Tensors by name, decoded on request.

    A context manager. Safe to read from many threads. Sections that are read whole have their
    checksum verified the first time; rows read one by one do not (`hhtld verify` checks everything).

    Parameters
    ----------
    table : PackTable
    sections : SectionReader
    budget : int
        Bytes that decoding or searching one tensor may take, and what is kept of all of them. A row costs a few
        bytes in the file whatever its width, so a small file can declare a tensor that no machine holds.
    n_threads : int or None
        Threads that decode thousands of rows: at most this many, and at most as many as there are processors. None is
        as many as there are processors.
    """

    def __init__(
        self, table: PackTable, sections: SectionReader, budget: int = DEFAULT_BUDGET, n_threads: int | None = 1
    ) -> None:
        self.table = table
        self.sections = sections
        self.budget = budget
        self._n_threads = n_threads
        self._ahead: Ahead[HeldRows] | None = None
        self._places: dict[str, RowPlaces] = {}
        self.reopen: Callable[[], HhtldPack] | None = None  # what another process calls for a pack that is sent to it
        path = getattr(sections, "path", None)
        self._place = "" if path is None else f"{path}: "  # what errors of content begin with, as those of structure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file; arrays already given out stay valid."""
        self.sections.close()
        if self._ahead is not None:
            self._ahead.close()
        if "_threads" in self.__dict__:  # they were needed
            self._threads.close()
        self._places.clear()

    def keys(self) -> list[str]:
        """Return the names in ascending order."""
        return list(self.table.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.table.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.table.tensors

    @property
    def closed(self) -> bool:
        """Whether the file was released."""
        return bool(getattr(self.sections, "closed", False))

    def __repr__(self) -> str:
        count = f"{len(self):,} tensor{'' if len(self) == 1 else 's'}"
        return f"<HhtldPack {self._place}{count}, profile {self.table.profile}{', closed' if self.closed else ''}>"

    def _repr_html_(self) -> str:
        from hhtld.pack.notebook import card

        rows = (
            (name, record.info.dtype.name, list(record.info.shape), record.codec, f"{self.nbytes(name):,}")
            for name, record in self.table.tensors.items()
        )
        headings = ("tensor", "type", "shape", "codec", "bytes")
        return card(repr(self)[1:-1], {"metadata": self.metadata()}, headings, rows)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        if self.reopen is None:
            return super().__reduce_ex__(protocol)
        if self.closed:
            raise ClosedError(f"{self._place}the pack is closed")
        return self.reopen, ()

    def metadata(self) -> dict[str, str]:
        """Return the source's own metadata."""
        return dict(self.table.metadata)

    def files(self) -> dict[str, int]:
        """Return the side files that travel with the tensors (config, tokenizer, ...), name to bytes."""
        return {name: self.sections.nbytes(index) for name, index in self.table.files.items()}

    def read_file(self, name: str) -> bytes:
        """Return a side file's content, its checksum verified."""
        if name not in self.table.files:
            raise KeyError(f"no file {name!r} in the pack{did_you_mean(name, self.table.files)}")
        return self.sections.whole(self.table.files[name]).tobytes()

    def info(self, name: str) -> TensorRecord:
        """Return what a tensor was and became; for an alias, the record of the bytes it shares."""
        return self.table.resolved(name)

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor's own sections; shared ones and aliases count nothing."""
        return sum(self.sections.nbytes(i) for i in self.table.tensors[name].sections.values())

    def get_tensor(self, name: str, dtype: str = "float32", levels: int = 2) -> NDArray[Any]:
        """Return a whole tensor in its source shape.

        Parameters
        ----------
        name : str
        dtype : {"float32", "source"}
            "float32" decodes weights to float32 (tensors that are not weights come as they are);
            "source" rounds them back to the type they had. Of kept tensors float64 alone is rounded, and only to
            float32; "source" gives every kept tensor as it came. A kept tensor in its own type may be the file's
            memory, mapped and read-only: copy it to change it. What is decoded, and what `get_rows` gives, is the
            caller's.
        levels : {2, 1}
            1 leaves out, and does not read, the second level of Slot T if a tensor has one.

        Raises
        ------
        RangeError
            For a float64 tensor that was kept because float32 does not hold it, unless `dtype` is "source".
        """
        record = self.table.resolved(name)
        if dtype not in ("float32", "source"):
            raise ValueError(f"dtype must be 'float32' or 'source', got {dtype!r}")
        self._groups.afford(record, record.info.n_rows)
        held = self._held(record, slice(None), levels)
        if isinstance(held, EncodedTensor):
            decoded: NDArray[Any] = held.reconstruct_rows()
        else:
            decoded = held
            if dtype != "source" and record.info.dtype is _FLOAT64:
                pack.decoded_rows.refuse_beyond_float32(record, held, range(record.info.n_rows))
        self.sections.check_unchanged()
        shape = (-1,) if record.info.dtype.numpy is None else record.info.shape
        return pack.decoded_rows.typed(record, decoded, dtype).reshape(shape)

    def get_rows(
        self,
        name: str,
        rows: RowIndex,
        out: NDArray[Any] | None = None,
        dtype: str = "float32",
        levels: int = 2,
    ) -> NDArray[Any]:
        """Return the given rows, shape (n, n_cols), reading their bytes and no other rows'.

        Thousands of rows at once cost the least: each is read once, in the order of the file, however often and in
        whatever order it is asked for, and blocks of them are decoded by threads.

        Parameters
        ----------
        name : str
            A tensor of at least two axes; rows of packed types must fill whole bytes.
        rows : sequence of int, slice or None
            In any order, repeats allowed; negative ones count from the end. They are rows of the matrix that
            `info(name).info` counts, in the order of the elements: of experts (n_experts, n_out, n_in) row
            ``expert * n_out + out``, of a convolution the filter's number.
        out : ndarray, shape (n, n_cols), optional
            What is filled and returned, of the type that `dtype` gives.
        dtype : {"float32", "bfloat16", "float16", "source"}
            The first three are what weights are decoded or rounded to; bfloat16 is that of `ml_dtypes`. "source" is as
            in `get_tensor`. Tensors that are not weights come as they are.
        levels : as in `get_tensor`

        Raises
        ------
        IndexError
            For a row that the tensor does not have.
        ValueError
            For a tensor without rows, another `dtype`, or an `out` of another shape or type.
        RangeError
            For rows of a kept float64 tensor that float32 does not hold, unless `dtype` is "source".
        FormatError
            If the file was cut or written to since it was opened, or its content breaks a rule of the format.
        OSError
            If it cannot be read.
        """
        record = self.table.resolved(name)
        info = record.info
        if not info.has_rows:
            raise ValueError(f"tensor {shown(name)}, {info.dtype.name} {info.shape}, has no rows; use get_tensor")
        if dtype not in pack.decoded_rows.ROW_DTYPES:
            known = ", ".join(map(repr, pack.decoded_rows.ROW_DTYPES))
            raise ValueError(f"dtype must be one of {known}, got {dtype!r}")
        request = pack.row_request.RowRequest.of(selected_rows(info.n_rows, rows), info.n_rows)
        self._groups.afford(record, request.n_rows)
        ahead = None if self._ahead is None else self._read_ahead(record, request, levels)
        held, places = ahead or (self._held(record, request.rows, levels), None)
        if info.dtype is _FLOAT64 and dtype != "source" and not isinstance(held, EncodedTensor):
            numbers = range(info.n_rows)[request.rows] if isinstance(request.rows, slice) else request.rows
            pack.decoded_rows.refuse_beyond_float32(record, held if places is None else held[places], numbers)
        decode_blocks, threads = pack.decoded_rows.decode_blocks, lambda: self._threads
        if request.repeats and not isinstance(request.rows, slice):
            distinct = decode_blocks(record, dtype, threads, held, places, len(request.rows))
            if out is None:
                decoded = distinct[request.picks]
            else:
                decoded = pack.decoded_rows.checked_out(out, (request.n_rows, *distinct.shape[1:]), distinct.dtype)
                decoded[:] = distinct[request.picks]
        else:
            picks = request.picks if places is None else places if request.picks is None else places[request.picks]
            decoded = decode_blocks(record, dtype, threads, held, picks, request.n_rows, out)
        self.sections.check_unchanged()
        return decoded if decoded.flags.writeable else decoded.copy()

    def prefetch(self, name: str, rows: RowIndex, levels: int = 2) -> None:
        """Begin to read rows, and return at once: the `get_rows` that asks for them, or for some of them, finds them.

        The rows are kept packed until they are asked for. Of calls whose rows nobody asked for, the last 16 are kept.
        What goes wrong while they are read is raised by that `get_rows`.

        Parameters
        ----------
        name, rows, levels : as in `get_rows`

        Raises
        ------
        KeyError, IndexError, ValueError
            As `get_rows`.
        """
        record = self.table.resolved(name)
        if not record.info.has_rows:
            raise ValueError(f"tensor {shown(name)} has no rows; use get_tensor")
        if self.closed:
            raise ClosedError(f"{self._place}the pack is closed")
        wanted = pack.row_request.RowRequest.of(selected_rows(record.info.n_rows, rows), record.info.n_rows).rows
        if isinstance(wanted, slice):
            wanted = _numbers(wanted, record)
        if self._ahead is None:
            from hhtld.pack.prefetch import Ahead  # which a pack that is only read as it comes does not need

            self._ahead = Ahead()
        if len(wanted):
            self._ahead.begin((record.name, levels), wanted, lambda rows: self._held(record, rows, levels))

    def cache_info(self) -> CacheInfo:
        """Return what the cache of rows that `hhtld.open(path, row_cache=...)` asked for did and holds."""
        from hhtld.pack.row_cache import CacheInfo

        cache: RowCache | None = getattr(self.sections, "cache", None)
        return CacheInfo(0, 0, 0, 0) if cache is None else cache.info()

    def get_slice(self, name: str) -> PackSlice:
        """Return an object to slice, as safetensors' `get_slice` does."""
        from hhtld.pack.slices import PackSlice

        return PackSlice(self, self.table.resolved(name))

    def get_encoded(self, name: str, rows: RowIndex = None) -> EncodedTensor:
        """Return an encoded tensor's slots: all rows, checksums verified, or the given rows alone.

        Of a mapped file they are views of the map: what is written to the file later is seen in them, and nothing
        says so, unlike in `get_rows` and in a scorer's answers. They stay what they were with io="pread".
        """
        record = self.table.resolved(name)
        if not record.is_encoded:
            raise ValueError(f"tensor {shown(name)} is kept as it came; use get_tensor")
        return self._encoded(record, None if rows is None else selected_rows(record.info.n_rows, rows))

    def scorer(self, name: str, levels: int = 2) -> Scorer:
        """Return what searches a tensor's rows without unpacking it; the checksums of its sections are verified.

        A tensor that is kept as it came is searched block by block. So is a table of more than 64 MiB in a file that is
        not mapped (io="pread" or "direct"): every search reads it again, 4 MiB at a time, and needs the pack open. What
        stays in memory is 4 bytes a row, and 12 bytes a row while the scorer is made; about 2 more if rows have rates
        of their own, because the pack remembers where they lie.

        Parameters
        ----------
        name : str
        levels : {2, 1}
            1 leaves the second level of Slot T out.
        """
        from hhtld.search.estimates import PlainRows, RowsInFile  # reading rows needs no search
        from hhtld.search.scorer import Scorer

        record = self.table.resolved(name)
        if record.info.n_cols == 0:
            raise ValueError(f"tensor {shown(name)}, {list(record.info.shape)}, has no columns to search")
        if record.is_encoded:
            self._groups.afford(record, 1, n_palettes=3)  # the palette's rows as float32, and in float64
            searched: EncodedTensor
            nbytes, n_rows = self.nbytes(record.name), record.info.n_rows
            if self.sections.reads_rows and nbytes > _SEARCHED_NBYTES and "slot_t" in record.sections:
                for index in record.sections.values():
                    self.sections.check(index)
                searched = RowsInFile((n_rows, record.info.n_cols), nbytes // n_rows, partial(self._encoded, record))
            else:
                searched = self.get_encoded(name)
            return Scorer(searched, record.gates, record.name, levels, self.sections.check_unchanged)
        if not (record.info.has_rows and record.info.dtype.is_weight):
            kind = f"{record.info.dtype.name} {list(record.info.shape)}"
            raise ValueError(f"tensor {shown(name)}, {kind}, has no rows of weights to search")
        plain = PlainRows((record.info.n_rows, record.info.n_cols), partial(self.get_rows, record.name))
        return Scorer(plain, None, record.name, levels)

    def check_groups(self) -> None:
        """Read what every group shares, and refuse what SPEC.md forbids; of groups that no tensor names, too.

        Raises
        ------
        FormatError
        """
        self._groups.check()

    # ---- decoding ----

    @cached_property
    def _groups(self) -> GroupCodes:
        """What the tensors of each group share."""
        return pack.group_codes.GroupCodes(self.table, self.sections, self.budget, self._place)

    @cached_property
    def _threads(self) -> Threads:
        """The threads that decode thousands of rows."""
        n_processors = storage.thread_pool.n_processors()
        return storage.thread_pool.Threads(min(self._n_threads or n_processors, n_processors))

    def _read_ahead(self, record: TensorRecord, request: RowRequest, levels: int) -> Ready[HeldRows] | None:
        """Return the rows of a request if they were read ahead."""
        if self._ahead is None or not self._ahead.is_waiting:
            return None
        rows = request.rows
        if isinstance(rows, slice):
            if request.n_rows != 1:
                return None
            rows = _numbers(rows, record)
        return self._ahead.take((record.name, levels), rows) if len(rows) else None

    def _held(self, record: TensorRecord, rows: NDArray[np.intp] | slice, levels: int) -> HeldRows:
        """Rows as they are held: an encoded tensor's slots, or a kept one's bytes."""
        if record.is_encoded:
            return self._encoded(record, None if isinstance(rows, slice) and rows == slice(None) else rows, levels)
        index = record.sections["raw"]
        is_whole = isinstance(rows, slice) and rows == slice(None)
        if is_whole or record.info.row_nbytes == 0:
            whole = self.sections.whole(index)
            if not record.info.has_rows:
                return whole
            by_row = whole.reshape(record.info.n_rows, record.info.row_nbytes)
            return by_row if is_whole else by_row[rows]
        self.sections.check_unchanged()
        return self.sections.rows(index, record.info.row_nbytes, rows)

    def _encoded(self, record: TensorRecord, rows: NDArray[np.intp] | slice | None, levels: int = 2) -> EncodedTensor:
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}")
        try:  # not `with`, whose cost is a tenth of what one row takes
            return self._assembled(record, rows, levels)
        except HeaderError as error:
            if str(error).startswith(self._place):  # what reads the file has named it already
                raise
            raise HeaderError(f"{self._place}{error}") from error
        except (FormatError, ClosedError):
            raise
        except ValueError as error:
            raise HeaderError(f"{self._place}tensor {shown(record.name)}: {error}") from error

    def _assembled(self, record: TensorRecord, rows: NDArray[np.intp] | slice | None, levels: int) -> EncodedTensor:
        assert record.group is not None
        self.sections.check_unchanged()
        code = self._groups.code(record.group, record.codec)
        part = pack.row_bytes.RowParts(self.sections, record, rows, self._places)
        return code.tensor(part, record.slot_l_scale, record.sections, self.budget, levels)


def _numbers(rows: slice, record: TensorRecord) -> NDArray[np.intp]:
    """The numbers of the rows of a slice."""
    return np.arange(*rows.indices(record.info.n_rows))
