"""Door to pread.h: many short reads of one open file in one call."""

from libc.stdint cimport int64_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc

cdef extern from "pread.h" nogil:
    Py_ssize_t hh_pread_runs(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                             Py_ssize_t n_runs, uint8_t *out, int *error)
    Py_ssize_t hh_pread_cached(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                               Py_ssize_t n_runs, uint8_t *out, int64_t *missed)
    Py_ssize_t hh_pread_blocks(int fd, const int64_t *offsets, const int64_t *nbytes, const int64_t *places,
                               Py_ssize_t n_runs, int64_t block, int64_t gap, uint8_t *bounce, int64_t room,
                               uint8_t *out, int *error)
    int hh_file_is_same(int fd, int64_t nbytes, uint64_t modified_ns, uint64_t changed_ns)


def is_same(int fd, int64_t nbytes, uint64_t modified_ns, uint64_t changed_ns):
    """Return whether an open file has this size and these times of its last changes, in ns modulo 2**64; False if
    nobody can say.
    """
    return hh_file_is_same(fd, nbytes, modified_ns, changed_ns) != 0


cdef int _require_runs(const int64_t[::1] offsets, const int64_t[::1] nbytes, const int64_t[::1] places,
                       Py_ssize_t room) except -1:
    cdef Py_ssize_t i
    if nbytes.shape[0] != offsets.shape[0] or places.shape[0] != offsets.shape[0]:
        raise ValueError(f"runs need an offset, a length and a place each, got {offsets.shape[0]}, {nbytes.shape[0]} "
                         f"and {places.shape[0]}")
    for i in range(offsets.shape[0]):
        if offsets[i] < 0 or nbytes[i] < 1 or places[i] < 0 or nbytes[i] > room or places[i] > room - nbytes[i]:
            raise ValueError(f"run {i}: {nbytes[i]} bytes from {offsets[i]} do not fit at {places[i]} of {room}")
    return 0


def read_runs(int fd, const int64_t[::1] offsets not None, const int64_t[::1] nbytes not None,
              const int64_t[::1] places not None, uint8_t[::1] out not None):
    """Read runs; return the number of the first that cannot be read and the system's error, or (-1, 0)."""
    cdef int error = 0
    cdef Py_ssize_t failed
    _require_runs(offsets, nbytes, places, out.shape[0])
    if offsets.shape[0] == 0:
        return -1, 0
    with nogil:
        failed = hh_pread_runs(fd, &offsets[0], &nbytes[0], &places[0], offsets.shape[0], &out[0], &error)
    return failed, error


def read_cached(int fd, const int64_t[::1] offsets not None, const int64_t[::1] nbytes not None,
                const int64_t[::1] places not None, uint8_t[::1] out not None, int64_t[::1] missed not None):
    """Read the runs that the system holds in memory; return how many others there are, whose numbers go to missed."""
    cdef Py_ssize_t n_missed
    _require_runs(offsets, nbytes, places, out.shape[0])
    if missed.shape[0] < offsets.shape[0]:
        raise ValueError(f"missed has room for {missed.shape[0]} of {offsets.shape[0]} runs")
    if offsets.shape[0] == 0:
        return 0
    with nogil:
        n_missed = hh_pread_cached(fd, &offsets[0], &nbytes[0], &places[0], offsets.shape[0], &out[0], &missed[0])
    return n_missed


def read_blocks(int fd, const int64_t[::1] offsets not None, const int64_t[::1] nbytes not None,
                const int64_t[::1] places not None, uint8_t[::1] out not None, int64_t block, int64_t room,
                int64_t gap):
    """Read runs by whole aligned blocks, at most `room` bytes at a time; returns what `read_runs` does.

    Runs at most `gap` bytes behind the blocks of the one before are read with it.
    """
    cdef int error = 0
    cdef Py_ssize_t failed
    cdef char *memory
    cdef uint8_t *bounce
    _require_runs(offsets, nbytes, places, out.shape[0])
    if block < 1 or room < 2 * block or room % block:
        raise ValueError(f"room must be whole blocks of {block} bytes, two at least, got {room}")
    if gap < 0:
        raise ValueError(f"the gap must be 0 bytes or more, got {gap}")
    if offsets.shape[0] == 0:
        return -1, 0
    memory = <char *> malloc(<size_t> (room + block))
    if not memory:
        raise MemoryError(f"cannot allocate {room} bytes to read into")
    bounce = <uint8_t *> (memory + (block - <size_t> memory % block) % block)
    with nogil:
        failed = hh_pread_blocks(fd, &offsets[0], &nbytes[0], &places[0], offsets.shape[0], block, gap, bounce,
                                 room, &out[0], &error)
    free(memory)
    return failed, error
