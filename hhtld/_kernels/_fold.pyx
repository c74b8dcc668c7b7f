"""Door to fold.h: Base17 fold and unfold."""

from libc.stdint cimport int16_t

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "fold.h" nogil:
    enum: HH_BASE17
    void hh_base17_fold(int tier, const float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, int16_t *dims)
    void hh_base17_unfold(const int16_t *dims, Py_ssize_t n_rows, Py_ssize_t n_cols, float *rows)


cdef int _matching(Py_ssize_t n_rows, Py_ssize_t n_dims_rows, Py_ssize_t n_dims) except -1:
    if n_dims != HH_BASE17 or n_rows != n_dims_rows:
        raise ValueError(f"dims has shape ({n_dims_rows}, {n_dims}), expected ({n_rows}, {HH_BASE17})")
    return 0


def base17_fold(const float[:, ::1] rows not None, int16_t[:, ::1] dims not None, *, isa=None):
    """Fold finite rows (n_rows, n_cols) to dims (n_rows, 17)."""
    cdef int tier = resolve(isa)
    _matching(rows.shape[0], dims.shape[0], dims.shape[1])
    if rows.shape[0] == 0:
        return
    if rows.shape[1] == 0:
        dims[:, :] = 0
        return
    require_aligned(&rows[0, 0], 4, "rows")
    require_aligned(&dims[0, 0], 2, "dims")
    with nogil:
        hh_base17_fold(tier, &rows[0, 0], rows.shape[0], rows.shape[1], &dims[0, 0])


def base17_unfold(const int16_t[:, ::1] dims not None, float[:, ::1] rows not None, *, isa=None):
    """Unfold dims (n_rows, 17) to rows (n_rows, n_cols)."""
    resolve(isa)
    _matching(rows.shape[0], dims.shape[0], dims.shape[1])
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        return
    require_aligned(&rows[0, 0], 4, "rows")
    require_aligned(&dims[0, 0], 2, "dims")
    with nogil:
        hh_base17_unfold(&dims[0, 0], rows.shape[0], rows.shape[1], &rows[0, 0])
