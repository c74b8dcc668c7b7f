"""Writing a `.hhtld` file: sections in their order, their bytes in any, the table and the header last."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.codecs.section_kinds import SECTION_KINDS
from hhtld.pack.container import (
    ALIGNMENT,
    END_MAGIC,
    HEADER,
    MAGIC,
    MAX_TABLE_NBYTES,
    MINOR,
    TRAILER,
    UNFINISHED,
)
from hhtld.pack.section_interfaces import Buffer, SectionSink, as_bytes
from hhtld.pack.sections import SectionRecord, section_crc
from hhtld.sizes import align_up
from hhtld.storage.atomic import AtomicFile
from hhtld.storage.crc import Crc32Runs, crc32_combine

__all__ = ["ContainerWriter", "framed_nbytes"]

_LONGEST = SectionRecord("", 10**15 - 1, 10**15 - 1, 2**32 - 1)


@dataclass
class _Begun:
    """A section being written; its place is known before its bytes."""

    kind: str
    offset: int
    nbytes: int
    written: Crc32Runs = field(default_factory=Crc32Runs)


class ContainerWriter(SectionSink):
    """Writes sections, their blocks in any order, then the table and the trailer."""

    def __init__(self, file: AtomicFile) -> None:
        self._file = file
        self._sections: list[_Begun] = []
        file.write_at(0, UNFINISHED)

    def __len__(self) -> int:
        return len(self._sections)

    @property
    def _end(self) -> int:
        return self._sections[-1].offset + self._sections[-1].nbytes if self._sections else HEADER.size

    def reserve(self, kind: str, nbytes: int) -> int:
        end = self._end
        offset = align_up(end, ALIGNMENT)
        self._file.write_at(end, bytes(offset - end))
        self._sections.append(_Begun(kind, offset, nbytes))
        return len(self._sections) - 1

    def write_at(self, index: int, offset: int, block: Buffer | NDArray[Any], crc: int | None = None) -> None:
        section, view = self._sections[index], as_bytes(block)
        self._check_inside(section, offset, len(view))
        self._file.write_at(section.offset + offset, view)
        section.written.add(offset, len(view), zlib.crc32(view) if crc is None else crc)

    def recall(self, blocks: Iterable[tuple[int, int, int, int]]) -> list[NDArray[np.uint8]] | None:
        recalled, asked = [], list(blocks)
        for index, offset, nbytes, crc in asked:
            section = self._sections[index]
            self._check_inside(section, offset, nbytes)
            block = self._file.read_at(section.offset + offset, nbytes)
            if len(block) != nbytes or zlib.crc32(block) != crc:
                return None
            recalled.append(np.frombuffer(block, np.uint8))
        for index, offset, nbytes, crc in asked:
            self._sections[index].written.add(offset, nbytes, crc)
        return recalled

    def rewind(self, count: int) -> None:
        del self._sections[count:]  # the bytes are written over, or cut off at the end

    def _check_inside(self, section: _Begun, offset: int, nbytes: int) -> None:
        if not 0 <= offset <= offset + nbytes <= section.nbytes:
            raise ValueError(
                f"section {section.kind!r} was declared {section.nbytes} bytes long and got "
                f"bytes [{offset}, {offset + nbytes})"
            )

    def _records(self) -> list[SectionRecord]:
        records = []
        for index, section in enumerate(self._sections):
            crc = section.written.whole(section.nbytes)
            if crc is None:
                got = section.written.covered()
                raise ValueError(f"section {section.kind!r} was declared {section.nbytes} bytes long and got {got}")
            whole = crc32_combine(section_crc(index, section.kind, section.nbytes), crc, section.nbytes)
            records.append(SectionRecord(section.kind, section.offset, section.nbytes, whole))
        return records

    def finish(self, table: dict[str, Any]) -> None:
        """Write table, trailer and, last, the header that makes the file one."""
        sections = self._records()
        text = _table_text(table, sections)
        if len(text) > MAX_TABLE_NBYTES:
            raise ValueError(f"the table would be {len(text)} bytes long, the limit is {MAX_TABLE_NBYTES}")
        end = self._end
        offset = align_up(end, ALIGNMENT)
        after = align_up(offset + len(text), ALIGNMENT)
        self._file.truncate(end)  # whatever an earlier run may have left behind
        self._file.write_at(end, bytes(offset - end))
        self._file.write_at(offset, text + bytes(after - offset - len(text)))
        crc = zlib.crc32(text, zlib.crc32(struct.pack("<QQ", offset, len(text))))
        size = after + TRAILER.size
        head = TRAILER.pack(offset, len(text), crc, 0, size, END_MAGIC)
        self._file.write_at(after, TRAILER.pack(offset, len(text), crc, zlib.crc32(head), size, END_MAGIC))
        major = max((SECTION_KINDS[r.kind].major for r in sections), default=1)
        required = 0
        for record in sections:
            feature = SECTION_KINDS[record.kind].feature
            required |= 0 if feature is None else 1 << feature
        header = HEADER.pack(MAGIC, major, MINOR, HEADER.size, required, 0, 0)
        self._file.write_at(0, header[:-4] + struct.pack("<I", zlib.crc32(header[:-4])))


def framed_nbytes(table: dict[str, Any], kinds: Iterable[str]) -> int:
    """Return the bytes that a file takes at most beside those of its sections, which are of these kinds.

    They are header, table and trailer, and what aligns sections.
    """
    records = [replace(_LONGEST, kind=kind) for kind in kinds]
    n_aligned = len(records) + 2  # the table begins and ends aligned too
    return HEADER.size + len(_table_text(table, records)) + n_aligned * (ALIGNMENT - 1) + TRAILER.size


def _table_text(table: dict[str, Any], sections: Iterable[SectionRecord]) -> bytes:
    records = [{"kind": r.kind, "offset": r.offset, "nbytes": r.nbytes, "crc32": r.crc32} for r in sections]
    whole = table | {"sections": records}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode("ascii")
