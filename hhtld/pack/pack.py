"""A pack: named tensors, encoded or kept, read row by row without unpacking the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from hhtld.codecs import codec
from hhtld.codecs.base import EncodedTensor, GroupCode
from hhtld.codecs.rows import RowIndex, selected_rows
from hhtld.dtypes import narrow, view, widen
from hhtld.errors import ClosedError, FormatError, HeaderError, did_you_mean, shown
from hhtld.pack.notebook import card
from hhtld.pack.sections import SectionReader
from hhtld.pack.table import PackTable, TensorRecord
from hhtld.search.scorer import PlainRows, Scorer
from hhtld.sources.contract import ADDS, TensorInfo, TensorSource

__all__ = ["HhtldPack", "PackSlice", "PackSource"]

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
        return np.asarray(rows[(*[slice(None)] * numbers.ndim, *rest)])


def _row_numbers(sizes: Sequence[int], parts: Sequence[Any]) -> NDArray[np.intp]:
    """Return the numbers of the rows that numbers and slices of their axes pick, an axis for every slice."""
    numbers: NDArray[np.intp] = np.zeros((), np.intp)
    for axis, size in enumerate(sizes):
        part = parts[axis] if axis < len(parts) else slice(None)
        picked = np.arange(*part.indices(size)) if isinstance(part, slice) else np.asarray(range(size)[part])
        numbers = np.asarray(np.add.outer(numbers * size, picked), np.intp)
    return numbers


class PackSource(TensorSource):
    """A pack as a source: rows decoded and rounded back to the types they had.

    What reads a source reads all of it and hands it on, so a tensor's checksums are verified before its first
    row is given, unlike with `HhtldPack.get_rows`.
    """

    def __init__(self, pack: HhtldPack) -> None:
        self.pack = pack
        self._verified: set[str] = set()
        self._last: tuple[str, int, NDArray[Any]] | None = None
        self._infos = {
            name: TensorInfo(name, record.info.dtype, record.info.shape, record.info.shard)
            for name, record in pack.table.tensors.items()
        }

    def check_budget(self, budget: int | None, how: str) -> None:
        """Refuse to decode everything where that takes more than a budget.

        Parameters
        ----------
        budget : int or None
            Bytes of all tensors together; None is 64 GiB, or 100 times the bytes that hold them where that is more.
        how : str
            How a larger one is given, for the message.

        Raises
        ------
        HeaderError
            Naming both numbers.
        """
        sections = self.pack.sections
        if budget is None:
            budget = max(DEFAULT_BUDGET, 100 * sum(map(sections.nbytes, range(len(sections.kinds())))))
        needed = sum(info.nbytes for info in self._infos.values())
        if needed > budget:
            raise HeaderError(
                f"{self.pack._place}its tensors take {needed} bytes decoded, the budget is {budget}; "
                f"open it and read fewer, or raise it with {how}"
            )

    @property
    def metadata(self) -> dict[str, str]:
        return self.pack.metadata()

    @property
    def description(self) -> dict[str, Any]:
        return dict(self.pack.table.source)

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def aliases(self) -> Mapping[str, str]:
        return {n: r.alias_of for n, r in self.pack.table.tensors.items() if r.alias_of is not None}

    def quantized(self) -> Mapping[str, str] | None:
        """Return what the graph of an ONNX model told, which the pack's description carries."""
        facts = self.pack.table.source
        found = facts.get("quantized", {} if "onnx" in facts else None)
        return {n: str(use) for n, use in found.items() if n in self._infos} if isinstance(found, dict) else None

    def uses(self) -> Mapping[str, frozenset[str]]:
        """Return what layers of an ONNX model add, which the pack's description carries; nothing else of its graph."""
        found = self.pack.table.source.get("added")
        added = {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()
        return {name: frozenset({ADDS}) for name in self._infos if name in added}

    def regimes(self) -> Mapping[str, tuple[str, str]]:
        """Return the regimes that the pack records because roles do not imply them."""
        table, found = self.pack.table, {}
        for name in table.tensors:
            group = table.resolved(name).group
            key = None if group is None else table.groups[group].key
            if key is not None and key.regime != key.implied_regime:
                found[name] = key.regime, str(table.regime_reason(name))
        return found

    def files(self) -> Mapping[str, int]:
        return self.pack.files()

    def read_file(self, name: str) -> bytes:
        return self.pack.read_file(name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info = self._infos[name]
        if name not in self._verified:  # two threads may both do it, and find the same
            for index in self.pack.info(name).sections.values():
                self.pack.sections.check(index)
            self._verified.add(name)
        held = self.pack.info(name).info
        if info.has_rows and held.n_cols == info.n_cols:
            rows = self.pack.get_rows(name, slice(start, stop), "source")
        elif info.has_rows:
            rows = self._of_longer_rows(name, held.n_cols, start * info.n_cols, stop * info.n_cols)
        else:
            rows = self.pack.get_tensor(name, "source").reshape(1, -1)[start:stop]
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(stop - start, info.row_nbytes)

    def _of_longer_rows(self, name: str, n_cols: int, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of a tensor whose rows in the file are longer than its shape says, as in older files.

        The row that was decoded last is held: what reads tensors reads them in pieces, one after the other.
        """
        parts = []
        while start < stop:
            row, first = divmod(start, n_cols)
            last = self._last
            if last is None or last[:2] != (name, row):
                last = self._last = (name, row, self.pack.get_rows(name, [row], "source")[0])
            parts.append(last[2][first : first + stop - start])
            start += n_cols - first
        return np.concatenate(parts) if parts else np.empty(0)

    def close(self) -> None:
        self._last = None
        self.pack.close()
