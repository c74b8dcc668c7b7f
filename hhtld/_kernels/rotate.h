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

HH_INLINE void hh_flip_f32_(float *x, const float *signs, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) x[i] *= signs[i];
}

/* Signs before or after the transform, where not NULL; a multiplication by +-1 is exact. */
HH_KERNEL void hh_hadamard_f32_scalar(float *x, ptrdiff_t block, const float *before, const float *after) {
    if (before) hh_flip_f32_(x, before, block);
    for (ptrdiff_t half = 1; half < block; half *= 2)
        for (ptrdiff_t start = 0; start < block; start += 2 * half)
            for (ptrdiff_t i = start; i < start + half; i++) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b, x[i + half] = a - b;
            }
    const float scale = (float)(1.0 / sqrt((double)block));
    for (ptrdiff_t i = 0; i < block; i++) x[i] *= scale;
    if (after) hh_flip_f32_(x, after, block);
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_INLINE __m256 hh_stage8_avx2_(__m256 x_f32x8) {
    const __m256 odd1_f32x8 =
        _mm256_castsi256_ps(_mm256_setr_epi32(0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN, 0, INT32_MIN));
    const __m256 odd2_f32x8 =
        _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, INT32_MIN, INT32_MIN, 0, 0, INT32_MIN, INT32_MIN));
    const __m256 odd4_f32x8 =
        _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, 0, 0, INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN));
    x_f32x8 = _mm256_add_ps(_mm256_permute_ps(x_f32x8, 0xB1), _mm256_xor_ps(x_f32x8, odd1_f32x8));
    x_f32x8 = _mm256_add_ps(_mm256_permute_ps(x_f32x8, 0x4E), _mm256_xor_ps(x_f32x8, odd2_f32x8));
    return _mm256_add_ps(_mm256_permute2f128_ps(x_f32x8, x_f32x8, 0x01), _mm256_xor_ps(x_f32x8, odd4_f32x8));
}

#define HH_F __m256
#define HH_LANES_F 8
#define HH_NAME(x) x##avx2
#define HH_LOAD(p) _mm256_loadu_ps(p)
#define HH_STORE(p, v) _mm256_storeu_ps(p, v)
#define HH_SET1(v) _mm256_set1_ps(v)
#define HH_ADD(a, b) _mm256_add_ps(a, b)
#define HH_SUB(a, b) _mm256_sub_ps(a, b)
#define HH_MUL(a, b) _mm256_mul_ps(a, b)
#define HH_WITHIN(v) hh_stage8_avx2_(v)
#include "rotate_body.h"

HH_KERNEL void hh_hadamard_f32_avx2(float *x, ptrdiff_t block, const float *before, const float *after) {
    if (block < 8) hh_hadamard_f32_scalar(x, block, before, after);
    else if (before) hh_hadamard_avx2(x, block, before, NULL);
    else hh_hadamard_avx2(x, block, NULL, after);
}
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
HH_INLINE __m512 hh_stage16_avx512_(__m512 x_f32x16) {
    const __m512i sign_i32x16 = _mm512_set1_epi32(INT32_MIN);
#define HH_FLIP(mask)    \
    _mm512_castsi512_ps( \
        _mm512_mask_xor_epi32(_mm512_castps_si512(x_f32x16), mask, _mm512_castps_si512(x_f32x16), sign_i32x16))
    x_f32x16 = _mm512_add_ps(_mm512_permute_ps(x_f32x16, 0xB1), HH_FLIP(0xAAAA));
    x_f32x16 = _mm512_add_ps(_mm512_permute_ps(x_f32x16, 0x4E), HH_FLIP(0xCCCC));
    x_f32x16 = _mm512_add_ps(_mm512_shuffle_f32x4(x_f32x16, x_f32x16, 0xB1), HH_FLIP(0xF0F0));
    return _mm512_add_ps(_mm512_shuffle_f32x4(x_f32x16, x_f32x16, 0x4E), HH_FLIP(0xFF00));
#undef HH_FLIP
}

#define HH_F __m512
#define HH_LANES_F 16
#define HH_NAME(x) x##avx512
#define HH_LOAD(p) _mm512_loadu_ps(p)
#define HH_STORE(p, v) _mm512_storeu_ps(p, v)
#define HH_SET1(v) _mm512_set1_ps(v)
#define HH_ADD(a, b) _mm512_add_ps(a, b)
#define HH_SUB(a, b) _mm512_sub_ps(a, b)
#define HH_MUL(a, b) _mm512_mul_ps(a, b)
#define HH_WITHIN(v) hh_stage16_avx512_(v)
#include "rotate_body.h"

HH_KERNEL void hh_hadamard_f32_avx512(float *x, ptrdiff_t block, const float *before, const float *after) {
    if (block < 16) hh_hadamard_f32_avx2(x, block, before, after);
    else if (before) hh_hadamard_avx512(x, block, before, NULL);
    else hh_hadamard_avx512(x, block, NULL, after);
}
HH_TARGET_END
#elif HH_NEON
HH_INLINE float32x4_t hh_stage4_neon_(float32x4_t x_f32x4) {
    static const uint32_t odd1[4] = {0, 0x80000000u, 0, 0x80000000u}, odd2[4] = {0, 0, 0x80000000u, 0x80000000u};
#define HH_FLIP(odd) vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x_f32x4), vld1q_u32(odd)))
    x_f32x4 = vaddq_f32(vrev64q_f32(x_f32x4), HH_FLIP(odd1));
    return vaddq_f32(vextq_f32(x_f32x4, x_f32x4, 2), HH_FLIP(odd2));
#undef HH_FLIP
}

#define HH_F float32x4_t
#define HH_LANES_F 4
#define HH_NAME(x) x##neon
#define HH_LOAD(p) vld1q_f32(p)
#define HH_STORE(p, v) vst1q_f32(p, v)
#define HH_SET1(v) vdupq_n_f32(v)
#define HH_ADD(a, b) vaddq_f32(a, b)
#define HH_SUB(a, b) vsubq_f32(a, b)
#define HH_MUL(a, b) vmulq_f32(a, b)
#define HH_WITHIN(v) hh_stage4_neon_(v)
#include "rotate_body.h"

HH_KERNEL void hh_hadamard_f32_neon(float *x, ptrdiff_t block, const float *before, const float *after) {
    if (block < 4) hh_hadamard_f32_scalar(x, block, before, after);
    else if (before) hh_hadamard_neon(x, block, before, NULL);
    else hh_hadamard_neon(x, block, NULL, after);
}
#endif

HH_INLINE void hh_hadamard_f32(int tier, float *x, ptrdiff_t block, const float *before, const float *after) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_hadamard_f32_avx512(x, block, before, after);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_hadamard_f32_avx2(x, block, before, after);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_hadamard_f32_neon(x, block, before, after);
        return;
    }
#endif
    (void)tier;
    hh_hadamard_f32_scalar(x, block, before, after);
}

/* Rotate rows in place. */
HH_KERNEL void hh_rotate_f32(int tier, float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *signs) {
    const ptrdiff_t block = hh_rotation_block(n_cols), rest = n_cols - block;
    for (float *row = rows; row < rows + n_rows * n_cols; row += n_cols) {
        hh_hadamard_f32(tier, row, block, signs, NULL);
        if (!rest) continue;
        hh_flip_f32_(row + block, signs + block, rest);
        hh_flip_f32_(row, signs + n_cols, rest);
        hh_hadamard_f32(tier, row + rest, block, signs + n_cols + rest, NULL);
    }
}

/* Rotate rows back in place. */
HH_KERNEL void hh_unrotate_f32(int tier, float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, const float *signs) {
    const ptrdiff_t block = hh_rotation_block(n_cols), rest = n_cols - block;
    for (float *row = rows; row < rows + n_rows * n_cols; row += n_cols) {
        if (rest) {
            hh_hadamard_f32(tier, row + rest, block, NULL, signs + n_cols + rest);
            hh_flip_f32_(row, signs + n_cols, rest);
            hh_flip_f32_(row + block, signs + block, rest);
        }
        hh_hadamard_f32(tier, row, block, NULL, signs);
    }
}

#endif
