"""Door to screen.h: estimates of row scores, and the rows that may still win."""

from libc.stdint cimport int8_t, int32_t, uint8_t

from hhtld._kernels._isa cimport require_aligned, resolve

cdef extern from "screen.h" nogil:
    enum: HH_SCREEN_LANES
    void hh_screen_estimate(int tier, const uint8_t *twigs, const float *tables, Py_ssize_t k, const int8_t *slot_l,
                            const float *lanes, Py_ssize_t n_queries, Py_ssize_t n_rows, float *out)
    void hh_screen_add_dots(int tier, const int32_t *dots, const float *gains, const float *scales,
                            Py_ssize_t n_queries, Py_ssize_t n_rows, float *out)
    Py_ssize_t hh_screen_collect(int tier, const float *estimates, const float *spreads, const float *factors,
                                 const float *slacks, const float *floors, Py_ssize_t n_queries, Py_ssize_t n_rows,
                                 Py_ssize_t room, int32_t *queries, int32_t *rows)


def estimate(const uint8_t[::1] twigs, const float[:, ::1] tables, const int8_t[:, ::1] slot_l,
             const float[:, ::1] lanes, float[:, ::1] out not None, *, isa=None):
    """Write to out (n_queries, n_rows) what entries and Slot L say.

    twigs (n_rows,) with tables (n_queries, k) and slot_l (n_rows, 8) with lanes (n_queries, 8) come in pairs or not at
    all. A twig that is not below k is an error.
    """
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_queries = out.shape[0], n_rows = out.shape[1], k = 0, i
    cdef const uint8_t *twig = NULL
    cdef const float *table = NULL
    cdef const int8_t *leaf = NULL
    cdef const float *lane = NULL
    cdef int high = 0
    if (twigs is None) != (tables is None) or (slot_l is None) != (lanes is None):
        raise ValueError("twigs and tables, slot_l and lanes come in pairs")
    if tables is not None:
        k = tables.shape[1]
        if twigs.shape[0] != n_rows or tables.shape[0] != n_queries or k == 0:
            raise ValueError(f"twigs must be ({n_rows},) and tables ({n_queries}, k), "
                             f"got ({twigs.shape[0]},) and ({tables.shape[0]}, {k})")
    if lanes is not None:
        if (slot_l.shape[0] != n_rows or slot_l.shape[1] != HH_SCREEN_LANES or lanes.shape[0] != n_queries
                or lanes.shape[1] != HH_SCREEN_LANES):
            raise ValueError(f"slot_l must be ({n_rows}, 8) and lanes ({n_queries}, 8), got ({slot_l.shape[0]}, "
                             f"{slot_l.shape[1]}) and ({lanes.shape[0]}, {lanes.shape[1]})")
    if n_queries == 0 or n_rows == 0:
        return
    require_aligned(&out[0, 0], 4, "out")
    if tables is not None:
        require_aligned(&tables[0, 0], 4, "tables")
        twig, table = &twigs[0], &tables[0, 0]
        with nogil:
            for i in range(n_rows):
                high |= twig[i] >= k
        if high:
            raise ValueError(f"a twig is not below {k}")
    if lanes is not None:
        require_aligned(&lanes[0, 0], 4, "lanes")
        leaf, lane = &slot_l[0, 0], &lanes[0, 0]
    with nogil:
        hh_screen_estimate(tier, twig, table, k, leaf, lane, n_queries, n_rows, &out[0, 0])


def add_dots(const int32_t[:, ::1] dots not None, const float[::1] gains not None, const float[::1] scales not None,
             float[:, ::1] out not None, *, isa=None):
    """Add to out (n_queries, n_rows) gains (n_rows,) times scales (n_queries,) times dots (n_queries, n_rows)."""
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_queries = out.shape[0], n_rows = out.shape[1]
    if (dots.shape[0] != n_queries or dots.shape[1] != n_rows or gains.shape[0] != n_rows
            or scales.shape[0] != n_queries):
        raise ValueError(f"dots must be ({n_queries}, {n_rows}), gains ({n_rows},) and scales ({n_queries},), got "
                         f"({dots.shape[0]}, {dots.shape[1]}), ({gains.shape[0]},) and ({scales.shape[0]},)")
    if n_queries == 0 or n_rows == 0:
        return
    require_aligned(&dots[0, 0], 4, "dots")
    require_aligned(&gains[0], 4, "gains")
    require_aligned(&scales[0], 4, "scales")
    require_aligned(&out[0, 0], 4, "out")
    with nogil:
        hh_screen_add_dots(tier, &dots[0, 0], &gains[0], &scales[0], n_queries, n_rows, &out[0, 0])


def collect(const float[:, ::1] estimates not None, const float[::1] spreads not None,
            const float[::1] factors not None, const float[::1] slacks not None, const float[::1] floors not None,
            int32_t[::1] queries not None, int32_t[::1] rows not None, *, isa=None):
    """Write the pairs with estimate + (factor * spread + slack) >= floor, by query and row; return how many there are.

    No more are written than queries and rows, of equal length, have room for.
    """
    cdef int tier = resolve(isa)
    cdef Py_ssize_t n_queries = estimates.shape[0], n_rows = estimates.shape[1], room = rows.shape[0], found
    if spreads.shape[0] != n_rows or factors.shape[0] != n_queries or slacks.shape[0] != n_queries \
            or floors.shape[0] != n_queries:
        raise ValueError(f"spreads must be ({n_rows},), factors, slacks and floors ({n_queries},)")
    if queries.shape[0] != room:
        raise ValueError(f"queries and rows must be of equal length, got {queries.shape[0]} and {room}")
    if n_queries == 0 or n_rows == 0:
        return 0
    require_aligned(&estimates[0, 0], 4, "estimates")
    require_aligned(&spreads[0], 4, "spreads")
    require_aligned(&factors[0], 4, "factors")
    require_aligned(&slacks[0], 4, "slacks")
    require_aligned(&floors[0], 4, "floors")
    if room:
        require_aligned(&queries[0], 4, "queries")
        require_aligned(&rows[0], 4, "rows")
    with nogil:
        found = hh_screen_collect(tier, &estimates[0, 0], &spreads[0], &factors[0], &slacks[0], &floors[0], n_queries,
                                  n_rows, room, &queries[0] if room else NULL, &rows[0] if room else NULL)
    return found
