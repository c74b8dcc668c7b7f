"""Door to l2.h: nearest row and furthest-point sampling by squared L2 over float32 rows."""

from libc.stdint cimport int8_t, int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "l2.h" nogil:
    enum: HH_QUERIES
    enum: HH_PANEL_ROWS
    enum: HH_SCREEN_COLS_MAX
    enum: HH_TIER_SCALAR
    ctypedef struct hh_panel_i8:
        int8_t *codes
        int32_t *code_sums
        double *scale
        double *norm2
        double *norm
        double *error_norm
        Py_ssize_t n_rows
        Py_ssize_t depth
    Py_ssize_t hh_panel_blocks(Py_ssize_t n_rows)
    Py_ssize_t hh_panel_depth(Py_ssize_t n_cols)
    void hh_panel_fill(int tier, const float *rows, Py_ssize_t n_cols, int8_t *line, hh_panel_i8 *panel)
    void hh_nearest_l2_scalar(const float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, const float *centroids,
                              Py_ssize_t k, int32_t *nearest)
    void hh_nearest_l2_screened(int tier, const float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols,
                                const float *centroids, const hh_panel_i8 *panel, int8_t *line, int32_t *dots,
                                double *lower, int32_t *nearest)
    int hh_furthest_l2(int tier, const float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, const hh_panel_i8 *panel,
                       int8_t *line, int k, int64_t *picks, double *nearest_distance, int32_t *nearest)


cdef class _Panel:
    """Coded rows and the scratch that meeting them needs; memory is owned here, not by the kernels."""
    cdef hh_panel_i8 panel
    cdef char *codes
    cdef int8_t *line
    cdef int32_t *dots
    cdef double *doubles
    cdef double *padded

    def __cinit__(self, const float[:, ::1] rows, bint queries, int tier):
        cdef Py_ssize_t n_rows = rows.shape[0], n_cols = rows.shape[1]
        cdef Py_ssize_t padded = hh_panel_blocks(n_rows) * HH_PANEL_ROWS, depth = hh_panel_depth(n_cols)
        self.codes = <char *> malloc(padded * depth + 63)
        self.panel.code_sums = <int32_t *> malloc(padded * sizeof(int32_t))
        self.line = <int8_t *> malloc((HH_QUERIES if queries else 1) * depth)
        self.dots = <int32_t *> malloc((HH_QUERIES + 1 if queries else 1) * padded * sizeof(int32_t))
        self.doubles = <double *> malloc(5 * padded * sizeof(double))
        if not (self.codes and self.panel.code_sums and self.line and self.dots and self.doubles):
            raise MemoryError(f"cannot allocate the screening panel of {n_rows} x {n_cols} rows")
        # Blocks are read 64 bytes at a time; on a cache line's edge each read would cost two.
        self.panel.codes = <int8_t *> (self.codes + (64 - <size_t> self.codes % 64) % 64)
        self.panel.scale = self.doubles
        self.panel.norm2 = self.doubles + padded
        self.panel.norm = self.doubles + 2 * padded
        self.panel.error_norm = self.doubles + 3 * padded
        self.padded = self.doubles + 4 * padded
        self.panel.n_rows = n_rows
        self.panel.depth = depth
        memset(self.padded, 0, padded * sizeof(double))
        with nogil:
            hh_panel_fill(tier, &rows[0, 0], n_cols, self.line, &self.panel)

    def __dealloc__(self):
        free(self.codes)
        free(self.panel.code_sums)
        free(self.line)
        free(self.dots)
        free(self.doubles)


def nearest_l2(const float[:, ::1] rows not None, const float[:, ::1] centroids not None,
               int32_t[::1] nearest not None, *, isa=None):
    """Assign each finite row (n_rows, n_cols) its nearest centroid (k, n_cols) by squared L2; the first wins a tie."""
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_rows = rows.shape[0], n_cols = rows.shape[1], k = centroids.shape[0]
    cdef _Panel panel
    if centroids.shape[1] != n_cols:
        raise ValueError(f"rows have {n_cols} columns, centroids {centroids.shape[1]}")
    if not 1 <= k <= 2**31 - 64:
        raise ValueError(f"the number of centroids must be 1..2^31 - 64, got {k}")
    if nearest.shape[0] != n_rows:
        raise ValueError(f"nearest has {nearest.shape[0]} elements, expected {n_rows}")
    if n_rows == 0:
        return
    if n_cols == 0:
        nearest[:] = 0
        return
    require_aligned(&rows[0, 0], 4, "rows")
    require_aligned(&centroids[0, 0], 4, "centroids")
    require_aligned(&nearest[0], 4, "nearest")
    if tier == HH_TIER_SCALAR or n_cols > HH_SCREEN_COLS_MAX:
        with nogil:
            hh_nearest_l2_scalar(&rows[0, 0], n_rows, n_cols, &centroids[0, 0], k, &nearest[0])
        return
    panel = _Panel(centroids, True, tier)
    with nogil:
        hh_nearest_l2_screened(tier, &rows[0, 0], n_rows, n_cols, &centroids[0, 0], &panel.panel, panel.line,
                               panel.dots, panel.padded, &nearest[0])


def furthest_l2(const float[:, ::1] rows not None, int64_t[::1] picks not None,
                double[::1] nearest_distance not None, int32_t[::1] nearest not None, *, isa=None):
    """Pick at most len(picks) finite rows (n_rows, n_cols), the first of the furthest winning; return how many."""
    cdef int tier = resolve(isa), count
    cdef Py_ssize_t n_rows = rows.shape[0], n_cols = rows.shape[1]
    cdef _Panel panel
    if n_rows == 0 or n_cols == 0 or n_rows > 2**31 - 64:
        raise ValueError(f"rows has shape ({n_rows}, {n_cols}); both must be at least 1")
    if not 1 <= picks.shape[0] <= n_rows:
        raise ValueError(f"{picks.shape[0]} picks of {n_rows} rows")
    if nearest.shape[0] != n_rows or nearest_distance.shape[0] != n_rows:
        raise ValueError(f"nearest and nearest_distance must have {n_rows} elements")
    require_aligned(&rows[0, 0], 4, "rows")
    require_aligned(&picks[0], 8, "picks")
    require_aligned(&nearest_distance[0], 8, "nearest_distance")
    require_aligned(&nearest[0], 4, "nearest")
    if tier == HH_TIER_SCALAR or n_cols > HH_SCREEN_COLS_MAX:
        with nogil:
            count = hh_furthest_l2(0, &rows[0, 0], n_rows, n_cols, NULL, NULL, <int> picks.shape[0], &picks[0],
                                   &nearest_distance[0], &nearest[0])
        return count
    panel = _Panel(rows, False, tier)
    with nogil:
        count = hh_furthest_l2(tier, &rows[0, 0], n_rows, n_cols, &panel.panel, panel.line, <int> picks.shape[0],
                               &picks[0], panel.padded, &nearest[0])
        memcpy(&nearest_distance[0], panel.padded, n_rows * sizeof(double))
    return count
