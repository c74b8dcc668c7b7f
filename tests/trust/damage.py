"""Damage done to files of known soundness, one change at a time, and whether the reader notices.

A file is changed in place through a writable mapping and read again, so that the reader under test is the real
one. Where a flipped bit lies inside a section, only that section is read anew: header, table and trailer, and so
what the reader knows of the file, are the same. Everywhere else the file is opened anew.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from hhtld.errors import FormatError
from hhtld.pack.container import ContainerReader
from hhtld.pack.opening import open_pack
from hhtld.storage.file_reading import RegularFile

GOLDEN = sorted((Path(__file__).parent.parent / "golden" / "packs").glob("*.hhtld"))
LARGE = 16_384  # bytes of a section from which one bit a byte is flipped, unless all are asked for
BLOCK = 512  # bytes a disk loses at once


@dataclass
class Damage:
    """What was tried on one file.

    Attributes
    ----------
    tried : int
    missed : list of str
        Changes after which everything could be read; none is the only good answer.
    """

    tried: int = 0
    missed: list[str] = field(default_factory=list)

    def refused(self, reader: ContainerReader | Path, section: int | None, what: str) -> None:
        """Read what was changed: one section, or with None the whole file."""
        self.tried += 1
        try:
            if isinstance(reader, Path):
                opened = ContainerReader.open(reader)
                try:
                    opened.verify()
                finally:
                    opened.close()
            elif section is None:
                reader.verify()
            else:
                reader.whole(section)
        except FormatError:
            return
        self.missed.append(what)


def _regions(reader: ContainerReader, size: int) -> Iterator[tuple[int, int, int | None]]:
    """Half-open ranges that cover a file, each with its section; -1 for header, table and trailer."""
    yield 0, 64, -1
    end = 64
    for index, record in enumerate(reader.records):
        yield end, record.offset, None
        end = record.offset + record.nbytes
        yield record.offset, end, index
    table = -(-end // 64) * 64
    yield end, table, None
    yield table, size, -1


def _unnoticed(*_: object) -> None:
    """Stand for what looks whether a file was written to; a mock would keep every reader that asks it."""


def flipped_bits(path: Path, *, every: bool) -> Damage:
    """Flip one bit after the other of a sound file and read it; the file is sound again afterwards.

    Parameters
    ----------
    path : Path
    every : bool
        False flips one bit of each byte in sections of `LARGE` bytes and more: the checksum of those is
        what takes the time.
    """
    damage = Damage()
    # One reader sees every flip: that the file changes below it is the test, and not what it is to notice here.
    unnoticed = mock.patch.object(RegularFile, "_check_unchanged", _unnoticed)
    with unnoticed, path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        sound = ContainerReader.open(path)
        for start, stop, section in _regions(sound, len(image)):
            few = not every and section is not None and stop - start >= LARGE
            for offset in range(start, stop):
                for bit in (offset % 8,) if few else range(8):
                    image[offset] ^= 1 << bit
                    target = path if section == -1 else sound
                    damage.refused(target, section, f"{path.name}: bit {bit} of byte {offset}")
                    image[offset] ^= 1 << bit
        sound.verify()
        sound.close()
    return damage


def truncations(path: Path) -> Damage:
    """Cut a file shorter by one byte after the other; nothing of it is left."""
    damage = Damage()
    for length in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, length)
        damage.refused(path, None, f"{path.name}: cut to {length} bytes")
    return damage


def lost_and_added(path: Path) -> Damage:
    """Zero every block a disk may lose, append up to a block, and write the file twice over."""
    damage = Damage()
    data = path.read_bytes()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            if any(block):
                image[start : start + len(block)] = bytes(len(block))
                damage.refused(path, None, f"{path.name}: bytes {start} to {start + BLOCK} zeroed")
                image[start : start + len(block)] = block
    for tail in [data[:n] for n in range(1, 65)] + [bytes(n) for n in range(1, 65)] + [data[-64:], data]:
        with path.open("ab") as file:
            file.write(tail)
        damage.refused(path, None, f"{path.name}: {len(tail)} bytes appended")
        os.truncate(path, len(data))
    return damage


def rows_read_past_the_checksums(path: Path, step: int) -> tuple[int, int]:
    """Flip a bit of every `step`-th byte and read single rows, whose checksums nobody computes.

    Returns
    -------
    tuple of int
        How many bits were flipped, and after how many of them every row could be read. Anything but
        `FormatError` passes through.
    """
    flips = read = 0
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        for offset in range(0, len(image), step):
            image[offset] ^= 1 << offset // step % 8
            flips += 1
            try:
                with open_pack(path) as pack:
                    for name in pack:
                        if pack.info(name).info.has_rows and pack.info(name).info.n_rows:
                            pack.get_rows(name, [0, -1, 0])
                            pack.get_rows(name, slice(1, 3), dtype="source")
                read += 1
            except FormatError:
                pass
            image[offset] ^= 1 << offset // step % 8
    return flips, read
