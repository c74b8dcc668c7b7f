"""What the tensors of each group share: read once from the sections, and held within a budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hhtld.codecs import codec
from hhtld.errors import ClosedError, HeaderError, shown

if TYPE_CHECKING:
    from hhtld.codecs.base import GroupCode
    from hhtld.pack.section_interfaces import SectionReader
    from hhtld.pack.table import PackTable, TensorRecord

__all__ = ["GroupCodes"]


class GroupCodes:
    """The codes of a pack's groups.

    Parameters
    ----------
    table : PackTable
    sections : SectionReader
    budget : int
        Bytes that decoding one tensor may take, and what is held of all groups.
    place : str
        What errors of content begin with: the path and a colon, or nothing.
    """

    def __init__(self, table: PackTable, sections: SectionReader, budget: int, place: str) -> None:
        self._table, self._sections, self._budget, self._place = table, sections, budget, place
        self._codes: dict[tuple[int, str], GroupCode] = {}
        self._shared_nbytes: dict[tuple[int, str], int] = {}  # what decoding takes beside the rows

    def code(self, number: int, owner: str) -> GroupCode:
        """Return what a group's tensors of one codec share, with room made for what decoding them takes."""
        code = self._codes.get((number, owner)) or self._read(number, owner)
        self._make_room(code)
        return code

    def check(self) -> None:
        """Read what every group shares, of groups that no tensor names too, or raise FormatError."""
        for number, group in enumerate(self._table.groups):
            try:
                for owner in group.codecs:
                    self._codes.get((number, owner)) or self._read(number, owner)
            except HeaderError as error:
                if str(error).startswith(self._place):  # what reads the file has named it already
                    raise
                raise HeaderError(f"{self._place}{error}") from error

    def afford(self, record: TensorRecord, n_rows: int, n_palettes: int = 1) -> None:
        """Raise HeaderError if decoding rows of an encoded tensor takes more than the budget."""
        if record.group is None:
            return
        shared_nbytes = self._shared_nbytes.get((record.group, record.codec))
        if shared_nbytes is None:
            sizes = {kind: self._sections.nbytes(i) for kind, i in self._table.groups[record.group].sections.items()}
            shared_nbytes = codec(record.codec).decoding_nbytes(sizes, record.info.n_cols)
            self._shared_nbytes[record.group, record.codec] = shared_nbytes
        needed = n_rows * record.info.n_cols * max(4, record.info.dtype.nbits // 8) + n_palettes * shared_nbytes
        if needed > self._budget:
            raise HeaderError(
                f"{self._place}tensor {shown(record.name)}: {n_rows} rows take {needed} bytes to decode, "
                f"the budget is {self._budget}; read fewer rows, or in Python raise it with "
                f"hhtld.open(path, budget=...)"
            )

    def _read(self, number: int, owner: str) -> GroupCode:
        """Two threads may both read a code; they read the same."""
        group = self._table.groups[number]
        with _as_header_error(f"group {group.key}"):
            shared = {kind: self._sections.whole(index).data for kind, index in group.sections.items()}
            code = self._codes[number, owner] = codec(owner).read_group(group.key, shared, group.numbers)
        return code

    def _make_room(self, code: GroupCode) -> None:
        """Let go of what other groups hold if they and this one's part of it would pass the budget together."""
        if not code.decoding_nbytes:
            return
        holders = [other for other in list(self._codes.values()) if other is not code and other.held_nbytes]
        if sum(other.held_nbytes for other in holders) + code.decoding_nbytes > self._budget:
            for other in holders:
                other.forget()


@contextlib.contextmanager
def _as_header_error(where: str) -> Iterator[None]:
    """Content that a codec refuses came from the file, so the file is to blame."""
    try:
        yield
    except (HeaderError, ClosedError):
        raise
    except ValueError as error:
        raise HeaderError(f"{where}: {error}") from error
