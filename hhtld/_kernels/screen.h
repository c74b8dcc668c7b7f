/* Estimates of row scores from a row's slots, and the rows that may still win.
 *
 * entries:  out[r] = table[twigs[r]], or 0 where there are no twigs
 * leaf:     out[r] += sum over lanes 0..7 of lanes[l] * (float)slot_l[r][l]
 * dots:     out[r] += (gains[r] * scale) * (float)dots[r]
 * collect:  the rows with out[r] + (factor * spreads[r] + slack) >= floor, ascending
 * Everything is float32, one operation after the other for every row, so all tiers give the same bits.
 *
 * The bodies are the scalar loops, compiled once a tier: what compilers make of them adds 8 G dots, tests 13 G
 * estimates and adds 2.5 G leaves a second, less than a tenth of what the dots themselves take.
 */
#ifndef HHTLD_SCREEN_H
#define HHTLD_SCREEN_H

#include "isa.h"

enum { HH_SCREEN_LANES = 8, HH_SCREEN_BLOCK = 64 };

HH_INLINE void hh_estimate_entries_(const uint8_t *twigs, const float *table, ptrdiff_t n, float *out) {
    for (ptrdiff_t r = 0; r < n; r++) out[r] = table[twigs[r]];
}

HH_INLINE void hh_estimate_leaf_(const int8_t *slot_l, const float *lanes, ptrdiff_t n, float *out) {
    for (ptrdiff_t r = 0; r < n; r++) {
        float sum = 0;
        for (int lane = 0; lane < HH_SCREEN_LANES; lane++)
            sum += lanes[lane] * (float)slot_l[r * HH_SCREEN_LANES + lane];
        out[r] += sum;
    }
}

HH_INLINE void hh_estimate_dots_(const int32_t *dots, const float *gains, float scale, ptrdiff_t n, float *out) {
    for (ptrdiff_t r = 0; r < n; r++) out[r] += gains[r] * scale * (float)dots[r];
}

/* Appends up to `room` of the rows found; returns how many there are. */
HH_INLINE ptrdiff_t hh_collect_(const float *estimates, const float *spreads, float factor, float slack, float floor,
                                ptrdiff_t n, ptrdiff_t room, int32_t *rows) {
    ptrdiff_t found = 0;
    for (ptrdiff_t start = 0; start < n; start += HH_SCREEN_BLOCK) {
        const ptrdiff_t count = n - start < HH_SCREEN_BLOCK ? n - start : HH_SCREEN_BLOCK;
        int any = 0;
        for (ptrdiff_t i = 0; i < count; i++)
            any |= estimates[start + i] + (factor * spreads[start + i] + slack) >= floor;
        for (ptrdiff_t i = 0; any && i < count; i++) /* few blocks of 64 hold one */
            if (estimates[start + i] + (factor * spreads[start + i] + slack) >= floor) {
                if (found < room) rows[found] = (int32_t)(start + i);
                found++;
            }
    }
    return found;
}

#define HH_SCREEN_BODIES(tier)                                                                                 \
    HH_KERNEL void hh_estimate_entries_##tier(const uint8_t *t, const float *table, ptrdiff_t n, float *out) { \
        hh_estimate_entries_(t, table, n, out);                                                                \
    }                                                                                                          \
    HH_KERNEL void hh_estimate_leaf_##tier(const int8_t *l, const float *lanes, ptrdiff_t n, float *out) {     \
        hh_estimate_leaf_(l, lanes, n, out);                                                                   \
    }                                                                                                          \
    HH_KERNEL void hh_estimate_dots_##tier(const int32_t *d, const float *gains, float scale, ptrdiff_t n,     \
                                           float *out) {                                                       \
        hh_estimate_dots_(d, gains, scale, n, out);                                                            \
    }                                                                                                          \
    HH_KERNEL ptrdiff_t hh_collect_##tier(const float *e, const float *spreads, float factor, float slack,     \
                                          float floor, ptrdiff_t n, ptrdiff_t room, int32_t *rows) {           \
        return hh_collect_(e, spreads, factor, slack, floor, n, room, rows);                                   \
    }

HH_SCREEN_BODIES(scalar)
#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_SCREEN_BODIES(avx2)
HH_TARGET_END
HH_TARGET_AVX512_BEGIN
HH_SCREEN_BODIES(avx512)
HH_TARGET_END
#endif

#if HH_X86
#define HH_SCREEN_CALL(name, ...)                             \
    (tier >= HH_TIER_AVX512 ? hh_##name##_avx512(__VA_ARGS__) \
     : tier >= HH_TIER_AVX2 ? hh_##name##_avx2(__VA_ARGS__)   \
                            : hh_##name##_scalar(__VA_ARGS__))
#else
#define HH_SCREEN_CALL(name, ...) hh_##name##_scalar(__VA_ARGS__)
#endif

/* out (n_queries, n_rows) from what is not NULL: tables (n_queries, k) with twigs, lanes (n_queries, 8) with slot_l. */
HH_KERNEL void hh_screen_estimate(int tier, const uint8_t *twigs, const float *tables, ptrdiff_t k,
                                  const int8_t *slot_l, const float *lanes, ptrdiff_t n_queries, ptrdiff_t n_rows,
                                  float *out) {
    (void)tier;
    for (ptrdiff_t q = 0; q < n_queries; q++, out += n_rows) {
        if (twigs) HH_SCREEN_CALL(estimate_entries, twigs, tables + q * k, n_rows, out);
        else memset(out, 0, (size_t)n_rows * sizeof(float));
        if (slot_l) HH_SCREEN_CALL(estimate_leaf, slot_l, lanes + q * HH_SCREEN_LANES, n_rows, out);
    }
}

/* out (n_queries, n_rows) += gains * scales[q] * dots. */
HH_KERNEL void hh_screen_add_dots(int tier, const int32_t *dots, const float *gains, const float *scales,
                                  ptrdiff_t n_queries, ptrdiff_t n_rows, float *out) {
    (void)tier;
    for (ptrdiff_t q = 0; q < n_queries; q++, out += n_rows, dots += n_rows)
        HH_SCREEN_CALL(estimate_dots, dots, gains, scales[q], n_rows, out);
}

/* Writes query and row of up to `room` pairs; returns how many there are. */
HH_KERNEL ptrdiff_t hh_screen_collect(int tier, const float *estimates, const float *spreads, const float *factors,
                                      const float *slacks, const float *floors, ptrdiff_t n_queries, ptrdiff_t n_rows,
                                      ptrdiff_t room, int32_t *queries, int32_t *rows) {
    ptrdiff_t total = 0;
    (void)tier;
    for (ptrdiff_t q = 0; q < n_queries; q++, estimates += n_rows) {
        const ptrdiff_t left = total < room ? room - total : 0;
        int32_t *const next = rows + (total < room ? total : room);
        const ptrdiff_t found =
            HH_SCREEN_CALL(collect, estimates, spreads, factors[q], slacks[q], floors[q], n_rows, left, next);
        for (ptrdiff_t i = 0; i < found && i < left; i++) queries[total + i] = (int32_t)q;
        total += found;
    }
    return total;
}

#endif
