/* Slot T: the bitshift trellis code of rotated rows.
 *
 * A row of n weights at rate p/16 bits is a little-endian bit stream of hh_bit_offset(n - 1) + L bits,
 * L = log2 of the number of states, hh_bit_offset(t) = t * p / 16 (floor). Weight t has the state
 * stream[offset(t), offset(t) + L) and the value gain * table[state], table being 2^L int8. So every
 * weight is decoded alone from a window of L bits, and from one weight to the next the state moves right by
 * offset(t) - offset(t - 1) bits, as many new bits entering at the top.
 *
 * The encoder is a Viterbi search in int16 with saturating arithmetic, the same integers on every tier.
 * With 1 sigma = 8192 units and `step` units a table level:
 *     x = clamp(rint(row[t] * (8192 / rms))), value = clamp(table[state] * step),
 *     apart = x - value, doubled `doublings` times, cost += apart * apart >> 16,
 * all saturating. Costs start at INT16_MIN and every HH_RENORMALISE steps the least is brought back
 * there. On a tie the lowest branch wins, at the end the lowest state. A squared sigma costs 1024, and
 * four times that with every doubling, which high rates need to tell small errors apart.
 *
 * The gain of a row is the least-squares one, sum(row * level) / sum(level * level) in float64, both summed
 * from the last weight to the first; 0 for a row of zeros and where every level is 0.
 *
 * Source: bitshift trellis of QTIP (arXiv 2406.11235, section 3); tables trained for this project.
 */
#ifndef HHTLD_TRELLIS_H
#define HHTLD_TRELLIS_H

#include <math.h>

#include "isa.h"

/* No rate takes more bits a weight than a state has, so every step has a group of states to come from. */
enum { HH_RENORMALISE = 8, HH_MIN_STATE_BITS = 7, HH_MAX_STATE_BITS = 12, HH_SIGMA = 8192, HH_TRELLIS_LANES = 32 };

/* First bit of weight t's window. */
HH_INLINE ptrdiff_t hh_bit_offset(ptrdiff_t t, int rate) { return t * rate / 16; }

HH_INLINE ptrdiff_t hh_trellis_row_nbytes(ptrdiff_t n_cols, int rate, int n_bits) {
    return n_cols ? (hh_bit_offset(n_cols - 1, rate) + n_bits + 7) / 8 : 0;
}

/* Bits that a branch number takes in the back-pointer words, and log2 of how many fit one. */
HH_INLINE int hh_back_width(int bits) { return bits <= 2 ? bits : bits <= 4 ? 4 : 8; }
HH_INLINE int hh_back_shift(int bits) { return bits == 1 ? 4 : bits == 2 ? 3 : bits <= 4 ? 2 : 1; }

/* ---- scalar: one row ---- */
#define HH_LANES_T 1
#define HH_V int16_t
#define HH_NAME(x) x##scalar
#define HH_LOAD(p) (*(p))
#define HH_STORE(p, v) (*(p) = (v))
#define HH_SET1(v) (v)
HH_INLINE int16_t hh_saturate_i16_(int32_t v) { return (int16_t)(v < INT16_MIN ? INT16_MIN : v > INT16_MAX ? INT16_MAX : v); }
#define HH_SUBS(a, b) hh_saturate_i16_((int32_t)(a) - (int32_t)(b))
#define HH_ADDS(a, b) hh_saturate_i16_((int32_t)(a) + (int32_t)(b))
#define HH_MULHI(a, b) (int16_t)(((int32_t)(a) * (int32_t)(b)) >> 16)
#define HH_MIN(a, b) ((a) < (b) ? (a) : (b))
#define HH_LT(a, b) ((a) < (b))
#define HH_SELECT(m, yes, no) ((m) ? (yes) : (no))
#define HH_SLL(a, n) (int16_t)((uint16_t)(a) << (n))
#define HH_OR(a, b) (int16_t)((a) | (b))
#include "trellis_body.h"

#if HH_X86
HH_TARGET_AVX2_BEGIN
#define HH_LANES_T 16
#define HH_V __m256i
#define HH_NAME(x) x##avx2
#define HH_LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define HH_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define HH_SET1(v) _mm256_set1_epi16(v)
#define HH_SUBS(a, b) _mm256_subs_epi16(a, b)
#define HH_ADDS(a, b) _mm256_adds_epi16(a, b)
#define HH_MULHI(a, b) _mm256_mulhi_epi16(a, b)
#define HH_MIN(a, b) _mm256_min_epi16(a, b)
#define HH_LT(a, b) _mm256_cmpgt_epi16(b, a)
#define HH_SELECT(m, yes, no) _mm256_blendv_epi8(no, yes, m)
#define HH_SLL(a, n) _mm256_slli_epi16(a, n)
#define HH_OR(a, b) _mm256_or_si256(a, b)
#include "trellis_body.h"
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
#define HH_LANES_T 32
#define HH_V __m512i
#define HH_NAME(x) x##avx512
#define HH_LOAD(p) _mm512_loadu_si512(p)
#define HH_STORE(p, v) _mm512_storeu_si512(p, v)
#define HH_SET1(v) _mm512_set1_epi16(v)
#define HH_SUBS(a, b) _mm512_subs_epi16(a, b)
#define HH_ADDS(a, b) _mm512_adds_epi16(a, b)
#define HH_MULHI(a, b) _mm512_mulhi_epi16(a, b)
#define HH_MIN(a, b) _mm512_min_epi16(a, b)
#define HH_LT(a, b) _mm512_cmplt_epi16_mask(a, b)
#define HH_SELECT(m, yes, no) _mm512_mask_mov_epi16(no, m, yes)
#define HH_SLL(a, n) _mm512_slli_epi16(a, n)
#define HH_OR(a, b) _mm512_or_si512(a, b)
#include "trellis_body.h"
HH_TARGET_END
#endif

/* ---- rows in, codes out ---- */

/* Scratch of the encoder; the caller owns the memory. Lanes travel 32 at a time at most. */
typedef struct {
    int16_t *x;      /* [n_cols][32] */
    int16_t *values; /* [2^L] */
    int16_t *costs;  /* [2][2^L][32] */
    int16_t *back;   /* [n_cols][back_words][32] */
    uint8_t *steps;  /* [n_cols][32] */
} hh_trellis_scratch;

HH_INLINE ptrdiff_t hh_back_words(int rate, int n_bits) {
    ptrdiff_t most = 1;
    for (int bits = rate / 16; bits <= (rate + 15) / 16; bits++) {
        const ptrdiff_t words = ((ptrdiff_t)1 << (n_bits - bits)) >> hh_back_shift(bits);
        if (words > most) most = words;
    }
    return most;
}

HH_INLINE int hh_trellis_doublings(int rate) { return rate < 56 ? 0 : rate < 68 ? 1 : rate < 76 ? 2 : 3; }

HH_INLINE double hh_row_norm2_(const float *row, ptrdiff_t n_cols) {
    double lane[16] = {0};
    const ptrdiff_t whole = n_cols - n_cols % 16;
    for (ptrdiff_t j = 0; j < whole; j += 16)
        for (int i = 0; i < 16; i++) lane[i] += (double)row[j + i] * (double)row[j + i];
    for (int i = 0; i < (int)(n_cols % 16); i++) lane[i] += (double)row[whole + i] * (double)row[whole + i];
    return hh_tree16_f64(lane);
}

/* A row as int16 into lane `lane` of x; rint by adding 1.5 * 2^52. */
HH_INLINE void hh_quantize_row_(const float *row, ptrdiff_t n_cols, int lanes, int lane, int16_t *x) {
    const double norm2 = hh_row_norm2_(row, n_cols);
    const double inverse = norm2 > 0 ? HH_SIGMA * sqrt((double)n_cols / norm2) : 0.0;
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        double scaled = (double)row[t] * inverse; /* float64: 1 / rms of a denormal row passes float32 */
        scaled = scaled > -32767.0 ? scaled : -32767.0; /* so a NaN never meets the cast */
        scaled = scaled < 32767.0 ? scaled : 32767.0;
        x[t * lanes + lane] = (int16_t)((scaled + 6755399441055744.0) - 6755399441055744.0);
    }
}

/* One lane's steps to the row's bit stream, and the gain. */
HH_INLINE float hh_pack_row_(const float *row, ptrdiff_t n_cols, int rate, int n_bits, const int8_t *table, int lanes,
                             int lane, const uint8_t *steps, unsigned last, uint8_t *codes) {
    uint64_t held = 0;
    int n_held = 0;
    uint8_t *out = codes;
    for (ptrdiff_t t = 1; t < n_cols; t++) {
        const int bits = (int)(hh_bit_offset(t, rate) - hh_bit_offset(t - 1, rate));
        held |= (uint64_t)steps[t * lanes + lane] << n_held;
        n_held += bits;
        if (n_held >= 32) {
            const uint32_t word = (uint32_t)held;
            memcpy(out, &word, 4);
            out += 4, held >>= 32, n_held -= 32;
        }
    }
    held |= (uint64_t)last << n_held;
    for (n_held += n_bits; n_held > 0; n_held -= 8, held >>= 8) *out++ = (uint8_t)held;
    /* the state again, from the last weight to the first, for the sums of the gain */
    double cross = 0, own = 0;
    unsigned state = last;
    for (ptrdiff_t t = n_cols - 1; t >= 0; t--) {
        const double level = table[state];
        cross += (double)row[t] * level, own += level * level;
        if (t) {
            const int bits = (int)(hh_bit_offset(t, rate) - hh_bit_offset(t - 1, rate));
            state = ((state << bits) | steps[t * lanes + lane]) & ((1u << n_bits) - 1u);
        }
    }
    return own > 0 ? (float)(cross / own) : 0.0f;
}

HH_KERNEL void hh_trellis_encode(int tier, const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                 const int8_t *table, int step, hh_trellis_scratch scratch, uint8_t *codes,
                                 float *gains) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits), words = hh_back_words(rate, n_bits);
    const int doublings = hh_trellis_doublings(rate);
    for (ptrdiff_t s = 0; s < (ptrdiff_t)1 << n_bits; s++) {
        const int value = table[s] * step;
        scratch.values[s] = (int16_t)(value < -32767 ? -32767 : value > 32767 ? 32767 : value);
    }
#if HH_X86
    const int lanes = tier >= HH_TIER_AVX512 ? 32 : tier >= HH_TIER_AVX2 ? 16 : 1;
#else
    const int lanes = 1;
#endif
    for (ptrdiff_t first = 0; first < n_rows; first += lanes) {
        const int count = (int)(n_rows - first < lanes ? n_rows - first : lanes);
        uint16_t last[HH_TRELLIS_LANES];
        if (count < lanes) memset(scratch.x, 0, (size_t)(n_cols * lanes) * sizeof(int16_t));
        for (int lane = 0; lane < count; lane++)
            hh_quantize_row_(rows + (first + lane) * n_cols, n_cols, lanes, lane, scratch.x);
#if HH_X86
        if (lanes == 32)
            hh_viterbi_avx512(scratch.x, n_cols, rate, n_bits, doublings, scratch.values, scratch.costs, scratch.back, words, scratch.steps, last);
        else if (lanes == 16)
            hh_viterbi_avx2(scratch.x, n_cols, rate, n_bits, doublings, scratch.values, scratch.costs, scratch.back, words, scratch.steps, last);
        else
#endif
            hh_viterbi_scalar(scratch.x, n_cols, rate, n_bits, doublings, scratch.values, scratch.costs, scratch.back, words, scratch.steps, last);
        for (int lane = 0; lane < count; lane++) {
            const ptrdiff_t row = first + lane;
            gains[row] = hh_pack_row_(rows + row * n_cols, n_cols, rate, n_bits, table, lanes, lane, scratch.steps,
                                      last[lane], codes + row * row_nbytes);
        }
    }
    (void)tier;
}

/* ---- codes in, levels out ---- */

/* The table levels of one row. Windows are read 4 bytes at a time (offset of at most 7 + L bits = 19),
 * the last of them from a padded copy. */
HH_INLINE unsigned hh_window_(const uint8_t *codes, ptrdiff_t bit, unsigned mask) {
    uint32_t word;
    memcpy(&word, codes + (bit >> 3), 4);
    return (word >> (bit & 7)) & mask;
}

/* Rows are copied to `padded` (row_nbytes + 64 bytes) so that wide loads stay inside. */
HH_KERNEL void hh_levels_scalar(const uint8_t *padded, ptrdiff_t first, ptrdiff_t n_cols, int rate, int n_bits,
                                 const int8_t *table, float gain, float *out) {
    const unsigned mask = (1u << n_bits) - 1u;
    for (ptrdiff_t t = first; t < n_cols; t++) out[t] = gain * (float)table[hh_window_(padded, hh_bit_offset(t, rate), mask)];
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
/* 8 weights: each lane gathers the dword that holds its window, shifts, masks, gathers its level. */
HH_KERNEL void hh_levels_avx2(const uint8_t *padded, ptrdiff_t n_cols, int rate, int n_bits, const int32_t *table,
                               float gain, float *out) {
    const __m256i mask_i32x8 = _mm256_set1_epi32((1 << n_bits) - 1);
    int32_t offsets[16];
    for (int t = 0; t < 16; t++) offsets[t] = (int32_t)hh_bit_offset(t, rate);
    const __m256i low_i32x8 = _mm256_loadu_si256((const __m256i *)offsets), high_i32x8 = _mm256_loadu_si256((const __m256i *)(offsets + 8));
    const __m256 gain_f32x8 = _mm256_set1_ps(gain);
    ptrdiff_t t = 0;
    for (; t + 16 <= n_cols; t += 16) { /* 16 weights take exactly `rate` bits */
        const ptrdiff_t bit = t / 16 * rate;
        const int *const base = (const int *)(const void *)(padded + (bit >> 3));
        const __m256i at_i32x8 = _mm256_set1_epi32((int)(bit & 7));
        for (int half = 0; half < 2; half++) {
            const __m256i offset_i32x8 = _mm256_add_epi32(half ? high_i32x8 : low_i32x8, at_i32x8);
            const __m256i word_i32x8 = _mm256_i32gather_epi32(base, _mm256_srli_epi32(offset_i32x8, 3), 1);
            const __m256i state_i32x8 = _mm256_and_si256(_mm256_srlv_epi32(word_i32x8, _mm256_and_si256(offset_i32x8, _mm256_set1_epi32(7))), mask_i32x8);
            const __m256i level_i32x8 = _mm256_i32gather_epi32(table, state_i32x8, 4);
            _mm256_storeu_ps(out + t + 8 * half, _mm256_mul_ps(gain_f32x8, _mm256_cvtepi32_ps(level_i32x8)));
        }
    }
    const unsigned mask = (1u << n_bits) - 1u;
    for (; t < n_cols; t++) out[t] = gain * (float)table[hh_window_(padded, hh_bit_offset(t, rate), mask)];
}
HH_TARGET_END

HH_TARGET_AVX512VNNI_BEGIN
/* 16 weights: one 16-byte load at the group's first byte holds all of their windows (96 + 7 + 12 bits at most);
 * vpermb brings each lane its 4 bytes, a variable shift and a mask leave the state. Tables of 256 levels
 * are looked up in registers, larger ones by gather. */
HH_KERNEL void hh_levels_avx512vnni(const uint8_t *padded, ptrdiff_t n_cols, int rate, int n_bits, const int8_t *bytes,
                                     const int32_t *table, float gain, float *out) {
    const __m512i mask_i32x16 = _mm512_set1_epi32((1 << n_bits) - 1);
    const __m512 gain_f32x16 = _mm512_set1_ps(gain);
    __m512i spread_i8x64[8], shift_i32x16[8]; /* by the group's first bit within its byte */
    for (int at = 0; at < 8; at++) {
        int8_t spread[64];
        int32_t shift[16];
        for (int t = 0; t < 16; t++) {
            const int bit = at + (int)hh_bit_offset(t, rate);
            for (int b = 0; b < 4; b++) spread[4 * t + b] = (int8_t)((bit >> 3) + b < 15 ? (bit >> 3) + b : 15);
            shift[t] = bit & 7;
        }
        spread_i8x64[at] = _mm512_loadu_si512(spread);
        shift_i32x16[at] = _mm512_loadu_si512(shift);
    }
    __m512i part_i8x64[4];
    if (n_bits == 8)
        for (int part = 0; part < 4; part++) part_i8x64[part] = _mm512_loadu_si512(bytes + 64 * part);
    ptrdiff_t t = 0;
    for (; t + 16 <= n_cols; t += 16) {
        const ptrdiff_t bit = t / 16 * rate;
        const __m512i bytes_i8x64 = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(padded + (bit >> 3))));
        const int at = (int)(bit & 7);
        const __m512i word_i32x16 = _mm512_permutexvar_epi8(spread_i8x64[at], bytes_i8x64);
        const __m512i state_i32x16 = _mm512_and_si512(_mm512_srlv_epi32(word_i32x16, shift_i32x16[at]), mask_i32x16);
        __m512i level_i32x16;
        if (n_bits == 8) {
            const __m512i low_i8x64 = _mm512_permutex2var_epi8(part_i8x64[0], state_i32x16, part_i8x64[1]);
            const __m512i high_i8x64 = _mm512_permutex2var_epi8(part_i8x64[2], state_i32x16, part_i8x64[3]);
            const __m512i level_i8x64 = _mm512_mask_mov_epi8(low_i8x64, _mm512_movepi8_mask(state_i32x16), high_i8x64);
            level_i32x16 = _mm512_srai_epi32(_mm512_slli_epi32(level_i8x64, 24), 24);
        } else {
            level_i32x16 = _mm512_i32gather_epi32(state_i32x16, table, 4);
        }
        _mm512_storeu_ps(out + t, _mm512_mul_ps(gain_f32x16, _mm512_cvtepi32_ps(level_i32x16)));
    }
    const unsigned mask = (1u << n_bits) - 1u;
    for (; t < n_cols; t++) out[t] = gain * (float)table[hh_window_(padded, hh_bit_offset(t, rate), mask)];
}
HH_TARGET_END
#endif

/* Write gain * level of every weight: rotated rows. `padded` is scratch of row_nbytes + 64 bytes, `wide` of
 * 2^L int32. */
HH_KERNEL void hh_trellis_decode(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                 const int8_t *table, const float *gains, uint8_t *padded, int32_t *wide, float *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    for (ptrdiff_t s = 0; s < (ptrdiff_t)1 << n_bits; s++) wide[s] = table[s];
    memset(padded, 0, (size_t)row_nbytes + 64);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        memcpy(padded, codes + r * row_nbytes, (size_t)row_nbytes);
#if HH_X86
        if (tier >= HH_TIER_AVX512VNNI) { hh_levels_avx512vnni(padded, n_cols, rate, n_bits, table, wide, gains[r], out + r * n_cols); continue; }
        if (tier >= HH_TIER_AVX2) { hh_levels_avx2(padded, n_cols, rate, n_bits, wide, gains[r], out + r * n_cols); continue; }
#endif
        hh_levels_scalar(padded, 0, n_cols, rate, n_bits, table, gains[r], out + r * n_cols);
    }
    (void)tier;
}

#endif
