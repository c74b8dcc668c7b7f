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
#if HH_NEON
/* Every aarch64 compiler may use NEON, so the scalar loops of the other two are vectors or look-ups already. The lanes
 * of a leaf lie side by side: 8 rows are taken apart into their lanes. */
HH_KERNEL void hh_estimate_leaf_neon(const int8_t *slot_l, const float *lanes, ptrdiff_t n, float *out) {
    ptrdiff_t r = 0;
    for (; r + 8 <= n; r += 8) {
        const int8x16x4_t bytes_i8x16 = vld4q_s8(slot_l + r * HH_SCREEN_LANES); /* lane l and l + 4, turn by turn */
        float32x4_t low_f32x4 = vdupq_n_f32(0), high_f32x4 = low_f32x4;
        for (int lane = 0; lane < HH_SCREEN_LANES; lane++) {
            const int8x16_t pair_i8x16 = bytes_i8x16.val[lane & 3];
            const int8x16_t lane_i8x16 =
                lane < 4 ? vuzp1q_s8(pair_i8x16, pair_i8x16) : vuzp2q_s8(pair_i8x16, pair_i8x16);
            const int16x8_t lane_i16x8 = vmovl_s8(vget_low_s8(lane_i8x16));
            low_f32x4 =
                vaddq_f32(low_f32x4, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(lane_i16x8))), lanes[lane]));
            high_f32x4 = vaddq_f32(high_f32x4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(lane_i16x8)), lanes[lane]));
        }
        vst1q_f32(out + r, vaddq_f32(vld1q_f32(out + r), low_f32x4));
        vst1q_f32(out + r + 4, vaddq_f32(vld1q_f32(out + r + 4), high_f32x4));
    }
    hh_estimate_leaf_(slot_l + r * HH_SCREEN_LANES, lanes, n - r, out + r);
}

/* Blocks that hold none of the rows are passed over; hh_collect_ looks at the others. */
HH_KERNEL ptrdiff_t hh_collect_neon(const float *estimates, const float *spreads, float factor, float slack,
                                    float floor, ptrdiff_t n, ptrdiff_t room, int32_t *rows) {
    ptrdiff_t found = 0;
    for (ptrdiff_t start = 0; start < n; start += HH_SCREEN_BLOCK) {
        const ptrdiff_t count = n - start < HH_SCREEN_BLOCK ? n - start : HH_SCREEN_BLOCK;
        uint32x4_t any_u32x4 = vdupq_n_u32(count % 4 ? 1 : 0);
        for (ptrdiff_t i = start; i + 4 <= start + count; i += 4) {
            const float32x4_t reach_f32x4 = vaddq_f32(vmulq_n_f32(vld1q_f32(spreads + i), factor), vdupq_n_f32(slack));
            any_u32x4 =
                vorrq_u32(any_u32x4, vcgeq_f32(vaddq_f32(vld1q_f32(estimates + i), reach_f32x4), vdupq_n_f32(floor)));
        }
        if (!vmaxvq_u32(any_u32x4)) continue;
        const ptrdiff_t left = found < room ? room - found : 0;
        int32_t *const next = rows + (found < room ? found : room);
        const ptrdiff_t more = hh_collect_(estimates + start, spreads + start, factor, slack, floor, count, left, next);
        for (ptrdiff_t i = 0; i < more && i < left; i++) next[i] += (int32_t)start;
        found += more;
    }
    return found;
}
#endif
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
        if (twigs) hh_estimate_entries_scalar(twigs, tables + q * k, n_rows, out); /* a gather takes twice as long */
        else memset(out, 0, (size_t)n_rows * sizeof(float));
        if (!slot_l) continue;
#if HH_NEON
        if (tier >= HH_TIER_NEON) {
            hh_estimate_leaf_neon(slot_l, lanes + q * HH_SCREEN_LANES, n_rows, out);
            continue;
        }
#endif
        HH_SCREEN_CALL(estimate_leaf, slot_l, lanes + q * HH_SCREEN_LANES, n_rows, out);
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
#if HH_NEON
        const ptrdiff_t found =
            tier >= HH_TIER_NEON
                ? hh_collect_neon(estimates, spreads, factors[q], slacks[q], floors[q], n_rows, left, next)
                : hh_collect_scalar(estimates, spreads, factors[q], slacks[q], floors[q], n_rows, left, next);
#else
        const ptrdiff_t found =
            HH_SCREEN_CALL(collect, estimates, spreads, factors[q], slacks[q], floors[q], n_rows, left, next);
#endif
        for (ptrdiff_t i = 0; i < found && i < left; i++) queries[total + i] = (int32_t)q;
        total += found;
    }
    return total;
}

#endif
