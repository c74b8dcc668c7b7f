/* Nearest row and furthest-point sampling by squared L2 over float32 rows.
 *
 * A distance that decides is exact: it is the float64 sum of ((double)a - (double)b)^2 over 16
 * virtual lanes (see isa.h). The scalar bodies compute exactly that for every pair. The others
 * first screen with int8 codes (panel.h), and only the rows that the screen cannot rule out are
 * measured in float64. The answer is therefore the same on every tier; only the time differs.
 * (MiniLM's word embeddings, every 119th row a centroid: 2.05 of 256 entries survive the screen
 * on average.)
 */
#ifndef HHTLD_L2_H
#define HHTLD_L2_H

#include <float.h>

#include "isa.h"
#include "panel.h"

/* ---- exact distance and norm ---- */

HH_KERNEL double hh_distance2_f32_scalar(const float *a, const float *b, ptrdiff_t n_cols) {
    double lane[16] = {0};
    for (ptrdiff_t j = 0; j < n_cols; j++) {
        const double apart = (double)a[j] - (double)b[j];
        lane[j & 15] += apart * apart;
    }
    return hh_tree16_f64(lane);
}

/* A turn of 16 lanes is what compilers make vectors of. */
HH_KERNEL double hh_norm2_f32(const float *a, ptrdiff_t n_cols) {
    double lane[16] = {0};
    const ptrdiff_t whole = n_cols & ~(ptrdiff_t)15;
    for (ptrdiff_t j = 0; j < whole; j += 16)
        for (int i = 0; i < 16; i++) lane[i] += (double)a[j + i] * (double)a[j + i];
    for (ptrdiff_t j = whole; j < n_cols; j++) lane[j - whole] += (double)a[j] * (double)a[j];
    return hh_tree16_f64(lane);
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_KERNEL double hh_distance2_f32_avx2(const float *a, const float *b, ptrdiff_t n_cols) {
    __m256d sum_f64x4[4];
    for (int i = 0; i < 4; i++) sum_f64x4[i] = _mm256_setzero_pd();
    float tail_a[16] = {0}, tail_b[16] = {0};
    for (ptrdiff_t j = 0; j < n_cols; j += 16) {
        const float *from_a = a + j, *from_b = b + j;
        if (n_cols - j < 16) { /* zeros add nothing */
            memcpy(tail_a, from_a, (size_t)(n_cols - j) * sizeof(float));
            memcpy(tail_b, from_b, (size_t)(n_cols - j) * sizeof(float));
            from_a = tail_a, from_b = tail_b;
        }
        for (int i = 0; i < 4; i++) {
            const __m256d apart_f64x4 = _mm256_sub_pd(_mm256_cvtps_pd(_mm_loadu_ps(from_a + 4 * i)),
                                                      _mm256_cvtps_pd(_mm_loadu_ps(from_b + 4 * i)));
            sum_f64x4[i] = _mm256_add_pd(sum_f64x4[i], _mm256_mul_pd(apart_f64x4, apart_f64x4));
        }
    }
    return hh_tree16_f64_avx2(sum_f64x4[0], sum_f64x4[1], sum_f64x4[2], sum_f64x4[3]);
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL double hh_distance2_f32_avx512(const float *a, const float *b, ptrdiff_t n_cols) {
    __m512d low_f64x8 = _mm512_setzero_pd(), high_f64x8 = low_f64x8;
    ptrdiff_t j = 0;
    for (; j + 16 <= n_cols; j += 16) {
        const __m512d first_f64x8 =
            _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a + j)), _mm512_cvtps_pd(_mm256_loadu_ps(b + j)));
        const __m512d second_f64x8 =
            _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a + j + 8)), _mm512_cvtps_pd(_mm256_loadu_ps(b + j + 8)));
        low_f64x8 = _mm512_add_pd(low_f64x8, _mm512_mul_pd(first_f64x8, first_f64x8));
        high_f64x8 = _mm512_add_pd(high_f64x8, _mm512_mul_pd(second_f64x8, second_f64x8));
    }
    if (j < n_cols) { /* masked-off lanes are zero and add nothing */
        const __mmask16 live = (__mmask16)((1u << (n_cols - j)) - 1u);
        const __m512 a_f32x16 = _mm512_maskz_loadu_ps(live, a + j), b_f32x16 = _mm512_maskz_loadu_ps(live, b + j);
        const __m512d first_f64x8 = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(a_f32x16)),
                                                  _mm512_cvtps_pd(_mm512_castps512_ps256(b_f32x16)));
        const __m512d second_f64x8 = _mm512_sub_pd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(a_f32x16, 1)),
                                                   _mm512_cvtps_pd(_mm512_extractf32x8_ps(b_f32x16, 1)));
        low_f64x8 = _mm512_add_pd(low_f64x8, _mm512_mul_pd(first_f64x8, first_f64x8));
        high_f64x8 = _mm512_add_pd(high_f64x8, _mm512_mul_pd(second_f64x8, second_f64x8));
    }
    return hh_tree16_f64_avx512(low_f64x8, high_f64x8);
}
HH_TARGET_END
#elif HH_NEON
HH_KERNEL double hh_distance2_f32_neon(const float *a, const float *b, ptrdiff_t n_cols) {
    float64x2_t sum_f64x2[8];
    for (int i = 0; i < 8; i++) sum_f64x2[i] = vdupq_n_f64(0);
    float tail_a[16] = {0}, tail_b[16] = {0};
    for (ptrdiff_t j = 0; j < n_cols; j += 16) {
        const float *from_a = a + j, *from_b = b + j;
        if (n_cols - j < 16) { /* zeros add nothing */
            memcpy(tail_a, from_a, (size_t)(n_cols - j) * sizeof(float));
            memcpy(tail_b, from_b, (size_t)(n_cols - j) * sizeof(float));
            from_a = tail_a, from_b = tail_b;
        }
        for (int i = 0; i < 4; i++) {
            const float32x4_t a_f32x4 = vld1q_f32(from_a + 4 * i), b_f32x4 = vld1q_f32(from_b + 4 * i);
            const float64x2_t low_f64x2 =
                vsubq_f64(vcvt_f64_f32(vget_low_f32(a_f32x4)), vcvt_f64_f32(vget_low_f32(b_f32x4)));
            const float64x2_t high_f64x2 = vsubq_f64(vcvt_high_f64_f32(a_f32x4), vcvt_high_f64_f32(b_f32x4));
            sum_f64x2[2 * i] = vaddq_f64(sum_f64x2[2 * i], vmulq_f64(low_f64x2, low_f64x2));
            sum_f64x2[2 * i + 1] = vaddq_f64(sum_f64x2[2 * i + 1], vmulq_f64(high_f64x2, high_f64x2));
        }
    }
    return hh_tree16_f64_neon(sum_f64x2);
}
#endif

HH_INLINE double hh_distance2_f32(int tier, const float *a, const float *b, ptrdiff_t n_cols) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) return hh_distance2_f32_avx512(a, b, n_cols);
    if (tier >= HH_TIER_AVX2) return hh_distance2_f32_avx2(a, b, n_cols);
#elif HH_NEON
    if (tier >= HH_TIER_NEON) return hh_distance2_f32_neon(a, b, n_cols);
#endif
    (void)tier;
    return hh_distance2_f32_scalar(a, b, n_cols);
}

/* A lower bound of the distance from one float32 pass: every partial sum is rounded by at most
 * 2^-24 of itself, differences once more, and a square that underflows by up to half the least
 * subnormal, 2^-149; an overflow says nothing. */
HH_INLINE double hh_lower_f32_(float sum, ptrdiff_t n_cols) {
    const double steps = (double)(n_cols + 32);
    const double lower = sum <= FLT_MAX ? (double)sum * (1.0 - steps * (2.0 * FLT_EPSILON)) - steps * 0x1p-149 : 0.0;
    return lower > 0.0 ? lower : 0.0;
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_KERNEL double hh_distance2_lower_avx2(const float *a, const float *b, ptrdiff_t n_cols) {
    __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    ptrdiff_t j = 0;
    for (; j + 32 <= n_cols; j += 32) {
        const __m256 d0_f32x8 = _mm256_sub_ps(_mm256_loadu_ps(a + j), _mm256_loadu_ps(b + j));
        const __m256 d1_f32x8 = _mm256_sub_ps(_mm256_loadu_ps(a + j + 8), _mm256_loadu_ps(b + j + 8));
        const __m256 d2_f32x8 = _mm256_sub_ps(_mm256_loadu_ps(a + j + 16), _mm256_loadu_ps(b + j + 16));
        const __m256 d3_f32x8 = _mm256_sub_ps(_mm256_loadu_ps(a + j + 24), _mm256_loadu_ps(b + j + 24));
        s0 = _mm256_fmadd_ps(d0_f32x8, d0_f32x8, s0), s1 = _mm256_fmadd_ps(d1_f32x8, d1_f32x8, s1);
        s2 = _mm256_fmadd_ps(d2_f32x8, d2_f32x8, s2), s3 = _mm256_fmadd_ps(d3_f32x8, d3_f32x8, s3);
    }
    float lane[8], sum = 0;
    _mm256_storeu_ps(lane, _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3)));
    for (int i = 0; i < 8; i++) sum += lane[i];
    for (; j < n_cols; j++) sum += (a[j] - b[j]) * (a[j] - b[j]);
    return hh_lower_f32_(sum, n_cols);
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL double hh_distance2_lower_avx512(const float *a, const float *b, ptrdiff_t n_cols) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    ptrdiff_t j = 0;
    for (; j + 64 <= n_cols; j += 64) {
        const __m512 d0_f32x16 = _mm512_sub_ps(_mm512_loadu_ps(a + j), _mm512_loadu_ps(b + j));
        const __m512 d1_f32x16 = _mm512_sub_ps(_mm512_loadu_ps(a + j + 16), _mm512_loadu_ps(b + j + 16));
        const __m512 d2_f32x16 = _mm512_sub_ps(_mm512_loadu_ps(a + j + 32), _mm512_loadu_ps(b + j + 32));
        const __m512 d3_f32x16 = _mm512_sub_ps(_mm512_loadu_ps(a + j + 48), _mm512_loadu_ps(b + j + 48));
        s0 = _mm512_fmadd_ps(d0_f32x16, d0_f32x16, s0), s1 = _mm512_fmadd_ps(d1_f32x16, d1_f32x16, s1);
        s2 = _mm512_fmadd_ps(d2_f32x16, d2_f32x16, s2), s3 = _mm512_fmadd_ps(d3_f32x16, d3_f32x16, s3);
    }
    float sum = _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
    for (; j < n_cols; j++) sum += (a[j] - b[j]) * (a[j] - b[j]);
    return hh_lower_f32_(sum, n_cols);
}
HH_TARGET_END

#elif HH_NEON
HH_KERNEL double hh_distance2_lower_neon(const float *a, const float *b, ptrdiff_t n_cols) {
    float32x4_t sum_f32x4[4];
    for (int i = 0; i < 4; i++) sum_f32x4[i] = vdupq_n_f32(0);
    ptrdiff_t j = 0;
    for (; j + 16 <= n_cols; j += 16)
        for (int i = 0; i < 4; i++) {
            const float32x4_t apart_f32x4 = vsubq_f32(vld1q_f32(a + j + 4 * i), vld1q_f32(b + j + 4 * i));
            sum_f32x4[i] = vfmaq_f32(sum_f32x4[i], apart_f32x4, apart_f32x4);
        }
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(sum_f32x4[0], sum_f32x4[1]), vaddq_f32(sum_f32x4[2], sum_f32x4[3])));
    for (; j < n_cols; j++) sum += (a[j] - b[j]) * (a[j] - b[j]);
    return hh_lower_f32_(sum, n_cols);
}
#endif

#if HH_X86 || HH_NEON
HH_INLINE double hh_distance2_lower(int tier, const float *a, const float *b, ptrdiff_t n_cols) {
#if HH_X86
    return tier >= HH_TIER_AVX512 ? hh_distance2_lower_avx512(a, b, n_cols) : hh_distance2_lower_avx2(a, b, n_cols);
#else
    return (void)tier, hh_distance2_lower_neon(a, b, n_cols);
#endif
}
#endif

/* ---- brute force: the specification, and the scalar tier ---- */

HH_KERNEL void hh_nearest_l2_scalar(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *centroids,
                                    ptrdiff_t k, int32_t *nearest) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        double best = DBL_MAX;
        nearest[r] = 0;
        for (ptrdiff_t c = 0; c < k; c++) {
            const double distance = hh_distance2_f32_scalar(rows + r * n_cols, centroids + c * n_cols, n_cols);
            if (distance < best) best = distance, nearest[r] = (int32_t)c;
        }
    }
}

/* ---- with the screen ---- */

#if HH_X86 || HH_NEON
/* Nearest centroid (first wins) of each row. HH_QUERIES rows are coded at a time into `line`
 * (HH_QUERIES * depth bytes); `dots` holds (HH_QUERIES + 1) * 16 * n_blocks, `lower` 16 * n_blocks. */
HH_KERNEL void hh_nearest_l2_screened(int tier, const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                      const float *centroids, const hh_panel_i8 *panel, int8_t *line, int32_t *dots,
                                      double *lower, int32_t *nearest) {
    const ptrdiff_t n_blocks = hh_panel_blocks(panel->n_rows), stride = HH_PANEL_ROWS * n_blocks;
    const double slack = hh_screen_slack_(n_cols);
    int32_t *const candidates = dots + HH_QUERIES * stride;
    for (ptrdiff_t start = 0; start < n_rows; start += HH_QUERIES) {
        const ptrdiff_t count = n_rows - start < HH_QUERIES ? n_rows - start : HH_QUERIES;
        hh_code_f64 query[HH_QUERIES];
        for (ptrdiff_t q = 0; q < count; q++)
            query[q] = hh_code_row(tier, rows + (start + q) * n_cols, n_cols, line + q * panel->depth);
        hh_ready_queries(tier, line, count * panel->depth);
        hh_panel_dots(tier, line, count, panel, 0, n_blocks, dots, stride);
        for (ptrdiff_t q = 0; q < count; q++) {
            const ptrdiff_t found = hh_screen(tier, &query[q], panel, dots + q * stride, slack, lower, candidates);
            nearest[start + q] = found ? candidates[0] : 0; /* none: a NaN, which its callers keep out */
            if (found < 2) continue;
            const float *const row = rows + (start + q) * n_cols;
            int32_t likely = candidates[0]; /* measured first, so that few others need more than float32 */
            for (ptrdiff_t i = 1; i < found; i++)
                if (lower[candidates[i]] < lower[likely]) likely = candidates[i];
            int32_t winner = likely;
            double best = hh_distance2_f32(tier, row, centroids + likely * n_cols, n_cols);
            for (ptrdiff_t i = 0; i < found; i++) {
                const int32_t c = candidates[i];
                if (c == likely || hh_distance2_lower(tier, row, centroids + c * n_cols, n_cols) > best) continue;
                const double distance = hh_distance2_f32(tier, row, centroids + c * n_cols, n_cols);
                if (distance < best || (distance == best && c < winner)) best = distance, winner = c;
            }
            nearest[start + q] = winner;
        }
    }
}
#else
/* No body here screens, so doors make no panel; they still name this. */
HH_KERNEL void hh_nearest_l2_screened(int tier, const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                      const float *centroids, const hh_panel_i8 *panel, int8_t *line, int32_t *dots,
                                      double *lower, int32_t *nearest) {
    (void)tier, (void)line, (void)dots, (void)lower;
    hh_nearest_l2_scalar(rows, n_rows, n_cols, centroids, panel->n_rows, nearest);
}
#endif

/* Lower nearest_distance to the exact distance from row `pick` where that is smaller; return the
 * FIRST row of the largest nearest_distance. */
HH_KERNEL ptrdiff_t hh_relax_l2_scalar(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, ptrdiff_t pick_row,
                                       int32_t pick, double *nearest_distance, int32_t *nearest) {
    ptrdiff_t best_row = 0;
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const double distance = hh_distance2_f32_scalar(rows + r * n_cols, rows + pick_row * n_cols, n_cols);
        if (distance < nearest_distance[r]) nearest_distance[r] = distance, nearest[r] = pick;
        if (nearest_distance[r] > nearest_distance[best_row]) best_row = r;
    }
    return best_row;
}

#if HH_X86 || HH_NEON
/* The same with the screen, 64 rows at a time. nearest_distance is padded to the panel's blocks
 * with zeros, which nothing undercuts. `line` is scratch of depth bytes. */
HH_KERNEL ptrdiff_t hh_relax_l2_screened(int tier, const float *rows, ptrdiff_t n_cols, ptrdiff_t pick_row,
                                         int32_t pick, const hh_panel_i8 *panel, int8_t *line, double *nearest_distance,
                                         int32_t *nearest) {
    const float *const picked = rows + pick_row * n_cols;
    const hh_code_f64 query = hh_code_row(tier, picked, n_cols, line);
    const double slack = hh_screen_slack_(n_cols);
    const ptrdiff_t n_blocks = hh_panel_blocks(panel->n_rows);
    hh_ready_queries(tier, line, panel->depth);
    double furthest = -1.0;
    ptrdiff_t best_row = 0;
    for (ptrdiff_t block = 0; block < n_blocks; block += 4) {
        const ptrdiff_t blocks = n_blocks - block < 4 ? n_blocks - block : 4;
        const ptrdiff_t first = HH_PANEL_ROWS * block, stop = first + HH_PANEL_ROWS * blocks;
        int32_t dots[64];
        hh_panel_dots(tier, line, 1, panel, block, blocks, dots, 64);
        uint64_t closer = hh_closer(tier, &query, panel, first, stop, dots, slack, nearest_distance);
        for (ptrdiff_t r = first; closer; closer >>= 1, r++)
            if (closer & 1) {
                if (hh_distance2_lower(tier, rows + r * n_cols, picked, n_cols) >= nearest_distance[r]) continue;
                const double distance = hh_distance2_f32(tier, rows + r * n_cols, picked, n_cols);
                if (distance < nearest_distance[r]) nearest_distance[r] = distance, nearest[r] = pick;
            }
        for (ptrdiff_t r = first; r < stop; r++)
            if (nearest_distance[r] > furthest) furthest = nearest_distance[r], best_row = r;
    }
    return best_row;
}
#endif

/* Furthest-point sampling: the first pick is the row of the largest norm, each next the row
 * furthest from its nearest pick; the first wins every tie; it ends when the furthest distance is
 * 0. A NULL panel means the scalar tier, or rows too wide to screen. Returns the number of picks. */
HH_KERNEL int hh_furthest_l2(int tier, const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const hh_panel_i8 *panel,
                             int8_t *line, int k, int64_t *picks, double *nearest_distance, int32_t *nearest) {
    ptrdiff_t next = 0;
    double largest = -1.0;
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const double norm2 = hh_norm2_f32(rows + r * n_cols, n_cols);
        if (norm2 > largest) largest = norm2, next = r;
        nearest_distance[r] = DBL_MAX;
        nearest[r] = 0;
    }
    int pick = 0;
    while (pick < k && nearest_distance[next] > 0) {
        picks[pick] = next;
#if HH_X86 || HH_NEON
        if (panel) next = hh_relax_l2_screened(tier, rows, n_cols, next, pick, panel, line, nearest_distance, nearest);
        else
#endif
            next = hh_relax_l2_scalar(rows, n_rows, n_cols, next, pick, nearest_distance, nearest);
        pick++;
    }
    (void)tier, (void)panel, (void)line;
    return pick;
}

#endif
