/* Slot L: project residuals onto the shared basis, quantize, and reconstruct rows.
 *
 * project:     c[i] = float32(sum_j (double)(row[j] - entry[j]) * (double)basis[j][i]), the residual
 *              rounded to float32, the sum in ascending column order. A float32 times a bfloat16
 *              is exact in float64, so a body may fuse multiply and add. `basis` is column-major,
 *              [n_cols][8], float64 holding bfloat16 values.
 * quantize:    byte = clamp(round(c / scale), -127, 127) in float32, half away from zero.
 * reconstruct: row[j] = entry[j], then += (byte[i] * scale) * basis[i][j] for i = 0..7 in float32,
 *              every product rounded before it is added. `basis` is [8][n_cols] float32.
 * The entry of row r is entries[twigs[r]], or entries[r] where twigs is NULL.
 */
#ifndef HHTLD_LEAF_H
#define HHTLD_LEAF_H

#include "isa.h"

enum { HH_LANES = 8 };

HH_INLINE const float *hh_entry_(const float *entries, const uint8_t *twigs, ptrdiff_t row, ptrdiff_t n_cols) {
    return entries + (twigs ? (ptrdiff_t)twigs[row] : row) * n_cols;
}

/* ---- project ---- */

HH_KERNEL void hh_project_scalar(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *entries,
                                 const uint8_t *twigs, const double *basis, float *coefficients) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const float *const row = rows + r * n_cols, *const entry = hh_entry_(entries, twigs, r, n_cols);
        double sum[HH_LANES] = {0};
        for (ptrdiff_t j = 0; j < n_cols; j++) {
            const double residual = (double)(row[j] - entry[j]);
            for (int i = 0; i < HH_LANES; i++) sum[i] += residual * basis[j * HH_LANES + i];
        }
        for (int i = 0; i < HH_LANES; i++) coefficients[r * HH_LANES + i] = (float)sum[i];
    }
}

/* Columns are taken in runs: the residuals of a few rows widen to float64 on the stack, then each
 * basis column meets one broadcast residual of every row, so the chains of sums run side by side. */
enum { HH_PROJECT_RUN = 64 };

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_INLINE void hh_project_rows_avx2_(const float *rows, ptrdiff_t first, int count, ptrdiff_t n_cols,
                                     const float *entries, const uint8_t *twigs, const double *basis,
                                     float *coefficients) {
    double residual[4][HH_PROJECT_RUN];
    __m256d low_f64x4[4], high_f64x4[4];
    for (int q = 0; q < 4; q++) low_f64x4[q] = high_f64x4[q] = _mm256_setzero_pd();
    for (ptrdiff_t start = 0; start < n_cols; start += HH_PROJECT_RUN) {
        const ptrdiff_t run = n_cols - start < HH_PROJECT_RUN ? n_cols - start : HH_PROJECT_RUN;
        for (int q = 0; q < count; q++) {
            const float *const row = rows + (first + q) * n_cols + start;
            const float *const entry = hh_entry_(entries, twigs, first + q, n_cols) + start;
            ptrdiff_t j = 0;
            for (; j + 4 <= run; j += 4)
                _mm256_storeu_pd(residual[q] + j,
                                 _mm256_cvtps_pd(_mm_sub_ps(_mm_loadu_ps(row + j), _mm_loadu_ps(entry + j))));
            for (; j < run; j++) residual[q][j] = (double)(row[j] - entry[j]);
        }
        for (ptrdiff_t j = 0; j < run; j++) {
            const double *const column = basis + (start + j) * HH_LANES;
            const __m256d b0_f64x4 = _mm256_loadu_pd(column), b1_f64x4 = _mm256_loadu_pd(column + 4);
#pragma GCC unroll 4
            for (int q = 0; q < count; q++) {
                const __m256d residual_f64x4 = _mm256_broadcast_sd(residual[q] + j);
                low_f64x4[q] = _mm256_fmadd_pd(residual_f64x4, b0_f64x4, low_f64x4[q]);
                high_f64x4[q] = _mm256_fmadd_pd(residual_f64x4, b1_f64x4, high_f64x4[q]);
            }
        }
    }
    for (int q = 0; q < count; q++) {
        _mm_storeu_ps(coefficients + (first + q) * HH_LANES, _mm256_cvtpd_ps(low_f64x4[q]));
        _mm_storeu_ps(coefficients + (first + q) * HH_LANES + 4, _mm256_cvtpd_ps(high_f64x4[q]));
    }
}

HH_KERNEL void hh_project_avx2(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *entries,
                               const uint8_t *twigs, const double *basis, float *coefficients) {
    ptrdiff_t r = 0;
    for (; r + 4 <= n_rows; r += 4) hh_project_rows_avx2_(rows, r, 4, n_cols, entries, twigs, basis, coefficients);
    for (; r < n_rows; r++) hh_project_rows_avx2_(rows, r, 1, n_cols, entries, twigs, basis, coefficients);
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_INLINE void hh_project_rows_avx512_(const float *rows, ptrdiff_t first, int count, ptrdiff_t n_cols,
                                       const float *entries, const uint8_t *twigs, const double *basis,
                                       float *coefficients) {
    double residual[8][HH_PROJECT_RUN];
    __m512d sum_f64x8[8];
    for (int q = 0; q < 8; q++) sum_f64x8[q] = _mm512_setzero_pd();
    for (ptrdiff_t start = 0; start < n_cols; start += HH_PROJECT_RUN) {
        const ptrdiff_t run = n_cols - start < HH_PROJECT_RUN ? n_cols - start : HH_PROJECT_RUN;
        for (int q = 0; q < count; q++) {
            const float *const row = rows + (first + q) * n_cols + start;
            const float *const entry = hh_entry_(entries, twigs, first + q, n_cols) + start;
            /* What this row slot reads next: 8 short streams are too many for the hardware to follow. */
            const char *const next = (const char *)(start + run < n_cols ? row + run : row + 8 * n_cols - start);
            for (int line = 0; line < HH_PROJECT_RUN * 4; line += 64) _mm_prefetch(next + line, _MM_HINT_T0);
            ptrdiff_t j = 0;
            for (; j + 8 <= run; j += 8)
                _mm512_storeu_pd(residual[q] + j,
                                 _mm512_cvtps_pd(_mm256_sub_ps(_mm256_loadu_ps(row + j), _mm256_loadu_ps(entry + j))));
            for (; j < run; j++) residual[q][j] = (double)(row[j] - entry[j]);
        }
        for (ptrdiff_t j = 0; j < run; j++) {
            const __m512d basis_f64x8 = _mm512_loadu_pd(basis + (start + j) * HH_LANES);
#pragma GCC unroll 8
            for (int q = 0; q < count; q++)
                sum_f64x8[q] = _mm512_fmadd_pd(_mm512_set1_pd(residual[q][j]), basis_f64x8, sum_f64x8[q]);
        }
    }
    for (int q = 0; q < count; q++)
        _mm256_storeu_ps(coefficients + (first + q) * HH_LANES, _mm512_cvtpd_ps(sum_f64x8[q]));
}

HH_KERNEL void hh_project_avx512(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *entries,
                                 const uint8_t *twigs, const double *basis, float *coefficients) {
    ptrdiff_t r = 0;
    for (; r + 8 <= n_rows; r += 8) hh_project_rows_avx512_(rows, r, 8, n_cols, entries, twigs, basis, coefficients);
    for (; r < n_rows; r++) hh_project_rows_avx512_(rows, r, 1, n_cols, entries, twigs, basis, coefficients);
}
HH_TARGET_END
#elif HH_NEON
HH_INLINE void hh_project_rows_neon_(const float *rows, ptrdiff_t first, int count, ptrdiff_t n_cols,
                                     const float *entries, const uint8_t *twigs, const double *basis,
                                     float *coefficients) {
    double residual[4][HH_PROJECT_RUN];
    float64x2_t sum_f64x2[4][4];
    for (int q = 0; q < count; q++)
        for (int i = 0; i < 4; i++) sum_f64x2[q][i] = vdupq_n_f64(0);
    for (ptrdiff_t start = 0; start < n_cols; start += HH_PROJECT_RUN) {
        const ptrdiff_t run = n_cols - start < HH_PROJECT_RUN ? n_cols - start : HH_PROJECT_RUN;
        for (int q = 0; q < count; q++) {
            const float *const row = rows + (first + q) * n_cols + start;
            const float *const entry = hh_entry_(entries, twigs, first + q, n_cols) + start;
            ptrdiff_t j = 0;
            for (; j + 4 <= run; j += 4) {
                const float32x4_t residual_f32x4 = vsubq_f32(vld1q_f32(row + j), vld1q_f32(entry + j));
                vst1q_f64(residual[q] + j, vcvt_f64_f32(vget_low_f32(residual_f32x4)));
                vst1q_f64(residual[q] + j + 2, vcvt_high_f64_f32(residual_f32x4));
            }
            for (; j < run; j++) residual[q][j] = (double)(row[j] - entry[j]);
        }
        for (ptrdiff_t j = 0; j < run; j++) {
            float64x2_t basis_f64x2[4];
            for (int i = 0; i < 4; i++) basis_f64x2[i] = vld1q_f64(basis + (start + j) * HH_LANES + 2 * i);
            for (int q = 0; q < count; q++) {
                const float64x2_t residual_f64x2 = vld1q_dup_f64(residual[q] + j);
                for (int i = 0; i < 4; i++)
                    sum_f64x2[q][i] = vfmaq_f64(sum_f64x2[q][i], residual_f64x2, basis_f64x2[i]);
            }
        }
    }
    for (int q = 0; q < count; q++)
        for (int i = 0; i < 4; i++)
            vst1_f32(coefficients + (first + q) * HH_LANES + 2 * i, vcvt_f32_f64(sum_f64x2[q][i]));
}

HH_KERNEL void hh_project_neon(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *entries,
                               const uint8_t *twigs, const double *basis, float *coefficients) {
    ptrdiff_t r = 0;
    for (; r + 4 <= n_rows; r += 4) hh_project_rows_neon_(rows, r, 4, n_cols, entries, twigs, basis, coefficients);
    for (; r < n_rows; r++) hh_project_rows_neon_(rows, r, 1, n_cols, entries, twigs, basis, coefficients);
}
#endif

HH_KERNEL void hh_project(int tier, const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *entries,
                          const uint8_t *twigs, const double *basis, float *coefficients) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_project_avx512(rows, n_rows, n_cols, entries, twigs, basis, coefficients);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_project_avx2(rows, n_rows, n_cols, entries, twigs, basis, coefficients);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_project_neon(rows, n_rows, n_cols, entries, twigs, basis, coefficients);
        return;
    }
#endif
    (void)tier;
    hh_project_scalar(rows, n_rows, n_cols, entries, twigs, basis, coefficients);
}

/* ---- quantize: 8 values a row, cheap enough for one body ---- */

HH_KERNEL void hh_quantize_i8(const float *coefficients, ptrdiff_t count, float scale, int8_t *codes) {
    for (ptrdiff_t i = 0; i < count; i++) {
        float value = coefficients[i] / scale;
        value = value < -127.0f ? -127.0f : value > 127.0f ? 127.0f : value;
        const int32_t whole = (int32_t)value;
        const float rest = value - (float)whole; /* exact */
        codes[i] = (int8_t)(whole + (rest >= 0.5f) - (rest <= -0.5f));
    }
}

/* ---- reconstruct ---- */

HH_KERNEL void hh_reconstruct_scalar(const float *entries, const uint8_t *twigs, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                     const int8_t *codes, float scale, const float *basis, float *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const float *const entry = hh_entry_(entries, twigs, r, n_cols);
        float *const row = out + r * n_cols;
        float coefficient[HH_LANES];
        for (int i = 0; i < HH_LANES; i++) coefficient[i] = (float)codes[r * HH_LANES + i] * scale;
        for (ptrdiff_t j = 0; j < n_cols; j++) {
            float sum = entry[j];
            for (int i = 0; i < HH_LANES; i++) sum += coefficient[i] * basis[i * n_cols + j];
            row[j] = sum;
        }
    }
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_KERNEL void hh_reconstruct_avx2(const float *entries, const uint8_t *twigs, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                   const int8_t *codes, float scale, const float *basis, float *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const float *const entry = hh_entry_(entries, twigs, r, n_cols);
        float *const row = out + r * n_cols;
        float coefficient[HH_LANES];
        __m256 coefficient_f32x8[HH_LANES];
        for (int i = 0; i < HH_LANES; i++) {
            coefficient[i] = (float)codes[r * HH_LANES + i] * scale;
            coefficient_f32x8[i] = _mm256_set1_ps(coefficient[i]);
        }
        ptrdiff_t j = 0;
        for (; j + 8 <= n_cols; j += 8) {
            __m256 sum_f32x8 = _mm256_loadu_ps(entry + j);
#pragma GCC unroll 8
            for (int i = 0; i < HH_LANES; i++)
                sum_f32x8 = _mm256_add_ps(sum_f32x8,
                                          _mm256_mul_ps(coefficient_f32x8[i], _mm256_loadu_ps(basis + i * n_cols + j)));
            _mm256_storeu_ps(row + j, sum_f32x8);
        }
        for (; j < n_cols; j++) {
            float sum = entry[j];
            for (int i = 0; i < HH_LANES; i++) sum += coefficient[i] * basis[i * n_cols + j];
            row[j] = sum;
        }
    }
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL void hh_reconstruct_avx512(const float *entries, const uint8_t *twigs, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                     const int8_t *codes, float scale, const float *basis, float *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const float *const entry = hh_entry_(entries, twigs, r, n_cols);
        float *const row = out + r * n_cols;
        __m512 coefficient_f32x16[HH_LANES];
        for (int i = 0; i < HH_LANES; i++)
            coefficient_f32x16[i] = _mm512_set1_ps((float)codes[r * HH_LANES + i] * scale);
        for (ptrdiff_t j = 0; j < n_cols; j += 16) {
            const __mmask16 live = n_cols - j < 16 ? (__mmask16)((1u << (n_cols - j)) - 1u) : 0xFFFF;
            __m512 sum_f32x16 = _mm512_maskz_loadu_ps(live, entry + j);
#pragma GCC unroll 8
            for (int i = 0; i < HH_LANES; i++)
                sum_f32x16 =
                    _mm512_add_ps(sum_f32x16, _mm512_mul_ps(coefficient_f32x16[i],
                                                            _mm512_maskz_loadu_ps(live, basis + i * n_cols + j)));
            _mm512_mask_storeu_ps(row + j, live, sum_f32x16);
        }
    }
}
HH_TARGET_END
#elif HH_NEON
HH_KERNEL void hh_reconstruct_neon(const float *entries, const uint8_t *twigs, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                   const int8_t *codes, float scale, const float *basis, float *out) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const float *const entry = hh_entry_(entries, twigs, r, n_cols);
        float *const row = out + r * n_cols;
        float coefficient[HH_LANES];
        for (int i = 0; i < HH_LANES; i++) coefficient[i] = (float)codes[r * HH_LANES + i] * scale;
        ptrdiff_t j = 0;
        for (; j + 8 <= n_cols; j += 8) {
            float32x4_t low_f32x4 = vld1q_f32(entry + j), high_f32x4 = vld1q_f32(entry + j + 4);
            for (int i = 0; i < HH_LANES; i++) {
                const float *const column = basis + i * n_cols + j;
                low_f32x4 = vaddq_f32(low_f32x4, vmulq_n_f32(vld1q_f32(column), coefficient[i]));
                high_f32x4 = vaddq_f32(high_f32x4, vmulq_n_f32(vld1q_f32(column + 4), coefficient[i]));
            }
            vst1q_f32(row + j, low_f32x4);
            vst1q_f32(row + j + 4, high_f32x4);
        }
        for (; j < n_cols; j++) {
            float sum = entry[j];
            for (int i = 0; i < HH_LANES; i++) sum += coefficient[i] * basis[i * n_cols + j];
            row[j] = sum;
        }
    }
}
#endif

/* A NULL `codes` copies the entries. */
HH_KERNEL void hh_reconstruct(int tier, const float *entries, const uint8_t *twigs, ptrdiff_t n_rows, ptrdiff_t n_cols,
                              const int8_t *codes, float scale, const float *basis, float *out) {
    if (!codes) {
        for (ptrdiff_t r = 0; r < n_rows; r++)
            memcpy(out + r * n_cols, hh_entry_(entries, twigs, r, n_cols), (size_t)n_cols * sizeof(float));
        return;
    }
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_reconstruct_avx512(entries, twigs, n_rows, n_cols, codes, scale, basis, out);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_reconstruct_avx2(entries, twigs, n_rows, n_cols, codes, scale, basis, out);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_reconstruct_neon(entries, twigs, n_rows, n_cols, codes, scale, basis, out);
        return;
    }
#endif
    (void)tier;
    hh_reconstruct_scalar(entries, twigs, n_rows, n_cols, codes, scale, basis, out);
}

#endif
