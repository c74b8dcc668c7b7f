"""A pack: named tensors, encoded or kept, read row by row without unpacking the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from hhtld.codecs import codec
from hhtld.codecs.base import EncodedTensor, GroupCode, RowIndex, selected_rows
from hhtld.dtypes import narrow, view, widen
from hhtld.errors import ClosedError, FormatError, HeaderError, did_you_mean, shown
from hhtld.pack.table import PackTable, TensorRecord

if TYPE_CHECKING:
    from hhtld.pack.sections import SectionReader
    from hhtld.pack.slices import PackSlice
    from hhtld.search.scorer import Scorer

__all__ = [
    "HhtldPack",
]

DEFAULT_BUDGET = 64 << 30


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
    """

    def __init__(self, table: PackTable, sections: SectionReader, budget: int = DEFAULT_BUDGET) -> None:
        self.table = table
        self.sections = sections
        self.budget = budget
        self._codes: dict[tuple[int, str], GroupCode] = {}
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
        from hhtld.pack.html_card import card

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
            "source" rounds them back to the type they had. Kept tensors lose nothing either way. A kept tensor in
            its own type may be the file's memory, mapped and read-only: copy it to change it. What is decoded, and
            what `get_rows` gives, is the caller's.
        levels : {2, 1}
            1 leaves out, and does not read, the second level of Slot T where a tensor has one.
        """
        record = self.table.resolved(name)
        self._afford(record, record.info.n_rows)
        return self._typed(record, self._decoded(record, None, levels), dtype).reshape(_shape(record, dtype, None))

    def get_rows(self, name: str, rows: RowIndex, dtype: str = "float32", levels: int = 2) -> NDArray[Any]:
        """Return the given rows, shape (n, n_cols), reading their bytes and no other rows'.

        Parameters
        ----------
        name : str
                A tensor of at least two axes; rows of packed types must fill whole bytes.
        rows : sequence of int, slice or None
            In any order, repeats allowed; negative ones count from the end. They are rows of the matrix that
            `info(name).info` counts, in the order of the elements: of experts (n_experts, n_out, n_in) row
            ``expert * n_out + out``, of a convolution the filter's number.
        dtype, levels : as in `get_tensor`
        """
        record = self.table.resolved(name)
        if not record.info.has_rows:
            kind = record.info.dtype.name
            raise ValueError(f"tensor {shown(name)}, {kind} {record.info.shape}, has no rows; use get_tensor")
        index = selected_rows(record.info.n_rows, rows)
        count = len(range(*index.indices(record.info.n_rows))) if isinstance(index, slice) else len(index)
        self._afford(record, count)
        found = self._typed(record, self._decoded(record, index, levels), dtype)
        return (found if found.flags.writeable else found.copy()).reshape(_shape(record, dtype, count))

    def get_slice(self, name: str) -> PackSlice:
        """Return an object to slice, as safetensors' `get_slice` does."""
        from hhtld.pack.slices import PackSlice

        return PackSlice(self, self.table.resolved(name))

    def get_encoded(self, name: str, rows: RowIndex = None) -> EncodedTensor:
        """Return an encoded tensor's slots: all rows, checksums verified, or the given rows alone."""
        record = self.table.resolved(name)
        if not record.is_encoded:
            raise ValueError(f"tensor {shown(name)} is kept as it came; use get_tensor")
        return self._encoded(record, None if rows is None else selected_rows(record.info.n_rows, rows))

    def scorer(self, name: str, levels: int = 2) -> Scorer:
        """Return what searches a tensor's rows without unpacking it; the checksums of its sections are verified.

        A tensor that is kept as it came is searched block by block.

        Parameters
        ----------
        name : str
        levels : {2, 1}
            1 leaves the second level of Slot T out.
        """
        from hhtld.search.rows import PlainRows  # reading rows needs no search
        from hhtld.search.scorer import Scorer

        record = self.table.resolved(name)
        if record.info.n_cols == 0:
            raise ValueError(f"tensor {shown(name)}, {list(record.info.shape)}, has no columns to search")
        if record.is_encoded:
            self._afford(record, 1, n_palettes=3)  # the palette's rows as float32, and in float64
            return Scorer(self.get_encoded(name), record.gates, record.name, levels)
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
        for number, group in enumerate(self.table.groups):
            try:
                for owner in group.codecs:
                    self._code(number, owner)
            except HeaderError as error:
                raise HeaderError(f"{self._place}{error}") from error

    # ---- decoding ----

    def _afford(self, record: TensorRecord, n_rows: int, n_palettes: int = 1) -> None:
        if record.group is None:
            return
        needed = n_rows * record.info.n_cols * max(4, record.info.dtype.nbits // 8)
        shared = {kind: self.sections.nbytes(i) for kind, i in self.table.groups[record.group].sections.items()}
        needed += n_palettes * codec(record.codec).decoding_nbytes(shared, record.info.n_cols)
        if needed > self.budget:
            raise HeaderError(
                f"{self._place}tensor {shown(record.name)}: {n_rows} rows take {needed} bytes to decode, "
                f"the budget is {self.budget}; read fewer rows, or in Python raise it with hhtld.open(path, budget=...)"
            )

    def _make_room(self, code: GroupCode) -> None:
        """Let go of what other groups hold if they and this one's part of it would pass the budget together."""
        if not code.decoding_nbytes:
            return
        holders = [other for other in list(self._codes.values()) if other is not code and other.held_nbytes]
        if sum(other.held_nbytes for other in holders) + code.decoding_nbytes > self.budget:
            for other in holders:
                other.forget()

    def _decoded(self, record: TensorRecord, rows: NDArray[np.intp] | slice | None, levels: int = 2) -> NDArray[Any]:
        """Rows as float32 for an encoded tensor, as bytes for a kept one."""
        if record.is_encoded:
            return self._encoded(record, rows, levels).reconstruct_rows()
        index = record.sections["raw"]
        if rows is None or record.info.row_nbytes == 0:
            whole = self.sections.whole(index)
            return whole if rows is None else whole.reshape(record.info.n_rows, record.info.row_nbytes)[rows]
        return self.sections.rows(index, record.info.row_nbytes, rows)

    def _typed(self, record: TensorRecord, decoded: NDArray[Any], dtype: str) -> NDArray[Any]:
        if dtype not in ("float32", "source"):
            raise ValueError(f"dtype must be 'float32' or 'source', got {dtype!r}")
        kind = record.info.dtype
        if not record.is_encoded:
            if dtype == "float32" and kind.is_weight:
                return widen(decoded, kind)
            return view(np.ascontiguousarray(decoded), kind, (-1,))
        return decoded if dtype == "float32" else view(narrow(decoded, kind), kind, (-1,))

    def _encoded(self, record: TensorRecord, rows: NDArray[np.intp] | slice | None, levels: int = 2) -> EncodedTensor:
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}")
        try:  # not `with`, whose cost is a tenth of what one row takes
            return self._assembled(record, rows, levels)
        except HeaderError as error:
            raise HeaderError(f"{self._place}{error}") from error
        except (FormatError, ClosedError):
            raise
        except ValueError as error:
            raise HeaderError(f"{self._place}tensor {shown(record.name)}: {error}") from error

    def _assembled(self, record: TensorRecord, rows: NDArray[np.intp] | slice | None, levels: int) -> EncodedTensor:
        def part(kind: str, width: int) -> NDArray[np.uint8]:
            if rows is None or width == 0:
                return self.sections.whole(record.sections[kind])
            found = self.sections.rows(record.sections[kind], width, rows)
            return (found if found.flags.c_contiguous else np.ascontiguousarray(found)).reshape(-1)

        assert record.group is not None
        code = self._codes.get((record.group, record.codec)) or self._code(record.group, record.codec)
        self._make_room(code)
        return code.tensor(part, record.slot_l_scale, record.sections, self.budget, levels)

    def _code(self, number: int, owner: str) -> GroupCode:
        """What a group's tensors of one codec share, read once. Two threads may both read it; they read the same."""
        code = self._codes.get((number, owner))
        if code is None:
            group = self.table.groups[number]
            with _as_header_error(f"group {group.key}"):
                shared = {kind: self.sections.whole(index).data for kind, index in group.sections.items()}
                code = self._codes[number, owner] = codec(owner).read_group(group.key, shared, group.numbers)
        return code


@contextlib.contextmanager
def _as_header_error(where: str) -> Iterator[None]:
    """Content that a codec refuses came from the file, so the file is to blame."""
    try:
        yield
    except (HeaderError, ClosedError):
        raise
    except ValueError as error:
        raise HeaderError(f"{where}: {error}") from error


def _shape(record: TensorRecord, dtype: str, count: int | None) -> tuple[int, ...]:
    if record.info.dtype.numpy is None:
        return (-1,) if count is None else (count, record.info.row_nbytes)
    return record.info.shape if count is None else (count, record.info.n_cols)
