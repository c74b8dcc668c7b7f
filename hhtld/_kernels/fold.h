/* Base17: the golden-step fold of a row and its unfold.
 *
 * pos[i] = 11 * i mod 17. dims[i] = round(256 * mean(w[pos[i]], w[pos[i] + 17], ...)), the mean in
 * float64 summed in ascending column order, 0 where there is no such column, rounded half away
 * from zero and clamped to int16. Rows are finite. Sums are kept by position p = column mod 17, so
 * a row is read in runs of 17 columns: 16 lanes and one more.
 */
#ifndef HHTLD_FOLD_H
#define HHTLD_FOLD_H

#include "isa.h"

enum { HH_BASE17 = 17 };

static const unsigned char hh_base17_position[HH_BASE17] = {0, 11, 5, 16, 10, 4, 15, 9, 3, 14, 8, 2, 13, 7, 1, 12, 6};

/* Position sums to dims. */
HH_INLINE void hh_base17_finish(const double sums[HH_BASE17], ptrdiff_t n_cols, int16_t *dims) {
    for (int i = 0; i < HH_BASE17; i++) {
        const int p = hh_base17_position[i];
        if (p >= n_cols) {
            dims[i] = 0;
            continue;
        }
        const double count = (double)((n_cols - p + HH_BASE17 - 1) / HH_BASE17);
        double scaled = sums[p] / count * 256.0;
        scaled = scaled < -32768.0 ? -32768.0 : scaled > 32767.0 ? 32767.0 : scaled;
        const int32_t whole = (int32_t)scaled;
        const double rest = scaled - whole; /* exact */
        dims[i] = (int16_t)(whole + (rest >= 0.5) - (rest <= -0.5));
    }
}

/* The columns from `column` on, fewer than 17 of them. */
HH_INLINE void hh_base17_tail(const float *row, ptrdiff_t column, ptrdiff_t n_cols, double sums[HH_BASE17]) {
    for (int p = 0; column < n_cols; column++, p++) sums[p] += (double)row[column];
}

HH_KERNEL void hh_base17_fold_scalar(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int16_t *dims) {
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += n_cols, dims += HH_BASE17) {
        double sums[HH_BASE17] = {0};
        ptrdiff_t c = 0;
        for (; c + HH_BASE17 <= n_cols; c += HH_BASE17)
            for (int p = 0; p < HH_BASE17; p++) sums[p] += (double)rows[c + p];
        hh_base17_tail(rows, c, n_cols, sums);
        hh_base17_finish(sums, n_cols, dims);
    }
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_KERNEL void hh_base17_fold_avx2(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int16_t *dims) {
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += n_cols, dims += HH_BASE17) {
        __m256d s0_f64x4 = _mm256_setzero_pd(), s1_f64x4 = s0_f64x4, s2_f64x4 = s0_f64x4, s3_f64x4 = s0_f64x4;
        double sums[HH_BASE17] = {0}, last = 0;
        ptrdiff_t c = 0;
        for (; c + HH_BASE17 <= n_cols; c += HH_BASE17) {
            s0_f64x4 = _mm256_add_pd(s0_f64x4, _mm256_cvtps_pd(_mm_loadu_ps(rows + c)));
            s1_f64x4 = _mm256_add_pd(s1_f64x4, _mm256_cvtps_pd(_mm_loadu_ps(rows + c + 4)));
            s2_f64x4 = _mm256_add_pd(s2_f64x4, _mm256_cvtps_pd(_mm_loadu_ps(rows + c + 8)));
            s3_f64x4 = _mm256_add_pd(s3_f64x4, _mm256_cvtps_pd(_mm_loadu_ps(rows + c + 12)));
            last += (double)rows[c + 16];
        }
        _mm256_storeu_pd(sums, s0_f64x4);
        _mm256_storeu_pd(sums + 4, s1_f64x4);
        _mm256_storeu_pd(sums + 8, s2_f64x4);
        _mm256_storeu_pd(sums + 12, s3_f64x4);
        sums[16] = last;
        hh_base17_tail(rows, c, n_cols, sums);
        hh_base17_finish(sums, n_cols, dims);
    }
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_KERNEL void hh_base17_fold_avx512(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int16_t *dims) {
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += n_cols, dims += HH_BASE17) {
        __m512d low_f64x8 = _mm512_setzero_pd(), high_f64x8 = low_f64x8;
        double sums[HH_BASE17] = {0}, last = 0;
        ptrdiff_t c = 0;
        for (; c + HH_BASE17 <= n_cols; c += HH_BASE17) {
            low_f64x8 = _mm512_add_pd(low_f64x8, _mm512_cvtps_pd(_mm256_loadu_ps(rows + c)));
            high_f64x8 = _mm512_add_pd(high_f64x8, _mm512_cvtps_pd(_mm256_loadu_ps(rows + c + 8)));
            last += (double)rows[c + 16];
        }
        _mm512_storeu_pd(sums, low_f64x8);
        _mm512_storeu_pd(sums + 8, high_f64x8);
        sums[16] = last;
        hh_base17_tail(rows, c, n_cols, sums);
        hh_base17_finish(sums, n_cols, dims);
    }
}
HH_TARGET_END
#endif

#if HH_NEON
HH_KERNEL void hh_base17_fold_neon(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int16_t *dims) {
    for (ptrdiff_t r = 0; r < n_rows; r++, rows += n_cols, dims += HH_BASE17) {
        float64x2_t sum_f64x2[8];
        double sums[HH_BASE17] = {0}, last = 0;
        for (int i = 0; i < 8; i++) sum_f64x2[i] = vdupq_n_f64(0);
        ptrdiff_t c = 0;
        for (; c + HH_BASE17 <= n_cols; c += HH_BASE17) {
            for (int i = 0; i < 4; i++) {
                const float32x4_t value_f32x4 = vld1q_f32(rows + c + 4 * i);
                sum_f64x2[2 * i] = vaddq_f64(sum_f64x2[2 * i], vcvt_f64_f32(vget_low_f32(value_f32x4)));
                sum_f64x2[2 * i + 1] = vaddq_f64(sum_f64x2[2 * i + 1], vcvt_high_f64_f32(value_f32x4));
            }
            last += (double)rows[c + 16];
        }
        for (int i = 0; i < 8; i++) vst1q_f64(sums + 2 * i, sum_f64x2[i]);
        sums[16] = last;
        hh_base17_tail(rows, c, n_cols, sums);
        hh_base17_finish(sums, n_cols, dims);
    }
}
#endif

HH_KERNEL void hh_base17_fold(int tier, const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int16_t *dims) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_base17_fold_avx512(rows, n_rows, n_cols, dims);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_base17_fold_avx2(rows, n_rows, n_cols, dims);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_base17_fold_neon(rows, n_rows, n_cols, dims);
        return;
    }
#endif
    (void)tier;
    hh_base17_fold_scalar(rows, n_rows, n_cols, dims);
}

/* Column pos[i] + 17 j gets dims[i] / 256: a pattern of 17 columns, repeated. Exact in float32. */
HH_KERNEL void hh_base17_unfold(const int16_t *dims, ptrdiff_t n_rows, ptrdiff_t n_cols, float *rows) {
    for (ptrdiff_t r = 0; r < n_rows; r++, dims += HH_BASE17, rows += n_cols) {
        float pattern[HH_BASE17];
        for (int i = 0; i < HH_BASE17; i++) pattern[hh_base17_position[i]] = (float)dims[i] / 256.0f;
        ptrdiff_t c = 0;
        for (; c + HH_BASE17 <= n_cols; c += HH_BASE17) memcpy(rows + c, pattern, sizeof pattern);
        memcpy(rows + c, pattern, (size_t)(n_cols - c) * sizeof(float));
    }
}

#endif
