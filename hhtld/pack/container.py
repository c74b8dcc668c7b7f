"""The `.hhtld` container: header, sections, table, trailer. SPEC.md beside this file is the law."""

from __future__ import annotations

import json
import math
import mmap
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from hhtld import storage
from hhtld.codecs.section_kinds import ROW_CLASSES, SECTION_KINDS, SLOT_T
from hhtld.errors import (
    BadMagicError,
    ChecksumError,
    ClosedError,
    FormatError,
    HeaderError,
    TruncatedError,
    UnsupportedVersionError,
    shown,
)
from hhtld.sizes import align_up
from hhtld.storage.descriptors import advise_random
from hhtld.storage.file_reading import DirectFile, FileIdentity, Location, PositionalFile, RegularFile, open_location

if TYPE_CHECKING:
    from hhtld.pack.row_cache import RowCache
    from hhtld.pack.sections import RowSelection
    from hhtld.storage.run_reads import Runs

__all__ = ["IO_MODES", "MAGIC", "MAJOR_VERSIONS", "MINOR", "UNFINISHED", "ContainerReader", "SectionRecord"]

MAGIC = b"\x89HHTLD\r\n"
END_MAGIC = b"\x89HHTLE\r\n"
MAJOR_VERSIONS = (1, 2)
MINOR = 0
ALIGNMENT = 64
MAX_TABLE_NBYTES = 100_000_000
_EXACT_DIGITS = 300  # integers of no more are below float64's largest
_VERIFIED_NBYTES = 4 << 20  # read at once: a section may be larger than memory
IO_MODES = ("mmap", "pread", "direct")
_IO_THREADS = {"mmap": 1, "pread": 32, "direct": 32}  # what waits for a device keeps that many questions before it
_SHARED_ROWS = 1024  # of a mapped section: fewer are not worth a second thread
REQUIRED_FEATURES = 1 << SLOT_T | 1 << ROW_CLASSES  # bits this reader understands

HEADER = struct.Struct("<8sHHIQQ28xI")  # 64 bytes: the checksum covers the 60 before it
TRAILER = struct.Struct("<QQIIQ24x8s")  # 64 bytes
assert HEADER.size == TRAILER.size == ALIGNMENT
UNFINISHED = bytes(HEADER.size)  # where the header will be


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


class ContainerReader:
    """A container's sections; a `SectionReader`. Reads are positional and safe from many threads.

    Attributes
    ----------
    path : Path or Url
    records : list of SectionRecord
    table : dict
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
        table: dict[str, Any] | None = None,
        *,
        mapped: bool = False,
        row_cache: int = 0,
    ) -> None:
        self._file = file
        self._regular = file if isinstance(file, RegularFile) else None
        self.path = path
        self.records = records
        self.table = table or {}
        self.major = 0
        self.minor = 0
        self._verified: set[int] = set()
        self._lock = threading.Lock()
        self.cache: RowCache | None = None
        if row_cache:
            from hhtld.pack.row_cache import RowCache  # which most readers do not need

            self.cache = RowCache(row_cache)
        self._map: mmap.mmap | None = None
        self._mapped_file: RegularFile | None = None
        self._read_at_random: set[int] = set()  # sections whose mapping is advised so
        if mapped and isinstance(file, RegularFile):  # nothing else can be mapped
            self._map, self._mapped_file = file.map(), file
        self.io = "mmap" if self._map is not None else "direct" if isinstance(file, DirectFile) else "pread"

    @classmethod
    def open(cls, path: Location, io: str = "mmap", io_threads: int | None = None, row_cache: int = 0) -> Self:
        """Open a file and check its structure: header, trailer, table, and where every section lies.

        Parameters
        ----------
        path : Path or Url
        io : {"mmap", "pread", "direct"}
        io_threads : int or None
            Threads that read many rows at once; None is 1 for a mapped file and 32 otherwise.
        row_cache : int
            Bytes of a cache of rows that are read by number; 0 for none.

        Raises
        ------
        FormatError
            For every malformation; section bytes are checked when they are first read whole.
        """
        if io not in IO_MODES:
            raise ValueError(f"io must be one of {', '.join(map(repr, IO_MODES))}, got {io!r}")
        n_threads = _IO_THREADS[io] if io_threads is None else io_threads
        if type(n_threads) is not int or n_threads < 1:
            raise ValueError(f"io_threads must be a whole number, 1 or more, got {io_threads!r}")
        if type(row_cache) is not int or row_cache < 0:
            raise ValueError(f"row_cache must be a number of bytes, 0 or more, got {row_cache!r}")
        file = open_location(path, n_threads, direct=io == "direct")
        try:
            major, minor, required = _read_header(file, path)
            table, records = _read_table(file, path)
            needed = max((SECTION_KINDS[r.kind].major for r in records if r.kind in SECTION_KINDS), default=1)
            if needed > major:
                raise HeaderError(f"{path}: a version {major} file holds sections of version {needed}")
            for index, record in enumerate(records):
                feature = SECTION_KINDS[record.kind].feature if record.kind in SECTION_KINDS else None
                if feature is not None and not required >> feature & 1:
                    raise HeaderError(f"{path}: section {index} ({record.kind}) needs feature bit {feature}, not set")
            reader = cls(file, path, records, table, mapped=io == "mmap", row_cache=row_cache)
        except BaseException:
            file.close()
            raise
        reader.major, reader.minor = major, minor
        if io == "direct" and reader.io != io and isinstance(file, RegularFile):
            warnings.warn(
                f"{path}: the system or its file system has no reads past the page cache (O_DIRECT); "
                f"it is read as with io='pread'",
                stacklevel=3,
            )
        return reader

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.path}: an open file cannot be copied or pickled; open it again where it is needed")

    @property
    def fingerprint(self) -> int:
        """A checksum of the sections' own checksums and places, which tells a file from others."""
        return zlib.crc32(repr([(r.kind, r.offset, r.nbytes, r.crc32) for r in self.records]).encode())

    @property
    def identity(self) -> Any:
        """What the system tells of the file, as it was when it was opened."""
        return self._file.identity

    def was_changed_since(self, identity: Any) -> bool:
        """Whether this is a regular file that had this identity, on this machine, and was written to since."""
        mine = self._file.identity
        if not (isinstance(mine, FileIdentity) and isinstance(identity, FileIdentity)):
            return False
        return mine[:2] == identity[:2] and not self._file.is_still(identity)

    def kinds(self) -> list[str]:
        return [record.kind for record in self.records]

    @property
    def file_nbytes(self) -> int:
        """Bytes of the whole file when it was opened."""
        return self._file.size

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
                stop = max(start, stop)
                begin = self.records[index].offset + offset + start * width
                return self._given(begin, (stop - start) * width).reshape(-1, width)
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

    def verify(self) -> None:
        """Check the bytes of every section and the padding between them."""
        end = HEADER.size
        for index, record in enumerate(self.records):
            self._check_zero(end, record.offset)
            if record.kind in SECTION_KINDS:
                self._check(index, self._blocks(record))
            end = record.offset + record.nbytes
        self._check_zero(end, align_up(end, ALIGNMENT))  # where the table begins

    @property
    def closed(self) -> bool:
        """Whether the file was released."""
        return self._file.closed

    def close(self) -> None:
        self._file.close()
        self._map = None  # arrays given out keep the mapping alive

    def _check_zero(self, start: int, stop: int) -> None:
        if self._read(start, stop - start).any():
            raise ChecksumError(f"{self.path}: padding at offset {start} is not zero; the file is damaged")

    def _read(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        self.check_unchanged()  # a mapped page that the file no longer has would end the process
        return self._given(offset, nbytes)

    def _given(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Return a run of the file; of a mapped one a view, whose pages are not looked at yet."""
        mapped = self._map  # held here: another thread may close the pack meanwhile
        if mapped is not None and not self._file.closed:
            return np.frombuffer(mapped, np.uint8, nbytes, offset) if nbytes else np.empty(0, np.uint8)
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


def _read_header(file: PositionalFile, path: Location) -> tuple[int, int, int]:
    size = file.size
    head = file.read(0, min(size, HEADER.size))
    if head[:8] != MAGIC:
        if head[1:6] == b"HHTLD" or head[:5] == b"HHTLD":
            raise BadMagicError(
                f"{path}: the magic bytes were altered, as a transfer in text mode does; copy it as binary"
            )
        if MAGIC.startswith(head[:8]) and len(head) < 8:
            raise TruncatedError(f"{path}: {size} bytes are too few for a .hhtld file")
        if head[8:9] == b"{":
            hint = f"it is safetensors: hhtld convert {path} model.hhtld makes a pack of it"
        else:
            from hhtld.storage.signatures import lookalike

            hint = lookalike(bytes(head)) or f"it begins with {bytes(head[:8])!r}"
        raise BadMagicError(f"{path}: this is not a .hhtld file ({hint})")
    if size < HEADER.size + TRAILER.size or len(head) < HEADER.size:
        raise TruncatedError(f"{path}: {size} bytes are too few for a .hhtld file")
    _, major, minor, header_nbytes, required, _optional, crc = HEADER.unpack(head)
    if zlib.crc32(head[:-4]) != crc:
        raise ChecksumError(
            f"{path}: the header at offset 0 is damaged (checksum {zlib.crc32(head[:-4]):08x}, expected {crc:08x})"
        )
    if major not in MAJOR_VERSIONS:
        known = " and ".join(map(str, MAJOR_VERSIONS))
        raise UnsupportedVersionError(f"{path}: format version {major}.{minor}; this hhtld reads versions {known}")
    unknown = required & ~REQUIRED_FEATURES
    if unknown:
        bit = (unknown & -unknown).bit_length() - 1
        raise UnsupportedVersionError(
            f"{path}: needs feature bit {bit}, which this hhtld does not know; a newer one may"
        )
    if header_nbytes != HEADER.size:
        raise HeaderError(f"{path}: header length {header_nbytes}, expected {HEADER.size}")
    if any(head[32:60]):
        raise HeaderError(f"{path}: reserved header bytes at offset 32 are not zero")
    return major, minor, required


def _read_table(file: PositionalFile, path: Location) -> tuple[dict[str, Any], list[SectionRecord]]:
    size = file.size
    trailer = file.read(size - TRAILER.size, TRAILER.size)
    offset, nbytes, crc, own_crc, end, magic = TRAILER.unpack(trailer)
    if magic != END_MAGIC:
        raise TruncatedError(
            f"{path}: there is no trailer at offset {size - TRAILER.size}: the file was cut short, or it grew"
        )
    plain = trailer[:20] + bytes(4) + trailer[24:]
    if zlib.crc32(plain) != own_crc or any(trailer[32:56]):
        raise ChecksumError(f"{path}: the trailer at offset {size - TRAILER.size} is damaged")
    if end != size:
        raise TruncatedError(f"{path}: declares {end} bytes and has {size}")
    if nbytes > MAX_TABLE_NBYTES or offset % ALIGNMENT or not HEADER.size <= offset <= size:
        raise HeaderError(
            f"{path}: table of {nbytes:,} bytes at offset {offset:,} does not fit the file "
            f"(limit {MAX_TABLE_NBYTES:,}; offsets are multiples of {ALIGNMENT})"
        )
    if align_up(offset + nbytes, ALIGNMENT) != size - TRAILER.size:
        raise HeaderError(f"{path}: the table does not end at the trailer")
    padded = bytes(file.read(offset, size - TRAILER.size - offset))
    text = padded[:nbytes]
    if zlib.crc32(text, zlib.crc32(struct.pack("<QQ", offset, nbytes))) != crc or any(padded[nbytes:]):
        raise ChecksumError(f"{path}: the table at offset {offset} is damaged")
    table = _parse(path, text)
    return table, _section_records(path, table.pop("sections", None), offset)


def _parse(path: Location, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise HeaderError(f"{path}: the table repeats a key")
        return members

    def refuse(constant: str) -> None:
        raise HeaderError(f"{path}: the table holds {constant}")

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise HeaderError(f"{path}: the table holds {shown(number, 40)}, which no float64 does")
        return value

    def bounded(number: str) -> int:
        if len(number) > _EXACT_DIGITS:
            finite(number)
        return int(number)

    try:
        # Decoded here, because json guesses UTF-16 and UTF-32 from bytes.
        table = json.loads(
            text.decode("ascii"), object_pairs_hook=unique, parse_constant=refuse, parse_float=finite, parse_int=bounded
        )
        if b"\\u" in text:  # only an escape can spell half of a surrogate pair, which is no character
            json.dumps(table, ensure_ascii=False).encode()
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{path}: the table is not JSON: {str(error)[:120]}") from None
    if not isinstance(table, dict):
        raise HeaderError(f"{path}: the table is not an object")
    return table


def _section_records(path: Location, items: object, table_offset: int) -> list[SectionRecord]:
    if not isinstance(items, list):
        raise HeaderError(f"{path}: the table lists no sections")
    records: list[SectionRecord] = []
    end = HEADER.size
    for index, item in enumerate(items):
        if not isinstance(item, dict) or not {"kind", "offset", "nbytes", "crc32"} <= set(item):
            raise HeaderError(f"{path}: section {index} needs kind, offset, nbytes and crc32")
        kind, offset, nbytes, crc = item["kind"], item["offset"], item["nbytes"], item["crc32"]
        if not isinstance(kind, str) or any(type(n) is not int or n < 0 for n in (offset, nbytes, crc)):
            raise HeaderError(f"{path}: section {index} ({shown(str(kind), 40)}) has values of a wrong type")
        if crc >= 1 << 32:
            raise HeaderError(f"{path}: section {index} ({shown(kind, 40)}) has a checksum of more than 32 bits")
        expected = align_up(end, ALIGNMENT)
        if offset != expected:
            raise HeaderError(
                f"{path}: section {index} ({shown(kind, 40)}) lies at offset {offset}, expected {expected}"
            )
        end = offset + nbytes
        if end > table_offset:
            raise HeaderError(f"{path}: section {index} ({shown(kind, 40)}) runs into the table")
        records.append(SectionRecord(kind, offset, nbytes, crc))
    if align_up(end, ALIGNMENT) != table_offset:
        raise HeaderError(f"{path}: the sections end at {end}, the table begins at {table_offset}")
    unknown = [index for index, record in enumerate(records) if record.kind not in SECTION_KINDS]
    if unknown:  # one warning, however many a hostile file holds
        first = f"section {unknown[0]} of unknown kind {shown(records[unknown[0]].kind, 40)}"
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        warnings.warn(f"{path}: {first}{more} is ignored; a newer hhtld wrote it", stacklevel=4)
    return records
