"""The `.hhtld` container: header, sections, table, trailer. SPEC.md beside this file is the law."""

from __future__ import annotations

import json
import math
import struct
import warnings
import zlib
from typing import Any, NoReturn, Self

from hhtld.codecs.section_kinds import ROW_CLASSES, SECTION_KINDS, SLOT_T
from hhtld.errors import (
    BadMagicError,
    ChecksumError,
    FormatError,
    HeaderError,
    TruncatedError,
    UnsupportedVersionError,
    shown,
)
from hhtld.pack.sections import FileSections, SectionRecord
from hhtld.sizes import align_up
from hhtld.storage.file_reading import FileIdentity, Location, PositionalFile, RegularFile, open_location

__all__ = ["IO_MODES", "MAGIC", "MAJOR_VERSIONS", "MINOR", "UNFINISHED", "ContainerReader"]

MAGIC = b"\x89HHTLD\r\n"
END_MAGIC = b"\x89HHTLE\r\n"
MAJOR_VERSIONS = (1, 2)
MINOR = 0
ALIGNMENT = 64
MAX_TABLE_NBYTES = 100_000_000
_EXACT_DIGITS = 300  # integers of no more are below float64's largest
IO_MODES = ("mmap", "pread", "direct")
_IO_THREADS = {"mmap": 1, "pread": 32, "direct": 32}  # what waits for a device keeps that many questions before it
REQUIRED_FEATURES = 1 << SLOT_T | 1 << ROW_CLASSES  # bits this reader understands

HEADER = struct.Struct("<8sHHIQQ28xI")  # 64 bytes: the checksum covers the 60 before it
TRAILER = struct.Struct("<QQIIQ24x8s")  # 64 bytes
assert HEADER.size == TRAILER.size == ALIGNMENT
UNFINISHED = bytes(HEADER.size)  # where the header will be


class ContainerReader(FileSections):
    """An open container: its table and its sections.

    Attributes
    ----------
    table : dict
    major, minor : int
        The version of the file's format.
    """

    table: dict[str, Any]
    major: int
    minor: int

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
            reader = cls(file, path, records, mapped=io == "mmap", row_cache=row_cache)
        except BaseException:
            file.close()
            raise
        reader.table, reader.major, reader.minor = table, major, minor
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

    @property
    def file_nbytes(self) -> int:
        """Bytes of the whole file when it was opened."""
        return self._file.size

    def verify(self) -> None:
        """Check the bytes of every section and the padding between them."""
        end = HEADER.size
        for index, record in enumerate(self.records):
            self._check_zero(end, record.offset)
            if record.kind in SECTION_KINDS:
                self._check(index, self._blocks(record))
            end = record.offset + record.nbytes
        self._check_zero(end, align_up(end, ALIGNMENT))  # where the table begins

    def _check_zero(self, start: int, stop: int) -> None:
        if self._read(start, stop - start).any():
            raise ChecksumError(f"{self.path}: padding at offset {start} is not zero; the file is damaged")


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
