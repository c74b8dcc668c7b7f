"""Door to l1.h: nearest entry and furthest-point sampling by L1 over Base17 rows."""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "l1.h" nogil:
    enum: HH_BASE17
    enum: HH_PALETTE_MAX
    void hh_nearest_l1(int tier, const int16_t *rows, Py_ssize_t n_rows, const int16_t *entries, int k,
                       uint8_t *nearest, uint32_t *distances)
    void hh_furthest_l1(int tier, const int16_t *columns, Py_ssize_t n_rows, int k, int64_t *picks,
                        uint32_t *nearest_distance, int32_t *nearest)


def nearest_l1(const int16_t[:, ::1] rows not None, const int16_t[:, ::1] entries not None,
               uint8_t[::1] nearest not None, uint32_t[::1] distances not None, *, isa=None):
    """Assign each Base17 row (n_rows, 17) its nearest of 1..256 entries (k, 17) by L1; the first wins a tie."""
    cdef int tier = resolve(isa), i
    cdef Py_ssize_t k = entries.shape[0], e
    cdef int16_t[HH_BASE17 * HH_PALETTE_MAX] columns
    if rows.shape[1] != HH_BASE17 or entries.shape[1] != HH_BASE17:
        raise ValueError(f"rows and entries must have {HH_BASE17} columns, got {rows.shape[1]} and {entries.shape[1]}")
    if not 1 <= k <= HH_PALETTE_MAX:
        raise ValueError(f"the number of entries must be 1..{HH_PALETTE_MAX}, got {k}")
    if nearest.shape[0] != rows.shape[0] or distances.shape[0] != rows.shape[0]:
        raise ValueError(f"nearest and distances must have {rows.shape[0]} elements")
    if rows.shape[0] == 0:
        return
    require_aligned(&rows[0, 0], 2, "rows")
    require_aligned(&entries[0, 0], 2, "entries")
    require_aligned(&distances[0], 4, "distances")
    for i in range(HH_BASE17):
        for e in range(HH_PALETTE_MAX):
            columns[i * HH_PALETTE_MAX + e] = entries[e, i] if e < k else 0
    with nogil:
        hh_nearest_l1(tier, &rows[0, 0], rows.shape[0], columns, <int> k, &nearest[0], &distances[0])


def furthest_l1(const int16_t[:, ::1] columns not None, int64_t[::1] picks not None,
                uint32_t[::1] nearest_distance not None, int32_t[::1] nearest not None, *, isa=None):
    """Pick len(picks) rows of columns (17, n_rows), picks[0] given; the LAST of the furthest wins a tie."""
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_rows = columns.shape[1]
    if columns.shape[0] != HH_BASE17 or n_rows == 0 or n_rows > 2**31 - 64:
        raise ValueError(f"columns has shape ({columns.shape[0]}, {n_rows}), expected ({HH_BASE17}, 1..2^31 - 64)")
    if not 1 <= picks.shape[0] <= n_rows:
        raise ValueError(f"{picks.shape[0]} picks of {n_rows} rows")
    require_aligned(&picks[0], 8, "picks")
    if not 0 <= picks[0] < n_rows:
        raise ValueError(f"the first pick is row {picks[0]}, but there are {n_rows} rows")
    if nearest.shape[0] != n_rows or nearest_distance.shape[0] != n_rows:
        raise ValueError(f"nearest and nearest_distance must have {n_rows} elements")
    require_aligned(&columns[0, 0], 2, "columns")
    require_aligned(&nearest_distance[0], 4, "nearest_distance")
    require_aligned(&nearest[0], 4, "nearest")
    with nogil:
        hh_furthest_l1(tier, &columns[0, 0], n_rows, <int> picks.shape[0], &picks[0], &nearest_distance[0], &nearest[0])
