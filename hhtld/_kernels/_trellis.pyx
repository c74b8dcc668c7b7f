"""Door to trellis.h and crossed.h: Slot T's trellis encoder and decoder, on rotated rows; and rows rotated back."""

import sys

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t
from libc.stdlib cimport free, malloc

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "trellis.h" nogil:
    enum: HH_TRELLIS_LANES
    enum: HH_MIN_STATE_BITS
    enum: HH_MAX_STATE_BITS
    enum: HH_FEEDBACK_BLOCK
    enum: HH_RENORMALISE
    enum: HH_WHOLE_COLS
    enum: HH_RING_COLS
    ctypedef struct hh_trellis_scratch:
        int16_t *x
        int16_t *costs
        int16_t *level_costs
        int16_t *back
        int16_t *down
        uint16_t *path
        float *targets
        float *errors
        uint16_t *joined
    Py_ssize_t hh_trellis_row_nbytes(Py_ssize_t n_cols, int rate, int n_bits)
    Py_ssize_t hh_trellis_reach_nbytes(Py_ssize_t n_cols, int rate)
    Py_ssize_t hh_search_cols(Py_ssize_t n_cols, Py_ssize_t whole)
    Py_ssize_t hh_back_words(int rate, int n_bits)
    Py_ssize_t hh_ring_nbytes(Py_ssize_t n_cols, int rate)
    void hh_ring_open(const uint8_t *rings, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits, uint8_t *codes)
    Py_ssize_t hh_trellis_encode(int tier, const float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate,
                                 int n_bits, const int8_t *table, int step, const float *matrix, Py_ssize_t whole,
                                 int is_ring, hh_trellis_scratch scratch, uint8_t *codes, float *gains)
    void hh_trellis_decode(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits,
                           const int8_t *table, const float *gains, uint8_t *padded, int32_t *wide, uint8_t *bytes,
                           float *out)

cdef extern from "cast.h" nogil:
    void hh_widen_bf16(int tier, const uint16_t *values, float *out, Py_ssize_t count)

cdef extern from "rotate.h" nogil:
    void hh_unrotate_f32(int tier, float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, const float *signs)

cdef extern from "crossed.h" nogil:
    enum: HH_CROSSED_NBYTES
    enum: HH_CROSSED_STATES
    void hh_crossed_levels(const uint8_t *codebook, int8_t *levels)
    void hh_crossed_decode(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate,
                           const uint8_t *codebook, const int8_t *levels, const float *gains, uint8_t *padded,
                           float *out)

MIN_RATE = 16
MAX_RATE = 96
FEEDBACK_BLOCK = HH_FEEDBACK_BLOCK
WHOLE_COLS = HH_WHOLE_COLS
_MAX_COLS = sys.maxsize // MAX_RATE


cdef int _require_rate(int rate) except -1:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise ValueError(f"rate must be {MIN_RATE}..{MAX_RATE} sixteenths of a bit, got {rate}")
    return 0


cdef int _state_bits(const int8_t[::1] table, int rate) except -1:
    cdef int n_bits = HH_MIN_STATE_BITS
    while n_bits < HH_MAX_STATE_BITS and (1 << n_bits) < table.shape[0]:
        n_bits += 1
    if (1 << n_bits) != table.shape[0]:
        raise ValueError(f"a table has {1 << HH_MIN_STATE_BITS} to {1 << HH_MAX_STATE_BITS} levels, a power of two; "
                         f"got {table.shape[0]}")
    _require_rate(rate)
    return n_bits


def row_nbytes(Py_ssize_t n_cols, int rate, int n_bits):
    """Return the bytes of a row of `n_cols` weights at `rate` sixteenths of a bit with 2**n_bits states."""
    if not 0 <= n_cols <= _MAX_COLS:
        raise ValueError(f"n_cols must be 0..{_MAX_COLS}, got {n_cols}")
    if not HH_MIN_STATE_BITS <= n_bits <= HH_MAX_STATE_BITS:
        raise ValueError(f"state bits must be {HH_MIN_STATE_BITS}..{HH_MAX_STATE_BITS}, got {n_bits}")
    _require_rate(rate)
    return hh_trellis_row_nbytes(n_cols, rate, n_bits)


cdef int _require_ring(Py_ssize_t n_cols, int rate, int n_bits) except -1:
    if not 0 < n_cols <= _MAX_COLS or n_cols * rate // 16 < max(n_bits, 16):
        raise ValueError(f"a ring has 16 bits at least, got {n_cols} weights of {rate} sixteenths of a bit")
    return 0


def ring_nbytes(Py_ssize_t n_cols, int rate, int n_bits):
    """Return the bytes of a ring of `n_cols` weights: those of `row_nbytes` without what it has twice."""
    _require_rate(rate)
    _require_ring(n_cols, rate, n_bits)
    return hh_ring_nbytes(n_cols, rate)


def open_rings(const uint8_t[:, ::1] rings not None, Py_ssize_t n_cols, int rate, int n_bits,
               uint8_t[:, ::1] codes not None):
    """Write the codes (n_rows, row_nbytes) of rings (n_rows, ring_nbytes), as `decode` takes them."""
    cdef Py_ssize_t nbytes = ring_nbytes(n_cols, rate, n_bits), n_rows = rings.shape[0]
    cdef Py_ssize_t opened = row_nbytes(n_cols, rate, n_bits)
    if rings.shape[1] != nbytes or codes.shape[0] != n_rows or codes.shape[1] != opened:
        raise ValueError(f"rings must be ({n_rows}, {nbytes}) and codes ({n_rows}, {opened}), got ({rings.shape[0]}, "
                         f"{rings.shape[1]}) and ({codes.shape[0]}, {codes.shape[1]})")
    if n_rows == 0:
        return
    with nogil:
        hh_ring_open(&rings[0, 0], n_rows, n_cols, rate, n_bits, &codes[0, 0])


def search_cols(Py_ssize_t n_cols):
    """Return how many weights of rows of `n_cols` are searched at once without feedback: all, or a piece's."""
    return hh_search_cols(n_cols, HH_WHOLE_COLS)


cdef class _Scratch:
    """Memory of one encoding call, owned here."""
    cdef hh_trellis_scratch scratch
    cdef char *block

    def __cinit__(self, Py_ssize_t n_cols, Py_ssize_t joined, int rate, int n_bits, bint has_feedback):
        cdef Py_ssize_t lanes = HH_TRELLIS_LANES, states = 1 << n_bits
        cdef Py_ssize_t costs = 2 * states * lanes * 2, level_costs = 256 * lanes * 2, both = costs + level_costs
        cdef Py_ssize_t back = n_cols * hh_back_words(rate, n_bits) * lanes * 2
        cdef Py_ssize_t x = n_cols * lanes * 2, targets = n_cols * lanes * 4 if has_feedback else 0
        cdef Py_ssize_t errors = HH_FEEDBACK_BLOCK * lanes * 4 if has_feedback else 0
        cdef Py_ssize_t down = (n_cols // HH_RENORMALISE + 1) * lanes * 2, path = n_cols * lanes * 2
        self.block = <char *> malloc(both + targets + errors + back + x + down + path + joined * 2 + 64)
        if not self.block:
            raise MemoryError(f"cannot allocate the trellis of rows of {n_cols} columns")
        # Costs come first and on a cache line's edge: they are loaded 64 bytes at a time.
        cdef char *at = self.block + (64 - <size_t> self.block % 64) % 64
        self.scratch.costs = <int16_t *> at
        self.scratch.level_costs = <int16_t *> (at + costs)
        self.scratch.targets = <float *> (at + both)
        self.scratch.errors = <float *> (at + both + targets)
        at += both + targets + errors
        self.scratch.back = <int16_t *> at
        self.scratch.x = <int16_t *> (at + back)
        self.scratch.down = <int16_t *> (at + back + x)
        self.scratch.path = <uint16_t *> (at + back + x + down)
        self.scratch.joined = <uint16_t *> (at + back + x + down + path)

    def __dealloc__(self):
        free(self.block)


def encode(const float[:, ::1] rows not None, const int8_t[::1] table not None, int step, int rate,
           uint8_t[:, ::1] codes not None, float[::1] gains not None, const float[:, ::1] feedback=None, *,
           Py_ssize_t whole=HH_WHOLE_COLS, bint is_ring=False, isa=None):
    """Encode finite rotated rows (n_rows, n_cols) into codes (n_rows, row_nbytes) and least-squares gains (n_rows,).

    With `feedback` (n_cols, n_cols) targets take up what weights before them lost, as trellis.h says. Rows of more than
    `whole` weights are searched in pieces; the bytes of a file are those of `WHOLE_COLS`. The codes of a ring end with
    the bits that they begin with.
    """
    cdef int tier = resolve(isa), n_bits = _state_bits(table, rate)
    cdef Py_ssize_t n_rows = rows.shape[0], n_cols = rows.shape[1], nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits)
    cdef _Scratch scratch
    cdef const float *matrix = NULL
    if codes.shape[0] != n_rows or codes.shape[1] != nbytes or gains.shape[0] != n_rows:
        raise ValueError(f"codes must be ({n_rows}, {nbytes}) and gains ({n_rows},), "
                         f"got ({codes.shape[0]}, {codes.shape[1]}) and ({gains.shape[0]},)")
    if feedback is not None and (feedback.shape[0] != n_cols or feedback.shape[1] != n_cols):
        raise ValueError(f"feedback must be ({n_cols}, {n_cols}), got ({feedback.shape[0]}, {feedback.shape[1]})")
    if not 1 <= step <= 8192:
        raise ValueError(f"step must be 1..8192, got {step}")
    if is_ring:
        _require_ring(n_cols, rate, n_bits)
        if feedback is not None or n_cols > whole:
            raise ValueError("a ring is searched whole and without feedback")
    if n_rows == 0:
        return
    require_aligned(&gains[0], 4, "gains")
    if n_cols == 0:
        gains[:] = 0
        return
    require_aligned(&rows[0, 0], 4, "rows")
    if feedback is not None:
        require_aligned(&feedback[0, 0], 4, "feedback")
        matrix = &feedback[0, 0]
    cdef Py_ssize_t searched = n_cols if feedback is not None else hh_search_cols(n_cols, whole)
    cdef Py_ssize_t joined = n_cols if searched < n_cols else 0, n_open
    if is_ring:
        searched = max(n_cols + 1, <Py_ssize_t> HH_RING_COLS)
    scratch = _Scratch(searched, joined, rate, n_bits, feedback is not None)
    with nogil:
        n_open = hh_trellis_encode(tier, &rows[0, 0], n_rows, n_cols, rate, n_bits, &table[0], step, matrix,
                                   whole, is_ring, scratch.scratch, &codes[0, 0], &gains[0])
    if n_open:
        raise ValueError(f"{n_open} rows close to no ring with these levels")


def decode(const uint8_t[:, ::1] codes not None, const int8_t[::1] table not None, int rate,
           const float[::1] gains not None, float[:, ::1] out not None, *, const uint8_t[::1] crossed=None, isa=None):
    """Decode codes (n_rows, row_nbytes) and gains (n_rows,) to rotated rows (n_rows, n_cols).

    `crossed` is the crossed codebook (72,) that the 4096 levels of `table` are those of: vector bodies read it instead.
    """
    cdef int tier = resolve(isa), n_bits = _state_bits(table, rate)
    cdef Py_ssize_t n_rows = out.shape[0], n_cols = out.shape[1], nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits)
    cdef const uint8_t *codebook = NULL
    if codes.shape[0] != n_rows or codes.shape[1] != nbytes or gains.shape[0] != n_rows:
        raise ValueError(f"codes must be ({n_rows}, {nbytes}) and gains ({n_rows},), "
                         f"got ({codes.shape[0]}, {codes.shape[1]}) and ({gains.shape[0]},)")
    if crossed is not None:
        _require_crossed(crossed, table.shape[0])
        codebook = &crossed[0]
    if n_rows == 0 or n_cols == 0:
        return
    require_aligned(&gains[0], 4, "gains")
    require_aligned(&out[0, 0], 4, "out")
    _decode(tier, &codes[0, 0], n_rows, n_cols, rate, n_bits, &table[0], codebook, &gains[0], &out[0, 0])


cdef int _decode(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits,
                 const int8_t *table, const uint8_t *crossed, const float *gains, float *out) except -1:
    cdef char *block = <char *> malloc(64 + 5 * (1 << HH_MAX_STATE_BITS) + hh_trellis_reach_nbytes(n_cols, rate))
    cdef uint8_t *bytes
    if not block:
        raise MemoryError(f"cannot allocate a row of {n_cols} columns")
    # Tables come first and on a cache line's edge: they are loaded 64 bytes at a time.
    bytes = <uint8_t *> (block + (64 - <size_t> block % 64) % 64)
    with nogil:
        if crossed:
            hh_crossed_decode(tier, codes, n_rows, n_cols, rate, crossed, table, gains,
                              bytes + 5 * (1 << HH_MAX_STATE_BITS), out)
        else:
            hh_trellis_decode(tier, codes, n_rows, n_cols, rate, n_bits, table, gains,
                              bytes + 5 * (1 << HH_MAX_STATE_BITS), <int32_t *> (bytes + (1 << HH_MAX_STATE_BITS)),
                              bytes, out)
    free(block)
    return 0


cdef class RowDecoder:
    """Decodes rows of one code and rotates them back in one call, since a row takes less time than the calls for it.

    Parameters
    ----------
    table, rate, crossed : as in `decode`
    signs : float32 (2, n_cols)
    gain_unit : float
        What gains are multiplied by.
    centroids : float32 (k, n_cols), optional
        What is added to rows that are rotated back.
    """
    cdef const int8_t[::1] _table
    cdef const uint8_t[::1] _crossed
    cdef const float[:, ::1] _signs
    cdef const float[:, ::1] _centroids
    cdef int _rate, _n_bits
    cdef float _gain_unit

    def __cinit__(self, const int8_t[::1] table not None, int rate, const uint8_t[::1] crossed,
                  const float[:, ::1] signs not None, float gain_unit, const float[:, ::1] centroids=None):
        self._n_bits = _state_bits(table, rate)
        if crossed is not None:
            _require_crossed(crossed, table.shape[0])
        if signs.shape[0] != 2:
            raise ValueError(f"signs must be (2, n_cols), got ({signs.shape[0]}, {signs.shape[1]})")
        if signs.shape[1]:
            require_aligned(&signs[0, 0], 4, "signs")
        if centroids is not None:
            if centroids.shape[1] != signs.shape[1]:
                raise ValueError(f"centroids must be (k, {signs.shape[1]}), got ({centroids.shape[0]}, "
                                 f"{centroids.shape[1]})")
            if centroids.shape[0] and centroids.shape[1]:
                require_aligned(&centroids[0, 0], 4, "centroids")
        self._table, self._crossed, self._signs, self._centroids = table, crossed, signs, centroids
        self._rate, self._gain_unit = rate, gain_unit

    def decode(self, const uint8_t[:, ::1] codes not None, const uint16_t[::1] gains not None,
               float[:, ::1] out not None, const uint8_t[::1] twigs=None, *, isa=None):
        """Write the rows (n_rows, n_cols) of codes (n_rows, row_nbytes) and gains (n_rows,), bits of bfloat16.

        `twigs` (n_rows,) are the numbers of the centroids that are added.
        """
        cdef int tier = resolve(isa)
        cdef Py_ssize_t n_rows = out.shape[0], n_cols = self._signs.shape[1], i, t
        cdef float *row
        cdef const float *centroid
        cdef Py_ssize_t nbytes = hh_trellis_row_nbytes(n_cols, self._rate, self._n_bits)
        cdef float one
        cdef float *values = &one
        cdef const uint8_t *crossed = NULL
        if codes.shape[0] != n_rows or codes.shape[1] != nbytes or gains.shape[0] != n_rows or out.shape[1] != n_cols:
            raise ValueError(f"codes must be ({n_rows}, {nbytes}), gains ({n_rows},) and out ({n_rows}, {n_cols}), got "
                             f"({codes.shape[0]}, {codes.shape[1]}), ({gains.shape[0]},) and ({n_rows}, "
                             f"{out.shape[1]})")
        if (twigs is None) != (self._centroids is None):
            raise ValueError("twigs and centroids come together")
        if twigs is not None:
            if twigs.shape[0] != n_rows:
                raise ValueError(f"twigs must be ({n_rows},), got ({twigs.shape[0]},)")
            for i in range(n_rows):
                if twigs[i] >= self._centroids.shape[0]:
                    raise ValueError(f"a twig is not below {self._centroids.shape[0]}")
        if n_rows == 0 or n_cols == 0:
            return
        require_aligned(&gains[0], 2, "gains")
        require_aligned(&out[0, 0], 4, "out")
        if self._crossed is not None:
            crossed = &self._crossed[0]
        if n_rows > 1:
            values = <float *> malloc(n_rows * sizeof(float))
            if not values:
                raise MemoryError(f"cannot allocate the gains of {n_rows} rows")
        try:
            with nogil:
                hh_widen_bf16(tier, &gains[0], values, n_rows)
                for i in range(n_rows):
                    values[i] *= self._gain_unit
            _decode(tier, &codes[0, 0], n_rows, n_cols, self._rate, self._n_bits, &self._table[0], crossed, values,
                    &out[0, 0])
            with nogil:
                hh_unrotate_f32(tier, &out[0, 0], n_rows, n_cols, &self._signs[0, 0])
                if twigs is not None:
                    for i in range(n_rows):
                        row, centroid = &out[i, 0], &self._centroids[twigs[i], 0]
                        for t in range(n_cols):
                            row[t] += centroid[t]
        finally:
            if n_rows > 1:
                free(values)


cdef int _require_crossed(const uint8_t[::1] crossed, Py_ssize_t n_levels) except -1:
    if crossed.shape[0] != HH_CROSSED_NBYTES or n_levels != HH_CROSSED_STATES:
        raise ValueError(f"a crossed codebook has {HH_CROSSED_NBYTES} bytes and {HH_CROSSED_STATES} levels, "
                         f"got {crossed.shape[0]} bytes and {n_levels} levels")
    return 0


def crossed_levels(const uint8_t[::1] crossed not None, int8_t[::1] levels not None):
    """Write the level of every state (4096,) of a crossed codebook (72,); sums of levels wrap."""
    _require_crossed(crossed, levels.shape[0])
    hh_crossed_levels(&crossed[0], &levels[0])
