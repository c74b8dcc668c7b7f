"""Door to cholesky.h: factors of symmetric positive definite matrices."""

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "cholesky.h" nogil:
    Py_ssize_t hh_cholesky(int tier, double *a, Py_ssize_t n)
    void hh_divide_rows(int tier, const double *factor, Py_ssize_t n, double *rows, Py_ssize_t count, Py_ssize_t m)


def cholesky(double[:, ::1] matrix not None, *, isa=None):
    """Write the lower factor of a symmetric positive definite matrix (n, n) over its lower triangle."""
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n = matrix.shape[0], done
    if matrix.shape[1] != n:
        raise ValueError(f"matrix has shape ({n}, {matrix.shape[1]}), expected a square")
    if n == 0:
        return
    require_aligned(&matrix[0, 0], 8, "matrix")
    with nogil:
        done = hh_cholesky(tier, &matrix[0, 0], n)
    if done < n:
        raise ValueError(f"the matrix is not positive definite: its first {done + 1} rows and columns are not")


def divide_rows(const double[:, ::1] factor not None, double[:, ::1] rows not None, *, isa=None):
    """Divide rows (count, m) by the first m rows and columns of a lower factor (n, n), from the right, in place."""
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n = factor.shape[0], m = rows.shape[1]
    if factor.shape[1] != n:
        raise ValueError(f"factor has shape ({n}, {factor.shape[1]}), expected a square")
    if m > n:
        raise ValueError(f"rows have {m} columns, the factor {n}")
    if rows.shape[0] == 0 or m == 0:
        return
    require_aligned(&factor[0, 0], 8, "factor")
    require_aligned(&rows[0, 0], 8, "rows")
    with nogil:
        hh_divide_rows(tier, &factor[0, 0], n, &rows[0, 0], rows.shape[0], m)
