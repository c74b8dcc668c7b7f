/* Nearest entry and furthest-point sampling by L1 over Base17 rows.
 *
 * A distance is an integer, so every tier gives the same index.
 */
#ifndef HHTLD_L1_H
#define HHTLD_L1_H

#include "fold.h"
#include "isa.h"

enum { HH_PALETTE_MAX = 256 };

HH_INLINE uint32_t hh_l1_base17_(const int16_t *columns, ptrdiff_t stride, ptrdiff_t row, const int16_t *dims) {
    uint32_t sum = 0;
    for (int i = 0; i < HH_BASE17; i++) {
        const int32_t difference = (int32_t)columns[i * stride + row] - dims[i];
        sum += (uint32_t)(difference < 0 ? -difference : difference);
    }
    return sum;
}

/* Lower nearest_distance[row] to the distance from `dims` where that is smaller and note `pick`;
 * return the LAST row of the largest nearest_distance. Rows start..n_rows, running best given. */
HH_INLINE ptrdiff_t hh_relax_l1_from_(const int16_t *columns, ptrdiff_t stride, ptrdiff_t start, ptrdiff_t n_rows,
                                      const int16_t *dims, int32_t pick, uint32_t *nearest_distance, int32_t *nearest,
                                      uint32_t best, ptrdiff_t best_row) {
    for (ptrdiff_t row = start; row < n_rows; row++) {
        const uint32_t distance = hh_l1_base17_(columns, stride, row, dims);
        if (distance < nearest_distance[row]) nearest_distance[row] = distance, nearest[row] = pick;
        if (nearest_distance[row] >= best) best = nearest_distance[row], best_row = row;
    }
    return best_row;
}

HH_KERNEL ptrdiff_t hh_relax_l1_scalar(const int16_t *columns, ptrdiff_t n_rows, const int16_t *dims, int32_t pick,
                                       uint32_t *nearest_distance, int32_t *nearest) {
    return hh_relax_l1_from_(columns, n_rows, 0, n_rows, dims, pick, nearest_distance, nearest, 0, 0);
}

/* Nearest of k entries (first wins a tie) for each row. `entries` is [17][256], column-major. */
HH_KERNEL void hh_nearest_l1_scalar(const int16_t *rows, ptrdiff_t n_rows, const int16_t *entries, int k,
                                    uint8_t *nearest, uint32_t *distances) {
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += HH_BASE17) {
        uint32_t best = UINT32_MAX;
        int winner = 0;
        for (int entry = 0; entry < k; entry++) {
            const uint32_t distance = hh_l1_base17_(entries, HH_PALETTE_MAX, entry, rows);
            if (distance < best) best = distance, winner = entry;
        }
        nearest[r] = (uint8_t)winner;
        distances[r] = best;
    }
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
/* |a - b| of int16 fits uint16: max - min modulo 2^16. Sums of 17 need 32 bits. `low` holds lanes
 * 0-3 and 8-11, `high` 4-7 and 12-15 of the 16, as unpacking leaves them. */
HH_INLINE void hh_l1_sum16_avx2_(const int16_t *columns, ptrdiff_t stride, const int16_t *dims, __m256i *low,
                                 __m256i *high) {
    const __m256i zero_i16x16 = _mm256_setzero_si256();
    __m256i low_u32x8 = zero_i16x16, high_u32x8 = zero_i16x16;
    for (int i = 0; i < HH_BASE17; i++) {
        const __m256i a_i16x16 = _mm256_loadu_si256((const __m256i *)(columns + i * stride));
        const __m256i b_i16x16 = _mm256_set1_epi16(dims[i]);
        const __m256i apart_u16x16 =
            _mm256_sub_epi16(_mm256_max_epi16(a_i16x16, b_i16x16), _mm256_min_epi16(a_i16x16, b_i16x16));
        low_u32x8 = _mm256_add_epi32(low_u32x8, _mm256_unpacklo_epi16(apart_u16x16, zero_i16x16));
        high_u32x8 = _mm256_add_epi32(high_u32x8, _mm256_unpackhi_epi16(apart_u16x16, zero_i16x16));
    }
    *low = _mm256_permute2x128_si256(low_u32x8, high_u32x8, 0x20);
    *high = _mm256_permute2x128_si256(low_u32x8, high_u32x8, 0x31);
}

HH_KERNEL ptrdiff_t hh_relax_l1_avx2(const int16_t *columns, ptrdiff_t n_rows, const int16_t *dims, int32_t pick,
                                     uint32_t *nearest_distance, int32_t *nearest) {
    const __m256i pick_i32x8 = _mm256_set1_epi32(pick);
    __m256i best_u32x8 = _mm256_setzero_si256(), best_row_i32x8 = _mm256_set1_epi32(-1);
    __m256i row_i32x8 = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    ptrdiff_t row = 0;
    for (; row + 16 <= n_rows; row += 16) {
        __m256i distance_u32x8[2];
        hh_l1_sum16_avx2_(columns + row, n_rows, dims, &distance_u32x8[0], &distance_u32x8[1]);
        for (int half = 0; half < 2; half++) {
            __m256i *const old = (__m256i *)(nearest_distance + row + 8 * half);
            __m256i *const who = (__m256i *)(nearest + row + 8 * half);
            const __m256i old_u32x8 = _mm256_loadu_si256(old);
            const __m256i new_u32x8 = _mm256_min_epu32(old_u32x8, distance_u32x8[half]);
            const __m256i same_i32x8 = _mm256_cmpeq_epi32(old_u32x8, new_u32x8);
            _mm256_storeu_si256(old, new_u32x8);
            _mm256_storeu_si256(who, _mm256_blendv_epi8(pick_i32x8, _mm256_loadu_si256(who), same_i32x8));
            const __m256i top_u32x8 = _mm256_max_epu32(best_u32x8, new_u32x8);
            const __m256i wins_i32x8 = _mm256_cmpeq_epi32(top_u32x8, new_u32x8);
            best_row_i32x8 = _mm256_blendv_epi8(best_row_i32x8, row_i32x8, wins_i32x8);
            best_u32x8 = top_u32x8;
            row_i32x8 = _mm256_add_epi32(row_i32x8, _mm256_set1_epi32(8));
        }
    }
    uint32_t lane_best[8];
    int32_t lane_row[8];
    _mm256_storeu_si256((__m256i *)lane_best, best_u32x8);
    _mm256_storeu_si256((__m256i *)lane_row, best_row_i32x8);
    uint32_t best = 0;
    ptrdiff_t best_row = 0;
    for (int lane = 0; lane < 8; lane++)
        if (lane_row[lane] >= 0 && (lane_best[lane] > best || (lane_best[lane] == best && lane_row[lane] > best_row)))
            best = lane_best[lane], best_row = lane_row[lane];
    return hh_relax_l1_from_(columns, n_rows, row, n_rows, dims, pick, nearest_distance, nearest, best, best_row);
}

HH_KERNEL void hh_nearest_l1_avx2(const int16_t *rows, ptrdiff_t n_rows, const int16_t *entries, int k,
                                  uint8_t *nearest, uint32_t *distances) {
    const int full = k & ~15;
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += HH_BASE17) {
        __m256i best_u32x8 = _mm256_set1_epi32(-1), winner_i32x8 = _mm256_setzero_si256();
        __m256i entry_i32x8 = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        for (int entry = 0; entry < full; entry += 16) {
            __m256i distance_u32x8[2];
            hh_l1_sum16_avx2_(entries + entry, HH_PALETTE_MAX, rows, &distance_u32x8[0], &distance_u32x8[1]);
            for (int half = 0; half < 2; half++) {
                const __m256i less_u32x8 = _mm256_min_epu32(best_u32x8, distance_u32x8[half]);
                const __m256i keep_i32x8 = _mm256_cmpeq_epi32(less_u32x8, best_u32x8);
                winner_i32x8 = _mm256_blendv_epi8(entry_i32x8, winner_i32x8, keep_i32x8);
                best_u32x8 = less_u32x8;
                entry_i32x8 = _mm256_add_epi32(entry_i32x8, _mm256_set1_epi32(8));
            }
        }
        uint32_t lane_best[8], best = UINT32_MAX;
        int32_t lane_winner[8], winner = 0;
        _mm256_storeu_si256((__m256i *)lane_best, best_u32x8);
        _mm256_storeu_si256((__m256i *)lane_winner, winner_i32x8);
        for (int lane = 0; lane < 8; lane++)
            if (lane_best[lane] < best || (lane_best[lane] == best && lane_winner[lane] < winner))
                best = lane_best[lane], winner = lane_winner[lane];
        for (int entry = full; entry < k; entry++) {
            const uint32_t distance = hh_l1_base17_(entries, HH_PALETTE_MAX, entry, rows);
            if (distance < best) best = distance, winner = entry;
        }
        nearest[r] = (uint8_t)winner;
        distances[r] = best;
    }
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_INLINE void hh_l1_sum32_avx512_(const int16_t *columns, ptrdiff_t stride, const int16_t *dims, __m512i *low,
                                   __m512i *high) {
    const __m512i zero_i16x32 = _mm512_setzero_si512();
    __m512i low_u32x16 = zero_i16x32, high_u32x16 = zero_i16x32;
    for (int i = 0; i < HH_BASE17; i++) {
        const __m512i a_i16x32 = _mm512_loadu_si512(columns + i * stride);
        const __m512i b_i16x32 = _mm512_set1_epi16(dims[i]);
        const __m512i apart_u16x32 =
            _mm512_sub_epi16(_mm512_max_epi16(a_i16x32, b_i16x32), _mm512_min_epi16(a_i16x32, b_i16x32));
        low_u32x16 = _mm512_add_epi32(low_u32x16, _mm512_unpacklo_epi16(apart_u16x32, zero_i16x32));
        high_u32x16 = _mm512_add_epi32(high_u32x16, _mm512_unpackhi_epi16(apart_u16x32, zero_i16x32));
    }
    const __m512i first_i64x8 = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second_i64x8 = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    *low = _mm512_permutex2var_epi64(low_u32x16, first_i64x8, high_u32x16);
    *high = _mm512_permutex2var_epi64(low_u32x16, second_i64x8, high_u32x16);
}

HH_KERNEL ptrdiff_t hh_relax_l1_avx512(const int16_t *columns, ptrdiff_t n_rows, const int16_t *dims, int32_t pick,
                                       uint32_t *nearest_distance, int32_t *nearest) {
    const __m512i pick_i32x16 = _mm512_set1_epi32(pick);
    __m512i best_u32x16 = _mm512_setzero_si512(), best_row_i32x16 = _mm512_set1_epi32(-1);
    __m512i row_i32x16 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    ptrdiff_t row = 0;
    for (; row + 32 <= n_rows; row += 32) {
        __m512i distance_u32x16[2];
        hh_l1_sum32_avx512_(columns + row, n_rows, dims, &distance_u32x16[0], &distance_u32x16[1]);
        for (int half = 0; half < 2; half++) {
            uint32_t *const old = nearest_distance + row + 16 * half;
            __m512i now_u32x16 = _mm512_loadu_si512(old);
            const __mmask16 closer = _mm512_cmplt_epu32_mask(distance_u32x16[half], now_u32x16);
            now_u32x16 = _mm512_min_epu32(now_u32x16, distance_u32x16[half]);
            _mm512_storeu_si512(old, now_u32x16);
            _mm512_mask_storeu_epi32(nearest + row + 16 * half, closer, pick_i32x16);
            const __mmask16 wins = _mm512_cmpge_epu32_mask(now_u32x16, best_u32x16);
            best_u32x16 = _mm512_max_epu32(best_u32x16, now_u32x16);
            best_row_i32x16 = _mm512_mask_mov_epi32(best_row_i32x16, wins, row_i32x16);
            row_i32x16 = _mm512_add_epi32(row_i32x16, _mm512_set1_epi32(16));
        }
    }
    uint32_t best = 0;
    ptrdiff_t best_row = 0;
    if (row) {
        best = _mm512_reduce_max_epu32(best_u32x16);
        const __mmask16 tops = _mm512_cmpeq_epi32_mask(best_u32x16, _mm512_set1_epi32((int)best));
        best_row = _mm512_mask_reduce_max_epi32(tops, best_row_i32x16);
    }
    return hh_relax_l1_from_(columns, n_rows, row, n_rows, dims, pick, nearest_distance, nearest, best, best_row);
}

HH_KERNEL void hh_nearest_l1_avx512(const int16_t *rows, ptrdiff_t n_rows, const int16_t *entries, int k,
                                    uint8_t *nearest, uint32_t *distances) {
    const int full = k & ~31;
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += HH_BASE17) {
        __m512i best_u32x16 = _mm512_set1_epi32(-1), winner_i32x16 = _mm512_setzero_si512();
        __m512i entry_i32x16 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (int entry = 0; entry < full; entry += 32) {
            __m512i distance_u32x16[2];
            hh_l1_sum32_avx512_(entries + entry, HH_PALETTE_MAX, rows, &distance_u32x16[0], &distance_u32x16[1]);
            for (int half = 0; half < 2; half++) {
                const __mmask16 closer = _mm512_cmplt_epu32_mask(distance_u32x16[half], best_u32x16);
                best_u32x16 = _mm512_min_epu32(best_u32x16, distance_u32x16[half]);
                winner_i32x16 = _mm512_mask_mov_epi32(winner_i32x16, closer, entry_i32x16);
                entry_i32x16 = _mm512_add_epi32(entry_i32x16, _mm512_set1_epi32(16));
            }
        }
        uint32_t best = UINT32_MAX;
        int winner = 0;
        if (full) {
            best = _mm512_reduce_min_epu32(best_u32x16);
            const __mmask16 tops = _mm512_cmpeq_epi32_mask(best_u32x16, _mm512_set1_epi32((int)best));
            winner = _mm512_mask_reduce_min_epi32(tops, winner_i32x16);
        }
        for (int entry = full; entry < k; entry++) {
            const uint32_t distance = hh_l1_base17_(entries, HH_PALETTE_MAX, entry, rows);
            if (distance < best) best = distance, winner = entry;
        }
        nearest[r] = (uint8_t)winner;
        distances[r] = best;
    }
}
HH_TARGET_END
#elif HH_NEON
/* |a - b| of int16 fits uint16; sums of 17 need 32 bits. */
HH_INLINE void hh_l1_sum16_neon_(const int16_t *columns, ptrdiff_t stride, const int16_t *dims, uint32x4_t sums[4]) {
    for (int part = 0; part < 4; part++) sums[part] = vdupq_n_u32(0);
    for (int i = 0; i < HH_BASE17; i++) {
        const int16x8_t dim_i16x8 = vdupq_n_s16(dims[i]);
        for (int half = 0; half < 2; half++) {
            const uint16x8_t apart_u16x8 =
                vreinterpretq_u16_s16(vabdq_s16(vld1q_s16(columns + i * stride + 8 * half), dim_i16x8));
            sums[2 * half] = vaddw_u16(sums[2 * half], vget_low_u16(apart_u16x8));
            sums[2 * half + 1] = vaddw_high_u16(sums[2 * half + 1], apart_u16x8);
        }
    }
}

HH_KERNEL ptrdiff_t hh_relax_l1_neon(const int16_t *columns, ptrdiff_t n_rows, const int16_t *dims, int32_t pick,
                                     uint32_t *nearest_distance, int32_t *nearest) {
    static const int32_t first_rows[4] = {0, 1, 2, 3};
    const int32x4_t pick_i32x4 = vdupq_n_s32(pick);
    uint32x4_t best_u32x4 = vdupq_n_u32(0);
    int32x4_t best_row_i32x4 = vdupq_n_s32(-1), row_i32x4 = vld1q_s32(first_rows);
    ptrdiff_t row = 0;
    for (; row + 16 <= n_rows; row += 16) {
        uint32x4_t distance_u32x4[4];
        hh_l1_sum16_neon_(columns + row, n_rows, dims, distance_u32x4);
        for (int part = 0; part < 4; part++) {
            uint32_t *const old = nearest_distance + row + 4 * part;
            int32_t *const who = nearest + row + 4 * part;
            const uint32x4_t old_u32x4 = vld1q_u32(old);
            const uint32x4_t new_u32x4 = vminq_u32(old_u32x4, distance_u32x4[part]);
            vst1q_u32(old, new_u32x4);
            vst1q_s32(who, vbslq_s32(vceqq_u32(old_u32x4, new_u32x4), vld1q_s32(who), pick_i32x4));
            best_row_i32x4 = vbslq_s32(vcgeq_u32(new_u32x4, best_u32x4), row_i32x4, best_row_i32x4);
            best_u32x4 = vmaxq_u32(best_u32x4, new_u32x4);
            row_i32x4 = vaddq_s32(row_i32x4, vdupq_n_s32(4));
        }
    }
    const uint32_t best = vmaxvq_u32(best_u32x4);
    const uint32x4_t tops_u32x4 = vceqq_u32(best_u32x4, vdupq_n_u32(best));
    const ptrdiff_t best_row = row ? vmaxvq_s32(vbslq_s32(tops_u32x4, best_row_i32x4, vdupq_n_s32(-1))) : 0;
    return hh_relax_l1_from_(columns, n_rows, row, n_rows, dims, pick, nearest_distance, nearest, best, best_row);
}

HH_KERNEL void hh_nearest_l1_neon(const int16_t *rows, ptrdiff_t n_rows, const int16_t *entries, int k,
                                  uint8_t *nearest, uint32_t *distances) {
    static const int32_t first_entries[4] = {0, 1, 2, 3};
    const int full = k & ~15;
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += HH_BASE17) {
        uint32x4_t best_u32x4 = vdupq_n_u32(UINT32_MAX);
        int32x4_t winner_i32x4 = vdupq_n_s32(0), entry_i32x4 = vld1q_s32(first_entries);
        for (int entry = 0; entry < full; entry += 16) {
            uint32x4_t distance_u32x4[4];
            hh_l1_sum16_neon_(entries + entry, HH_PALETTE_MAX, rows, distance_u32x4);
            for (int part = 0; part < 4; part++) {
                const uint32x4_t closer_u32x4 = vcltq_u32(distance_u32x4[part], best_u32x4);
                winner_i32x4 = vbslq_s32(closer_u32x4, entry_i32x4, winner_i32x4);
                best_u32x4 = vminq_u32(best_u32x4, distance_u32x4[part]);
                entry_i32x4 = vaddq_s32(entry_i32x4, vdupq_n_s32(4));
            }
        }
        uint32_t best = vminvq_u32(best_u32x4);
        const uint32x4_t tops_u32x4 = vceqq_u32(best_u32x4, vdupq_n_u32(best));
        int winner = vminvq_s32(vbslq_s32(tops_u32x4, winner_i32x4, vdupq_n_s32(INT32_MAX)));
        for (int entry = full; entry < k; entry++) {
            const uint32_t distance = hh_l1_base17_(entries, HH_PALETTE_MAX, entry, rows);
            if (distance < best) best = distance, winner = entry;
        }
        nearest[r] = (uint8_t)winner;
        distances[r] = best;
    }
}
#endif

HH_KERNEL void hh_nearest_l1(int tier, const int16_t *rows, ptrdiff_t n_rows, const int16_t *entries, int k,
                             uint8_t *nearest, uint32_t *distances) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_nearest_l1_avx512(rows, n_rows, entries, k, nearest, distances);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_nearest_l1_avx2(rows, n_rows, entries, k, nearest, distances);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_nearest_l1_neon(rows, n_rows, entries, k, nearest, distances);
        return;
    }
#endif
    (void)tier;
    hh_nearest_l1_scalar(rows, n_rows, entries, k, nearest, distances);
}

/* Furthest-point sampling: picks[0] is given, each next pick is the LAST row of the largest
 * distance to its nearest pick. `columns` is [17][n_rows]. */
HH_KERNEL void hh_furthest_l1(int tier, const int16_t *columns, ptrdiff_t n_rows, int k, int64_t *picks,
                              uint32_t *nearest_distance, int32_t *nearest) {
    for (ptrdiff_t row = 0; row < n_rows; row++) nearest_distance[row] = UINT32_MAX, nearest[row] = 0;
    for (int pick = 0; pick < k; pick++) {
        int16_t dims[HH_BASE17];
        ptrdiff_t next;
        for (int i = 0; i < HH_BASE17; i++) dims[i] = columns[i * n_rows + picks[pick]];
#if HH_X86
        if (tier >= HH_TIER_AVX512) next = hh_relax_l1_avx512(columns, n_rows, dims, pick, nearest_distance, nearest);
        else if (tier >= HH_TIER_AVX2) next = hh_relax_l1_avx2(columns, n_rows, dims, pick, nearest_distance, nearest);
        else
#elif HH_NEON
        if (tier >= HH_TIER_NEON) next = hh_relax_l1_neon(columns, n_rows, dims, pick, nearest_distance, nearest);
        else
#endif
            next = hh_relax_l1_scalar(columns, n_rows, dims, pick, nearest_distance, nearest);
        if (pick + 1 < k) picks[pick + 1] = next;
    }
    (void)tier;
}

#endif
