/* The row rotation of Slot T: an orthonormal mix of n columns for any n >= 1, without padding.
 *
 * Let b be the largest power of two not above n, H_b the Walsh-Hadamard transform of b columns divided
 * by sqrt(b) (float32, one multiplication at the end), S1 and S2 diagonals of +-1.
 *     n == b:  R = H_b S1
 *     else:    R = (H_b on the last b columns) S2 (H_b on the first b columns) S1
 * The inverse is the transpose, the same factors in reverse. `signs` holds S1 then S2, 2 n floats.
 *
 * Every butterfly is one float32 addition or subtraction of the same two operands in every body, so all
 * tiers give the same bits. Rotated rows of any distribution look Gaussian; the 8 outlier columns and
 * log-normal column scales that ruin scalar codes disappear in blocks of 512 columns and more.
 */
#ifndef HHTLD_ROTATE_H
#define HHTLD_ROTATE_H

#include <math.h>

#include "isa.h"

HH_INLINE ptrdiff_t hh_rotation_block(ptrdiff_t n_cols) {
    ptrdiff_t block = 1;
    while (2 * block <= n_cols) block *= 2;
    return block;
}

/* ---- scalar ---- */

HH_KERNEL void hh_hadamard_f32_scalar(float *x, ptrdiff_t block) {
    for (ptrdiff_t half = 1; half < block; half *= 2)
        for (ptrdiff_t start = 0; start < block; start += 2 * half)
            for (ptrdiff_t i = start; i < start + half; i++) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b, x[i + half] = a - b;
            }
    const float scale = (float)(1.0 / sqrt((double)block));
    for (ptrdiff_t i = 0; i < block; i++) x[i] *= scale;
}

#if HH_X86
/* In a register, the partner of lane i is lane i ^ half; where bit `half` of i is set the result is
 * partner - x, else partner + x: partner + (+-x), which rounds the same. Across registers two stages are
 * taken at once, so that a value is loaded and stored half as often. */
HH_TARGET_AVX2_BEGIN
HH_INLINE __m256 hh_stage8_avx2_(__m256 x_f32x8) {
    const __m256 odd1_f32x8 = _mm256_castsi256_ps(_mm256_setr_epi32(0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN));
    const __m256 odd2_f32x8 = _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, INT32_MIN, INT32_MIN, 0, 0, INT32_MIN, INT32_MIN));
    const __m256 odd4_f32x8 = _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, 0, 0, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN));
    x_f32x8 = _mm256_add_ps(_mm256_permute_ps(x_f32x8, 0xB1), _mm256_xor_ps(x_f32x8, odd1_f32x8));
    x_f32x8 = _mm256_add_ps(_mm256_permute_ps(x_f32x8, 0x4E), _mm256_xor_ps(x_f32x8, odd2_f32x8));
    return _mm256_add_ps(_mm256_permute2f128_ps(x_f32x8, x_f32x8, 0x01), _mm256_xor_ps(x_f32x8, odd4_f32x8));
}

HH_KERNEL void hh_hadamard_f32_avx2(float *x, ptrdiff_t block) {
    if (block < 8) { hh_hadamard_f32_scalar(x, block); return; }
    const __m256 scale_f32x8 = _mm256_set1_ps((float)(1.0 / sqrt((double)block)));
    for (ptrdiff_t i = 0; i < block; i += 8) _mm256_storeu_ps(x + i, hh_stage8_avx2_(_mm256_loadu_ps(x + i)));
    ptrdiff_t half = 8;
    for (; 4 * half <= block; half *= 4)
        for (ptrdiff_t start = 0; start < block; start += 4 * half)
            for (ptrdiff_t i = start; i < start + half; i += 8) {
                const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
                const __m256 c = _mm256_loadu_ps(x + i + 2 * half), d = _mm256_loadu_ps(x + i + 3 * half);
                const __m256 e = _mm256_add_ps(a, b), f = _mm256_sub_ps(a, b), g = _mm256_add_ps(c, d), h = _mm256_sub_ps(c, d);
                _mm256_storeu_ps(x + i, _mm256_add_ps(e, g)), _mm256_storeu_ps(x + i + half, _mm256_add_ps(f, h));
                _mm256_storeu_ps(x + i + 2 * half, _mm256_sub_ps(e, g)), _mm256_storeu_ps(x + i + 3 * half, _mm256_sub_ps(f, h));
            }
    for (ptrdiff_t i = 0; half < block && i < half; i += 8) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
        _mm256_storeu_ps(x + i, _mm256_add_ps(a, b)), _mm256_storeu_ps(x + i + half, _mm256_sub_ps(a, b));
    }
    for (ptrdiff_t i = 0; i < block; i += 8) _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), scale_f32x8));
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_INLINE __m512 hh_stage16_avx512_(__m512 x_f32x16) {
    const __m512i sign_i32x16 = _mm512_set1_epi32(INT32_MIN);
#define HH_FLIP(mask) _mm512_castsi512_ps(_mm512_mask_xor_epi32(_mm512_castps_si512(x_f32x16), mask, _mm512_castps_si512(x_f32x16), sign_i32x16))
    x_f32x16 = _mm512_add_ps(_mm512_permute_ps(x_f32x16, 0xB1), HH_FLIP(0xAAAA));
    x_f32x16 = _mm512_add_ps(_mm512_permute_ps(x_f32x16, 0x4E), HH_FLIP(0xCCCC));
    x_f32x16 = _mm512_add_ps(_mm512_shuffle_f32x4(x_f32x16, x_f32x16, 0xB1), HH_FLIP(0xF0F0));
    return _mm512_add_ps(_mm512_shuffle_f32x4(x_f32x16, x_f32x16, 0x4E), HH_FLIP(0xFF00));
#undef HH_FLIP
}

HH_KERNEL void hh_hadamard_f32_avx512(float *x, ptrdiff_t block) {
    if (block < 16) { hh_hadamard_f32_avx2(x, block); return; }
    const __m512 scale_f32x16 = _mm512_set1_ps((float)(1.0 / sqrt((double)block)));
    for (ptrdiff_t i = 0; i < block; i += 16) _mm512_storeu_ps(x + i, hh_stage16_avx512_(_mm512_loadu_ps(x + i)));
    ptrdiff_t half = 16;
    for (; 4 * half <= block; half *= 4)
        for (ptrdiff_t start = 0; start < block; start += 4 * half)
            for (ptrdiff_t i = start; i < start + half; i += 16) {
                const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + half);
                const __m512 c = _mm512_loadu_ps(x + i + 2 * half), d = _mm512_loadu_ps(x + i + 3 * half);
                const __m512 e = _mm512_add_ps(a, b), f = _mm512_sub_ps(a, b), g = _mm512_add_ps(c, d), h = _mm512_sub_ps(c, d);
                _mm512_storeu_ps(x + i, _mm512_add_ps(e, g)), _mm512_storeu_ps(x + i + half, _mm512_add_ps(f, h));
                _mm512_storeu_ps(x + i + 2 * half, _mm512_sub_ps(e, g)), _mm512_storeu_ps(x + i + 3 * half, _mm512_sub_ps(f, h));
            }
    for (ptrdiff_t i = 0; half < block && i < half; i += 16) {
        const __m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + half);
        _mm512_storeu_ps(x + i, _mm512_add_ps(a, b)), _mm512_storeu_ps(x + i + half, _mm512_sub_ps(a, b));
    }
    for (ptrdiff_t i = 0; i < block; i += 16) _mm512_storeu_ps(x + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), scale_f32x16));
}
HH_TARGET_END
#endif

HH_INLINE void hh_hadamard_f32(int tier, float *x, ptrdiff_t block) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) { hh_hadamard_f32_avx512(x, block); return; }
    if (tier >= HH_TIER_AVX2) { hh_hadamard_f32_avx2(x, block); return; }
#endif
    (void)tier;
    hh_hadamard_f32_scalar(x, block);
}

HH_INLINE void hh_flip_f32_(float *x, const float *signs, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) x[i] *= signs[i];
}

/* Rotate rows in place. */
HH_KERNEL void hh_rotate_f32(int tier, float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *signs) {
    const ptrdiff_t block = hh_rotation_block(n_cols);
    for (float *row = rows; row < rows + n_rows * n_cols; row += n_cols) {
        hh_flip_f32_(row, signs, n_cols);
        hh_hadamard_f32(tier, row, block);
        if (block == n_cols) continue;
        hh_flip_f32_(row, signs + n_cols, n_cols);
        hh_hadamard_f32(tier, row + n_cols - block, block);
    }
}

/* Rotate rows back in place. */
HH_KERNEL void hh_unrotate_f32(int tier, float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *signs) {
    const ptrdiff_t block = hh_rotation_block(n_cols);
    for (float *row = rows; row < rows + n_rows * n_cols; row += n_cols) {
        if (block != n_cols) {
            hh_hadamard_f32(tier, row + n_cols - block, block);
            hh_flip_f32_(row, signs + n_cols, n_cols);
        }
        hh_hadamard_f32(tier, row, block);
        hh_flip_f32_(row, signs, n_cols);
    }
}

#endif
