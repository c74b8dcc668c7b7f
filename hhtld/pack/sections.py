"""The sections of an open file: read whole, their checksums verified, or rows of them by number."""

from __future__ import annotations

import mmap
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld import storage
from hhtld.codecs.section_kinds import SECTION_KINDS
from hhtld.errors import ChecksumError, ClosedError
from hhtld.storage.descriptors import advise_random
from hhtld.storage.file_reading import DirectFile, Location, PositionalFile, RegularFile

if TYPE_CHECKING:
    from hhtld.pack.row_cache import RowCache
    from hhtld.pack.section_interfaces import RowSelection
    from hhtld.storage.run_reads import Runs

__all__ = ["FileSections", "SectionRecord", "section_crc"]

_VERIFIED_NBYTES = 4 << 20  # read at once: a section may be larger than memory
_SHARED_ROWS = 1024  # of a mapped section: fewer are not worth a second thread


@dataclass(frozen=True)
class SectionRecord:
    """Where a section lies and what its checksum is."""

    kind: str
    offset: int
    nbytes: int
    crc32: int


def section_crc(index: int, kind: str, nbytes: int) -> int:
    """The checksum before the first byte: what the section is counts too, so that two cannot be swapped."""
    return zlib.crc32(struct.pack("<IIQ", SECTION_KINDS[kind].code, index, nbytes))


class FileSections:
    """The sections of an open file; a `SectionReader`. Reads are positional and safe from many threads.

    Attributes
    ----------
    path : Path or Url
    records : list of SectionRecord
    io : {"mmap", "pread", "direct"}
        How the file is read, which may be less than what was asked for.
    cache : RowCache or None
        Of rows that are read by number.
    """

    def __init__(
        self,
        file: PositionalFile,
        path: Location,
        records: list[SectionRecord],
        *,
        mapped: bool = False,
        row_cache: int = 0,
    ) -> None:
        self._file = file
        self._regular = file if isinstance(file, RegularFile) else None
        self.path = path
        self.records = records
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self.cache: RowCache | None = None
        if row_cache:
            from hhtld.pack.row_cache import RowCache  # which most readers do not need

            self.cache = RowCache(row_cache)
        self._map: mmap.mmap | None = None
        self._mapped: NDArray[np.uint8] | None = None  # the same as an array
        self._mapped_file: RegularFile | None = None
        self._read_at_random: set[int] = set()  # sections whose mapping is advised so
        if mapped and isinstance(file, RegularFile):  # nothing else can be mapped
            self._map, self._mapped_file = file.map(), file
            self._mapped = np.frombuffer(self._map, np.uint8)
        self.io = "mmap" if self._map is not None else "direct" if isinstance(file, DirectFile) else "pread"

    @property
    def reads_rows(self) -> bool:
        return self._map is None and self._regular is not None

    def kinds(self) -> list[str]:
        return [record.kind for record in self.records]

    def nbytes(self, index: int) -> int:
        return self.records[index].nbytes

    def check_unchanged(self) -> None:
        # Without a mapping or a cache every row that is given was read, and the file looked at after that.
        if self._regular is not None and (self._map is not None or self.cache is not None) and not self._file.closed:
            self._regular.check_unchanged()

    def whole(self, index: int) -> NDArray[np.uint8]:
        record = self.records[index]
        if index in self._read_at_random:
            self._advise(index, is_random=False)
        data = self._read(record.offset, record.nbytes)
        if index not in self._verified:
            self._check(index, [data])
        return data

    def check(self, index: int) -> None:
        if index not in self._verified:
            self._check(index, self._blocks(self.records[index]))

    def _check(self, index: int, blocks: Iterable[NDArray[np.uint8]]) -> None:
        record = self.records[index]
        crc = section_crc(index, record.kind, record.nbytes)
        for block in blocks:
            crc = zlib.crc32(block.data, crc)
        if crc != record.crc32:
            raise ChecksumError(
                f"{self.path}: section {index} ({record.kind}) at offset {record.offset}: "
                f"checksum {crc:08x}, expected {record.crc32:08x}; the file is damaged"
            )
        with self._lock:
            self._verified.add(index)

    def _blocks(self, record: SectionRecord) -> Iterator[NDArray[np.uint8]]:
        for offset in range(0, record.nbytes, _VERIFIED_NBYTES):
            yield self._read(record.offset + offset, min(_VERIFIED_NBYTES, record.nbytes - offset))

    def rows(
        self, index: int, width: int, rows: RowSelection, offset: int = 0, nbytes: int | None = None
    ) -> NDArray[np.uint8]:
        nbytes = self.records[index].nbytes - offset if nbytes is None else nbytes
        if isinstance(rows, slice):
            start, stop, step = rows.indices(nbytes // width)
            if step != 1 or (self.cache is not None and stop == start + 1):
                rows = np.arange(start, stop, step)  # a row that is looked up, too; ranges would push others out
            else:
                begin, count = self.records[index].offset + offset + start * width, max(0, stop - start)
                return self._given(begin, count * width).reshape(count, width)
        if self.cache is not None:
            self._check_open()  # what the cache has needs no file
            return self.cache.rows((index, offset), width, rows, partial(self._picked, index, width, offset, nbytes))
        return self._picked(index, width, offset, nbytes, rows)

    def _picked(self, index: int, width: int, offset: int, nbytes: int, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return rows by their numbers, counted from `offset` on in a section."""
        begin = self.records[index].offset + offset
        if self._map is not None:
            if index not in self._read_at_random:
                self._advise(index, is_random=True)
            return self._taken(self._read(begin, nbytes).reshape(-1, width), rows)
        if self._file.gap:  # each range is a question to a far store
            different, places = np.unique(rows, return_inverse=True)
            return self._from_afar(begin, width, different)[places]
        out = np.empty((len(rows), width), np.uint8)
        if len(rows):
            self._check_open()
            self._file.fill_runs(out.reshape(-1), _runs(begin, width, rows))
        return out

    def _advise(self, index: int, *, is_random: bool) -> None:
        mapped, record = self._map, self.records[index]
        if mapped is not None:
            advise_random(mapped, record.offset, record.nbytes, is_random=is_random)
        (self._read_at_random.add if is_random else self._read_at_random.discard)(index)

    def _taken(self, mapped: NDArray[np.uint8], rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return rows of a mapped section; threads wait for the pages of many."""
        assert self._mapped_file is not None
        n_threads, count = self._mapped_file.n_threads, len(rows)
        if n_threads == 1 or count < _SHARED_ROWS:
            return mapped.take(rows, axis=0)
        out = np.empty((count, mapped.shape[1]), np.uint8)
        spans = [(count * i // n_threads, count * (i + 1) // n_threads) for i in range(n_threads)]
        # The rows were checked; without "clip" numpy would write to a copy first.
        self._mapped_file.threads.each(
            lambda span: mapped.take(rows[slice(*span)], axis=0, out=out[slice(*span)], mode="clip"), spans
        )
        return out

    def _from_afar(self, offset: int, width: int, rows: NDArray[Any]) -> NDArray[np.uint8]:
        """Return ascending rows of what lies at `offset`; runs of neighbours, or of near ones, are read at once."""
        out = np.empty((len(rows), width), np.uint8)
        breaks = np.flatnonzero(np.diff(rows) > 1 + self._file.gap // max(width, 1)) + 1
        for begin, end in pairwise([0, *breaks.tolist(), len(rows)] if len(rows) else []):
            first, last = int(rows[begin]), int(rows[end - 1])
            if last + 1 - first == end - begin:
                self._fill(out[begin:end], offset + first * width)
            else:
                span = self._read(offset + first * width, (last + 1 - first) * width).reshape(-1, width)
                out[begin:end] = span[rows[begin:end] - first]
        return out

    @property
    def closed(self) -> bool:
        """Whether the file was released."""
        return self._file.closed

    def close(self) -> None:
        self._file.close()
        self._map = self._mapped = None  # arrays given out keep the mapping alive

    def _read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        self.check_unchanged()  # a mapped page that the file no longer has would end the process
        return self._given(offset, nbytes)

    def _given(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Return a run of the file; of a mapped one a view, whose pages are not looked at yet."""
        mapped = self._mapped  # held here: another thread may close the pack meanwhile
        if mapped is not None and not self._file.closed:
            return mapped[offset : offset + nbytes]
        out = np.empty(nbytes, np.uint8)
        self._fill(out, offset)
        return out

    def _fill(self, out: NDArray[np.uint8], offset: int) -> None:
        self._check_open()
        self._file.fill(out.reshape(-1).data, offset)

    def _check_open(self) -> None:
        if self._file.closed:
            raise ClosedError(f"{self.path}: the pack is closed")


def _runs(offset: int, width: int, rows: NDArray[Any]) -> Runs:
    """Return where rows of `width` bytes, from `offset` on, are read, and where they go: neighbours at once."""
    firsts = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    ends = np.append(firsts[1:], len(rows))
    return storage.run_reads.Runs(
        offset + rows[firsts] * np.int64(width), (ends - firsts) * np.int64(width), firsts * np.int64(width)
    )
