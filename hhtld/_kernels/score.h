/* Scores of Slot T's rows without decoding them: int8 levels times an int8 query, summed in int32.
 *
 * out[r] = sum over t of table[window(r, t)] * query[t], windows as in trellis.h. Integers are exact, so every
 * tier gives the same; up to HH_SCORE_MAX_COLS columns nothing overflows even with -128 on both sides.
 *
 * The vector bodies look levels up as unsigned bytes, level + 128, and 128 * sum(query) comes off at the end.
 * The query is filled up with zeros to whole blocks, and what lies behind a row's end is multiplied by them.
 */
#ifndef HHTLD_SCORE_H
#define HHTLD_SCORE_H

#include "isa.h"
#include "trellis.h"

enum { HH_SCORE_MAX_COLS = 65536 };

/* Scratch; the caller owns the memory. */
typedef struct {
    uint8_t *row;    /* [hh_trellis_reach_nbytes] */
    int8_t *query;   /* [n_cols up to whole blocks] */
    int16_t *halves; /* [n_cols up to whole blocks] */
    uint8_t *table;  /* [2^12] */
    int32_t *wide;   /* [2^12] */
} hh_score_scratch;

/* ---- scalar ---- */

HH_KERNEL int32_t hh_trellis_dot_scalar(const uint8_t *codes, ptrdiff_t n_cols, int rate, int n_bits, const int8_t *table,
                                        const int8_t *query) {
    int32_t sum = 0;
    for (ptrdiff_t t = 0; t < n_cols; t++) sum += (int32_t)table[hh_window_(codes, t, rate, n_bits)] * query[t];
    return sum;
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_INLINE int32_t hh_sum_i32x8_avx2_(__m256i sum_i32x8) {
    __m128i sum_i32x4 = _mm_add_epi32(_mm256_castsi256_si128(sum_i32x8), _mm256_extracti128_si256(sum_i32x8, 1));
    sum_i32x4 = _mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0xB1)));
}

/* `halves` holds the query as int16, of every 32 weights the even ones first, then the odd ones. */
HH_KERNEL int32_t hh_trellis_dot8_avx2(const uint8_t *codes, ptrdiff_t n_blocks, int rate, const hh_block_plan_avx2 *plan,
                                       const uint8_t *table, const int16_t *halves) {
    const __m256i low_i16x16 = _mm256_set1_epi16(0xFF);
    __m256i even_sum_i32x8 = _mm256_setzero_si256(), odd_sum_i32x8 = _mm256_setzero_si256();
    for (ptrdiff_t block = 0; block < n_blocks; block++, codes += rate)
        for (int pair = 0; pair < 4; pair++, halves += 32) {
            const __m256i level_i8x32 = hh_levels32_avx2_(codes, table, plan, pair);
            even_sum_i32x8 = _mm256_add_epi32(even_sum_i32x8, _mm256_madd_epi16(_mm256_and_si256(level_i8x32, low_i16x16), _mm256_loadu_si256((const __m256i *)halves)));
            odd_sum_i32x8 = _mm256_add_epi32(odd_sum_i32x8, _mm256_madd_epi16(_mm256_srli_epi16(level_i8x32, 8), _mm256_loadu_si256((const __m256i *)(halves + 16))));
        }
    return hh_sum_i32x8_avx2_(_mm256_add_epi32(even_sum_i32x8, odd_sum_i32x8));
}

/* Larger tables: windows in 32-bit lanes, levels gathered. 16 weights take exactly `rate` bits. */
HH_KERNEL int32_t hh_trellis_dot_wide_avx2(const uint8_t *codes, ptrdiff_t n_blocks, int rate, int n_bits, const int32_t *wide,
                                           const int8_t *query) {
    const __m256i mask_i32x8 = _mm256_set1_epi32((1 << n_bits) - 1);
    int32_t offsets[16];
    for (int t = 0; t < 16; t++) offsets[t] = (int32_t)hh_bit_offset(t, rate);
    const __m256i low_i32x8 = _mm256_loadu_si256((const __m256i *)offsets), high_i32x8 = _mm256_loadu_si256((const __m256i *)(offsets + 8));
    __m256i sum_i32x8 = _mm256_setzero_si256(), other_i32x8 = _mm256_setzero_si256();
    for (ptrdiff_t group = 0; group < 8 * n_blocks; group++, query += 16) {
        const ptrdiff_t bit = group * rate;
        const __m256i bytes_i8x32 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(codes + (bit >> 3))));
        const __m256i at_i32x8 = _mm256_set1_epi32((int)(bit & 7));
#define HH_PRODUCTS(offset_i32x8, query) _mm256_madd_epi16(_mm256_i32gather_epi32(wide, hh_states8_avx2_(bytes_i8x32, offset_i32x8, mask_i32x8), 4), \
            _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(query))))
        const __m256i first_i32x8 = _mm256_add_epi32(low_i32x8, at_i32x8), second_i32x8 = _mm256_add_epi32(high_i32x8, at_i32x8);
        sum_i32x8 = _mm256_add_epi32(sum_i32x8, HH_PRODUCTS(first_i32x8, query));
        other_i32x8 = _mm256_add_epi32(other_i32x8, HH_PRODUCTS(second_i32x8, query + 8));
#undef HH_PRODUCTS
    }
    return hh_sum_i32x8_avx2_(_mm256_add_epi32(sum_i32x8, other_i32x8));
}
HH_TARGET_END

HH_TARGET_AVX512VNNI_BEGIN
HH_INLINE int32_t hh_trellis_dot_avx512vnni_(const uint8_t *codes, ptrdiff_t n_blocks, int rate, int n_bits,
                                             const hh_block_plan_avx512vnni *plan, const uint8_t *table, const int8_t *query) {
    const __m512i spread0_i8x64 = plan->spread_i8x64[0], shift0_i8x64 = plan->shift_i8x64[0], above0_i8x64 = plan->above_i8x64[0];
    const __m512i spread1_i8x64 = plan->spread_i8x64[1], shift1_i8x64 = plan->shift_i8x64[1], above1_i8x64 = plan->above_i8x64[1];
    const ptrdiff_t second = plan->second;
    __m512i sum0_i32x16 = _mm512_setzero_si512(), sum1_i32x16 = _mm512_setzero_si512();
    for (ptrdiff_t block = 0; block < n_blocks; block++, codes += rate, query += HH_TRELLIS_BLOCK) {
        const __m512i level0_i8x64 = hh_levels64_avx512vnni_(codes, n_bits, table, spread0_i8x64, shift0_i8x64, above0_i8x64);
        const __m512i level1_i8x64 = hh_levels64_avx512vnni_(codes + second, n_bits, table, spread1_i8x64, shift1_i8x64, above1_i8x64);
        sum0_i32x16 = _mm512_dpbusd_epi32(sum0_i32x16, level0_i8x64, _mm512_loadu_si512(query));
        sum1_i32x16 = _mm512_dpbusd_epi32(sum1_i32x16, level1_i8x64, _mm512_loadu_si512(query + 64));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(sum0_i32x16, sum1_i32x16));
}

HH_KERNEL int32_t hh_trellis_dot_avx512vnni(const uint8_t *codes, ptrdiff_t n_blocks, int rate, int n_bits,
                                            const hh_block_plan_avx512vnni *plan, const uint8_t *table, const int8_t *query) {
    if (n_bits <= 8) return hh_trellis_dot_avx512vnni_(codes, n_blocks, rate, 8, plan, table, query);
    if (n_bits <= 10) return hh_trellis_dot_avx512vnni_(codes, n_blocks, rate, 10, plan, table, query);
    return hh_trellis_dot_avx512vnni_(codes, n_blocks, rate, 12, plan, table, query);
}

HH_KERNEL void hh_trellis_dots_avx512vnni(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                          hh_score_scratch scratch, ptrdiff_t row_nbytes, ptrdiff_t n_whole, int32_t bias, int32_t *out) {
    hh_block_plan_avx512vnni plan;
    hh_block_plan_avx512vnni_(rate, &plan);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const uint8_t *row = codes + r * row_nbytes;
        if (r >= n_whole) row = memcpy(scratch.row, row, (size_t)row_nbytes);
        const int32_t sum = hh_trellis_dot_avx512vnni(row, hh_trellis_blocks(n_cols), rate, n_bits, &plan, scratch.table, scratch.query);
        out[r] = (int32_t)((uint32_t)sum - (uint32_t)bias);
    }
}
HH_TARGET_END

HH_TARGET_AVX2_BEGIN
HH_KERNEL void hh_trellis_dots_avx2(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                    hh_score_scratch scratch, ptrdiff_t row_nbytes, ptrdiff_t n_whole, int32_t bias, int32_t *out) {
    hh_block_plan_avx2 plan;
    hh_block_plan_avx2_(rate, &plan);
    const ptrdiff_t n_blocks = hh_trellis_blocks(n_cols);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const uint8_t *row = codes + r * row_nbytes;
        if (r >= n_whole) row = memcpy(scratch.row, row, (size_t)row_nbytes);
        const int32_t sum = n_bits <= 8 ? hh_trellis_dot8_avx2(row, n_blocks, rate, &plan, scratch.table, scratch.halves)
                                        : hh_trellis_dot_wide_avx2(row, n_blocks, rate, n_bits, scratch.wide, scratch.query);
        out[r] = (int32_t)((uint32_t)sum - (uint32_t)bias);
    }
}
HH_TARGET_END
#endif

/* Scores of rows against one query. */
HH_KERNEL void hh_trellis_dots(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                               const int8_t *table, const int8_t *query, hh_score_scratch scratch, int32_t *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
#if HH_X86
    if (tier >= HH_TIER_AVX2) {
        const ptrdiff_t n_padded = hh_trellis_blocks(n_cols) * HH_TRELLIS_BLOCK, reach = hh_trellis_reach_nbytes(n_cols, rate);
        const ptrdiff_t n_whole = hh_trellis_whole_rows(n_rows, n_cols, rate, n_bits);
        int32_t bias = 0;
        memset(scratch.row, 0, (size_t)reach);
        memset(scratch.query, 0, (size_t)n_padded);
        memcpy(scratch.query, query, (size_t)n_cols);
        for (ptrdiff_t t = 0; t < n_padded; t++) {
            bias += 128 * scratch.query[t];
            scratch.halves[t / 32 * 32 + t % 32 / 2 + t % 2 * 16] = scratch.query[t];
        }
        hh_trellis_bytes_table(table, n_bits, scratch.table);
        for (int s = 0; s < 1 << n_bits; s++) scratch.wide[s] = scratch.table[s];
        if (tier >= HH_TIER_AVX512VNNI)
            hh_trellis_dots_avx512vnni(codes, n_rows, n_cols, rate, n_bits, scratch, row_nbytes, n_whole, bias, out);
        else
            hh_trellis_dots_avx2(codes, n_rows, n_cols, rate, n_bits, scratch, row_nbytes, n_whole, bias, out);
        return;
    }
#endif
    (void)tier, (void)scratch;
    for (ptrdiff_t r = 0; r < n_rows; r++)
        out[r] = hh_trellis_dot_scalar(codes + r * row_nbytes, n_cols, rate, n_bits, table, query);
}

#endif
