"""Door to cast.h: widening, narrowing and the search for a non-finite value.

16-bit floats travel as uint16 bits. Every function takes flat arrays of equal length.
"""

from libc.stdint cimport uint8_t, uint16_t

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "cast.h" nogil:
    void hh_widen_bf16(int tier, const uint16_t *values, float *out, Py_ssize_t count)
    void hh_widen_f16(int tier, const uint16_t *values, float *out, Py_ssize_t count)
    void hh_widen_f8_scalar(const uint8_t *values, const float *table, float *out, Py_ssize_t count)
    void hh_narrow_f32_bf16(int tier, const float *values, uint16_t *out, Py_ssize_t count)
    void hh_narrow_f32_f16(int tier, const float *values, uint16_t *out, Py_ssize_t count)
    void hh_truncate_f32_bf16_scalar(const float *values, uint16_t *out, Py_ssize_t count)
    Py_ssize_t hh_first_nonfinite_f32(int tier, const float *values, Py_ssize_t count)
    Py_ssize_t hh_first_nonfinite_bf16_scalar(const uint16_t *values, Py_ssize_t count)

ctypedef void (*narrow_fn)(int, const float *, uint16_t *, Py_ssize_t) noexcept nogil
ctypedef void (*widen_fn)(int, const uint16_t *, float *, Py_ssize_t) noexcept nogil


cdef int _same_length(Py_ssize_t values, Py_ssize_t out) except -1:
    if values != out:
        raise ValueError(f"out has {out} elements, values have {values}")
    return 0


cdef _widen(widen_fn widen, const uint16_t[::1] values, float[::1] out, object isa):
    cdef int tier = resolve(isa)
    _same_length(values.shape[0], out.shape[0])
    if values.shape[0] == 0:
        return
    require_aligned(&values[0], 2, "values")
    require_aligned(&out[0], 4, "out")
    with nogil:
        widen(tier, &values[0], &out[0], values.shape[0])


cdef _narrow(narrow_fn narrow, const float[::1] values, uint16_t[::1] out, object isa):
    cdef int tier = resolve(isa)
    _same_length(values.shape[0], out.shape[0])
    if values.shape[0] == 0:
        return
    require_aligned(&values[0], 4, "values")
    require_aligned(&out[0], 2, "out")
    with nogil:
        narrow(tier, &values[0], &out[0], values.shape[0])


def widen_bf16(const uint16_t[::1] values not None, float[::1] out not None, *, float factor=1, isa=None):
    """Widen bfloat16 bits to float32, exact, and multiply them by a factor."""
    cdef Py_ssize_t i
    _widen(hh_widen_bf16, values, out, isa)
    if factor != 1:
        for i in range(out.shape[0]):
            out[i] *= factor


def widen_f16(const uint16_t[::1] values not None, float[::1] out not None, *, isa=None):
    """Widen float16 bits to float32; exact."""
    _widen(hh_widen_f16, values, out, isa)


def widen_f8(const uint8_t[::1] values not None, const float[::1] table not None, float[::1] out not None, *, isa=None):
    """Widen 8-bit floats through the 256 float32 values of their format."""
    resolve(isa)
    _same_length(values.shape[0], out.shape[0])
    if table.shape[0] != 256:
        raise ValueError(f"table has {table.shape[0]} elements, expected 256")
    if values.shape[0] == 0:
        return
    require_aligned(&table[0], 4, "table")
    require_aligned(&out[0], 4, "out")
    with nogil:
        hh_widen_f8_scalar(&values[0], &table[0], &out[0], values.shape[0])


def narrow_f32_bf16(const float[::1] values not None, uint16_t[::1] out not None, *, isa=None):
    """Round float32 to bfloat16 bits, nearest, ties to even."""
    _narrow(hh_narrow_f32_bf16, values, out, isa)


def narrow_f32_f16(const float[::1] values not None, uint16_t[::1] out not None, *, isa=None):
    """Round float32 to float16 bits, nearest, ties to even; overflow gives infinity."""
    _narrow(hh_narrow_f32_f16, values, out, isa)


def truncate_f32_bf16(const float[::1] values not None, uint16_t[::1] out not None, *, isa=None):
    """Drop the low 16 bits of finite float32 values."""
    resolve(isa)
    _same_length(values.shape[0], out.shape[0])
    if values.shape[0] == 0:
        return
    require_aligned(&values[0], 4, "values")
    require_aligned(&out[0], 2, "out")
    with nogil:
        hh_truncate_f32_bf16_scalar(&values[0], &out[0], values.shape[0])


def first_nonfinite_f32(const float[::1] values not None, *, isa=None):
    """Return the index of the first infinity or NaN, or -1."""
    cdef int tier = resolve(isa)
    cdef Py_ssize_t found
    if values.shape[0] == 0:
        return -1
    require_aligned(&values[0], 4, "values")
    with nogil:
        found = hh_first_nonfinite_f32(tier, &values[0], values.shape[0])
    return found


def first_nonfinite_bf16(const uint16_t[::1] values not None, *, isa=None):
    """Return the index of the first infinity or NaN, given as bfloat16 bits, or -1."""
    resolve(isa)
    cdef Py_ssize_t found
    if values.shape[0] == 0:
        return -1
    require_aligned(&values[0], 2, "values")
    with nogil:
        found = hh_first_nonfinite_bf16_scalar(&values[0], values.shape[0])
    return found
