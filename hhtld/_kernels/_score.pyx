"""Door to score.h and product.h: int8 scores and products of Slot T's rows without decoding them to memory."""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.stdlib cimport free, malloc

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "score.h" nogil:
    enum: HH_MAX_STATE_BITS
    enum: HH_SCORE_MAX_COLS
    enum: HH_SCORE_PANEL
    enum: HH_SCORE_TILE
    enum: HH_SCORE_COLS
    enum: HH_SCORE_QUERIES
    enum: HH_TRELLIS_BLOCK
    enum: HH_CROSSED_NBYTES
    ctypedef struct hh_score_scratch:
        uint8_t *row
        int8_t *query
        int16_t *halves
        uint8_t *table
        int32_t *wide
        uint8_t *levels
        uint8_t *tile
        int32_t *bias
        int32_t *rest
    Py_ssize_t hh_trellis_row_nbytes(Py_ssize_t n_cols, int rate, int n_bits)
    Py_ssize_t hh_trellis_blocks(Py_ssize_t n_cols)
    Py_ssize_t hh_trellis_reach_nbytes(Py_ssize_t n_cols, int rate)
    void hh_trellis_dots(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits,
                         const int8_t *table, const uint8_t *codebook, const int8_t *queries,
                         Py_ssize_t n_queries, hh_score_scratch scratch, int32_t *out)
    void hh_trellis_energies(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate,
                             int n_bits, const int8_t *table, const uint8_t *codebook, hh_score_scratch scratch,
                             int32_t *out)

cdef extern from "product.h" nogil:
    void hh_product_inputs(int tier, const float *inputs, Py_ssize_t n_inputs, Py_ssize_t n_cols,
                           const float *column_scale, const float *signs, float *rotated)
    float hh_product_plane(float *rest, Py_ssize_t n_cols, int8_t *codes)
    void hh_product_add(const int32_t *sums, const float *scales, const float *gains, Py_ssize_t n_inputs,
                        Py_ssize_t n_rows, int is_first, int is_last, float *out)

MAX_COLS = HH_SCORE_MAX_COLS
cdef int _MIN_RATE = 16, _MAX_RATE = 96


cdef int _state_bits(const uint8_t[:, ::1] codes, Py_ssize_t n_levels, int rate, Py_ssize_t n_cols) except -1:
    """Return log2 of n_levels, after looking at everything that both doors are given."""
    cdef int n_bits = 0
    cdef Py_ssize_t nbytes
    while (1 << n_bits) < n_levels and n_bits <= HH_MAX_STATE_BITS:
        n_bits += 1
    if (1 << n_bits) != n_levels or n_bits > HH_MAX_STATE_BITS or n_bits < 7:
        raise ValueError(f"a table has 128 to {1 << HH_MAX_STATE_BITS} levels, a power of two; got {n_levels}")
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise ValueError(f"rate must be {_MIN_RATE}..{_MAX_RATE} sixteenths of a bit, got {rate}")
    if not 0 <= n_cols <= HH_SCORE_MAX_COLS:
        raise ValueError(f"rows have {n_cols} columns, at most {HH_SCORE_MAX_COLS} keep a sum in int32")
    nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits)
    if codes.shape[1] != nbytes:
        raise ValueError(f"codes must be (n_rows, {nbytes}), got ({codes.shape[0]}, {codes.shape[1]})")
    return n_bits


cdef const uint8_t *_codebook(const uint8_t[::1] crossed, int n_bits) except? NULL:
    if crossed is None:
        return NULL
    if crossed.shape[0] != HH_CROSSED_NBYTES or n_bits != 12:
        raise ValueError(f"a crossed codebook has {HH_CROSSED_NBYTES} bytes and 4096 levels, got {crossed.shape[0]} "
                         f"bytes and {1 << n_bits} levels")
    return &crossed[0]


cdef void *_allocate(hh_score_scratch *scratch, Py_ssize_t n_cols, int rate, Py_ssize_t n_queries) except NULL:
    """Return what to free after the call."""
    cdef Py_ssize_t n_states = 1 << HH_MAX_STATE_BITS, reach = hh_trellis_reach_nbytes(n_cols, rate)
    cdef Py_ssize_t n_query = hh_trellis_blocks(n_cols) * HH_TRELLIS_BLOCK, n_sums = 1, n_tile = 0
    cdef Py_ssize_t n_levels = HH_SCORE_PANEL * HH_SCORE_COLS
    cdef char *block
    if n_queries > 1:
        n_sums, n_tile = min(n_queries, HH_SCORE_QUERIES), HH_SCORE_TILE * HH_SCORE_COLS
        n_query = max(n_sums * HH_SCORE_COLS, 2 * n_query if n_queries == 2 else 0)
    block = <char *> malloc(64 + 5 * n_states + n_levels + n_tile + 4 * n_sums * (HH_SCORE_TILE + 1) + 3 * n_query
                            + reach)
    if not block:
        raise MemoryError(f"cannot allocate the scratch of {n_queries} queries of {n_cols} columns")
    # What is loaded 64 bytes at a time comes first and on a cache line's edge.
    scratch.table = <uint8_t *> (block + (64 - <size_t> block % 64) % 64)
    scratch.wide = <int32_t *> (scratch.table + n_states)
    scratch.levels = <uint8_t *> (scratch.wide + n_states)
    scratch.tile = scratch.levels + n_levels
    scratch.query = <int8_t *> (scratch.tile + n_tile)
    scratch.halves = <int16_t *> (scratch.query + n_query)
    scratch.rest = <int32_t *> (scratch.halves + n_query)
    scratch.bias = scratch.rest + n_sums * HH_SCORE_TILE
    scratch.row = <uint8_t *> (scratch.bias + n_sums)
    return block


def trellis_dots(const uint8_t[:, ::1] codes not None, const int8_t[::1] levels not None, int rate,
                 const int8_t[:, ::1] queries not None, int32_t[:, ::1] out not None, *,
                 const uint8_t[::1] crossed=None, isa=None):
    """Write to out (n_queries, n_rows) the sums of level times query (n_queries, n_cols) of codes; exact.

    `crossed` is the crossed codebook (72,) that the 4096 levels are those of: vector bodies read it instead.
    """
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_rows = codes.shape[0], n_queries = queries.shape[0], n_cols = queries.shape[1]
    cdef int n_bits = _state_bits(codes, levels.shape[0], rate, n_cols)
    cdef const uint8_t *codebook = _codebook(crossed, n_bits)
    cdef hh_score_scratch scratch
    cdef void *block
    if out.shape[0] != n_queries or out.shape[1] != n_rows:
        raise ValueError(f"out must be ({n_queries}, {n_rows}), got ({out.shape[0]}, {out.shape[1]})")
    if n_rows == 0 or n_queries == 0:
        return
    require_aligned(&out[0, 0], 4, "out")
    if n_cols == 0:
        out[:, :] = 0
        return
    block = _allocate(&scratch, n_cols, rate, n_queries)
    with nogil:
        hh_trellis_dots(tier, &codes[0, 0], n_rows, n_cols, rate, n_bits, &levels[0], codebook, &queries[0, 0],
                        n_queries, scratch, &out[0, 0])
    free(block)


def trellis_energies(const uint8_t[:, ::1] codes not None, const int8_t[::1] levels not None, int rate,
                     Py_ssize_t n_cols, int32_t[::1] out not None, *, const uint8_t[::1] crossed=None, isa=None):
    """Write to out (n_rows,) the sums of squared levels of codes (n_rows, row_nbytes); exact."""
    cdef int tier = resolve(isa), n_bits = _state_bits(codes, levels.shape[0], rate, n_cols)
    cdef Py_ssize_t n_rows = codes.shape[0]
    cdef const uint8_t *codebook = _codebook(crossed, n_bits)
    cdef hh_score_scratch scratch
    cdef void *block
    if out.shape[0] != n_rows:
        raise ValueError(f"out must be ({n_rows},), got ({out.shape[0]},)")
    if n_rows == 0:
        return
    require_aligned(&out[0], 4, "out")
    if n_cols == 0:
        out[:] = 0
        return
    block = _allocate(&scratch, n_cols, rate, 1)
    with nogil:
        hh_trellis_energies(tier, &codes[0, 0], n_rows, n_cols, rate, n_bits, &levels[0], codebook, scratch, &out[0])
    free(block)


def trellis_products(const uint8_t[:, ::1] codes not None, const int8_t[::1] levels not None, int rate,
                     const float[::1] gains not None, const float[:, ::1] signs not None,
                     const float[:, ::1] inputs not None, int n_planes, float[:, ::1] out not None, *,
                     const float[::1] column_scale=None, const uint8_t[::1] crossed=None, isa=None):
    """Write to out (n_inputs, n_rows) the products of inputs (n_inputs, n_cols) with rows of gains (n_rows,).

    Inputs are divided by `column_scale` (n_cols,), rotated by `signs` (2, n_cols), and taken as `n_planes` planes of
    int8. Returns whether all were finite on their way; if not, out holds nothing of use.
    """
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_rows = codes.shape[0], n_inputs = inputs.shape[0], n_cols = inputs.shape[1]
    cdef int n_bits = _state_bits(codes, levels.shape[0], rate, n_cols), plane, is_finite = 1
    cdef const uint8_t *codebook = _codebook(crossed, n_bits)
    cdef const float *scale = NULL
    cdef hh_score_scratch scratch
    cdef void *block
    cdef char *memory
    cdef float *rest
    cdef float *scales
    cdef int32_t *sums
    cdef int8_t *queries
    cdef Py_ssize_t q, n_queries
    if gains.shape[0] != n_rows or out.shape[0] != n_inputs or out.shape[1] != n_rows:
        raise ValueError(f"gains must be ({n_rows},) and out ({n_inputs}, {n_rows}), "
                         f"got ({gains.shape[0]},) and ({out.shape[0]}, {out.shape[1]})")
    if signs.shape[0] != 2 or signs.shape[1] != n_cols:
        raise ValueError(f"signs must be (2, {n_cols}), got ({signs.shape[0]}, {signs.shape[1]})")
    if column_scale is not None and column_scale.shape[0] != n_cols:
        raise ValueError(f"column_scale must be ({n_cols},), got ({column_scale.shape[0]},)")
    if n_planes not in (1, 2):
        raise ValueError(f"n_planes must be 1 or 2, got {n_planes}")
    if n_rows == 0 or n_inputs == 0:
        return True
    if n_cols == 0:
        out[:, :] = 0
        return True
    require_aligned(&gains[0], 4, "gains")
    require_aligned(&signs[0, 0], 4, "signs")
    require_aligned(&inputs[0, 0], 4, "inputs")
    require_aligned(&out[0, 0], 4, "out")
    if column_scale is not None:
        require_aligned(&column_scale[0], 4, "column_scale")
        scale = &column_scale[0]
    n_queries = n_planes * n_inputs
    block = _allocate(&scratch, n_cols, rate, n_queries)
    memory = <char *> malloc(4 * n_inputs * n_cols + n_queries * n_cols + 4 * n_queries * (n_rows + 1))
    if not memory:
        free(block)
        raise MemoryError(f"cannot allocate the products of {n_inputs} inputs with {n_rows} rows")
    rest = <float *> memory
    sums = <int32_t *> (rest + n_inputs * n_cols)
    scales = <float *> (sums + n_queries * n_rows)
    queries = <int8_t *> (scales + n_queries)
    with nogil:
        hh_product_inputs(tier, &inputs[0, 0], n_inputs, n_cols, scale, &signs[0, 0], rest)
        for q in range(n_queries):  # plane after plane of all inputs
            scales[q] = hh_product_plane(rest + q % n_inputs * n_cols, n_cols, queries + q * n_cols)
            if scales[q] < 0:
                is_finite = 0
                break
        if is_finite:
            hh_trellis_dots(tier, &codes[0, 0], n_rows, n_cols, rate, n_bits, &levels[0], codebook, queries, n_queries,
                            scratch, sums)
            for plane in range(n_planes):
                hh_product_add(sums + plane * n_inputs * n_rows, scales + plane * n_inputs, &gains[0], n_inputs, n_rows,
                               plane == 0, plane == n_planes - 1, &out[0, 0])
    free(memory)
    free(block)
    return bool(is_finite)
