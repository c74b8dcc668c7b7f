"""Door to leaf.h: Slot L projection, quantization and reconstruction."""

from libc.stdint cimport int8_t, uint8_t

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "leaf.h" nogil:
    enum: HH_LANES
    void hh_project(int tier, const float *rows, Py_ssize_t n_rows, Py_ssize_t n_cols, const float *entries,
                    const uint8_t *twigs, const double *basis, float *coefficients)
    void hh_quantize_i8(const float *coefficients, Py_ssize_t count, float scale, int8_t *codes)
    void hh_reconstruct(int tier, const float *entries, const uint8_t *twigs, Py_ssize_t n_rows, Py_ssize_t n_cols,
                        const int8_t *codes, float scale, const float *basis, float *out)


cdef const uint8_t *_twigs(const uint8_t[::1] twigs, Py_ssize_t n_rows, Py_ssize_t n_entries) except? NULL:
    # NULL stands for "entry r belongs to row r".
    cdef Py_ssize_t r
    if twigs is None:
        if n_entries != n_rows:
            raise ValueError(f"{n_entries} entries for {n_rows} rows; without twigs they must be equal in number")
        return NULL
    if twigs.shape[0] != n_rows:
        raise ValueError(f"{twigs.shape[0]} twigs for {n_rows} rows")
    for r in range(n_rows):
        if twigs[r] >= n_entries:
            raise ValueError(f"twig of row {r} is {twigs[r]}, but there are {n_entries} entries")
    return &twigs[0]


def project(const float[:, ::1] rows not None, const float[:, ::1] entries not None, const uint8_t[::1] twigs,
            const double[:, ::1] basis not None, float[:, ::1] coefficients not None, *, isa=None):
    """Project rows (n_rows, n_cols) minus their entries onto basis (n_cols, 8) into coefficients (n_rows, 8)."""
    cdef int tier = resolve(isa)
    cdef const uint8_t *twig
    if entries.shape[1] != rows.shape[1] or basis.shape[0] != rows.shape[1]:
        raise ValueError(f"widths differ: rows {rows.shape[1]}, entries {entries.shape[1]}, basis {basis.shape[0]}")
    if basis.shape[1] != HH_LANES or coefficients.shape[1] != HH_LANES or coefficients.shape[0] != rows.shape[0]:
        raise ValueError(f"basis must be (n_cols, {HH_LANES}) and coefficients ({rows.shape[0]}, {HH_LANES})")
    if rows.shape[0] == 0:
        return
    if rows.shape[1] == 0:
        coefficients[:, :] = 0
        return
    twig = _twigs(twigs, rows.shape[0], entries.shape[0])
    require_aligned(&rows[0, 0], 4, "rows")
    require_aligned(&entries[0, 0], 4, "entries")
    require_aligned(&basis[0, 0], 8, "basis")
    require_aligned(&coefficients[0, 0], 4, "coefficients")
    with nogil:
        hh_project(tier, &rows[0, 0], rows.shape[0], rows.shape[1], &entries[0, 0], twig, &basis[0, 0],
                   &coefficients[0, 0])


def quantize_i8(const float[::1] coefficients not None, float scale, int8_t[::1] codes not None, *, isa=None):
    """Quantize finite coefficients to -127..127 by a positive scale, half away from zero."""
    resolve(isa)
    if codes.shape[0] != coefficients.shape[0]:
        raise ValueError(f"{codes.shape[0]} codes for {coefficients.shape[0]} coefficients")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if codes.shape[0] == 0:
        return
    require_aligned(&coefficients[0], 4, "coefficients")
    with nogil:
        hh_quantize_i8(&coefficients[0], codes.shape[0], scale, &codes[0])


def reconstruct(const float[:, ::1] entries not None, const uint8_t[::1] twigs, const int8_t[:, ::1] codes,
                float scale, const float[:, ::1] basis, float[:, ::1] out not None, *, isa=None):
    """Write entries plus the leaf to out (n_rows, n_cols); None codes and basis write the entries alone."""
    cdef int tier = resolve(isa)
    cdef const uint8_t *twig
    cdef const int8_t *code = NULL
    cdef const float *vectors = NULL
    if entries.shape[1] != out.shape[1]:
        raise ValueError(f"widths differ: entries {entries.shape[1]}, out {out.shape[1]}")
    if (codes is None) != (basis is None):
        raise ValueError("codes and basis come together")
    if codes is not None and (codes.shape[0] != out.shape[0] or codes.shape[1] != HH_LANES
                              or basis.shape[0] != HH_LANES or basis.shape[1] != out.shape[1]):
        raise ValueError(f"codes must be ({out.shape[0]}, {HH_LANES}) and basis ({HH_LANES}, {out.shape[1]})")
    if out.shape[0] == 0 or out.shape[1] == 0:
        return
    twig = _twigs(twigs, out.shape[0], entries.shape[0])
    require_aligned(&entries[0, 0], 4, "entries")
    require_aligned(&out[0, 0], 4, "out")
    if codes is not None:
        require_aligned(&basis[0, 0], 4, "basis")
        code = &codes[0, 0]
        vectors = &basis[0, 0]
    with nogil:
        hh_reconstruct(tier, &entries[0, 0], twig, out.shape[0], out.shape[1], code, scale, vectors, &out[0, 0])
