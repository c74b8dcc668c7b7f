/* Inner products in float64: Gram matrices and row-by-row dots.
 *
 * gram:     out[a][b] = sum over rows of (double)x[row][a] * (double)x[row][b], one accumulator an
 *           output, rows in ascending order; the upper triangle is computed and mirrored.
 * row_dots: out[row] = { x.y, x.x, y.y } over 16 virtual lanes (isa.h).
 * The product of two float32 is exact in float64, so bodies may fuse multiply and add.
 */
#ifndef HHTLD_DOT_H
#define HHTLD_DOT_H

#include "isa.h"

/* ---- gram ---- */

HH_INLINE void hh_gram_tile_scalar_(const float *x, ptrdiff_t n_rows, ptrdiff_t n_cols, ptrdiff_t a0, ptrdiff_t a1,
                                    ptrdiff_t b0, ptrdiff_t b1, double *out) {
    for (ptrdiff_t a = a0; a < a1; a++)
        for (ptrdiff_t b = b0 > a ? b0 : a; b < b1; b++) {
            double sum = 0;
            for (ptrdiff_t r = 0; r < n_rows; r++) sum += (double)x[r * n_cols + a] * (double)x[r * n_cols + b];
            out[a * n_cols + b] = sum;
        }
}

HH_INLINE void hh_gram_mirror_(double *out, ptrdiff_t n_cols) {
    for (ptrdiff_t a = 0; a < n_cols; a++)
        for (ptrdiff_t b = 0; b < a; b++) out[a * n_cols + b] = out[b * n_cols + a];
}

HH_KERNEL void hh_gram_scalar(const float *x, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    memset(out, 0, (size_t)n_cols * (size_t)n_cols * sizeof(double));
    for (ptrdiff_t r = 0; r < n_rows; r++) /* rows outermost: the same order for every output, and no strides */
        for (ptrdiff_t a = 0; a < n_cols; a++) {
            const double value = (double)x[r * n_cols + a];
            for (ptrdiff_t b = a; b < n_cols; b++) out[a * n_cols + b] += value * (double)x[r * n_cols + b];
        }
    hh_gram_mirror_(out, n_cols);
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_KERNEL void hh_gram_avx2(const float *x, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    const ptrdiff_t whole_a = n_cols & ~(ptrdiff_t)3, whole_b = n_cols & ~(ptrdiff_t)7;
    for (ptrdiff_t a = 0; a < whole_a; a += 4)
        for (ptrdiff_t b = a & ~(ptrdiff_t)7; b < whole_b; b += 8) {
            __m256d sum_f64x4[4][2];
            for (int i = 0; i < 4; i++) sum_f64x4[i][0] = sum_f64x4[i][1] = _mm256_setzero_pd();
            for (ptrdiff_t r = 0; r < n_rows; r++) {
                const float *const row = x + r * n_cols;
                const __m256d b0_f64x4 = _mm256_cvtps_pd(_mm_loadu_ps(row + b));
                const __m256d b1_f64x4 = _mm256_cvtps_pd(_mm_loadu_ps(row + b + 4));
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    const __m256d a_f64x4 = _mm256_set1_pd((double)row[a + i]);
                    sum_f64x4[i][0] = _mm256_fmadd_pd(a_f64x4, b0_f64x4, sum_f64x4[i][0]);
                    sum_f64x4[i][1] = _mm256_fmadd_pd(a_f64x4, b1_f64x4, sum_f64x4[i][1]);
                }
            }
            for (int i = 0; i < 4; i++) {
                _mm256_storeu_pd(out + (a + i) * n_cols + b, sum_f64x4[i][0]);
                _mm256_storeu_pd(out + (a + i) * n_cols + b + 4, sum_f64x4[i][1]);
            }
        }
    hh_gram_tile_scalar_(x, n_rows, n_cols, 0, whole_a, whole_b, n_cols, out);
    hh_gram_tile_scalar_(x, n_rows, n_cols, whole_a, n_cols, whole_a, n_cols, out);
    hh_gram_mirror_(out, n_cols);
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL void hh_gram_avx512(const float *x, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    const ptrdiff_t whole_a = n_cols & ~(ptrdiff_t)7, whole_b = n_cols & ~(ptrdiff_t)15;
    for (ptrdiff_t a = 0; a < whole_a; a += 8)
        for (ptrdiff_t b = a & ~(ptrdiff_t)15; b < whole_b; b += 16) {
            __m512d sum_f64x8[8][2];
            for (int i = 0; i < 8; i++) sum_f64x8[i][0] = sum_f64x8[i][1] = _mm512_setzero_pd();
            for (ptrdiff_t r = 0; r < n_rows; r++) {
                const float *const row = x + r * n_cols;
                const __m512d b0_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(row + b));
                const __m512d b1_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(row + b + 8));
                double a_f64[8];
                _mm512_storeu_pd(a_f64, _mm512_cvtps_pd(_mm256_loadu_ps(row + a)));
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) {
                    const __m512d a_f64x8 = _mm512_set1_pd(a_f64[i]);
                    sum_f64x8[i][0] = _mm512_fmadd_pd(a_f64x8, b0_f64x8, sum_f64x8[i][0]);
                    sum_f64x8[i][1] = _mm512_fmadd_pd(a_f64x8, b1_f64x8, sum_f64x8[i][1]);
                }
            }
            for (int i = 0; i < 8; i++) {
                _mm512_storeu_pd(out + (a + i) * n_cols + b, sum_f64x8[i][0]);
                _mm512_storeu_pd(out + (a + i) * n_cols + b + 8, sum_f64x8[i][1]);
            }
        }
    hh_gram_tile_scalar_(x, n_rows, n_cols, 0, whole_a, whole_b, n_cols, out);
    hh_gram_tile_scalar_(x, n_rows, n_cols, whole_a, n_cols, whole_a, n_cols, out);
    hh_gram_mirror_(out, n_cols);
}
HH_TARGET_END
#elif HH_NEON
HH_KERNEL void hh_gram_neon(const float *x, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    const ptrdiff_t whole_a = n_cols & ~(ptrdiff_t)3, whole_b = n_cols & ~(ptrdiff_t)7;
    for (ptrdiff_t a = 0; a < whole_a; a += 4)
        for (ptrdiff_t b = a & ~(ptrdiff_t)7; b < whole_b; b += 8) {
            float64x2_t sum_f64x2[4][4];
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < 4; k++) sum_f64x2[i][k] = vdupq_n_f64(0);
            for (ptrdiff_t r = 0; r < n_rows; r++) {
                const float *const row = x + r * n_cols;
                const float32x4_t a_f32x4 = vld1q_f32(row + a), b0_f32x4 = vld1q_f32(row + b),
                                  b1_f32x4 = vld1q_f32(row + b + 4);
                const float64x2_t a_f64x2[2] = {vcvt_f64_f32(vget_low_f32(a_f32x4)), vcvt_high_f64_f32(a_f32x4)};
                const float64x2_t b_f64x2[4] = {vcvt_f64_f32(vget_low_f32(b0_f32x4)), vcvt_high_f64_f32(b0_f32x4),
                                                vcvt_f64_f32(vget_low_f32(b1_f32x4)), vcvt_high_f64_f32(b1_f32x4)};
                for (int k = 0; k < 4; k++) {
                    sum_f64x2[0][k] = vfmaq_laneq_f64(sum_f64x2[0][k], b_f64x2[k], a_f64x2[0], 0);
                    sum_f64x2[1][k] = vfmaq_laneq_f64(sum_f64x2[1][k], b_f64x2[k], a_f64x2[0], 1);
                    sum_f64x2[2][k] = vfmaq_laneq_f64(sum_f64x2[2][k], b_f64x2[k], a_f64x2[1], 0);
                    sum_f64x2[3][k] = vfmaq_laneq_f64(sum_f64x2[3][k], b_f64x2[k], a_f64x2[1], 1);
                }
            }
            for (int i = 0; i < 4; i++)
                for (int k = 0; k < 4; k++) vst1q_f64(out + (a + i) * n_cols + b + 2 * k, sum_f64x2[i][k]);
        }
    hh_gram_tile_scalar_(x, n_rows, n_cols, 0, whole_a, whole_b, n_cols, out);
    hh_gram_tile_scalar_(x, n_rows, n_cols, whole_a, n_cols, whole_a, n_cols, out);
    hh_gram_mirror_(out, n_cols);
}
#endif

HH_KERNEL void hh_gram(int tier, const float *x, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_gram_avx512(x, n_rows, n_cols, out);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_gram_avx2(x, n_rows, n_cols, out);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_gram_neon(x, n_rows, n_cols, out);
        return;
    }
#endif
    (void)tier;
    hh_gram_scalar(x, n_rows, n_cols, out);
}

/* ---- row dots ---- */

HH_KERNEL void hh_row_dots_scalar(const float *x, const float *y, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++, x += n_cols, y += n_cols, out += 3) {
        double xy[16] = {0}, xx[16] = {0}, yy[16] = {0};
        for (ptrdiff_t j = 0; j < n_cols; j++) {
            const double a = (double)x[j], b = (double)y[j];
            xy[j & 15] += a * b, xx[j & 15] += a * a, yy[j & 15] += b * b;
        }
        out[0] = hh_tree16_f64(xy), out[1] = hh_tree16_f64(xx), out[2] = hh_tree16_f64(yy);
    }
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_KERNEL void hh_row_dots_avx2(const float *x, const float *y, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++, x += n_cols, y += n_cols, out += 3) {
        __m256d xy_f64x4[4], xx_f64x4[4], yy_f64x4[4];
        for (int i = 0; i < 4; i++) xy_f64x4[i] = xx_f64x4[i] = yy_f64x4[i] = _mm256_setzero_pd();
        float tail_x[16] = {0}, tail_y[16] = {0};
        for (ptrdiff_t j = 0; j < n_cols; j += 16) {
            const float *a = x + j, *b = y + j;
            if (n_cols - j < 16) { /* zeros add nothing */
                memcpy(tail_x, a, (size_t)(n_cols - j) * sizeof(float));
                memcpy(tail_y, b, (size_t)(n_cols - j) * sizeof(float));
                a = tail_x, b = tail_y;
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const __m256d a_f64x4 = _mm256_cvtps_pd(_mm_loadu_ps(a + 4 * i));
                const __m256d b_f64x4 = _mm256_cvtps_pd(_mm_loadu_ps(b + 4 * i));
                xy_f64x4[i] = _mm256_fmadd_pd(a_f64x4, b_f64x4, xy_f64x4[i]);
                xx_f64x4[i] = _mm256_fmadd_pd(a_f64x4, a_f64x4, xx_f64x4[i]);
                yy_f64x4[i] = _mm256_fmadd_pd(b_f64x4, b_f64x4, yy_f64x4[i]);
            }
        }
        out[0] = hh_tree16_f64_avx2(xy_f64x4[0], xy_f64x4[1], xy_f64x4[2], xy_f64x4[3]);
        out[1] = hh_tree16_f64_avx2(xx_f64x4[0], xx_f64x4[1], xx_f64x4[2], xx_f64x4[3]);
        out[2] = hh_tree16_f64_avx2(yy_f64x4[0], yy_f64x4[1], yy_f64x4[2], yy_f64x4[3]);
    }
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL void hh_row_dots_avx512(const float *x, const float *y, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++, x += n_cols, y += n_cols, out += 3) {
        __m512d xy0 = _mm512_setzero_pd(), xx0 = xy0, yy0 = xy0, xy1 = xy0, xx1 = xy0, yy1 = xy0;
        float tail_x[16] = {0}, tail_y[16] = {0};
        for (ptrdiff_t j = 0; j < n_cols; j += 16) {
            const float *a = x + j, *b = y + j;
            if (n_cols - j < 16) { /* zeros add nothing; a masked load here took 3x the time on Zen 5 */
                memcpy(tail_x, a, (size_t)(n_cols - j) * sizeof(float));
                memcpy(tail_y, b, (size_t)(n_cols - j) * sizeof(float));
                a = tail_x, b = tail_y;
            }
            const __m512d a0_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(a)),
                          a1_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(a + 8));
            const __m512d b0_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(b)),
                          b1_f64x8 = _mm512_cvtps_pd(_mm256_loadu_ps(b + 8));
            xy0 = _mm512_fmadd_pd(a0_f64x8, b0_f64x8, xy0), xy1 = _mm512_fmadd_pd(a1_f64x8, b1_f64x8, xy1);
            xx0 = _mm512_fmadd_pd(a0_f64x8, a0_f64x8, xx0), xx1 = _mm512_fmadd_pd(a1_f64x8, a1_f64x8, xx1);
            yy0 = _mm512_fmadd_pd(b0_f64x8, b0_f64x8, yy0), yy1 = _mm512_fmadd_pd(b1_f64x8, b1_f64x8, yy1);
        }
        out[0] = hh_tree16_f64_avx512(xy0, xy1);
        out[1] = hh_tree16_f64_avx512(xx0, xx1);
        out[2] = hh_tree16_f64_avx512(yy0, yy1);
    }
}
HH_TARGET_END
#elif HH_NEON
HH_KERNEL void hh_row_dots_neon(const float *x, const float *y, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++, x += n_cols, y += n_cols, out += 3) {
        float64x2_t xy_f64x2[8], xx_f64x2[8], yy_f64x2[8];
        for (int i = 0; i < 8; i++) xy_f64x2[i] = xx_f64x2[i] = yy_f64x2[i] = vdupq_n_f64(0);
        float tail_x[16] = {0}, tail_y[16] = {0};
        for (ptrdiff_t j = 0; j < n_cols; j += 16) {
            const float *a = x + j, *b = y + j;
            if (n_cols - j < 16) { /* zeros add nothing */
                memcpy(tail_x, a, (size_t)(n_cols - j) * sizeof(float));
                memcpy(tail_y, b, (size_t)(n_cols - j) * sizeof(float));
                a = tail_x, b = tail_y;
            }
            for (int i = 0; i < 4; i++) {
                const float32x4_t a_f32x4 = vld1q_f32(a + 4 * i), b_f32x4 = vld1q_f32(b + 4 * i);
                const float64x2_t a0_f64x2 = vcvt_f64_f32(vget_low_f32(a_f32x4)), a1_f64x2 = vcvt_high_f64_f32(a_f32x4);
                const float64x2_t b0_f64x2 = vcvt_f64_f32(vget_low_f32(b_f32x4)), b1_f64x2 = vcvt_high_f64_f32(b_f32x4);
                xy_f64x2[2 * i] = vfmaq_f64(xy_f64x2[2 * i], a0_f64x2, b0_f64x2);
                xx_f64x2[2 * i] = vfmaq_f64(xx_f64x2[2 * i], a0_f64x2, a0_f64x2);
                yy_f64x2[2 * i] = vfmaq_f64(yy_f64x2[2 * i], b0_f64x2, b0_f64x2);
                xy_f64x2[2 * i + 1] = vfmaq_f64(xy_f64x2[2 * i + 1], a1_f64x2, b1_f64x2);
                xx_f64x2[2 * i + 1] = vfmaq_f64(xx_f64x2[2 * i + 1], a1_f64x2, a1_f64x2);
                yy_f64x2[2 * i + 1] = vfmaq_f64(yy_f64x2[2 * i + 1], b1_f64x2, b1_f64x2);
            }
        }
        out[0] = hh_tree16_f64_neon(xy_f64x2);
        out[1] = hh_tree16_f64_neon(xx_f64x2);
        out[2] = hh_tree16_f64_neon(yy_f64x2);
    }
}
#endif

HH_KERNEL void hh_row_dots(int tier, const float *x, const float *y, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_row_dots_avx512(x, y, n_rows, n_cols, out);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_row_dots_avx2(x, y, n_rows, n_cols, out);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_row_dots_neon(x, y, n_rows, n_cols, out);
        return;
    }
#endif
    (void)tier;
    hh_row_dots_scalar(x, y, n_rows, n_cols, out);
}

#endif
