/* Conversions between float32 and the 16- and 8-bit floats, and the search for a non-finite value.
 *
 * 16-bit floats travel as their bits. Widening is exact; a signalling NaN comes out quiet.
 * Narrowing rounds to nearest, ties to even (hh_narrow_f32_*), overflows to infinity and keeps a
 * NaN a quiet NaN; hh_truncate_f32_bf16 drops the low 16 bits instead, which is the wire rule of
 * Slot V and of the SVD basis (a NaN whose payload lies in those bits would become an infinity,
 * so its callers pass finite values). No alignment is needed beyond the element's own.
 */
#ifndef HHTLD_CAST_H
#define HHTLD_CAST_H

#include "isa.h"

HH_INLINE uint32_t hh_bits_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

HH_INLINE float hh_f32_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* ---- scalar ---- */

HH_INLINE uint32_t hh_widen_bf16_one(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    return (wide & 0x7FFFFFFFu) > 0x7F800000u ? wide | 0x00400000u : wide;
}

HH_INLINE uint32_t hh_widen_f16_one(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 0x1Fu;
    uint32_t mantissa = half & 0x3FFu;
    if (exponent == 31) return sign | 0x7F800000u | (mantissa << 13) | (mantissa ? 0x00400000u : 0u);
    if (exponent) return sign | ((exponent + 112u) << 23) | (mantissa << 13);
    if (!mantissa) return sign;
    uint32_t shifted = 113; /* a subnormal half is a normal float */
    while (!(mantissa & 0x400u)) mantissa <<= 1, shifted--;
    return sign | (shifted << 23) | ((mantissa & 0x3FFu) << 13);
}

HH_INLINE uint16_t hh_narrow_bf16_one(uint32_t bits) {
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

HH_INLINE uint16_t hh_narrow_f16_one(uint32_t bits) {
    const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | ((magnitude >> 13) & 0x3FFu));
    if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* >= 65520 */
    if (magnitude < 0x33000000u) return sign;                       /* < 2^-25; the tie itself is even */
    uint32_t mantissa, drop, base;
    if (magnitude >= 0x38800000u) { /* normal half */
        mantissa = magnitude & 0x7FFFFFu;
        drop = 13;
        base = ((magnitude >> 23) - 112u) << 10;
    } else { /* subnormal half: the hidden bit shifts into view */
        mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
        drop = 126u - (magnitude >> 23);
        base = 0;
    }
    const uint32_t kept = mantissa >> drop, rest = mantissa & ((1u << drop) - 1u);
    const uint32_t half = 1u << (drop - 1u);
    return (uint16_t)(sign | (base + kept + (rest > half || (rest == half && (kept & 1u)))));
}

HH_KERNEL void hh_widen_bf16_scalar(const uint16_t *in, float *out, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = hh_f32_bits(hh_widen_bf16_one(in[i]));
}

HH_KERNEL void hh_widen_f16_scalar(const uint16_t *in, float *out, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = hh_f32_bits(hh_widen_f16_one(in[i]));
}

/* Every 8-bit float has 256 values; `table` (256 float32) says which format it is. */
HH_KERNEL void hh_widen_f8_scalar(const uint8_t *in, const float *table, float *out, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = table[in[i]];
}

HH_KERNEL void hh_narrow_f32_bf16_scalar(const float *in, uint16_t *out, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = hh_narrow_bf16_one(hh_bits_f32(in[i]));
}

HH_KERNEL void hh_narrow_f32_f16_scalar(const float *in, uint16_t *out, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = hh_narrow_f16_one(hh_bits_f32(in[i]));
}

HH_KERNEL void hh_truncate_f32_bf16_scalar(const float *in, uint16_t *out, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = (uint16_t)(hh_bits_f32(in[i]) >> 16);
}

/* Index of the first infinity or NaN, or -1. */
HH_KERNEL ptrdiff_t hh_first_nonfinite_f32_scalar(const float *in, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++)
        if ((hh_bits_f32(in[i]) & 0x7F800000u) == 0x7F800000u) return i;
    return -1;
}

/* The same of bfloat16: gains, two bytes a row, which no tier needs to be faster for. */
HH_KERNEL ptrdiff_t hh_first_nonfinite_bf16_scalar(const uint16_t *in, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++)
        if ((in[i] & 0x7F80) == 0x7F80) return i;
    return -1;
}

/* ---- AVX2 ---- */

#if HH_X86
HH_TARGET_AVX2_BEGIN
HH_KERNEL void hh_widen_bf16_avx2(const uint16_t *in, float *out, ptrdiff_t count) {
    const __m256i magnitude_i32x8 = _mm256_set1_epi32(0x7FFFFFFF), infinity_i32x8 = _mm256_set1_epi32(0x7F800000),
                  quiet_i32x8 = _mm256_set1_epi32(0x00400000);
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i wide_i32x8 =
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(in + i))), 16);
        const __m256i nan_i32x8 = _mm256_cmpgt_epi32(_mm256_and_si256(wide_i32x8, magnitude_i32x8), infinity_i32x8);
        _mm256_storeu_si256((__m256i *)(out + i),
                            _mm256_or_si256(wide_i32x8, _mm256_and_si256(nan_i32x8, quiet_i32x8)));
    }
    hh_widen_bf16_scalar(in + i, out + i, count - i);
}

HH_KERNEL void hh_widen_f16_avx2(const uint16_t *in, float *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(in + i))));
    hh_widen_f16_scalar(in + i, out + i, count - i);
}

HH_KERNEL void hh_narrow_f32_bf16_avx2(const float *in, uint16_t *out, ptrdiff_t count) {
    const __m256i magnitude_i32x8 = _mm256_set1_epi32(0x7FFFFFFF), infinity_i32x8 = _mm256_set1_epi32(0x7F800000);
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i bits_i32x8 = _mm256_loadu_si256((const __m256i *)(in + i));
        const __m256i top_i32x8 = _mm256_srli_epi32(bits_i32x8, 16);
        const __m256i odd_i32x8 = _mm256_and_si256(top_i32x8, _mm256_set1_epi32(1));
        const __m256i near_i32x8 =
            _mm256_srli_epi32(_mm256_add_epi32(bits_i32x8, _mm256_add_epi32(odd_i32x8, _mm256_set1_epi32(0x7FFF))), 16);
        const __m256i nan_i32x8 = _mm256_cmpgt_epi32(_mm256_and_si256(bits_i32x8, magnitude_i32x8), infinity_i32x8);
        const __m256i quiet_i32x8 = _mm256_or_si256(top_i32x8, _mm256_set1_epi32(0x40));
        const __m256i kept_i32x8 = _mm256_blendv_epi8(near_i32x8, quiet_i32x8, nan_i32x8);
        const __m256i packed_i16x16 = _mm256_permute4x64_epi64(_mm256_packus_epi32(kept_i32x8, kept_i32x8), 0x08);
        _mm_storeu_si128((__m128i *)(out + i), _mm256_castsi256_si128(packed_i16x16));
    }
    hh_narrow_f32_bf16_scalar(in + i, out + i, count - i);
}

HH_KERNEL void hh_narrow_f32_f16_avx2(const float *in, uint16_t *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(out + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    hh_narrow_f32_f16_scalar(in + i, out + i, count - i);
}

HH_KERNEL ptrdiff_t hh_first_nonfinite_f32_avx2(const float *in, ptrdiff_t count) {
    const __m256i exponent_i32x8 = _mm256_set1_epi32(0x7F800000);
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const __m256i bits_i32x8 = _mm256_loadu_si256((const __m256i *)(in + i));
        const __m256i bad_i32x8 = _mm256_cmpeq_epi32(_mm256_and_si256(bits_i32x8, exponent_i32x8), exponent_i32x8);
        if (!_mm256_testz_si256(bad_i32x8, bad_i32x8)) return i + hh_first_nonfinite_f32_scalar(in + i, 8);
    }
    const ptrdiff_t rest = hh_first_nonfinite_f32_scalar(in + i, count - i);
    return rest < 0 ? -1 : i + rest;
}
HH_TARGET_END

/* ---- AVX-512: only where the wider register pays; the rest is bound by memory already ---- */

HH_TARGET_AVX512_BEGIN
HH_KERNEL void hh_widen_bf16_avx512(const uint16_t *in, float *out, ptrdiff_t count) {
    const __m512i magnitude_i32x16 = _mm512_set1_epi32(0x7FFFFFFF), infinity_i32x16 = _mm512_set1_epi32(0x7F800000),
                  quiet_i32x16 = _mm512_set1_epi32(0x00400000);
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512i wide_i32x16 =
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(in + i))), 16);
        const __mmask16 nan = _mm512_cmpgt_epi32_mask(_mm512_and_si512(wide_i32x16, magnitude_i32x16), infinity_i32x16);
        _mm512_storeu_si512(out + i, _mm512_mask_or_epi32(wide_i32x16, nan, wide_i32x16, quiet_i32x16));
    }
    hh_widen_bf16_scalar(in + i, out + i, count - i);
}

HH_KERNEL void hh_widen_f16_avx512(const uint16_t *in, float *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(in + i))));
    hh_widen_f16_scalar(in + i, out + i, count - i);
}

HH_KERNEL ptrdiff_t hh_first_nonfinite_f32_avx512(const float *in, ptrdiff_t count) {
    const __m512i exponent_i32x16 = _mm512_set1_epi32(0x7F800000);
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const __m512i bits_i32x16 = _mm512_loadu_si512(in + i);
        if (_mm512_cmpeq_epi32_mask(_mm512_and_si512(bits_i32x16, exponent_i32x16), exponent_i32x16))
            return i + hh_first_nonfinite_f32_scalar(in + i, 16);
    }
    const ptrdiff_t rest = hh_first_nonfinite_f32_scalar(in + i, count - i);
    return rest < 0 ? -1 : i + rest;
}
HH_TARGET_END
#elif HH_NEON

/* ---- NEON ---- */

HH_KERNEL void hh_widen_bf16_neon(const uint16_t *in, float *out, ptrdiff_t count) {
    const uint32x4_t infinity_u32x4 = vdupq_n_u32(0xFF000000u), quiet_u32x4 = vdupq_n_u32(0x00400000u);
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const uint16x8_t bits_u16x8 = vld1q_u16(in + i);
        const uint32x4_t wide_u32x4[2] = {vshll_n_u16(vget_low_u16(bits_u16x8), 16), vshll_high_n_u16(bits_u16x8, 16)};
        for (int half = 0; half < 2; half++) { /* shifted once more, the sign is gone */
            const uint32x4_t nan_u32x4 = vcgtq_u32(vshlq_n_u32(wide_u32x4[half], 1), infinity_u32x4);
            vst1q_f32(out + i + 4 * half,
                      vreinterpretq_f32_u32(vorrq_u32(wide_u32x4[half], vandq_u32(nan_u32x4, quiet_u32x4))));
        }
    }
    hh_widen_bf16_scalar(in + i, out + i, count - i);
}

HH_KERNEL void hh_widen_f16_neon(const uint16_t *in, float *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const float16x8_t half_f16x8 = vreinterpretq_f16_u16(vld1q_u16(in + i));
        vst1q_f32(out + i, vcvt_f32_f16(vget_low_f16(half_f16x8)));
        vst1q_f32(out + i + 4, vcvt_high_f32_f16(half_f16x8));
    }
    hh_widen_f16_scalar(in + i, out + i, count - i);
}

HH_INLINE uint32x4_t hh_narrow_bf16_neon_(uint32x4_t bits_u32x4) {
    const uint32x4_t odd_u32x4 = vandq_u32(vshrq_n_u32(bits_u32x4, 16), vdupq_n_u32(1));
    const uint32x4_t near_u32x4 = vaddq_u32(vaddq_u32(bits_u32x4, odd_u32x4), vdupq_n_u32(0x7FFF));
    const uint32x4_t nan_u32x4 = vcgtq_u32(vshlq_n_u32(bits_u32x4, 1), vdupq_n_u32(0xFF000000u));
    return vbslq_u32(nan_u32x4, vorrq_u32(bits_u32x4, vdupq_n_u32(0x00400000u)), near_u32x4);
}

HH_KERNEL void hh_narrow_f32_bf16_neon(const float *in, uint16_t *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8) {
        const uint32x4_t low_u32x4 = hh_narrow_bf16_neon_(vreinterpretq_u32_f32(vld1q_f32(in + i)));
        const uint32x4_t high_u32x4 = hh_narrow_bf16_neon_(vreinterpretq_u32_f32(vld1q_f32(in + i + 4)));
        vst1q_u16(out + i, vuzp2q_u16(vreinterpretq_u16_u32(low_u32x4), vreinterpretq_u16_u32(high_u32x4)));
    }
    hh_narrow_f32_bf16_scalar(in + i, out + i, count - i);
}

HH_KERNEL void hh_narrow_f32_f16_neon(const float *in, uint16_t *out, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + 8 <= count; i += 8)
        vst1q_u16(out + i,
                  vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(vld1q_f32(in + i)), vld1q_f32(in + i + 4))));
    hh_narrow_f32_f16_scalar(in + i, out + i, count - i);
}

HH_KERNEL ptrdiff_t hh_first_nonfinite_f32_neon(const float *in, ptrdiff_t count) {
    const uint32x4_t exponent_u32x4 = vdupq_n_u32(0x7F800000u);
    ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) {
        uint32x4_t bad_u32x4 = vdupq_n_u32(0);
        for (int j = 0; j < 16; j += 4) {
            const uint32x4_t bits_u32x4 = vreinterpretq_u32_f32(vld1q_f32(in + i + j));
            bad_u32x4 = vorrq_u32(bad_u32x4, vceqq_u32(vandq_u32(bits_u32x4, exponent_u32x4), exponent_u32x4));
        }
        if (vmaxvq_u32(bad_u32x4)) return i + hh_first_nonfinite_f32_scalar(in + i, 16);
    }
    const ptrdiff_t rest = hh_first_nonfinite_f32_scalar(in + i, count - i);
    return rest < 0 ? -1 : i + rest;
}
#endif

/* ---- selection ---- */

HH_KERNEL void hh_widen_bf16(int tier, const uint16_t *in, float *out, ptrdiff_t count) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_widen_bf16_avx512(in, out, count);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_widen_bf16_avx2(in, out, count);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_widen_bf16_neon(in, out, count);
        return;
    }
#endif
    (void)tier;
    hh_widen_bf16_scalar(in, out, count);
}

HH_KERNEL void hh_widen_f16(int tier, const uint16_t *in, float *out, ptrdiff_t count) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_widen_f16_avx512(in, out, count);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_widen_f16_avx2(in, out, count);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_widen_f16_neon(in, out, count);
        return;
    }
#endif
    (void)tier;
    hh_widen_f16_scalar(in, out, count);
}

HH_KERNEL void hh_narrow_f32_bf16(int tier, const float *in, uint16_t *out, ptrdiff_t count) {
#if HH_X86
    if (tier >= HH_TIER_AVX2) {
        hh_narrow_f32_bf16_avx2(in, out, count);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_narrow_f32_bf16_neon(in, out, count);
        return;
    }
#endif
    (void)tier;
    hh_narrow_f32_bf16_scalar(in, out, count);
}

HH_KERNEL void hh_narrow_f32_f16(int tier, const float *in, uint16_t *out, ptrdiff_t count) {
#if HH_X86
    if (tier >= HH_TIER_AVX2) {
        hh_narrow_f32_f16_avx2(in, out, count);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_narrow_f32_f16_neon(in, out, count);
        return;
    }
#endif
    (void)tier;
    hh_narrow_f32_f16_scalar(in, out, count);
}

HH_KERNEL ptrdiff_t hh_first_nonfinite_f32(int tier, const float *in, ptrdiff_t count) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) return hh_first_nonfinite_f32_avx512(in, count);
    if (tier >= HH_TIER_AVX2) return hh_first_nonfinite_f32_avx2(in, count);
#elif HH_NEON
    if (tier >= HH_TIER_NEON) return hh_first_nonfinite_f32_neon(in, count);
#endif
    (void)tier;
    return hh_first_nonfinite_f32_scalar(in, count);
}

#endif
