"""Door to eigen.h: eigenpairs of symmetric matrices."""

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "eigen.h" nogil:
    int hh_largest_eigenpairs(int tier, const double *matrix, Py_ssize_t n, Py_ssize_t count, double *values,
                              double *vectors)


def largest_eigenpairs(const double[:, ::1] matrix not None, double[::1] values not None,
                       double[:, ::1] vectors not None, *, isa=None):
    """Write the largest eigenvalues of a symmetric matrix (n, n) to values (count,), descending; vectors (count, n)."""
    cdef int tier = resolve(isa), failed
    cdef Py_ssize_t n = matrix.shape[0], count = values.shape[0]
    if matrix.shape[1] != n:
        raise ValueError(f"matrix has shape ({n}, {matrix.shape[1]}), expected a square")
    if count > n:
        raise ValueError(f"a matrix of {n} rows has no {count} eigenvalues")
    if vectors.shape[0] != count or vectors.shape[1] != n:
        raise ValueError(f"vectors has shape ({vectors.shape[0]}, {vectors.shape[1]}), expected ({count}, {n})")
    if count == 0:
        return
    require_aligned(&matrix[0, 0], 8, "matrix")
    require_aligned(&values[0], 8, "values")
    require_aligned(&vectors[0, 0], 8, "vectors")
    with nogil:
        failed = hh_largest_eigenpairs(tier, &matrix[0, 0], n, count, &values[0], &vectors[0, 0])
    if failed:
        raise MemoryError(f"no memory for a copy of a matrix of {n} x {n} float64")
