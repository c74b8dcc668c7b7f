/* Scores of Slot T's rows without decoding them: int8 levels times an int8 query, summed in int32.
 *
 * out[r] = sum over t of table[window(r, t)] * query[t], windows as in trellis.h. Integers are exact, so every
 * tier gives the same; up to HH_SCORE_MAX_COLS columns nothing overflows even with -128 on both sides.
 *
 * The vector bodies look levels up as unsigned bytes, level + 128, and 128 * sum(query) comes off at the end.
 * They take HH_SCORE_BLOCK weights at a time, which is a whole number of bytes at every rate, so shuffles and shifts
 * are the same in every block. The query is filled up with zeros to whole blocks, and what lies behind a row's
 * end is multiplied by them: only rows whose blocks reach past the last row are copied to scratch first.
 * Tables of odd L are repeated to the next even L, whose windows then carry a bit that does not matter.
 */
#ifndef HHTLD_SCORE_H
#define HHTLD_SCORE_H

#include "isa.h"
#include "trellis.h"

enum { HH_SCORE_MAX_COLS = 65536, HH_SCORE_BLOCK = 128, HH_SCORE_PADDING = 64 };

/* Scratch; the caller owns the memory. */
typedef struct {
    uint8_t *row;    /* [hh_score_row_nbytes] */
    int8_t *query;   /* [n_cols up to whole blocks] */
    int16_t *halves; /* [n_cols up to whole blocks] */
    uint8_t *table;  /* [2^12] */
    int32_t *wide;   /* [2^12] */
} hh_score_scratch;

HH_INLINE ptrdiff_t hh_score_blocks(ptrdiff_t n_cols) { return (n_cols + HH_SCORE_BLOCK - 1) / HH_SCORE_BLOCK; }

/* What the vector bodies may read from a row's first byte on; a block takes `rate` bytes. */
HH_INLINE ptrdiff_t hh_score_row_nbytes(ptrdiff_t n_cols, int rate) {
    return hh_score_blocks(n_cols) * rate + HH_SCORE_PADDING;
}

/* ---- scalar ---- */

/* Byte by byte, because the last window ends with the row. */
HH_KERNEL int32_t hh_trellis_dot_scalar(const uint8_t *codes, ptrdiff_t n_cols, int rate, int n_bits, const int8_t *table,
                                        const int8_t *query) {
    int32_t sum = 0;
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        const ptrdiff_t bit = hh_bit_offset(t, rate), past = bit + n_bits;
        uint32_t word = 0;
        for (ptrdiff_t byte = bit >> 3; 8 * byte < past; byte++) word |= (uint32_t)codes[byte] << (8 * (byte - (bit >> 3)));
        sum += (int32_t)table[(word >> (bit & 7)) & ((1u << n_bits) - 1u)] * query[t];
    }
    return sum;
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_INLINE int32_t hh_sum_i32x8_avx2_(__m256i sum_i32x8) {
    __m128i sum_i32x4 = _mm_add_epi32(_mm256_castsi256_si128(sum_i32x8), _mm256_extracti128_si256(sum_i32x8, 1));
    sum_i32x4 = _mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0xB1)));
}

HH_INLINE __m256i hh_look16_avx2_(const uint8_t *part, __m256i index_i8x32) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)part)), index_i8x32);
}

/* 256 levels: 16 shuffles by the low nibble, which give 0 where bit 7 of the index is set, so the halves of the table
 * are ORed, and a tree of blends by bits 4, 5 and 6. */
HH_INLINE __m256i hh_look256_avx2_(const uint8_t *table, __m256i state_i8x32) {
    const __m256i low_i8x32 = _mm256_and_si256(state_i8x32, _mm256_set1_epi8((char)0x8F));
    const __m256i high_i8x32 = _mm256_xor_si256(low_i8x32, _mm256_set1_epi8((char)0x80));
    const __m256i bit4_i8x32 = _mm256_slli_epi16(state_i8x32, 3), bit5_i8x32 = _mm256_slli_epi16(state_i8x32, 2);
    const __m256i bit6_i8x32 = _mm256_slli_epi16(state_i8x32, 1);
#define HH_BOTH(k) _mm256_or_si256(hh_look16_avx2_(table + 16 * (k), low_i8x32), hh_look16_avx2_(table + 128 + 16 * (k), high_i8x32))
#define HH_PAIR(k) _mm256_blendv_epi8(HH_BOTH(k), HH_BOTH((k) + 1), bit4_i8x32)
    const __m256i first_i8x32 = _mm256_blendv_epi8(HH_PAIR(0), HH_PAIR(2), bit5_i8x32);
    const __m256i second_i8x32 = _mm256_blendv_epi8(HH_PAIR(4), HH_PAIR(6), bit5_i8x32);
#undef HH_PAIR
#undef HH_BOTH
    return _mm256_blendv_epi8(first_i8x32, second_i8x32, bit6_i8x32);
}

/* Shuffles that bring each 16-bit lane the two bytes of its window, and factors that push the window to its upper
 * byte: even and odd weights of two groups of 16, for the four pairs of groups of a block. */
typedef struct {
    __m256i even_i8x32[4], odd_i8x32[4], even_factor_i16x16[4], odd_factor_i16x16[4];
    int first[8]; /* byte of each group */
} hh_score_plan_avx2;

HH_KERNEL void hh_score_plan_avx2_(int rate, hh_score_plan_avx2 *plan) {
    for (int pair = 0; pair < 4; pair++) {
        uint8_t shuffle[2][32];
        uint16_t factor[2][16];
        for (int i = 0; i < 32; i++) {
            const int group = 2 * pair + i / 16, first = group * rate / 8;
            const int bit = (int)hh_bit_offset(32 * pair + i, rate) - 8 * first;
            const int lane = i / 2;
            plan->first[group] = first;
            shuffle[i & 1][2 * lane] = (uint8_t)(bit >> 3), shuffle[i & 1][2 * lane + 1] = (uint8_t)((bit >> 3) + 1);
            factor[i & 1][lane] = (uint16_t)(256 >> (bit & 7));
        }
        plan->even_i8x32[pair] = _mm256_loadu_si256((const __m256i *)shuffle[0]);
        plan->odd_i8x32[pair] = _mm256_loadu_si256((const __m256i *)shuffle[1]);
        plan->even_factor_i16x16[pair] = _mm256_loadu_si256((const __m256i *)factor[0]);
        plan->odd_factor_i16x16[pair] = _mm256_loadu_si256((const __m256i *)factor[1]);
    }
}

/* `halves` holds the query as int16, of every 32 weights the even ones first, then the odd ones. */
HH_KERNEL int32_t hh_trellis_dot8_avx2(const uint8_t *codes, ptrdiff_t n_blocks, int rate, const hh_score_plan_avx2 *plan,
                                       const uint8_t *table, const int16_t *halves) {
    const __m256i low_i16x16 = _mm256_set1_epi16(0xFF);
    __m256i even_sum_i32x8 = _mm256_setzero_si256(), odd_sum_i32x8 = _mm256_setzero_si256();
    for (ptrdiff_t block = 0; block < n_blocks; block++, codes += rate)
        for (int pair = 0; pair < 4; pair++, halves += 32) {
            const __m256i bytes_i8x32 = _mm256_inserti128_si256(
                _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(codes + plan->first[2 * pair]))),
                _mm_loadu_si128((const __m128i *)(codes + plan->first[2 * pair + 1])), 1);
            const __m256i even_i16x16 = _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes_i8x32, plan->even_i8x32[pair]), plan->even_factor_i16x16[pair]);
            const __m256i odd_i16x16 = _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes_i8x32, plan->odd_i8x32[pair]), plan->odd_factor_i16x16[pair]);
            const __m256i state_i8x32 = _mm256_or_si256(_mm256_srli_epi16(even_i16x16, 8), _mm256_andnot_si256(low_i16x16, odd_i16x16));
            const __m256i level_i8x32 = hh_look256_avx2_(table, state_i8x32);
            even_sum_i32x8 = _mm256_add_epi32(even_sum_i32x8, _mm256_madd_epi16(_mm256_and_si256(level_i8x32, low_i16x16), _mm256_loadu_si256((const __m256i *)halves)));
            odd_sum_i32x8 = _mm256_add_epi32(odd_sum_i32x8, _mm256_madd_epi16(_mm256_srli_epi16(level_i8x32, 8), _mm256_loadu_si256((const __m256i *)(halves + 16))));
        }
    return hh_sum_i32x8_avx2_(_mm256_add_epi32(even_sum_i32x8, odd_sum_i32x8));
}

/* Larger tables: windows in 32-bit lanes, levels gathered. 16 weights take exactly `rate` bits. */
HH_KERNEL int32_t hh_trellis_dot_wide_avx2(const uint8_t *codes, ptrdiff_t n_blocks, int rate, int n_bits, const int32_t *wide,
                                           const int8_t *query) {
    const __m256i mask_i32x8 = _mm256_set1_epi32((1 << n_bits) - 1), seven_i32x8 = _mm256_set1_epi32(7);
    const __m256i spread_i8x32 = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    const __m256i four_i8x32 = _mm256_set1_epi32(0x03020100);
    int32_t offsets[16];
    for (int t = 0; t < 16; t++) offsets[t] = (int32_t)hh_bit_offset(t, rate);
    const __m256i low_i32x8 = _mm256_loadu_si256((const __m256i *)offsets), high_i32x8 = _mm256_loadu_si256((const __m256i *)(offsets + 8));
    __m256i sum_i32x8 = _mm256_setzero_si256(), other_i32x8 = _mm256_setzero_si256();
    for (ptrdiff_t group = 0; group < 8 * n_blocks; group++, query += 16) {
        const ptrdiff_t bit = group * rate;
        const __m256i bytes_i8x32 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(codes + (bit >> 3))));
        const __m256i at_i32x8 = _mm256_set1_epi32((int)(bit & 7));
#define HH_PRODUCTS(offset_i32x8, query) _mm256_madd_epi16(_mm256_i32gather_epi32(wide, _mm256_and_si256(_mm256_srlv_epi32( \
            _mm256_shuffle_epi8(bytes_i8x32, _mm256_add_epi8(_mm256_shuffle_epi8(_mm256_srli_epi32(offset_i32x8, 3), spread_i8x32), four_i8x32)), \
            _mm256_and_si256(offset_i32x8, seven_i32x8)), mask_i32x8), 4), _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(query))))
        const __m256i first_i32x8 = _mm256_add_epi32(low_i32x8, at_i32x8), second_i32x8 = _mm256_add_epi32(high_i32x8, at_i32x8);
        sum_i32x8 = _mm256_add_epi32(sum_i32x8, HH_PRODUCTS(first_i32x8, query));
        other_i32x8 = _mm256_add_epi32(other_i32x8, HH_PRODUCTS(second_i32x8, query + 8));
#undef HH_PRODUCTS
    }
    return hh_sum_i32x8_avx2_(_mm256_add_epi32(sum_i32x8, other_i32x8));
}
HH_TARGET_END

HH_TARGET_AVX512VNNI_BEGIN
/* For each half of a block: the bytes of every 8 weights (at most 42 + 7 + 12 bits) to one 64-bit lane, the first bit
 * of every weight's window in it, and the bit 8 places on. */
typedef struct {
    __m512i spread_i8x64[2], shift_i8x64[2], above_i8x64[2];
    int second; /* first byte of the second half */
} hh_score_plan_avx512vnni;

HH_KERNEL void hh_score_plan_avx512vnni_(int rate, hh_score_plan_avx512vnni *plan) {
    plan->second = 4 * rate / 8;
    for (int half = 0; half < 2; half++) {
        uint8_t spread[64], shift[64];
        for (int i = 0; i < 64; i++) {
            const int first = (int)hh_bit_offset(64 * half + i / 8 * 8, rate) >> 3;
            spread[i] = (uint8_t)(first - half * plan->second + i % 8);
            shift[i] = (uint8_t)((int)hh_bit_offset(64 * half + i, rate) - 8 * first);
        }
        plan->spread_i8x64[half] = _mm512_loadu_si512(spread);
        plan->shift_i8x64[half] = _mm512_loadu_si512(shift);
        plan->above_i8x64[half] = _mm512_add_epi8(plan->shift_i8x64[half], _mm512_set1_epi8(8));
    }
}

HH_INLINE __m512i hh_look128_avx512vnni_(const uint8_t *table, __m512i state_i8x64) {
    return _mm512_permutex2var_epi8(_mm512_loadu_si512(table), state_i8x64, _mm512_loadu_si512(table + 64));
}

HH_INLINE __m512i hh_look256_avx512vnni_(const uint8_t *table, __m512i state_i8x64, __mmask64 bit7) {
    return _mm512_mask_mov_epi8(hh_look128_avx512vnni_(table, state_i8x64), bit7, hh_look128_avx512vnni_(table + 128, state_i8x64));
}

HH_INLINE __m512i hh_look1024_avx512vnni_(const uint8_t *table, __m512i state_i8x64, __mmask64 bit7, __mmask64 bit8, __mmask64 bit9) {
    const __m512i low_i8x64 = _mm512_mask_mov_epi8(hh_look256_avx512vnni_(table, state_i8x64, bit7), bit8,
                                                   hh_look256_avx512vnni_(table + 256, state_i8x64, bit7));
    const __m512i high_i8x64 = _mm512_mask_mov_epi8(hh_look256_avx512vnni_(table + 512, state_i8x64, bit7), bit8,
                                                    hh_look256_avx512vnni_(table + 768, state_i8x64, bit7));
    return _mm512_mask_mov_epi8(low_i8x64, bit9, high_i8x64);
}

/* The levels, plus 128, of one half of a block; n_bits is 8, 10 or 12 and constant where this is inlined. */
HH_INLINE __m512i hh_levels64_avx512vnni_(const uint8_t *codes, int n_bits, const uint8_t *table, __m512i spread_i8x64,
                                          __m512i shift_i8x64, __m512i above_i8x64) {
    const __m512i bytes_i8x64 = _mm512_permutexvar_epi8(spread_i8x64, _mm512_loadu_si512(codes));
    const __m512i state_i8x64 = _mm512_multishift_epi64_epi8(shift_i8x64, bytes_i8x64);
    const __mmask64 bit7 = _mm512_movepi8_mask(state_i8x64);
    if (n_bits == 8) return hh_look256_avx512vnni_(table, state_i8x64, bit7);
    const __m512i high_i8x64 = _mm512_multishift_epi64_epi8(above_i8x64, bytes_i8x64);
    const __mmask64 bit8 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(1)), bit9 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(2));
    const __m512i first_i8x64 = hh_look1024_avx512vnni_(table, state_i8x64, bit7, bit8, bit9);
    if (n_bits == 10) return first_i8x64;
    const __mmask64 bit10 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(4)), bit11 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(8));
    const __m512i low_i8x64 = _mm512_mask_mov_epi8(first_i8x64, bit10, hh_look1024_avx512vnni_(table + 1024, state_i8x64, bit7, bit8, bit9));
    const __m512i third_i8x64 = hh_look1024_avx512vnni_(table + 2048, state_i8x64, bit7, bit8, bit9);
    return _mm512_mask_mov_epi8(low_i8x64, bit11, _mm512_mask_mov_epi8(third_i8x64, bit10, hh_look1024_avx512vnni_(table + 3072, state_i8x64, bit7, bit8, bit9)));
}

HH_INLINE int32_t hh_trellis_dot_avx512vnni_(const uint8_t *codes, ptrdiff_t n_blocks, int rate, int n_bits,
                                             const hh_score_plan_avx512vnni *plan, const uint8_t *table, const int8_t *query) {
    const __m512i spread0_i8x64 = plan->spread_i8x64[0], shift0_i8x64 = plan->shift_i8x64[0], above0_i8x64 = plan->above_i8x64[0];
    const __m512i spread1_i8x64 = plan->spread_i8x64[1], shift1_i8x64 = plan->shift_i8x64[1], above1_i8x64 = plan->above_i8x64[1];
    const ptrdiff_t second = plan->second;
    __m512i sum0_i32x16 = _mm512_setzero_si512(), sum1_i32x16 = _mm512_setzero_si512();
    for (ptrdiff_t block = 0; block < n_blocks; block++, codes += rate, query += HH_SCORE_BLOCK) {
        const __m512i level0_i8x64 = hh_levels64_avx512vnni_(codes, n_bits, table, spread0_i8x64, shift0_i8x64, above0_i8x64);
        const __m512i level1_i8x64 = hh_levels64_avx512vnni_(codes + second, n_bits, table, spread1_i8x64, shift1_i8x64, above1_i8x64);
        sum0_i32x16 = _mm512_dpbusd_epi32(sum0_i32x16, level0_i8x64, _mm512_loadu_si512(query));
        sum1_i32x16 = _mm512_dpbusd_epi32(sum1_i32x16, level1_i8x64, _mm512_loadu_si512(query + 64));
    }
    return _mm512_reduce_add_epi32(_mm512_add_epi32(sum0_i32x16, sum1_i32x16));
}

HH_KERNEL int32_t hh_trellis_dot_avx512vnni(const uint8_t *codes, ptrdiff_t n_blocks, int rate, int n_bits,
                                            const hh_score_plan_avx512vnni *plan, const uint8_t *table, const int8_t *query) {
    if (n_bits <= 8) return hh_trellis_dot_avx512vnni_(codes, n_blocks, rate, 8, plan, table, query);
    if (n_bits <= 10) return hh_trellis_dot_avx512vnni_(codes, n_blocks, rate, 10, plan, table, query);
    return hh_trellis_dot_avx512vnni_(codes, n_blocks, rate, 12, plan, table, query);
}

HH_KERNEL void hh_trellis_dots_avx512vnni(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                          hh_score_scratch scratch, ptrdiff_t row_nbytes, ptrdiff_t n_whole, int32_t bias, int32_t *out) {
    hh_score_plan_avx512vnni plan;
    hh_score_plan_avx512vnni_(rate, &plan);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const uint8_t *row = codes + r * row_nbytes;
        if (r >= n_whole) row = memcpy(scratch.row, row, (size_t)row_nbytes);
        const int32_t sum = hh_trellis_dot_avx512vnni(row, hh_score_blocks(n_cols), rate, n_bits, &plan, scratch.table, scratch.query);
        out[r] = (int32_t)((uint32_t)sum - (uint32_t)bias);
    }
}
HH_TARGET_END

HH_TARGET_AVX2_BEGIN
HH_KERNEL void hh_trellis_dots_avx2(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                    hh_score_scratch scratch, ptrdiff_t row_nbytes, ptrdiff_t n_whole, int32_t bias, int32_t *out) {
    hh_score_plan_avx2 plan;
    hh_score_plan_avx2_(rate, &plan);
    const ptrdiff_t n_blocks = hh_score_blocks(n_cols);
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
        const ptrdiff_t n_padded = hh_score_blocks(n_cols) * HH_SCORE_BLOCK, reach = hh_score_row_nbytes(n_cols, rate);
        ptrdiff_t n_whole = (n_rows * row_nbytes - reach) / row_nbytes + 1; /* rows that may be read where they lie */
        if (n_rows * row_nbytes < reach) n_whole = 0;
        int32_t bias = 0;
        memset(scratch.row, 0, (size_t)reach);
        memset(scratch.query, 0, (size_t)n_padded);
        memcpy(scratch.query, query, (size_t)n_cols);
        for (ptrdiff_t t = 0; t < n_padded; t++) {
            bias += 128 * scratch.query[t];
            scratch.halves[t / 32 * 32 + t % 32 / 2 + t % 2 * 16] = scratch.query[t];
        }
        const int n_even = n_bits <= 8 ? 8 : (n_bits + 1) / 2 * 2;
        for (int s = 0; s < 1 << n_even; s++) {
            scratch.table[s] = (uint8_t)(table[s & ((1 << n_bits) - 1)] + 128);
            scratch.wide[s] = scratch.table[s];
        }
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
