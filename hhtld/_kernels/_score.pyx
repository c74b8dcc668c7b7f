"""Door to score.h: int8 scores of Slot T's rows without decoding them."""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.stdlib cimport free, malloc

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "score.h" nogil:
    enum: HH_MAX_STATE_BITS
    enum: HH_SCORE_MAX_COLS
    enum: HH_TRELLIS_BLOCK
    ctypedef struct hh_score_scratch:
        uint8_t *row
        int8_t *query
        int16_t *halves
        uint8_t *table
        int32_t *wide
    Py_ssize_t hh_trellis_row_nbytes(Py_ssize_t n_cols, int rate, int n_bits)
    Py_ssize_t hh_trellis_blocks(Py_ssize_t n_cols)
    Py_ssize_t hh_trellis_reach_nbytes(Py_ssize_t n_cols, int rate)
    void hh_trellis_dots(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits,
                         const int8_t *table, const int8_t *query, hh_score_scratch scratch, int32_t *out)

MAX_COLS = HH_SCORE_MAX_COLS
cdef int _MIN_RATE = 16, _MAX_RATE = 96


def trellis_dots(const uint8_t[:, ::1] codes not None, const int8_t[::1] levels not None, int rate,
                 const int8_t[::1] query not None, int32_t[::1] out not None, *, isa=None):
    """Write to out (n_rows,) the sums of level times query (n_cols,) of codes (n_rows, row_nbytes); exact."""
    cdef int tier = resolve(isa), n_bits = 0
    cdef Py_ssize_t n_rows = codes.shape[0], n_cols = query.shape[0], n_padded, reach, nbytes, i
    cdef hh_score_scratch scratch
    cdef char *block
    while (1 << n_bits) < levels.shape[0] and n_bits <= HH_MAX_STATE_BITS:
        n_bits += 1
    if (1 << n_bits) != levels.shape[0] or n_bits > HH_MAX_STATE_BITS or n_bits < 7:
        raise ValueError(f"a table has 128 to {1 << HH_MAX_STATE_BITS} levels, a power of two; got {levels.shape[0]}")
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise ValueError(f"rate must be {_MIN_RATE}..{_MAX_RATE} sixteenths of a bit, got {rate}")
    if n_cols > HH_SCORE_MAX_COLS:
        raise ValueError(f"query has {n_cols} columns, at most {HH_SCORE_MAX_COLS} keep the sum in int32")
    nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits)
    if codes.shape[1] != nbytes or out.shape[0] != n_rows:
        raise ValueError(f"codes must be (n_rows, {nbytes}) and out (n_rows,), "
                         f"got ({n_rows}, {codes.shape[1]}) and ({out.shape[0]},)")
    if n_rows == 0:
        return
    require_aligned(&out[0], 4, "out")
    if n_cols == 0:
        for i in range(n_rows):
            out[i] = 0
        return
    n_padded, reach = hh_trellis_blocks(n_cols) * HH_TRELLIS_BLOCK, hh_trellis_reach_nbytes(n_cols, rate)
    block = <char *> malloc(64 + 5 * (1 << HH_MAX_STATE_BITS) + 3 * n_padded + reach)
    if not block:
        raise MemoryError(f"cannot allocate a row of {n_cols} columns")
    # Tables come first and on a cache line's edge: they are loaded 64 bytes at a time.
    scratch.table = <uint8_t *> (block + (64 - <size_t> block % 64) % 64)
    scratch.wide = <int32_t *> (scratch.table + (1 << HH_MAX_STATE_BITS))
    scratch.query = <int8_t *> (scratch.wide + (1 << HH_MAX_STATE_BITS))
    scratch.halves = <int16_t *> (scratch.query + n_padded)
    scratch.row = <uint8_t *> (scratch.halves + n_padded)
    with nogil:
        hh_trellis_dots(tier, &codes[0, 0], n_rows, n_cols, rate, n_bits, &levels[0], &query[0], scratch, &out[0])
    free(block)
