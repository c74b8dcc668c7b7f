/* Int8 codes of float32 rows in panels, and what their dots rule out: the screen of l2.h.
 *
 * With a = s q + e (one scale s a row, q in -127..127, e the rest) and the same for b,
 *     |a.b - s_a s_b (q_a.q_b)| <= |s_a q_a| |e_b| + |e_a| |b|,
 * and the integer dot is exact. So a dot of codes bounds the distance of two rows from both sides.
 *
 * The screened side lies in a panel: codes of 16 rows interleaved by 4 columns,
 * [ceil(n / 16)][depth / 4][16][4] with depth = n_cols padded to a multiple of 4, so that one
 * broadcast of 4 query codes meets 16 rows. Callers own all memory; the doors allocate it.
 */
#ifndef HHTLD_PANEL_H
#define HHTLD_PANEL_H

#include <float.h>
#include <math.h>

#include "isa.h"

enum { HH_PANEL_ROWS = 16, HH_SCREEN_COLS_MAX = 32768 }; /* 32768 * 255 * 127 < 2^31 */

/* What the bound needs to know of a coded row. */
typedef struct {
    double scale;      /* s */
    double norm2;      /* |a|^2 */
    double norm;       /* |a|, rounded up */
    double code_norm;  /* |s q|, rounded up */
    double error_norm; /* |e|, rounded up */
} hh_code_f64;

/* Arrays are n_blocks * 16 long; rows past the last have zero codes and an infinite norm2, so
 * that no screen ever lets them through: their lower bounds are NaN or infinite, whatever the query. */
typedef struct {
    int8_t *codes;      /* [n_blocks][depth / 4][16][4] */
    int32_t *code_sums; /* sum of a row's codes */
    double *scale, *norm2, *norm, *error_norm;
    ptrdiff_t n_rows, depth;
} hh_panel_i8;

enum { HH_QUERIES = 24 }; /* rows that meet a panel at once */
#define HH_ROUND_UP 1.000001 /* far above the rounding of any float64 sum made here */

HH_INLINE ptrdiff_t hh_panel_blocks(ptrdiff_t n_rows) { return (n_rows + HH_PANEL_ROWS - 1) / HH_PANEL_ROWS; }
HH_INLINE ptrdiff_t hh_panel_depth(ptrdiff_t n_cols) { return (n_cols + 3) & ~(ptrdiff_t)3; }

/* Finish what the bodies below measure; |s q| <= |a| + |e|. */
HH_INLINE hh_code_f64 hh_code_f64_(double scale, double norm2, double error2) {
    hh_code_f64 out;
    out.scale = scale;
    out.norm2 = norm2;
    out.norm = sqrt(norm2) * HH_ROUND_UP;
    out.error_norm = sqrt(error2) * HH_ROUND_UP;
    out.code_norm = out.norm + out.error_norm;
    return out;
}

#if HH_X86
/* Code one row into `codes` (depth bytes, zero-padded). The sums may be fused and differ between
 * tiers: the bound is made of what was really coded. Below 1e-30 the inverse scale may overflow;
 * such a row is all error. */
HH_TARGET_AVX2_BEGIN
HH_KERNEL hh_code_f64 hh_code_row_avx2(const float *row, ptrdiff_t n_cols, int8_t *codes) {
    const __m256 magnitude_f32x8 = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
    float tail[8] = {0};
    const ptrdiff_t whole = n_cols & ~(ptrdiff_t)7, depth = hh_panel_depth(n_cols);
    memcpy(tail, row + whole, (size_t)(n_cols - whole) * sizeof(float));
    __m256 largest_f32x8 = _mm256_and_ps(_mm256_loadu_ps(tail), magnitude_f32x8);
    for (ptrdiff_t j = 0; j < whole; j += 8)
        largest_f32x8 = _mm256_max_ps(largest_f32x8, _mm256_and_ps(_mm256_loadu_ps(row + j), magnitude_f32x8));
    float lane[8], largest = 0;
    _mm256_storeu_ps(lane, largest_f32x8);
    for (int i = 0; i < 8; i++) largest = lane[i] > largest ? lane[i] : largest;
    const int live = largest > 1e-30f;
    const __m256 inverse_f32x8 = _mm256_set1_ps(live ? 127.0f / largest : 0.0f);
    const double scale = live ? (double)(largest / 127.0f) : 0.0;
    const __m256d scale_f64x4 = _mm256_set1_pd(scale), zero_f64x4 = _mm256_setzero_pd();
    __m256d norm_f64x4 = zero_f64x4, error_f64x4 = zero_f64x4;
    for (ptrdiff_t j = 0; j < n_cols; j += 8) {
        const __m256 value_f32x8 = _mm256_loadu_ps(j < whole ? row + j : tail);
        const __m256i code_i32x8 = _mm256_cvtps_epi32(_mm256_mul_ps(value_f32x8, inverse_f32x8));
        const __m256d v0_f64x4 = _mm256_cvtps_pd(_mm256_castps256_ps128(value_f32x8));
        const __m256d v1_f64x4 = _mm256_cvtps_pd(_mm256_extractf128_ps(value_f32x8, 1));
        const __m256d e0_f64x4 =
            _mm256_fnmadd_pd(scale_f64x4, _mm256_cvtepi32_pd(_mm256_castsi256_si128(code_i32x8)), v0_f64x4);
        const __m256d e1_f64x4 =
            _mm256_fnmadd_pd(scale_f64x4, _mm256_cvtepi32_pd(_mm256_extracti128_si256(code_i32x8, 1)), v1_f64x4);
        norm_f64x4 = _mm256_fmadd_pd(v1_f64x4, v1_f64x4, _mm256_fmadd_pd(v0_f64x4, v0_f64x4, norm_f64x4));
        error_f64x4 = _mm256_fmadd_pd(e1_f64x4, e1_f64x4, _mm256_fmadd_pd(e0_f64x4, e0_f64x4, error_f64x4));
        const __m128i code_i16x8 =
            _mm_packs_epi32(_mm256_castsi256_si128(code_i32x8), _mm256_extracti128_si256(code_i32x8, 1));
        int8_t eight[8];
        _mm_storel_epi64((__m128i *)eight, _mm_packs_epi16(code_i16x8, code_i16x8));
        memcpy(codes + j, eight, (size_t)(depth - j < 8 ? depth - j : 8));
    }
    return hh_code_f64_(scale, hh_tree16_f64_avx2(norm_f64x4, zero_f64x4, zero_f64x4, zero_f64x4),
                        hh_tree16_f64_avx2(error_f64x4, zero_f64x4, zero_f64x4, zero_f64x4));
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL hh_code_f64 hh_code_row_avx512(const float *row, ptrdiff_t n_cols, int8_t *codes) {
    float tail[16] = {0};
    const ptrdiff_t whole = n_cols & ~(ptrdiff_t)15, depth = hh_panel_depth(n_cols);
    memcpy(tail, row + whole, (size_t)(n_cols - whole) * sizeof(float));
    __m512 largest_f32x16 = _mm512_abs_ps(_mm512_loadu_ps(tail));
    for (ptrdiff_t j = 0; j < whole; j += 16)
        largest_f32x16 = _mm512_max_ps(largest_f32x16, _mm512_abs_ps(_mm512_loadu_ps(row + j)));
    const float largest = _mm512_reduce_max_ps(largest_f32x16);
    const int live = largest > 1e-30f;
    const __m512 inverse_f32x16 = _mm512_set1_ps(live ? 127.0f / largest : 0.0f);
    const double scale = live ? (double)(largest / 127.0f) : 0.0;
    const __m512d scale_f64x8 = _mm512_set1_pd(scale);
    __m512d norm0_f64x8 = _mm512_setzero_pd(), norm1_f64x8 = norm0_f64x8, error0_f64x8 = norm0_f64x8,
            error1_f64x8 = norm0_f64x8;
    for (ptrdiff_t j = 0; j < n_cols; j += 16) {
        const float *const from = j < whole ? row + j : tail;
        const __m512i code_i32x16 = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from), inverse_f32x16));
        const __m512d v0_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(from)),
                      v1_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(from + 8));
        const __m512d e0_f64x8 =
            _mm512_fnmadd_pd(scale_f64x8, _mm512_cvtepi32_pd(_mm512_castsi512_si256(code_i32x16)), v0_f64x8);
        const __m512d e1_f64x8 =
            _mm512_fnmadd_pd(scale_f64x8, _mm512_cvtepi32_pd(_mm512_extracti32x8_epi32(code_i32x16, 1)), v1_f64x8);
        norm0_f64x8 = _mm512_fmadd_pd(v0_f64x8, v0_f64x8, norm0_f64x8),
        norm1_f64x8 = _mm512_fmadd_pd(v1_f64x8, v1_f64x8, norm1_f64x8);
        error0_f64x8 = _mm512_fmadd_pd(e0_f64x8, e0_f64x8, error0_f64x8),
        error1_f64x8 = _mm512_fmadd_pd(e1_f64x8, e1_f64x8, error1_f64x8);
        const __m128i code_i8x16 = _mm512_cvtepi32_epi8(code_i32x16);
        if (depth - j >= 16) _mm_storeu_si128((__m128i *)(codes + j), code_i8x16);
        else _mm_mask_storeu_epi8(codes + j, (__mmask16)((1u << (depth - j)) - 1u), code_i8x16);
    }
    return hh_code_f64_(scale, hh_tree16_f64_avx512(norm0_f64x8, norm1_f64x8),
                        hh_tree16_f64_avx512(error0_f64x8, error1_f64x8));
}
HH_TARGET_END

HH_TARGET_AVX2_BEGIN
/* Dots of one coded row with one block of 16. maddubs takes one unsigned side: |a| * (b sign a),
 * and 2 * 127 * 127 stays below 2^15. */
HH_INLINE void hh_dot16_i8_avx2_(const int8_t *query, const int8_t *block, ptrdiff_t depth, int32_t *dots) {
    __m256i low_i32x8 = _mm256_setzero_si256(), high_i32x8 = low_i32x8;
    const __m256i one_i16x16 = _mm256_set1_epi16(1);
    for (ptrdiff_t j = 0; j < depth; j += 4, block += 64) {
        int32_t four;
        memcpy(&four, query + j, 4);
        const __m256i query_i8x32 = _mm256_set1_epi32(four), size_u8x32 = _mm256_abs_epi8(query_i8x32);
        const __m256i b0_i8x32 = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)block), query_i8x32);
        const __m256i b1_i8x32 = _mm256_sign_epi8(_mm256_loadu_si256((const __m256i *)(block + 32)), query_i8x32);
        low_i32x8 =
            _mm256_add_epi32(low_i32x8, _mm256_madd_epi16(_mm256_maddubs_epi16(size_u8x32, b0_i8x32), one_i16x16));
        high_i32x8 =
            _mm256_add_epi32(high_i32x8, _mm256_madd_epi16(_mm256_maddubs_epi16(size_u8x32, b1_i8x32), one_i16x16));
    }
    _mm256_storeu_si256((__m256i *)dots, low_i32x8);
    _mm256_storeu_si256((__m256i *)(dots + 8), high_i32x8);
}

/* Dots of one coded row with every row of the panel. */
HH_KERNEL void hh_panel_dots_avx2(const int8_t *query, const hh_panel_i8 *panel, ptrdiff_t first_block,
                                  ptrdiff_t n_blocks, int32_t *dots) {
    for (ptrdiff_t block = first_block; block < first_block + n_blocks; block++, dots += 16)
        hh_dot16_i8_avx2_(query, panel->codes + block * 16 * panel->depth, panel->depth, dots);
}
HH_TARGET_END

HH_TARGET_AVX512VNNI_BEGIN
/* vpdpbusd multiplies unsigned by signed: the query travels as q + 128, and 128 * sum(codes) comes
 * off at the end. A tile of 6 queries x 4 blocks keeps its 24 sums in registers: they are spelled
 * out because GCC 12 spills an array of them, and its partial redundancy elimination, which stores
 * every sum on every turn (2.5x slower), is off in this region. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-pre")
#endif
HH_INLINE __m512i hh_query4_avx512vnni_(const int8_t *query) {
    int32_t four;
    memcpy(&four, query, 4);
    return _mm512_set1_epi32(four);
}

HH_KERNEL void hh_bias_query_avx512vnni(int8_t *query, ptrdiff_t depth) {
    for (ptrdiff_t j = 0; j < depth; j++) query[j] = (int8_t)(query[j] ^ (int8_t)-128);
}

HH_KERNEL void hh_dot_tile_6x4_avx512vnni(const int8_t *queries, ptrdiff_t query_stride, const hh_panel_i8 *panel,
                                          ptrdiff_t block, int32_t *dots, ptrdiff_t dots_stride) {
    const ptrdiff_t depth = panel->depth, block_nbytes = 16 * depth;
    const int8_t *codes = panel->codes + block * block_nbytes;
#define HH_ZERO(q) __m512i s##q##0 = _mm512_setzero_si512(), s##q##1 = s##q##0, s##q##2 = s##q##0, s##q##3 = s##q##0
    HH_ZERO(0);
    HH_ZERO(1);
    HH_ZERO(2);
    HH_ZERO(3);
    HH_ZERO(4);
    HH_ZERO(5);
    for (ptrdiff_t j = 0; j < depth; j += 4, codes += 64) {
        const __m512i c0_i8x64 = _mm512_loadu_si512(codes), c1_i8x64 = _mm512_loadu_si512(codes + block_nbytes),
                      c2_i8x64 = _mm512_loadu_si512(codes + 2 * block_nbytes),
                      c3_i8x64 = _mm512_loadu_si512(codes + 3 * block_nbytes);
#define HH_STEP(q)                                                                         \
    do {                                                                                   \
        const __m512i query_u8x64 = hh_query4_avx512vnni_(queries + q * query_stride + j); \
        s##q##0 = _mm512_dpbusd_epi32(s##q##0, query_u8x64, c0_i8x64);                     \
        s##q##1 = _mm512_dpbusd_epi32(s##q##1, query_u8x64, c1_i8x64);                     \
        s##q##2 = _mm512_dpbusd_epi32(s##q##2, query_u8x64, c2_i8x64);                     \
        s##q##3 = _mm512_dpbusd_epi32(s##q##3, query_u8x64, c3_i8x64);                     \
    } while (0)
        HH_STEP(0);
        HH_STEP(1);
        HH_STEP(2);
        HH_STEP(3);
        HH_STEP(4);
        HH_STEP(5);
    }
    const int32_t *const code_sums = panel->code_sums + 16 * block;
#define HH_STORE(q, b)                                   \
    _mm512_storeu_si512(dots + q * dots_stride + 16 * b, \
                        _mm512_sub_epi32(s##q##b, _mm512_slli_epi32(_mm512_loadu_si512(code_sums + 16 * b), 7)))
#define HH_STORE4(q) HH_STORE(q, 0), HH_STORE(q, 1), HH_STORE(q, 2), HH_STORE(q, 3)
    HH_STORE4(0);
    HH_STORE4(1);
    HH_STORE4(2);
    HH_STORE4(3);
    HH_STORE4(4);
    HH_STORE4(5);
#undef HH_ZERO
#undef HH_STEP
#undef HH_STORE
#undef HH_STORE4
}

/* One query and 4 blocks (what furthest-point sampling meets), or 1. */
HH_INLINE void hh_dot_row_avx512vnni_(const int8_t *query, const hh_panel_i8 *panel, ptrdiff_t block, int n_blocks,
                                      int32_t *dots) {
    const ptrdiff_t depth = panel->depth, block_nbytes = 16 * depth;
    const int8_t *codes = panel->codes + block * block_nbytes;
    __m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;
    for (ptrdiff_t j = 0; j < depth; j += 4, codes += 64) {
        const __m512i query_u8x64 = hh_query4_avx512vnni_(query + j);
        s0 = _mm512_dpbusd_epi32(s0, query_u8x64, _mm512_loadu_si512(codes));
        if (n_blocks < 4) continue;
        s1 = _mm512_dpbusd_epi32(s1, query_u8x64, _mm512_loadu_si512(codes + block_nbytes));
        s2 = _mm512_dpbusd_epi32(s2, query_u8x64, _mm512_loadu_si512(codes + 2 * block_nbytes));
        s3 = _mm512_dpbusd_epi32(s3, query_u8x64, _mm512_loadu_si512(codes + 3 * block_nbytes));
    }
    const int32_t *const code_sums = panel->code_sums + 16 * block;
    _mm512_storeu_si512(dots, _mm512_sub_epi32(s0, _mm512_slli_epi32(_mm512_loadu_si512(code_sums), 7)));
    if (n_blocks < 4) return;
    _mm512_storeu_si512(dots + 16, _mm512_sub_epi32(s1, _mm512_slli_epi32(_mm512_loadu_si512(code_sums + 16), 7)));
    _mm512_storeu_si512(dots + 32, _mm512_sub_epi32(s2, _mm512_slli_epi32(_mm512_loadu_si512(code_sums + 32), 7)));
    _mm512_storeu_si512(dots + 48, _mm512_sub_epi32(s3, _mm512_slli_epi32(_mm512_loadu_si512(code_sums + 48), 7)));
}

HH_KERNEL void hh_panel_dots_avx512vnni(const int8_t *queries, ptrdiff_t n_queries, ptrdiff_t query_stride,
                                        const hh_panel_i8 *panel, ptrdiff_t first_block, ptrdiff_t n_blocks,
                                        int32_t *dots, ptrdiff_t dots_stride) {
    ptrdiff_t b = 0;
    for (; b + 4 <= n_blocks; b += 4) {
        ptrdiff_t q = 0;
        for (; q + 6 <= n_queries; q += 6)
            hh_dot_tile_6x4_avx512vnni(queries + q * query_stride, query_stride, panel, first_block + b,
                                       dots + q * dots_stride + 16 * b, dots_stride);
        for (; q < n_queries; q++)
            hh_dot_row_avx512vnni_(queries + q * query_stride, panel, first_block + b, 4,
                                   dots + q * dots_stride + 16 * b);
    }
    for (; b < n_blocks; b++)
        for (ptrdiff_t q = 0; q < n_queries; q++)
            hh_dot_row_avx512vnni_(queries + q * query_stride, panel, first_block + b, 1,
                                   dots + q * dots_stride + 16 * b);
}
HH_TARGET_END

/* Bounds of |b|^2 - 2 a.b for one coded query a and every panel row b (the distance less |a|^2,
 * which is the same for all b). Lists the rows whose lower bound is not above the least upper
 * bound, in ascending order, and returns their number; `lower` is scratch. */
HH_TARGET_AVX2_BEGIN
HH_KERNEL ptrdiff_t hh_screen_avx2(const hh_code_f64 *query, const hh_panel_i8 *panel, const int32_t *dots,
                                   double slack, double *lower, int32_t *candidates) {
    const __m256d scale_f64x4 = _mm256_set1_pd(2.0 * query->scale), code_f64x4 = _mm256_set1_pd(2.0 * query->code_norm),
                  error_f64x4 = _mm256_set1_pd(2.0 * query->error_norm), slack_f64x4 = _mm256_set1_pd(slack),
                  own_f64x4 = _mm256_set1_pd(slack * query->norm2);
    __m256d least_f64x4 = _mm256_set1_pd(DBL_MAX);
    const ptrdiff_t padded = HH_PANEL_ROWS * hh_panel_blocks(panel->n_rows);
    for (ptrdiff_t b = 0; b < padded; b += 4) {
        const __m256d norm2_f64x4 = _mm256_loadu_pd(panel->norm2 + b);
        const __m256d dot_f64x4 = _mm256_mul_pd(_mm256_loadu_pd(panel->scale + b),
                                                _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *)(dots + b))));
        const __m256d middle_f64x4 = _mm256_fnmadd_pd(scale_f64x4, dot_f64x4, norm2_f64x4);
        __m256d bound_f64x4 = _mm256_fmadd_pd(slack_f64x4, norm2_f64x4, own_f64x4);
        bound_f64x4 = _mm256_fmadd_pd(code_f64x4, _mm256_loadu_pd(panel->error_norm + b), bound_f64x4);
        bound_f64x4 = _mm256_fmadd_pd(error_f64x4, _mm256_loadu_pd(panel->norm + b), bound_f64x4);
        _mm256_storeu_pd(lower + b, _mm256_sub_pd(middle_f64x4, bound_f64x4));
        least_f64x4 = _mm256_min_pd(_mm256_add_pd(middle_f64x4, bound_f64x4), least_f64x4); /* a NaN loses */
    }
    double lane[4], least = DBL_MAX;
    _mm256_storeu_pd(lane, least_f64x4);
    for (int i = 0; i < 4; i++) least = lane[i] < least ? lane[i] : least;
    ptrdiff_t count = 0;
    for (ptrdiff_t b = 0; b < padded; b += 4) {
        int live = _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(lower + b), _mm256_set1_pd(least), _CMP_LE_OQ));
        for (ptrdiff_t c = b; live; live >>= 1, c++)
            if (live & 1) candidates[count++] = (int32_t)c;
    }
    return count;
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL ptrdiff_t hh_screen_avx512(const hh_code_f64 *query, const hh_panel_i8 *panel, const int32_t *dots,
                                     double slack, double *lower, int32_t *candidates) {
    const __m512d scale_f64x8 = _mm512_set1_pd(2.0 * query->scale), code_f64x8 = _mm512_set1_pd(2.0 * query->code_norm),
                  error_f64x8 = _mm512_set1_pd(2.0 * query->error_norm), slack_f64x8 = _mm512_set1_pd(slack),
                  own_f64x8 = _mm512_set1_pd(slack * query->norm2);
    __m512d least_f64x8 = _mm512_set1_pd(DBL_MAX);
    const ptrdiff_t padded = HH_PANEL_ROWS * hh_panel_blocks(panel->n_rows);
    for (ptrdiff_t b = 0; b < padded; b += 8) {
        const __m512d norm2_f64x8 = _mm512_loadu_pd(panel->norm2 + b);
        const __m512d dot_f64x8 = _mm512_mul_pd(_mm512_loadu_pd(panel->scale + b),
                                                _mm512_cvtepi32_pd(_mm256_loadu_si256((const __m256i *)(dots + b))));
        const __m512d middle_f64x8 = _mm512_fnmadd_pd(scale_f64x8, dot_f64x8, norm2_f64x8);
        __m512d bound_f64x8 = _mm512_fmadd_pd(slack_f64x8, norm2_f64x8, own_f64x8);
        bound_f64x8 = _mm512_fmadd_pd(code_f64x8, _mm512_loadu_pd(panel->error_norm + b), bound_f64x8);
        bound_f64x8 = _mm512_fmadd_pd(error_f64x8, _mm512_loadu_pd(panel->norm + b), bound_f64x8);
        _mm512_storeu_pd(lower + b, _mm512_sub_pd(middle_f64x8, bound_f64x8));
        least_f64x8 = _mm512_min_pd(_mm512_add_pd(middle_f64x8, bound_f64x8), least_f64x8); /* a NaN loses */
    }
    const __m512d limit_f64x8 = _mm512_set1_pd(_mm512_reduce_min_pd(least_f64x8));
    ptrdiff_t count = 0;
    for (ptrdiff_t b = 0; b < padded; b += 8) {
        unsigned live = _mm512_cmp_pd_mask(_mm512_loadu_pd(lower + b), limit_f64x8, _CMP_LE_OQ);
        for (ptrdiff_t c = b; live; live >>= 1, c++)
            if (live & 1) candidates[count++] = (int32_t)c;
    }
    return count;
}
HH_TARGET_END

/* Rows first..stop of at most 64 whose lower bound is below their nearest_distance, as a bit set. */
HH_TARGET_AVX2_BEGIN
HH_KERNEL uint64_t hh_closer_avx2(const hh_code_f64 *query, const hh_panel_i8 *panel, ptrdiff_t first, ptrdiff_t stop,
                                  const int32_t *dots, double slack, const double *nearest_distance) {
    const __m256d scale_f64x4 = _mm256_set1_pd(2.0 * query->scale), code_f64x4 = _mm256_set1_pd(2.0 * query->code_norm),
                  error_f64x4 = _mm256_set1_pd(2.0 * query->error_norm), norm2_f64x4 = _mm256_set1_pd(query->norm2),
                  keep_f64x4 = _mm256_set1_pd(1.0 - slack);
    uint64_t closer = 0;
    for (ptrdiff_t r = first; r < stop; r += 4) {
        const __m256d dot_f64x4 =
            _mm256_mul_pd(_mm256_loadu_pd(panel->scale + r),
                          _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *)(dots + r - first))));
        __m256d lower_f64x4 = _mm256_mul_pd(_mm256_add_pd(_mm256_loadu_pd(panel->norm2 + r), norm2_f64x4), keep_f64x4);
        lower_f64x4 = _mm256_fnmadd_pd(scale_f64x4, dot_f64x4, lower_f64x4);
        lower_f64x4 = _mm256_fnmadd_pd(code_f64x4, _mm256_loadu_pd(panel->error_norm + r), lower_f64x4);
        lower_f64x4 = _mm256_fnmadd_pd(error_f64x4, _mm256_loadu_pd(panel->norm + r), lower_f64x4);
        const __m256d less_f64x4 = _mm256_cmp_pd(lower_f64x4, _mm256_loadu_pd(nearest_distance + r), _CMP_LT_OQ);
        closer |= (uint64_t)_mm256_movemask_pd(less_f64x4) << (r - first);
    }
    return closer;
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL uint64_t hh_closer_avx512(const hh_code_f64 *query, const hh_panel_i8 *panel, ptrdiff_t first, ptrdiff_t stop,
                                    const int32_t *dots, double slack, const double *nearest_distance) {
    const __m512d scale_f64x8 = _mm512_set1_pd(2.0 * query->scale), code_f64x8 = _mm512_set1_pd(2.0 * query->code_norm),
                  error_f64x8 = _mm512_set1_pd(2.0 * query->error_norm), norm2_f64x8 = _mm512_set1_pd(query->norm2),
                  keep_f64x8 = _mm512_set1_pd(1.0 - slack);
    uint64_t closer = 0;
    for (ptrdiff_t r = first; r < stop; r += 8) {
        const __m512d dot_f64x8 =
            _mm512_mul_pd(_mm512_loadu_pd(panel->scale + r),
                          _mm512_cvtepi32_pd(_mm256_loadu_si256((const __m256i *)(dots + r - first))));
        __m512d lower_f64x8 = _mm512_mul_pd(_mm512_add_pd(_mm512_loadu_pd(panel->norm2 + r), norm2_f64x8), keep_f64x8);
        lower_f64x8 = _mm512_fnmadd_pd(scale_f64x8, dot_f64x8, lower_f64x8);
        lower_f64x8 = _mm512_fnmadd_pd(code_f64x8, _mm512_loadu_pd(panel->error_norm + r), lower_f64x8);
        lower_f64x8 = _mm512_fnmadd_pd(error_f64x8, _mm512_loadu_pd(panel->norm + r), lower_f64x8);
        const __mmask8 less = _mm512_cmp_pd_mask(lower_f64x8, _mm512_loadu_pd(nearest_distance + r), _CMP_LT_OQ);
        closer |= (uint64_t)less << (r - first);
    }
    return closer;
}
HH_TARGET_END
#elif HH_NEON
HH_KERNEL hh_code_f64 hh_code_row_neon(const float *row, ptrdiff_t n_cols, int8_t *codes) {
    float tail[8] = {0};
    const ptrdiff_t whole = n_cols & ~(ptrdiff_t)7, depth = hh_panel_depth(n_cols);
    memcpy(tail, row + whole, (size_t)(n_cols - whole) * sizeof(float));
    float32x4_t largest_f32x4 = vmaxq_f32(vabsq_f32(vld1q_f32(tail)), vabsq_f32(vld1q_f32(tail + 4)));
    for (ptrdiff_t j = 0; j < whole; j += 4) largest_f32x4 = vmaxq_f32(largest_f32x4, vabsq_f32(vld1q_f32(row + j)));
    const float largest = vmaxvq_f32(largest_f32x4);
    const int live = largest > 1e-30f;
    const float inverse = live ? 127.0f / largest : 0.0f;
    const double scale = live ? (double)(largest / 127.0f) : 0.0;
    float64x2_t norm_f64x2[4], error_f64x2[4];
    for (int i = 0; i < 4; i++) norm_f64x2[i] = error_f64x2[i] = vdupq_n_f64(0);
    for (ptrdiff_t j = 0; j < n_cols; j += 8) {
        const float *const from = j < whole ? row + j : tail;
        int16x4_t code_i16x4[2];
        for (int half = 0; half < 2; half++) {
            const float32x4_t value_f32x4 = vld1q_f32(from + 4 * half);
            const int32x4_t code_i32x4 = vcvtnq_s32_f32(vmulq_n_f32(value_f32x4, inverse));
            const float64x2_t value_f64x2[2] = {vcvt_f64_f32(vget_low_f32(value_f32x4)),
                                                vcvt_high_f64_f32(value_f32x4)};
            const float64x2_t coded_f64x2[2] = {vcvtq_f64_s64(vmovl_s32(vget_low_s32(code_i32x4))),
                                                vcvtq_f64_s64(vmovl_high_s32(code_i32x4))};
            code_i16x4[half] = vmovn_s32(code_i32x4);
            for (int i = 0; i < 2; i++) {
                const int at = 2 * half + i;
                const float64x2_t error = vfmsq_n_f64(value_f64x2[i], coded_f64x2[i], scale);
                norm_f64x2[at] = vfmaq_f64(norm_f64x2[at], value_f64x2[i], value_f64x2[i]);
                error_f64x2[at] = vfmaq_f64(error_f64x2[at], error, error);
            }
        }
        int8_t eight[8];
        vst1_s8(eight, vmovn_s16(vcombine_s16(code_i16x4[0], code_i16x4[1])));
        memcpy(codes + j, eight, (size_t)(depth - j < 8 ? depth - j : 8));
    }
    for (int i = 0; i < 2; i++) {
        norm_f64x2[i] = vaddq_f64(norm_f64x2[i], norm_f64x2[i + 2]);
        error_f64x2[i] = vaddq_f64(error_f64x2[i], error_f64x2[i + 2]);
    }
    return hh_code_f64_(scale, vaddvq_f64(vaddq_f64(norm_f64x2[0], norm_f64x2[1])),
                        vaddvq_f64(vaddq_f64(error_f64x2[0], error_f64x2[1])));
}

/* Dots of one coded row with one block of 16. Two products of at most 127 * 127 fit an int16, so that two turns are
 * added before they widen. */
HH_INLINE void hh_dot16_i8_neon_(const int8_t *query, const int8_t *block, ptrdiff_t depth, int32_t *dots) {
    int32x4_t sum_i32x4[8];
    for (int i = 0; i < 8; i++) sum_i32x4[i] = vdupq_n_s32(0);
    for (ptrdiff_t j = 0; j < depth; j += 8, block += 128) {
        const int two = depth - j > 4; /* the depth is a multiple of 4 */
        int32_t fours[2] = {0, 0};
        memcpy(fours, query + j, two ? 8 : 4);
        const int8x16_t first_i8x16 = vreinterpretq_s8_s32(vdupq_n_s32(fours[0])),
                        second_i8x16 = vreinterpretq_s8_s32(vdupq_n_s32(fours[1]));
        for (int i = 0; i < 4; i++) {
            const int8x16_t a_i8x16 = vld1q_s8(block + 16 * i);
            const int8x16_t b_i8x16 = vld1q_s8(block + (two ? 64 : 0) + 16 * i); /* times zero where there is none */
            int16x8_t low_i16x8 = vmull_s8(vget_low_s8(a_i8x16), vget_low_s8(first_i8x16));
            int16x8_t high_i16x8 = vmull_high_s8(a_i8x16, first_i8x16);
            low_i16x8 = vmlal_s8(low_i16x8, vget_low_s8(b_i8x16), vget_low_s8(second_i8x16));
            high_i16x8 = vmlal_high_s8(high_i16x8, b_i8x16, second_i8x16);
            sum_i32x4[2 * i] = vpadalq_s16(sum_i32x4[2 * i], low_i16x8);
            sum_i32x4[2 * i + 1] = vpadalq_s16(sum_i32x4[2 * i + 1], high_i16x8);
        }
    }
    for (int i = 0; i < 4; i++) vst1q_s32(dots + 4 * i, vpaddq_s32(sum_i32x4[2 * i], sum_i32x4[2 * i + 1]));
}

HH_KERNEL void hh_panel_dots_neon(const int8_t *query, const hh_panel_i8 *panel, ptrdiff_t first_block,
                                  ptrdiff_t n_blocks, int32_t *dots) {
    for (ptrdiff_t block = first_block; block < first_block + n_blocks; block++, dots += 16)
        hh_dot16_i8_neon_(query, panel->codes + block * 16 * panel->depth, panel->depth, dots);
}

HH_TARGET_NEONDOTPROD_BEGIN
/* `count` coded rows, which is constant where this is inlined, and one block of 16. */
HH_INLINE void hh_dot_rows_neondotprod_(int count, const int8_t *queries, ptrdiff_t query_stride, const int8_t *block,
                                        ptrdiff_t depth, int32_t *dots, ptrdiff_t dots_stride) {
    int32x4_t sum_i32x4[4][4];
    for (int q = 0; q < count; q++)
        for (int i = 0; i < 4; i++) sum_i32x4[q][i] = vdupq_n_s32(0);
    for (ptrdiff_t j = 0; j < depth; j += 4, block += 64) {
        int8x16_t code_i8x16[4];
        for (int i = 0; i < 4; i++) code_i8x16[i] = vld1q_s8(block + 16 * i);
        for (int q = 0; q < count; q++) {
            int32_t four;
            memcpy(&four, queries + q * query_stride + j, 4);
            const int8x16_t query_i8x16 = vreinterpretq_s8_s32(vdupq_n_s32(four));
            for (int i = 0; i < 4; i++) sum_i32x4[q][i] = vdotq_s32(sum_i32x4[q][i], code_i8x16[i], query_i8x16);
        }
    }
    for (int q = 0; q < count; q++)
        for (int i = 0; i < 4; i++) vst1q_s32(dots + q * dots_stride + 4 * i, sum_i32x4[q][i]);
}

HH_KERNEL void hh_panel_dots_neondotprod(const int8_t *queries, ptrdiff_t n_queries, ptrdiff_t query_stride,
                                         const hh_panel_i8 *panel, ptrdiff_t first_block, ptrdiff_t n_blocks,
                                         int32_t *dots, ptrdiff_t dots_stride) {
    const ptrdiff_t depth = panel->depth;
    for (ptrdiff_t b = 0; b < n_blocks; b++) {
        const int8_t *const block = panel->codes + (first_block + b) * 16 * depth;
        ptrdiff_t q = 0;
        for (; q + 4 <= n_queries; q += 4)
            hh_dot_rows_neondotprod_(4, queries + q * query_stride, query_stride, block, depth,
                                     dots + q * dots_stride + 16 * b, dots_stride);
        for (; q < n_queries; q++)
            hh_dot_rows_neondotprod_(1, queries + q * query_stride, query_stride, block, depth,
                                     dots + q * dots_stride + 16 * b, dots_stride);
    }
}
HH_TARGET_END

HH_KERNEL ptrdiff_t hh_screen_neon(const hh_code_f64 *query, const hh_panel_i8 *panel, const int32_t *dots,
                                   double slack, double *lower, int32_t *candidates) {
    const double scale = 2.0 * query->scale, code_norm = 2.0 * query->code_norm, error_norm = 2.0 * query->error_norm;
    const float64x2_t own_f64x2 = vdupq_n_f64(slack * query->norm2);
    float64x2_t least_f64x2 = vdupq_n_f64(DBL_MAX);
    const ptrdiff_t padded = HH_PANEL_ROWS * hh_panel_blocks(panel->n_rows);
    for (ptrdiff_t b = 0; b < padded; b += 2) {
        const float64x2_t norm2_f64x2 = vld1q_f64(panel->norm2 + b);
        const float64x2_t dot_f64x2 =
            vmulq_f64(vld1q_f64(panel->scale + b), vcvtq_f64_s64(vmovl_s32(vld1_s32(dots + b))));
        const float64x2_t middle_f64x2 = vfmsq_n_f64(norm2_f64x2, dot_f64x2, scale);
        float64x2_t bound_f64x2 = vfmaq_n_f64(own_f64x2, norm2_f64x2, slack);
        bound_f64x2 = vfmaq_n_f64(bound_f64x2, vld1q_f64(panel->error_norm + b), code_norm);
        bound_f64x2 = vfmaq_n_f64(bound_f64x2, vld1q_f64(panel->norm + b), error_norm);
        vst1q_f64(lower + b, vsubq_f64(middle_f64x2, bound_f64x2));
        least_f64x2 = vminnmq_f64(least_f64x2, vaddq_f64(middle_f64x2, bound_f64x2)); /* a NaN loses */
    }
    const float64x2_t limit_f64x2 = vdupq_n_f64(vminnmvq_f64(least_f64x2));
    ptrdiff_t count = 0;
    for (ptrdiff_t b = 0; b < padded; b += 4) {
        const uint64x2_t low_u64x2 = vcleq_f64(vld1q_f64(lower + b), limit_f64x2),
                         high_u64x2 = vcleq_f64(vld1q_f64(lower + b + 2), limit_f64x2);
        if (!vmaxvq_u32(vreinterpretq_u32_u64(vorrq_u64(low_u64x2, high_u64x2)))) continue;
        for (ptrdiff_t c = b; c < b + 4; c++)
            if (lower[c] <= vgetq_lane_f64(limit_f64x2, 0)) candidates[count++] = (int32_t)c;
    }
    return count;
}

HH_KERNEL uint64_t hh_closer_neon(const hh_code_f64 *query, const hh_panel_i8 *panel, ptrdiff_t first, ptrdiff_t stop,
                                  const int32_t *dots, double slack, const double *nearest_distance) {
    const double scale = 2.0 * query->scale, code_norm = 2.0 * query->code_norm, error_norm = 2.0 * query->error_norm;
    const float64x2_t norm2_f64x2 = vdupq_n_f64(query->norm2);
    uint64_t closer = 0;
    for (ptrdiff_t r = first; r < stop; r += 2) {
        const float64x2_t dot_f64x2 =
            vmulq_f64(vld1q_f64(panel->scale + r), vcvtq_f64_s64(vmovl_s32(vld1_s32(dots + r - first))));
        float64x2_t lower_f64x2 = vmulq_n_f64(vaddq_f64(vld1q_f64(panel->norm2 + r), norm2_f64x2), 1.0 - slack);
        lower_f64x2 = vfmsq_n_f64(lower_f64x2, dot_f64x2, scale);
        lower_f64x2 = vfmsq_n_f64(lower_f64x2, vld1q_f64(panel->error_norm + r), code_norm);
        lower_f64x2 = vfmsq_n_f64(lower_f64x2, vld1q_f64(panel->norm + r), error_norm);
        const uint64x2_t less_u64x2 = vshrq_n_u64(vcltq_f64(lower_f64x2, vld1q_f64(nearest_distance + r)), 63);
        closer |= (vgetq_lane_u64(less_u64x2, 0) | vgetq_lane_u64(less_u64x2, 1) << 1) << (r - first);
    }
    return closer;
}
#endif

/* ---- of tiers that screen; of the scalar one doors make no panel ---- */

#if HH_X86 || HH_NEON
HH_INLINE hh_code_f64 hh_code_row(int tier, const float *row, ptrdiff_t n_cols, int8_t *codes) {
#if HH_X86
    return tier >= HH_TIER_AVX512 ? hh_code_row_avx512(row, n_cols, codes) : hh_code_row_avx2(row, n_cols, codes);
#else
    return (void)tier, hh_code_row_neon(row, n_cols, codes);
#endif
}

/* Codes as hh_panel_dots takes them. */
HH_INLINE void hh_ready_queries(int tier, int8_t *queries, ptrdiff_t nbytes) {
#if HH_X86
    if (tier >= HH_TIER_AVX512VNNI) hh_bias_query_avx512vnni(queries, nbytes);
#endif
    (void)tier, (void)queries, (void)nbytes;
}

/* Dots of coded rows with n_blocks blocks of the panel. */
HH_KERNEL void hh_panel_dots(int tier, const int8_t *queries, ptrdiff_t n_queries, const hh_panel_i8 *panel,
                             ptrdiff_t first_block, ptrdiff_t n_blocks, int32_t *dots, ptrdiff_t dots_stride) {
    const ptrdiff_t depth = panel->depth;
#if HH_X86
    if (tier >= HH_TIER_AVX512VNNI) {
        hh_panel_dots_avx512vnni(queries, n_queries, depth, panel, first_block, n_blocks, dots, dots_stride);
        return;
    }
    for (ptrdiff_t q = 0; q < n_queries; q++)
        hh_panel_dots_avx2(queries + q * depth, panel, first_block, n_blocks, dots + q * dots_stride);
#else
    if (tier >= HH_TIER_NEONDOTPROD) {
        hh_panel_dots_neondotprod(queries, n_queries, depth, panel, first_block, n_blocks, dots, dots_stride);
        return;
    }
    for (ptrdiff_t q = 0; q < n_queries; q++)
        hh_panel_dots_neon(queries + q * depth, panel, first_block, n_blocks, dots + q * dots_stride);
#endif
}

HH_INLINE ptrdiff_t hh_screen(int tier, const hh_code_f64 *query, const hh_panel_i8 *panel, const int32_t *dots,
                              double slack, double *lower, int32_t *candidates) {
#if HH_X86
    return tier >= HH_TIER_AVX512 ? hh_screen_avx512(query, panel, dots, slack, lower, candidates)
                                  : hh_screen_avx2(query, panel, dots, slack, lower, candidates);
#else
    return (void)tier, hh_screen_neon(query, panel, dots, slack, lower, candidates);
#endif
}

HH_INLINE uint64_t hh_closer(int tier, const hh_code_f64 *query, const hh_panel_i8 *panel, ptrdiff_t first,
                             ptrdiff_t stop, const int32_t *dots, double slack, const double *nearest_distance) {
#if HH_X86
    return tier >= HH_TIER_AVX512 ? hh_closer_avx512(query, panel, first, stop, dots, slack, nearest_distance)
                                  : hh_closer_avx2(query, panel, first, stop, dots, slack, nearest_distance);
#else
    return (void)tier, hh_closer_neon(query, panel, first, stop, dots, slack, nearest_distance);
#endif
}

/* Code rows into a panel whose memory the caller owns; `line` is scratch of depth bytes. */
HH_KERNEL void hh_panel_fill(int tier, const float *rows, ptrdiff_t n_cols, int8_t *line, hh_panel_i8 *panel) {
    const ptrdiff_t depth = panel->depth, padded = HH_PANEL_ROWS * hh_panel_blocks(panel->n_rows);
    for (ptrdiff_t r = 0; r < padded; r++) {
        int8_t *const to = panel->codes + (r / HH_PANEL_ROWS) * HH_PANEL_ROWS * depth + (r % HH_PANEL_ROWS) * 4;
        hh_code_f64 code = {0, (double)INFINITY, 0, 0, 0};
        memset(line, 0, (size_t)depth);
        if (r < panel->n_rows) code = hh_code_row(tier, rows + r * n_cols, n_cols, line);
        int32_t sum = 0;
        for (ptrdiff_t j = 0; j < depth; j++) sum += line[j];
        for (ptrdiff_t j = 0; j < depth; j += 4) memcpy(to + j * HH_PANEL_ROWS, line + j, 4);
        panel->code_sums[r] = sum;
        panel->scale[r] = code.scale;
        panel->norm2[r] = code.norm2;
        panel->norm[r] = code.norm;
        panel->error_norm[r] = code.error_norm;
    }
}

/* Slack for float64 rounding, of the sums in the screen and of the exact distance itself. */
HH_INLINE double hh_screen_slack_(ptrdiff_t n_cols) { return (double)(n_cols + 64) * 4.0 * DBL_EPSILON; }
#else
/* No body here screens, so doors make no panel; they still name this. */
HH_KERNEL void hh_panel_fill(int tier, const float *rows, ptrdiff_t n_cols, int8_t *line, hh_panel_i8 *panel) {
    (void)tier, (void)rows, (void)n_cols, (void)line, (void)panel;
}
#endif

#endif
