"""Door to rotate.h: the row rotation of Slot T."""

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "rotate.h" nogil:
    void hh_rotate_f32(int tier, float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, const float *signs)
    void hh_unrotate_f32(int tier, float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, const float *signs)

ctypedef void (*rotate_fn)(int, float *, Py_ssize_t, Py_ssize_t, const float *) noexcept nogil


cdef _apply(rotate_fn apply, float[:, ::1] rows, const float[:, ::1] signs, object isa):
    cdef int tier = resolve(isa)
    if signs.shape[0] != 2 or signs.shape[1] != rows.shape[1]:
        raise ValueError(f"signs has shape ({signs.shape[0]}, {signs.shape[1]}), expected (2, {rows.shape[1]})")
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        return
    require_aligned(&rows[0, 0], 4, "rows")
    require_aligned(&signs[0, 0], 4, "signs")
    with nogil:
        apply(tier, &rows[0, 0], rows.shape[0], rows.shape[1], &signs[0, 0])


def rotate(float[:, ::1] rows not None, const float[:, ::1] signs not None, *, isa=None):
    """Rotate rows (n_rows, n_cols) in place by signs (2, n_cols) of +-1."""
    _apply(hh_rotate_f32, rows, signs, isa)


def unrotate(float[:, ::1] rows not None, const float[:, ::1] signs not None, *, isa=None):
    """Rotate rows (n_rows, n_cols) back in place."""
    _apply(hh_unrotate_f32, rows, signs, isa)
