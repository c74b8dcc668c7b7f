"""Many runs of an open file in one call: from the page cache, from a device by threads, or past the page cache.

What some systems lack is looked up when it is needed, as in `descriptors`, and has a stand-in.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels
from hhtld.storage import descriptors

__all__ = [
    "BLOCK",
    "Runs",
    "open_direct",
    "read_blocks",
    "read_cached",
    "read_runs",
]

BLOCK = 4096  # what reads past the page cache are aligned to, at least as large as the blocks of devices
_ROOM = 256 * BLOCK
# Blocks between two rows that are read with them. A device of 3 GB/s and 500,000 reads a second takes as long for so
# many as for another read; most others have fewer reads a second and gain.
_GAP = 4 * BLOCK


class Runs(NamedTuple):
    """Runs of a file, and where each goes in an array of bytes.

    Attributes
    ----------
    offsets, nbytes, places : ndarray of int64, shape (n_runs,)
        A run has one byte at least; `offsets` ascend.
    """

    offsets: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    places: NDArray[np.int64]

    def take(self, chosen: NDArray[np.int64] | slice) -> Runs:
        """Return some of the runs."""
        return Runs(self.offsets[chosen], self.nbytes[chosen], self.places[chosen])


def open_direct(path: Path) -> int | None:
    """Return a descriptor whose reads go past the page cache, or None if the system or file system has none."""
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return None
    fd = None
    try:
        fd = descriptors.open_descriptor(path, os.O_RDONLY | os.O_DIRECT)
        descriptors.read_into(fd, memoryview(mmap.mmap(-1, BLOCK)), 0)  # some take the flag and refuse the reads
    except OSError as error:
        if fd is not None:
            os.close(fd)
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
            return None
        raise
    return fd


def read_runs(fd: int, runs: Runs, out: NDArray[np.uint8]) -> tuple[int, int]:
    """Read runs one after the other.

    Returns
    -------
    (number, error)
        The first run that cannot be read whole and the system's error, or 0 if the file ends in it; (-1, 0) if all
        are read.
    """
    if hasattr(os, "pread"):
        return _kernels._pread.read_runs(fd, *runs, out)
    room = out.data
    for number, (offset, nbytes, place) in enumerate(zip(*(column.tolist() for column in runs), strict=True)):
        done = 0
        while done < nbytes:
            try:
                count = descriptors.read_into(fd, room[place + done : place + nbytes], offset + done)
            except OSError as error:
                return number, error.errno or errno.EIO
            if count == 0:
                return number, 0
            done += count
    return -1, 0


def read_cached(fd: int, runs: Runs, out: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Read the runs that the page cache holds, and return the numbers of the others: all if it cannot be asked."""
    if not hasattr(os, "preadv"):
        return np.arange(len(runs.offsets))
    missed = np.empty(len(runs.offsets), np.int64)
    return missed[: _kernels._pread.read_cached(fd, *runs, out, missed)]


def read_blocks(fd: int, runs: Runs, out: NDArray[np.uint8]) -> tuple[int, int]:
    """Read runs of a descriptor of `open_direct`; returns what `read_runs` does."""
    return _kernels._pread.read_blocks(fd, *runs, out, BLOCK, _ROOM, _GAP)
