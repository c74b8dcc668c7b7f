"""Door to dot.h: Gram matrices and row dots in float64."""

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "dot.h" nogil:
    void hh_gram(int tier, const float *x, Py_ssize_t n_rows, Py_ssize_t n_cols, double *out)
    void hh_row_dots(int tier, const float *x, const float *y, Py_ssize_t n_rows, Py_ssize_t n_cols, double *out)


def gram(const float[:, ::1] x not None, double[:, ::1] out not None, *, isa=None):
    """Write x.T @ x of x (n_rows, n_cols) to out (n_cols, n_cols), rows summed in ascending order."""
    cdef int tier = resolve(isa)
    if out.shape[0] != x.shape[1] or out.shape[1] != x.shape[1]:
        raise ValueError(f"out has shape ({out.shape[0]}, {out.shape[1]}), expected ({x.shape[1]}, {x.shape[1]})")
    if x.shape[1] == 0:
        return
    if x.shape[0] == 0:
        out[:, :] = 0
        return
    require_aligned(&x[0, 0], 4, "x")
    require_aligned(&out[0, 0], 8, "out")
    with nogil:
        hh_gram(tier, &x[0, 0], x.shape[0], x.shape[1], &out[0, 0])


def row_dots(const float[:, ::1] x not None, const float[:, ::1] y not None, double[:, ::1] out not None, *, isa=None):
    """Write x.y, x.x and y.y of every row pair to out (n_rows, 3)."""
    cdef int tier = resolve(isa)
    if x.shape[0] != y.shape[0] or x.shape[1] != y.shape[1]:
        raise ValueError(f"shapes differ: ({x.shape[0]}, {x.shape[1]}) and ({y.shape[0]}, {y.shape[1]})")
    if out.shape[0] != x.shape[0] or out.shape[1] != 3:
        raise ValueError(f"out has shape ({out.shape[0]}, {out.shape[1]}), expected ({x.shape[0]}, 3)")
    if x.shape[0] == 0:
        return
    if x.shape[1] == 0:
        out[:, :] = 0
        return
    require_aligned(&x[0, 0], 4, "x")
    require_aligned(&y[0, 0], 4, "y")
    require_aligned(&out[0, 0], 8, "out")
    with nogil:
        hh_row_dots(tier, &x[0, 0], &y[0, 0], x.shape[0], x.shape[1], &out[0, 0])
