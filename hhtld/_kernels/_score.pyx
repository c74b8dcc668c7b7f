"""Door to score.h and product.h: int8 scores and products of Slot T's rows without decoding them to memory."""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from hhtld._kernels._isa cimport require_aligned, resolve
from hhtld._kernels._team cimport Team, hh_team_run

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
    Py_ssize_t hh_ring_nbytes(Py_ssize_t n_cols, int rate)
    void hh_ring_open(const uint8_t *rings, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits, uint8_t *codes)
    void hh_trellis_dots(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits,
                         const int8_t *table, const uint8_t *codebook, const int8_t *queries,
                         Py_ssize_t n_queries, hh_score_scratch scratch, int32_t *out)
    ctypedef struct hh_score_gains:
        const float *gains
        const float *scales
        int more
        float *scores
    Py_ssize_t hh_score_sums(int tier, Py_ssize_t n_rows, Py_ssize_t n_queries)
    void hh_trellis_scores(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate, int n_bits,
                           const int8_t *table, const uint8_t *codebook, const int8_t *queries, Py_ssize_t n_queries,
                           const hh_score_gains *gains, hh_score_scratch scratch, int32_t *sums)
    void hh_trellis_energies(int tier, const uint8_t *codes, Py_ssize_t n_rows, Py_ssize_t n_cols, int rate,
                             int n_bits, const int8_t *table, const uint8_t *codebook, hh_score_scratch scratch,
                             int32_t *out)

cdef extern from "product.h" nogil:
    enum: HH_PRODUCT_F32
    enum: HH_PRODUCT_BF16
    enum: HH_PRODUCT_F16
    void hh_product_inputs(int tier, const void *inputs, int type, Py_ssize_t n_inputs, Py_ssize_t n_cols,
                           const float *column_scale, const float *signs, float *rotated)
    float hh_product_plane(float *rest, Py_ssize_t n_cols, int8_t *codes)
    void hh_product_centroids(const float *rotated, const float *centroids, Py_ssize_t n_centroids, Py_ssize_t n_cols,
                              float *products)
    void hh_product_add(int type, const int32_t *sums, const float *scales, const float *gains, int n_planes,
                        Py_ssize_t n_inputs, Py_ssize_t n_rows, const Py_ssize_t *rows, const uint8_t *twigs,
                        const float *products, Py_ssize_t n_centroids, Py_ssize_t out_apart, void *out)

MAX_COLS = HH_SCORE_MAX_COLS
cdef int _MIN_RATE = 16, _MAX_RATE = 96
cdef Py_ssize_t _BLOCK_ROWS = 4096, _BLOCK_NBYTES = 1 << 20  # of rows that are multiplied at once
# Pieces for each thread of a team, so that one that begins late leaves little; and weights that a piece has at least,
# which take 2 to 6 us. What a piece prepares takes 0.4 us.
cdef Py_ssize_t _PIECES = 4, _PIECE_WEIGHTS = 1 << 16


cdef int _state_bits(const uint8_t[:, ::1] codes, Py_ssize_t n_levels, int rate, Py_ssize_t n_cols,
                     bint is_ring=False) except -1:
    """Return log2 of n_levels, after looking at everything that all doors are given."""
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
    nbytes = hh_ring_nbytes(n_cols, rate) if is_ring else hh_trellis_row_nbytes(n_cols, rate, n_bits)
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


def trellis_scores(const uint8_t[:, ::1] codes not None, const int8_t[::1] levels not None, int rate,
                   const int8_t[:, ::1] queries not None, const float[::1] gains not None,
                   const float[::1] scales not None, float[:, ::1] out not None, *, bint more,
                   const uint8_t[::1] crossed=None, isa=None):
    """Write to out (n_queries, n_rows), or add if `more`, gains (n_rows,) times scales (n_queries,) times the sums of
    `trellis_dots`; what `_screen.add_dots` makes of them, without a matrix of sums.
    """
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_rows = codes.shape[0], n_queries = queries.shape[0], n_cols = queries.shape[1]
    cdef int n_bits = _state_bits(codes, levels.shape[0], rate, n_cols)
    cdef const uint8_t *codebook = _codebook(crossed, n_bits)
    cdef hh_score_scratch scratch
    cdef hh_score_gains with_gains
    cdef void *block
    cdef int32_t *sums
    if (out.shape[0] != n_queries or out.shape[1] != n_rows or gains.shape[0] != n_rows
            or scales.shape[0] != n_queries):
        raise ValueError(f"out must be ({n_queries}, {n_rows}), gains ({n_rows},) and scales ({n_queries},), got "
                         f"({out.shape[0]}, {out.shape[1]}), ({gains.shape[0]},) and ({scales.shape[0]},)")
    if n_rows == 0 or n_queries == 0:
        return
    require_aligned(&gains[0], 4, "gains")
    require_aligned(&scales[0], 4, "scales")
    require_aligned(&out[0, 0], 4, "out")
    if n_cols == 0:
        if not more:
            out[:, :] = 0
        return
    block = _allocate(&scratch, n_cols, rate, n_queries)
    sums = <int32_t *> malloc(hh_score_sums(tier, n_rows, n_queries) * sizeof(int32_t))
    if not sums:
        free(block)
        raise MemoryError(f"cannot allocate the sums of {n_queries} queries and {n_rows} rows")
    with_gains.gains, with_gains.scales, with_gains.more, with_gains.scores = &gains[0], &scales[0], more, &out[0, 0]
    with nogil:
        hh_trellis_scores(tier, &codes[0, 0], n_rows, n_cols, rate, n_bits, &levels[0], codebook, &queries[0, 0],
                          n_queries, &with_gains, scratch, sums)
    free(sums)
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


cdef struct _Rows:  # of one code
    const uint8_t *codes
    const int8_t *levels
    const uint8_t *codebook
    const float *gains
    const Py_ssize_t *places
    Py_ssize_t n_rows, row_nbytes
    int rate, n_bits
    bint is_ring


cdef struct _Worker:  # what a thread writes to
    hh_score_scratch scratch
    void *block  # of the scratch
    int32_t *sums
    uint8_t *opened


cdef struct _Product:  # what the pieces of a product share
    int tier, out_type, n_planes
    Py_ssize_t n_inputs, n_cols, n_rows, n_matrices, n_centroids, step, out_nbytes
    bint has_room_for_pieces  # of which there are fewer than threads
    const _Rows *rows
    const uint8_t *twigs
    int8_t *queries
    float *scales
    float *products
    char *out
    _Worker *workers


cdef void _multiply_piece(void *job, Py_ssize_t number, Py_ssize_t piece) noexcept nogil:
    """Multiply the rows of a piece: `step` rows of one code, counted through all codes."""
    cdef const _Product *product = <const _Product *> job
    cdef const _Rows *rows = product.rows
    cdef _Worker *worker = &product.workers[piece if product.has_room_for_pieces else number]
    cdef Py_ssize_t n_pieces, at, count
    cdef const uint8_t *codes
    while True:
        n_pieces = (rows.n_rows + product.step - 1) // product.step
        if piece < n_pieces:
            break
        piece -= n_pieces
        rows += 1
    at = piece * product.step
    count = min(product.step, rows.n_rows - at)
    codes = rows.codes + at * rows.row_nbytes
    if rows.is_ring:
        hh_ring_open(codes, count, product.n_cols, rows.rate, rows.n_bits, worker.opened)
        codes = worker.opened
    hh_trellis_dots(product.tier, codes, count, product.n_cols, rows.rate, rows.n_bits, rows.levels, rows.codebook,
                    product.queries, product.n_planes * product.n_inputs, worker.scratch, worker.sums)
    hh_product_add(product.out_type, worker.sums, product.scales, rows.gains + at, product.n_planes, product.n_inputs,
                   count, rows.places + at if rows.places else NULL,
                   product.twigs + (0 if rows.places else at) if product.twigs else NULL, product.products,
                   product.n_centroids, product.n_rows,
                   product.out + (0 if rows.places else at * product.out_nbytes))


cdef int _product_type(str name) except -1:
    if name == "F32":
        return HH_PRODUCT_F32
    if name == "BF16":
        return HH_PRODUCT_BF16
    if name == "F16":
        return HH_PRODUCT_F16
    raise ValueError(f"a type must be F32, BF16 or F16, got {name}")


cdef class TrellisProducts:
    """Products of inputs with a matrix whose rows may have several codes.

    Parameters
    ----------
    matrices : iterable of (codes, levels, rate, gains, rows, crossed, is_ring)
        Codes (n, row_nbytes), or rings (n, ring_nbytes); gains float32 (n,); `rows`, intp (n,) or None, says which rows
        of the matrix these are, all of them if it is None; `crossed` is as for `trellis_dots`. Arrays are held.
    n_rows : int
        Of the matrix.
    signs : float32 (2, n_cols)
    column_scale : float32 (n_cols,), optional
    centroids : float32 (n_centroids, n_cols), optional
        Rotated, as the rows are.
    twigs : uint8 (n_rows,), optional
        The centroid of every row; they come with `centroids`.
    """
    cdef list _held
    cdef _Rows *_rows
    cdef Py_ssize_t _n_matrices, _n_rows, _n_cols
    cdef const float[:, ::1] _signs
    cdef const float[::1] _column_scale
    cdef const float[:, ::1] _centroids
    cdef const uint8_t[::1] _twigs

    def __cinit__(self, matrices, Py_ssize_t n_rows, const float[:, ::1] signs not None,
                  const float[::1] column_scale=None, const float[:, ::1] centroids=None,
                  const uint8_t[::1] twigs=None):
        cdef const uint8_t[:, ::1] codes
        cdef const int8_t[::1] levels
        cdef const float[::1] gains
        cdef const Py_ssize_t[::1] places
        cdef const uint8_t[::1] crossed
        cdef uint8_t twig
        cdef _Rows *rows
        self._held = list(matrices)
        self._n_matrices, self._n_rows, self._n_cols = len(self._held), n_rows, signs.shape[1]
        self._signs, self._column_scale = signs, column_scale
        if signs.shape[0] != 2:
            raise ValueError(f"signs must be (2, n_cols), got ({signs.shape[0]}, {signs.shape[1]})")
        if column_scale is not None and column_scale.shape[0] != self._n_cols:
            raise ValueError(f"column_scale must be ({self._n_cols},), got ({column_scale.shape[0]},)")
        if (centroids is None) != (twigs is None):
            raise ValueError("centroids and twigs come together or not at all")
        self._centroids, self._twigs = centroids, twigs
        if centroids is not None:
            if centroids.shape[1] != self._n_cols or twigs.shape[0] != n_rows:
                raise ValueError(f"centroids must be (n, {self._n_cols}) and twigs ({n_rows},), got "
                                 f"({centroids.shape[0]}, {centroids.shape[1]}) and ({twigs.shape[0]},)")
            for twig in twigs:
                if twig >= centroids.shape[0]:
                    raise ValueError(f"twigs must lie in 0..{centroids.shape[0] - 1}, got {twig}")
            if centroids.shape[0] and self._n_cols:
                require_aligned(&centroids[0, 0], 4, "centroids")
        self._rows = <_Rows *> malloc(max(1, self._n_matrices) * sizeof(_Rows))
        if not self._rows:
            raise MemoryError(f"cannot allocate {self._n_matrices} matrices")
        for number, (codes, levels, rate, gains, places, crossed, is_ring) in enumerate(self._held):
            rows = &self._rows[number]
            rows.n_bits = _state_bits(codes, levels.shape[0], rate, self._n_cols, is_ring)
            rows.codebook = _codebook(crossed, rows.n_bits)
            if is_ring and self._n_cols * rate // 16 < max(rows.n_bits, 16):
                raise ValueError(f"a ring has 16 bits at least, got {self._n_cols} weights of {rate} sixteenths of a "
                                 f"bit")
            rows.n_rows, rows.row_nbytes, rows.rate, rows.is_ring = codes.shape[0], codes.shape[1], rate, is_ring
            if gains.shape[0] != rows.n_rows:
                raise ValueError(f"gains must be ({rows.n_rows},), got ({gains.shape[0]},)")
            if places is None and rows.n_rows != n_rows:
                raise ValueError(f"a matrix of {n_rows} rows has {rows.n_rows} codes")
            rows.places = NULL
            if places is not None:
                if places.shape[0] != rows.n_rows:
                    raise ValueError(f"rows must be ({rows.n_rows},), got ({places.shape[0]},)")
                for place in places:
                    if not 0 <= place < n_rows:
                        raise ValueError(f"rows must lie in 0..{n_rows - 1}, got {place}")
            if rows.n_rows and self._n_cols:
                require_aligned(&gains[0], 4, "gains")
                rows.codes, rows.levels, rows.gains = &codes[0, 0], &levels[0], &gains[0]
                if places is not None:
                    require_aligned(<const void *> &places[0], sizeof(Py_ssize_t), "rows")
                    rows.places = &places[0]
        if self._n_cols:
            require_aligned(&signs[0, 0], 4, "signs")
            if column_scale is not None:
                require_aligned(&column_scale[0], 4, "column_scale")

    def __dealloc__(self):
        free(self._rows)

    def write(self, const float[:, ::1] inputs not None, int n_planes, float[:, ::1] out not None, *, Team team=None,
              isa=None):
        """Write products of inputs (n_inputs, n_cols) to out (n_inputs, n_rows).

        Inputs are divided by the column scale, rotated, and taken as `n_planes` planes of int8; with centroids they are
        multiplied as they are rotated. A team shares the rows. Returns whether all were finite on their way; if not,
        out holds nothing of use.
        """
        cdef Py_ssize_t n_inputs = inputs.shape[0]
        cdef const void *from_inputs = NULL
        cdef void *to_out = NULL
        if inputs.shape[1] != self._n_cols or out.shape[0] != n_inputs or out.shape[1] != self._n_rows:
            raise ValueError(f"inputs must be ({n_inputs}, {self._n_cols}) and out ({n_inputs}, {self._n_rows}), got "
                             f"({n_inputs}, {inputs.shape[1]}) and ({out.shape[0]}, {out.shape[1]})")
        if n_inputs and self._n_rows:
            to_out = &out[0, 0]
            if self._n_cols:
                from_inputs = &inputs[0, 0]
        return self._write(from_inputs, HH_PRODUCT_F32, n_inputs, n_planes, to_out, HH_PRODUCT_F32, team, resolve(isa))

    def write_at(self, size_t inputs, str inputs_type, Py_ssize_t n_inputs, int n_planes, size_t out, str out_type, *,
                 Team team=None, isa=None):
        """As `write`, for the addresses of contiguous arrays (n_inputs, n_cols) and (n_inputs, n_rows).

        Their types are "F32", "BF16" or "F16"; products are rounded to nearest, ties to even.
        """
        return self._write(<const void *> inputs, _product_type(inputs_type), n_inputs, n_planes, <void *> out,
                           _product_type(out_type), team, resolve(isa))

    cdef bint _write(self, const void *inputs, int inputs_type, Py_ssize_t n_inputs, int n_planes, void *out,
                     int out_type, Team team, int tier) except? False:
        cdef Py_ssize_t n_cols = self._n_cols, n_queries = n_planes * n_inputs, out_nbytes, n_workers = 1, step
        cdef Py_ssize_t number, q, most_nbytes = 0, n_pieces = 0, n_centroids = 0, worker_nbytes
        cdef const float *scale = NULL
        cdef bint is_finite = True
        cdef _Product product
        cdef _Worker *worker
        cdef char *memory
        cdef float *rest
        if n_planes not in (1, 2):
            raise ValueError(f"n_planes must be 1 or 2, got {n_planes}")
        if self._n_rows == 0 or n_inputs == 0:
            return True
        out_nbytes = 4 if out_type == HH_PRODUCT_F32 else 2
        require_aligned(out, out_nbytes, "out")
        if n_cols == 0:
            memset(out, 0, n_inputs * self._n_rows * out_nbytes)
            return True
        require_aligned(inputs, 4 if inputs_type == HH_PRODUCT_F32 else 2, "inputs")
        if self._column_scale is not None:
            scale = &self._column_scale[0]
        product.twigs = NULL
        if self._twigs is not None:
            product.twigs, n_centroids = &self._twigs[0], self._centroids.shape[0]
        step = _BLOCK_ROWS
        for number in range(self._n_matrices):
            most_nbytes = max(most_nbytes, hh_trellis_row_nbytes(n_cols, self._rows[number].rate, HH_MAX_STATE_BITS))
        if most_nbytes:
            step = max(1, min(step, _BLOCK_NBYTES // most_nbytes))
        if team is not None:
            n_workers += team.team.n_helpers
            step = min(step, max(self._n_rows // (_PIECES * n_workers), _PIECE_WEIGHTS // n_cols) // 16 * 16 + 16)
        for number in range(self._n_matrices):
            n_pieces += (self._rows[number].n_rows + step - 1) // step
        product.has_room_for_pieces = n_pieces < n_workers
        if product.has_room_for_pieces:
            n_workers = n_pieces
        worker_nbytes = 4 * n_queries * step + step * most_nbytes
        worker_nbytes += -worker_nbytes % 4
        memory = <char *> malloc(4 * n_inputs * (n_cols + n_centroids) + n_queries * n_cols + 4 * n_queries
                                 + n_workers * (worker_nbytes + <Py_ssize_t> sizeof(_Worker)) + 64)
        if not memory:
            raise MemoryError(f"cannot allocate the products of {n_inputs} inputs of {n_cols} columns")
        product.workers = <_Worker *> memory
        rest = <float *> (product.workers + n_workers)
        product.scales = rest + n_inputs * n_cols
        product.products = product.scales + n_queries
        memory = <char *> (product.products + n_inputs * n_centroids)
        for number in range(n_workers):
            worker = &product.workers[number]
            worker.sums = <int32_t *> (memory + number * worker_nbytes)
            worker.opened = <uint8_t *> (worker.sums + n_queries * step)
            worker.block = NULL
        product.queries = <int8_t *> (memory + n_workers * worker_nbytes)
        try:
            for number in range(n_workers):
                worker = &product.workers[number]
                worker.block = _allocate(&worker.scratch, n_cols, _MAX_RATE, n_queries)
            product.tier, product.out_type, product.n_planes = tier, out_type, n_planes
            product.n_inputs, product.n_cols, product.n_rows = n_inputs, n_cols, self._n_rows
            product.n_centroids, product.out_nbytes, product.out = n_centroids, out_nbytes, <char *> out
            product.rows, product.n_matrices, product.step = self._rows, self._n_matrices, step
            with nogil:
                hh_product_inputs(tier, inputs, inputs_type, n_inputs, n_cols, scale, &self._signs[0, 0], rest)
                for q in range(n_inputs if n_centroids else 0):
                    hh_product_centroids(rest + q * n_cols, &self._centroids[0, 0], n_centroids, n_cols,
                                         product.products + q * n_centroids)
                for q in range(n_queries):  # plane after plane of all inputs
                    product.scales[q] = hh_product_plane(rest + q % n_inputs * n_cols, n_cols,
                                                         product.queries + q * n_cols)
                    if product.scales[q] < 0:
                        is_finite = False
                        break
                if is_finite:
                    hh_team_run(NULL if team is None else &team.team, _multiply_piece, &product, n_pieces)
        finally:
            for number in range(n_workers):
                free(product.workers[number].block)
            free(product.workers)
        return is_finite
