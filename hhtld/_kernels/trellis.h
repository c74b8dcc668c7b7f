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
 *     apart = x - value, wide = apart doubled `doublings` times,
 *     cost += (wide * wide >> 16) + (doublings ? apart * apart >> 16 : 0),
 * all saturating. Costs start at INT16_MIN and every HH_RENORMALISE steps the least is brought back
 * there. On a tie the lowest branch wins, at the end the lowest state. A squared sigma costs 1024, and
 * four times that with every doubling, which high rates need to tell small errors apart.
 *
 * The gain of a row is the least-squares one, sum(row * level) / sum(level * level) in float64, both summed
 * from the last weight to the first; 0 for a row of zeros and where every level is 0.
 *
 * Feedback: what a weight lost may be told to weights that are not coded yet. Weights are settled in blocks of
 * HH_FEEDBACK_BLOCK, each when the search is HH_FEEDBACK_AHEAD weights past it: the path of the cheapest state is kept
 * there, its errors go to all targets behind the block, targets[j] += matrix[j][k] * error[k], k ascending, each product
 * and sum rounded to float32, and the search goes on from the block's last state; any other costs INT16_MAX there. Targets
 * start as row * (8192 / rms) in float32, an error is its target less the value of its state. The last weights, a block
 * or less, are not settled. The gain is then that of the targets, brought back from units.
 *
 * Wide rows, of more than HH_WHOLE_COLS weights, are searched in pieces, side by side as rows are, so that few of them
 * take neither 32 times the time nor the memory of their width. Pieces are about a multiple of 32 in number, and begin
 * at multiples of 16 weights, where bits enter as they do at the row's begin. First the weights where pieces meet are
 * given their states: those of the cheapest path through the HH_SEAM_COLS weights around. Then each piece takes the
 * cheapest path between its two states. Rows with feedback are never cut.
 *
 * A ring is a row whose last windows go on with its first bits, so that n weights take hh_bit_offset(n) bits. It is
 * searched as a piece that begins and ends at one state: that of weight 0 on the cheapest path through the last and the
 * first HH_RING_COLS / 2 weights. Its codes here are those of any row, whose last bits are its first ones once more;
 * hh_ring_open makes them of the bits that a file holds.
 *
 * Source: bitshift trellis of QTIP (arXiv 2406.11235, section 3); tables trained for this project.
 */
#ifndef HHTLD_TRELLIS_H
#define HHTLD_TRELLIS_H

#include <math.h>

#include "isa.h"

enum { HH_FEEDBACK_BLOCK = 32, HH_FEEDBACK_AHEAD = 32 };

typedef struct {
    const float *matrix; /* [n_cols][n_cols]; NULL without feedback */
    float *targets;      /* [n_cols][lanes] */
    float *errors;       /* [HH_FEEDBACK_BLOCK][lanes] */
} hh_feedback;

/* No rate takes more bits a weight than a state has, so every step has a group of states to come from. */
enum { HH_RENORMALISE = 8, HH_MIN_STATE_BITS = 7, HH_MAX_STATE_BITS = 12, HH_SIGMA = 8192, HH_TRELLIS_LANES = 32 };

enum { HH_WHOLE_COLS = 65536, HH_PIECE_COLS = 4096, HH_SEAM_COLS = 256, HH_RING_COLS = 64 };

/* First bit of weight t's window. */
HH_INLINE ptrdiff_t hh_bit_offset(ptrdiff_t t, int rate) { return t * rate / 16; }

/* How many bits enter on the way from weight t - 1 to weight t. */
HH_INLINE int hh_step_bits(ptrdiff_t t, int rate) { return (int)(hh_bit_offset(t, rate) - hh_bit_offset(t - 1, rate)); }

HH_INLINE ptrdiff_t hh_trellis_row_nbytes(ptrdiff_t n_cols, int rate, int n_bits) {
    return n_cols ? (hh_bit_offset(n_cols - 1, rate) + n_bits + 7) / 8 : 0;
}

/* The same of a ring, without the bits that it has twice. */
HH_INLINE ptrdiff_t hh_ring_nbytes(ptrdiff_t n_cols, int rate) { return (hh_bit_offset(n_cols, rate) + 7) / 8; }

/* Weights from one piece of a wide row to the next. */
HH_INLINE ptrdiff_t hh_piece_cols(ptrdiff_t n_cols) {
    const ptrdiff_t turns = (n_cols + 32 * HH_PIECE_COLS - 1) / (32 * HH_PIECE_COLS), n_pieces = 32 * turns;
    return ((n_cols + n_pieces - 1) / n_pieces + 15) / 16 * 16;
}

/* Weights of a piece with the first of the next one: 1 to 16 more, so that the last piece ends where the row does. */
HH_INLINE ptrdiff_t hh_piece_reach(ptrdiff_t n_cols) { return hh_piece_cols(n_cols) + (n_cols + 15) % 16 + 1; }

/* Weights that one search takes: all of a row's, or as many as a piece and a seam need. */
HH_INLINE ptrdiff_t hh_search_cols(ptrdiff_t n_cols, ptrdiff_t whole) {
    if (n_cols <= whole) return n_cols; /* a row of no weights has no pieces */
    const ptrdiff_t reach = hh_piece_reach(n_cols), most = reach > HH_SEAM_COLS ? reach : HH_SEAM_COLS;
    return n_cols > most ? most : n_cols;
}

/* Bits that a branch number takes in the back-pointer words, and log2 of how many fit one. */
HH_INLINE int hh_back_width(int bits) { return bits <= 2 ? bits : bits <= 4 ? 4 : 8; }
HH_INLINE int hh_back_shift(int bits) { return bits == 1 ? 4 : bits == 2 ? 3 : bits <= 4 ? 2 : 1; }

/* log2 of how many groups that lie beside each other a step takes at once, if they have few branches. */
HH_INLINE int hh_beside_bits(int bits) { return bits < 3 ? 3 - bits : 0; }

/* States that a search is held to, by lane: at the first weight, and at weight `end`; -1 for any. */
typedef struct {
    int first[HH_TRELLIS_LANES], last[HH_TRELLIS_LANES];
    ptrdiff_t end[HH_TRELLIS_LANES];
} hh_ends;

/* The levels of a table as the search uses them: level + 128 of every state, where costs of that level lie in bytes, and
 * the value of each level in the search's units. */
typedef struct {
    uint8_t of[1 << HH_MAX_STATE_BITS];
    uint16_t places[1 << HH_MAX_STATE_BITS];
    int16_t values[256];
    int least, most; /* numbers in use */
} hh_levels;

HH_KERNEL void hh_levels_open_(const int8_t *table, int n_bits, int step, int lanes, hh_levels *levels) {
    levels->least = 255, levels->most = 0;
    for (int s = 0; s < 1 << n_bits; s++) {
        const int number = table[s] + 128;
        levels->of[s] = (uint8_t)number, levels->places[s] = (uint16_t)(2 * lanes * number);
        if (number < levels->least) levels->least = number;
        if (number > levels->most) levels->most = number;
    }
    for (int k = 0; k < 256; k++) {
        const int value = (k - 128) * step;
        levels->values[k] = (int16_t)(value < -32767 ? -32767 : value > 32767 ? 32767 : value);
    }
}

/* Scratch of the encoder; the caller owns the memory. Lanes travel 32 at a time at most. */
typedef struct {
    int16_t *x;           /* [n_cols][32]; n_cols is that of one search here and below */
    int16_t *costs;       /* [2][2^L][32] */
    int16_t *level_costs; /* [256][32] */
    int16_t *back;        /* [n_cols][back_words][32] */
    int16_t *down;        /* [n_cols / HH_RENORMALISE + 1][32] */
    uint16_t *path;       /* [n_cols][32] */
    float *targets;       /* [n_cols][32], with feedback */
    float *errors;        /* [HH_FEEDBACK_BLOCK][32], with feedback */
    uint16_t *joined;     /* of all weights of a wide row */
} hh_trellis_scratch;

/* A search of as many rows, or pieces, as a tier takes at once. */
typedef struct {
    ptrdiff_t n_cols;
    int rate, n_bits, doublings;
    const hh_levels *levels;
    const hh_ends *ends; /* NULL if no lane is held */
    int16_t *x, *costs, *level_costs, *back, *down;
    uint16_t *path;
} hh_search;

HH_INLINE ptrdiff_t hh_back_words(int rate, int n_bits) {
    ptrdiff_t most = 1;
    for (int bits = rate / 16; bits <= (rate + 15) / 16; bits++) {
        const ptrdiff_t words = ((ptrdiff_t)1 << (n_bits - bits)) >> hh_back_shift(bits);
        if (words > most) most = words;
    }
    return most;
}

HH_INLINE int hh_trellis_doublings(int rate) { return rate < 56 ? 0 : rate < 68 ? 1 : 2; }

/* Bits of a quick search's cost that hold a branch. Errors just doubled take more of the other bits. */
HH_INLINE int hh_tag_bits(int rate) {
    const int is_just_doubled = (rate >= 56 && rate < 60) || (rate >= 68 && rate < 80);
    return rate <= 32 ? 2 : rate <= 48 || is_just_doubled ? 3 : 4;
}

/* The most that is left for the cost. */
HH_INLINE int hh_quick_cap(int tag_bits) { return 0xFFFF >> tag_bits; }

/* ---- scalar: one row ---- */
#define HH_LANES_T 1
#define HH_V int16_t
#define HH_NAME(x) x##scalar
#define HH_LOAD(p) (*(p))
#define HH_STORE(p, v) (*(p) = (v))
#define HH_SET1(v) (v)
HH_INLINE int16_t hh_saturate_i16_(int32_t v) {
    return (int16_t)(v < INT16_MIN ? INT16_MIN : v > INT16_MAX ? INT16_MAX : v);
}
#define HH_SUBS(a, b) hh_saturate_i16_((int32_t)(a) - (int32_t)(b))
#define HH_ADDS(a, b) hh_saturate_i16_((int32_t)(a) + (int32_t)(b))
#define HH_MULHI(a, b) (int16_t)(((int32_t)(a) * (int32_t)(b)) >> 16)
#define HH_MIN(a, b) ((a) < (b) ? (a) : (b))
#define HH_LT(a, b) ((a) < (b))
#define HH_SELECT(m, yes, no) ((m) ? (yes) : (no))
#define HH_SLL(a, n) (int16_t)((uint16_t)(a) << (n))
#define HH_OR(a, b) (int16_t)((a) | (b))
#define HH_F float
#define HH_LANES_F 1
#define HH_LOADF(p) (*(p))
#define HH_STOREF(p, v) (*(p) = (v))
#define HH_ADDF(a, b) ((a) + (b))
#define HH_MULF(a, b) ((a) * (b))
#include "trellis_body.h"

/* What a path pays at least at x: 0 up to the outermost levels. */
HH_INLINE int hh_beyond_scalar_(int16_t x, const hh_levels *levels, int doublings) {
    const int16_t most = levels->values[levels->most], least = levels->values[levels->least];
    return hh_cost_scalar(hh_saturate_i16_(x - (x > most ? most : x < least ? least : x)), doublings);
}

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
#define HH_AND(a, b) _mm256_and_si256(a, b)
#define HH_MAX(a, b) _mm256_max_epi16(a, b)
#define HH_EQ(a, b) _mm256_cmpeq_epi16(a, b)
#define HH_MINU(a, b) _mm256_min_epu16(a, b)
#define HH_ADDU(a, b) _mm256_adds_epu16(a, b)
#define HH_SUB(a, b) _mm256_sub_epi16(a, b)
#define HH_SRL(a, n) _mm256_srli_epi16(a, n)
#define HH_F __m256
#define HH_LANES_F 8
#define HH_LOADF(p) _mm256_loadu_ps(p)
#define HH_STOREF(p, v) _mm256_storeu_ps(p, v)
#define HH_ADDF(a, b) _mm256_add_ps(a, b)
#define HH_MULF(a, b) _mm256_mul_ps(_mm256_set1_ps(a), b)
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
#define HH_AND(a, b) _mm512_and_si512(a, b)
#define HH_MAX(a, b) _mm512_max_epi16(a, b)
#define HH_EQ(a, b) _mm512_cmpeq_epi16_mask(a, b)
#define HH_MINU(a, b) _mm512_min_epu16(a, b)
#define HH_ADDU(a, b) _mm512_adds_epu16(a, b)
#define HH_SUB(a, b) _mm512_sub_epi16(a, b)
#define HH_SRL(a, n) _mm512_srli_epi16(a, n)
#define HH_F __m512
#define HH_LANES_F 16
#define HH_LOADF(p) _mm512_loadu_ps(p)
#define HH_STOREF(p, v) _mm512_storeu_ps(p, v)
#define HH_ADDF(a, b) _mm512_add_ps(a, b)
#define HH_MULF(a, b) _mm512_mul_ps(_mm512_set1_ps(a), b)
#include "trellis_body.h"
HH_TARGET_END
#elif HH_NEON
/* Two registers of 8 lanes: what a state costs besides, its level's number and two addresses, is then paid half as
 * often. Masks are vectors of int16, too. */
typedef struct {
    int16x8_t a, b;
} hh_i16x16_neon;

HH_INLINE hh_i16x16_neon hh_pair_neon_(int16x8_t a, int16x8_t b) {
    const hh_i16x16_neon both = {a, b};
    return both;
}
HH_INLINE int16x8_t hh_mulhi_neon_(int16x8_t a, int16x8_t b) {
    return vuzp2q_s16(vreinterpretq_s16_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b))),
                      vreinterpretq_s16_s32(vmull_high_s16(a, b)));
}
#define HH_EACH(name, ...)                                                           \
    HH_INLINE hh_i16x16_neon hh_##name##_neon_(hh_i16x16_neon x, hh_i16x16_neon y) { \
        return hh_pair_neon_(__VA_ARGS__);                                           \
    }
HH_EACH(subs, vqsubq_s16(x.a, y.a), vqsubq_s16(x.b, y.b))
HH_EACH(adds, vqaddq_s16(x.a, y.a), vqaddq_s16(x.b, y.b))
HH_EACH(mulhis, hh_mulhi_neon_(x.a, y.a), hh_mulhi_neon_(x.b, y.b))
HH_EACH(min, vminq_s16(x.a, y.a), vminq_s16(x.b, y.b))
HH_EACH(less, vreinterpretq_s16_u16(vcltq_s16(x.a, y.a)), vreinterpretq_s16_u16(vcltq_s16(x.b, y.b)))
HH_EACH(or, vorrq_s16(x.a, y.a), vorrq_s16(x.b, y.b))
HH_EACH(and, vandq_s16(x.a, y.a), vandq_s16(x.b, y.b))
HH_EACH(equal, vreinterpretq_s16_u16(vceqq_s16(x.a, y.a)), vreinterpretq_s16_u16(vceqq_s16(x.b, y.b)))
HH_EACH(max, vmaxq_s16(x.a, y.a), vmaxq_s16(x.b, y.b))
HH_EACH(shift, vshlq_s16(x.a, y.a), vshlq_s16(x.b, y.b))
#define HH_UNSIGNED(routine, x, y) vreinterpretq_s16_u16(routine(vreinterpretq_u16_s16(x), vreinterpretq_u16_s16(y)))
HH_EACH(minu, HH_UNSIGNED(vminq_u16, x.a, y.a), HH_UNSIGNED(vminq_u16, x.b, y.b))
HH_EACH(addu, HH_UNSIGNED(vqaddq_u16, x.a, y.a), HH_UNSIGNED(vqaddq_u16, x.b, y.b))
HH_EACH(sub, vsubq_s16(x.a, y.a), vsubq_s16(x.b, y.b))
HH_EACH(srl, vreinterpretq_s16_u16(vshlq_u16(vreinterpretq_u16_s16(x.a), y.a)),
        vreinterpretq_s16_u16(vshlq_u16(vreinterpretq_u16_s16(x.b), y.b)))
#undef HH_UNSIGNED
#undef HH_EACH
HH_INLINE hh_i16x16_neon hh_set1_neon_(int16_t value) { return hh_pair_neon_(vdupq_n_s16(value), vdupq_n_s16(value)); }
HH_INLINE hh_i16x16_neon hh_load_neon_(const int16_t *p) { return hh_pair_neon_(vld1q_s16(p), vld1q_s16(p + 8)); }
HH_INLINE void hh_store_neon_(int16_t *p, hh_i16x16_neon x) { vst1q_s16(p, x.a), vst1q_s16(p + 8, x.b); }
HH_INLINE hh_i16x16_neon hh_select_neon_(hh_i16x16_neon mask, hh_i16x16_neon yes, hh_i16x16_neon no) {
    return hh_pair_neon_(vbslq_s16(vreinterpretq_u16_s16(mask.a), yes.a, no.a),
                         vbslq_s16(vreinterpretq_u16_s16(mask.b), yes.b, no.b));
}

#define HH_LANES_T 16
#define HH_V hh_i16x16_neon
#define HH_NAME(x) x##neon
#define HH_LOAD(p) hh_load_neon_(p)
#define HH_STORE(p, v) hh_store_neon_(p, v)
#define HH_SET1(v) hh_set1_neon_(v)
#define HH_SUBS(a, b) hh_subs_neon_(a, b)
#define HH_ADDS(a, b) hh_adds_neon_(a, b)
#define HH_MULHI(a, b) hh_mulhis_neon_(a, b)
#define HH_MIN(a, b) hh_min_neon_(a, b)
#define HH_LT(a, b) hh_less_neon_(a, b)
#define HH_SELECT(m, yes, no) hh_select_neon_(m, yes, no)
#define HH_SLL(a, n) hh_shift_neon_(a, hh_set1_neon_((int16_t)(n)))
#define HH_OR(a, b) hh_or_neon_(a, b)
#define HH_AND(a, b) hh_and_neon_(a, b)
#define HH_MAX(a, b) hh_max_neon_(a, b)
#define HH_EQ(a, b) hh_equal_neon_(a, b)
#define HH_MINU(a, b) hh_minu_neon_(a, b)
#define HH_ADDU(a, b) hh_addu_neon_(a, b)
#define HH_SUB(a, b) hh_sub_neon_(a, b)
#define HH_SRL(a, n) hh_srl_neon_(a, hh_set1_neon_((int16_t)-(n)))
#define HH_F float32x4_t
#define HH_LANES_F 4
#define HH_LOADF(p) vld1q_f32(p)
#define HH_STOREF(p, v) vst1q_f32(p, v)
#define HH_ADDF(a, b) vaddq_f32(a, b)
#define HH_MULF(a, b) vmulq_n_f32(b, a)
#include "trellis_body.h"
#endif

/* ---- rows in, codes out ---- */

HH_INLINE double hh_row_norm2_(const float *row, ptrdiff_t n_cols) {
    double lane[16] = {0};
    const ptrdiff_t whole = n_cols - n_cols % 16;
    for (ptrdiff_t j = 0; j < whole; j += 16)
        for (int i = 0; i < 16; i++) lane[i] += (double)row[j + i] * (double)row[j + i];
    for (int i = 0; i < (int)(n_cols % 16); i++) lane[i] += (double)row[whole + i] * (double)row[whole + i];
    return hh_tree16_f64(lane);
}

/* What brings a row to units; 0 for a row of zeros. */
HH_INLINE double hh_units_(const float *row, ptrdiff_t n_cols) {
    const double norm2 = hh_row_norm2_(row, n_cols);
    return norm2 > 0 ? HH_SIGMA * sqrt((double)n_cols / norm2) : 0.0;
}

/* A row as int16 into lane `lane` of x; rint by adding 1.5 * 2^52. */
HH_INLINE void hh_quantize_row_(const float *row, ptrdiff_t n_cols, double units, int lanes, int lane, int16_t *x) {
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        double scaled = (double)row[t] * units; /* float64: 1 / rms of a denormal row passes float32 */
        scaled = scaled > -32767.0 ? scaled : -32767.0; /* so a NaN never meets the cast */
        scaled = scaled < 32767.0 ? scaled : 32767.0;
        x[t * lanes + lane] = (int16_t)((scaled + 6755399441055744.0) - 6755399441055744.0);
    }
}

/* One lane's path to the row's bit stream; the gain of what was aimed at, weight t being row[t * stride]. */
HH_INLINE double hh_pack_row_(const float *row, ptrdiff_t stride, ptrdiff_t n_cols, int rate, int n_bits,
                              const int8_t *table, int lanes, const uint16_t *path, uint8_t *codes) {
    uint64_t held = 0;
    int n_held = 0;
    uint8_t *out = codes;
    for (ptrdiff_t t = 1; t < n_cols; t++) {
        const int bits = hh_step_bits(t, rate);
        held |= (uint64_t)(path[(t - 1) * lanes] & ((1u << bits) - 1u)) << n_held;
        n_held += bits;
        if (n_held >= 32) {
            const uint32_t word = (uint32_t)held;
            memcpy(out, &word, 4);
            out += 4, held >>= 32, n_held -= 32;
        }
    }
    held |= (uint64_t)path[(n_cols - 1) * lanes] << n_held;
    for (n_held += n_bits; n_held > 0; n_held -= 8, held >>= 8) *out++ = (uint8_t)held;
    /* states as a reader sees them, for the sums of the gain */
    double cross = 0, own = 0;
    unsigned state = path[(n_cols - 1) * lanes];
    for (ptrdiff_t t = n_cols - 1; t >= 0; t--) {
        const double level = table[state];
        cross += (double)row[t * stride] * level, own += level * level;
        const int bits = t ? hh_step_bits(t, rate) : 0;
        if (t) state = (state << bits | (path[(t - 1) * lanes] & ((1u << bits) - 1u))) & ((1u << n_bits) - 1u);
    }
    return own > 0 ? cross / own : 0.0;
}

/* The search of as many rows, or pieces, as the tier takes at once: their int16 targets are in scratch.x. */
HH_KERNEL void hh_search_lanes_(int lanes, ptrdiff_t n_cols, int rate, int n_bits, const hh_levels *levels,
                                hh_feedback feedback, const hh_ends *ends, hh_trellis_scratch scratch) {
    const hh_search search = {n_cols,       rate,        n_bits,        hh_trellis_doublings(rate), levels,
                              ends,         scratch.x,   scratch.costs, scratch.level_costs,        scratch.back,
                              scratch.down, scratch.path};
#if HH_X86
    if (lanes == 32) hh_viterbi_avx512(&search, feedback);
    else if (lanes == 16) hh_viterbi_avx2(&search, feedback);
    else
#elif HH_NEON
    if (lanes == 16) hh_viterbi_neon(&search, feedback);
    else
#endif
        hh_viterbi_scalar(&search, feedback);
    (void)lanes;
}

/* First weight of piece p of a wide row. */
HH_INLINE ptrdiff_t hh_piece_begin_(ptrdiff_t p, ptrdiff_t n_cols) {
    const ptrdiff_t begin = p * hh_piece_cols(n_cols), latest = n_cols - hh_piece_reach(n_cols);
    return begin < latest ? begin : latest;
}

/* The states where pieces `first` to `first + count` begin, by the weights around. */
HH_KERNEL void hh_seams_(const float *row, ptrdiff_t n_cols, ptrdiff_t first, int count, int lanes, int rate,
                         int n_bits, const hh_levels *levels, double units, hh_trellis_scratch scratch, int *seams) {
    const hh_feedback none = {NULL, NULL, NULL};
    ptrdiff_t begin[HH_TRELLIS_LANES];
    if (count < lanes) memset(scratch.x, 0, (size_t)(HH_SEAM_COLS * lanes) * sizeof(int16_t));
    for (int lane = 0; lane < count; lane++) {
        const ptrdiff_t wanted = hh_piece_begin_(first + lane, n_cols) - HH_SEAM_COLS / 2;
        const ptrdiff_t latest = (n_cols - HH_SEAM_COLS) / 16 * 16;
        begin[lane] = wanted < 0 ? 0 : wanted < latest ? wanted : latest;
        hh_quantize_row_(row + begin[lane], HH_SEAM_COLS, units, lanes, lane, scratch.x);
    }
    hh_search_lanes_(lanes, HH_SEAM_COLS, rate, n_bits, levels, none, NULL, scratch);
    for (int lane = 0; lane < count; lane++) {
        const ptrdiff_t seam = hh_piece_begin_(first + lane, n_cols) - begin[lane];
        seams[lane] = scratch.path[seam * lanes + lane];
    }
}

/* One wide row, piece by piece: its path into scratch.joined. */
HH_KERNEL void hh_search_pieces_(const float *row, ptrdiff_t n_cols, int lanes, int rate, int n_bits,
                                 const hh_levels *levels, double units, hh_trellis_scratch scratch) {
    const ptrdiff_t piece = hh_piece_cols(n_cols), reach = hh_piece_reach(n_cols);
    const ptrdiff_t n_pieces = (n_cols - reach + piece - 1) / piece + 1;
    const hh_feedback none = {NULL, NULL, NULL};
    int end_state = -1; /* where the piece before ended, and this one begins */
    for (ptrdiff_t first = 0; first < n_pieces; first += lanes) {
        const int count = (int)(n_pieces - first < lanes ? n_pieces - first : lanes);
        const int n_seams = first + count < n_pieces ? count : count - 1;
        hh_ends ends;
        if (n_seams) hh_seams_(row, n_cols, first + 1, n_seams, lanes, rate, n_bits, levels, units, scratch, ends.last);
        if (count < lanes) memset(scratch.x, 0, (size_t)(reach * lanes) * sizeof(int16_t));
        for (int lane = 0; lane < lanes; lane++) {
            ends.first[lane] = lane >= count ? -1 : lane ? ends.last[lane - 1] : end_state;
            ends.end[lane] = reach - 1;
            if (lane >= n_seams) ends.last[lane] = -1;
            else ends.end[lane] = hh_piece_begin_(first + lane + 1, n_cols) - hh_piece_begin_(first + lane, n_cols);
            if (lane < count)
                hh_quantize_row_(row + hh_piece_begin_(first + lane, n_cols), reach, units, lanes, lane, scratch.x);
        }
        end_state = ends.last[count - 1];
        hh_search_lanes_(lanes, reach, rate, n_bits, levels, none, &ends, scratch);
        for (int lane = 0; lane < count; lane++)
            for (ptrdiff_t t = 0; t <= ends.end[lane]; t++)
                scratch.joined[hh_piece_begin_(first + lane, n_cols) + t] = scratch.path[t * lanes + lane];
    }
}

/* The states where rings begin, of `count` rows. */
HH_KERNEL void hh_ring_states_(const float *rows, ptrdiff_t n_cols, int count, int lanes, int rate, int n_bits,
                               const hh_levels *levels, const double *units, hh_trellis_scratch scratch, int *begins) {
    const hh_feedback none = {NULL, NULL, NULL};
    memset(scratch.x, 0, (size_t)(HH_RING_COLS * lanes) * sizeof(int16_t));
    for (int lane = 0; lane < count; lane++)
        for (ptrdiff_t t = 0; t < HH_RING_COLS; t++) { /* a row may be shorter than half of them */
            const ptrdiff_t col = ((t - HH_RING_COLS / 2) % n_cols + n_cols) % n_cols;
            hh_quantize_row_(rows + lane * n_cols + col, 1, units[lane], lanes, lane, scratch.x + t * lanes);
        }
    hh_search_lanes_(lanes, HH_RING_COLS, rate, n_bits, levels, none, NULL, scratch);
    for (int lane = 0; lane < count; lane++) begins[lane] = scratch.path[HH_RING_COLS / 2 * lanes + lane];
}

/* Search rows as rings, whose targets are in scratch.x. If costs saturate, because a row lies far from every path from
 * its state, the path of another state can win; such a row is aimed at half as far out. Returns how many rows close at no distance, which no table does that this project trained. */
HH_KERNEL int hh_search_rings_(const int *begins, ptrdiff_t n_cols, int count, int lanes, int rate, int n_bits,
                               const hh_levels *levels, hh_trellis_scratch scratch) {
    const hh_feedback none = {NULL, NULL, NULL};
    int n_open = count;
    hh_ends ends;
    for (int lane = 0; lane < lanes; lane++) {
        ends.first[lane] = ends.last[lane] = lane < count ? begins[lane] : -1;
        ends.end[lane] = n_cols;
        scratch.x[n_cols * lanes + lane] = scratch.x[lane]; /* the first weight once more */
    }
    for (int halvings = 0; n_open && halvings <= 16; halvings++) {
        hh_search_lanes_(lanes, n_cols + 1, rate, n_bits, levels, none, &ends, scratch);
        n_open = 0;
        for (int lane = 0; lane < count; lane++) {
            if (scratch.path[lane] == begins[lane]) continue;
            n_open++;
            for (ptrdiff_t t = 0; t <= n_cols; t++) scratch.x[t * lanes + lane] /= 2;
        }
    }
    return n_open;
}

/* Returns how many rows do not close as rings; 0 of those that need not. */
HH_KERNEL ptrdiff_t hh_trellis_encode(int tier, const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                      int n_bits, const int8_t *table, int step, const float *matrix, ptrdiff_t whole,
                                      int is_ring, hh_trellis_scratch scratch, uint8_t *codes, float *gains) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    const int cut = !matrix && hh_search_cols(n_cols, whole) < n_cols;
    ptrdiff_t n_open = 0;
    hh_levels levels;
#if HH_X86
    const int lanes = tier >= HH_TIER_AVX512 ? 32 : tier >= HH_TIER_AVX2 ? 16 : 1;
#elif HH_NEON
    const int lanes = tier >= HH_TIER_NEON ? 16 : 1;
#else
    const int lanes = 1;
#endif
    hh_levels_open_(table, n_bits, step, lanes, &levels);
    for (ptrdiff_t r = 0; cut && r < n_rows; r++) {
        const float *const row = rows + r * n_cols;
        hh_search_pieces_(row, n_cols, lanes, rate, n_bits, &levels, hh_units_(row, n_cols), scratch);
        gains[r] = (float)hh_pack_row_(row, 1, n_cols, rate, n_bits, table, 1, scratch.joined, codes + r * row_nbytes);
    }
    for (ptrdiff_t first = 0; !cut && first < n_rows; first += lanes) {
        const int count = (int)(n_rows - first < lanes ? n_rows - first : lanes);
        const hh_feedback feedback = {matrix, scratch.targets, scratch.errors};
        double units[HH_TRELLIS_LANES];
        int begins[HH_TRELLIS_LANES];
        for (int lane = 0; lane < count; lane++) units[lane] = hh_units_(rows + (first + lane) * n_cols, n_cols);
        if (is_ring)
            hh_ring_states_(rows + first * n_cols, n_cols, count, lanes, rate, n_bits, &levels, units, scratch, begins);
        if (count < lanes) memset(scratch.x, 0, (size_t)(n_cols * lanes) * sizeof(int16_t));
        if (count < lanes && matrix) memset(scratch.targets, 0, (size_t)(n_cols * lanes) * sizeof(float));
        for (int lane = 0; lane < count; lane++) {
            const float *const row = rows + (first + lane) * n_cols;
            if (!matrix) hh_quantize_row_(row, n_cols, units[lane], lanes, lane, scratch.x);
            for (ptrdiff_t t = 0; matrix && t < n_cols; t++)
                scratch.targets[t * lanes + lane] = (float)((double)row[t] * units[lane]);
        }
        if (is_ring) n_open += hh_search_rings_(begins, n_cols, count, lanes, rate, n_bits, &levels, scratch);
        else hh_search_lanes_(lanes, n_cols, rate, n_bits, &levels, feedback, NULL, scratch);
        for (int lane = 0; lane < count; lane++) {
            const ptrdiff_t r = first + lane;
            const float *const row = matrix ? scratch.targets + lane : rows + r * n_cols;
            const double gain = hh_pack_row_(row, matrix ? lanes : 1, n_cols, rate, n_bits, table, lanes,
                                             scratch.path + lane, codes + r * row_nbytes);
            gains[r] = (float)(!matrix ? gain : units[lane] > 0 ? gain / units[lane] : 0.0);
        }
    }
    (void)tier;
    return n_open;
}

/* Rings' own bits as the codes of any row, whose last windows are whole. */
HH_KERNEL void hh_ring_open(const uint8_t *rings, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                            uint8_t *codes) {
    const ptrdiff_t ring_nbytes = hh_ring_nbytes(n_cols, rate),
                    row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    const ptrdiff_t end = hh_bit_offset(n_cols, rate), n_twice = hh_bit_offset(n_cols - 1, rate) + n_bits - end;
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const uint8_t *const ring = rings + r * ring_nbytes;
        uint8_t *const row = codes + r * row_nbytes;
        uint32_t held = ((uint32_t)ring[0] | (uint32_t)ring[1] << 8) & ((1u << n_twice) - 1u);
        held <<= end & 7;
        memcpy(row, ring, (size_t)(end / 8));
        if (end & 7) held |= ring[end / 8] & ((1u << (end & 7)) - 1u);
        for (ptrdiff_t byte = end / 8; byte < row_nbytes; byte++, held >>= 8) row[byte] = (uint8_t)held;
    }
}

/* ---- codes in, levels out ---- */

/* The vector bodies take HH_TRELLIS_BLOCK weights at a time, which is a whole number of bytes at every rate, so
 * shuffles and shifts are the same in every block. Whole blocks reach past a row's end, into the next row; rows whose
 * blocks reach past the last one are copied to scratch first. Tables are unsigned bytes, level + 128, repeated to
 * 256, 1024 or 4096, so that windows may carry a bit that does not matter. */
enum { HH_TRELLIS_BLOCK = 128, HH_TRELLIS_PADDING = 64 };

HH_INLINE ptrdiff_t hh_trellis_blocks(ptrdiff_t n_cols) { return (n_cols + HH_TRELLIS_BLOCK - 1) / HH_TRELLIS_BLOCK; }

/* What the vector bodies may read from a row's first byte on; a block takes `rate` bytes. */
HH_INLINE ptrdiff_t hh_trellis_reach_nbytes(ptrdiff_t n_cols, int rate) {
    return hh_trellis_blocks(n_cols) * rate + HH_TRELLIS_PADDING;
}

/* Rows that may be read where they lie. */
HH_INLINE ptrdiff_t hh_trellis_whole_rows(ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    const ptrdiff_t spare = n_rows * row_nbytes - hh_trellis_reach_nbytes(n_cols, rate);
    return spare < 0 ? 0 : spare / row_nbytes + 1;
}

HH_KERNEL void hh_trellis_bytes_table(const int8_t *table, int n_bits, uint8_t *bytes) {
    const int n_even = n_bits <= 8 ? 8 : (n_bits + 1) / 2 * 2;
    for (int s = 0; s < 1 << n_even; s++) bytes[s] = (uint8_t)(table[s & ((1 << n_bits) - 1)] + 128);
}

/* Byte by byte, because the last window ends with the row. */
HH_INLINE unsigned hh_window_(const uint8_t *codes, ptrdiff_t t, int rate, int n_bits) {
    const ptrdiff_t bit = hh_bit_offset(t, rate), first = bit >> 3;
    uint32_t word = 0;
    for (ptrdiff_t byte = first; 8 * byte < bit + n_bits; byte++) word |= (uint32_t)codes[byte] << (8 * (byte - first));
    return (word >> (bit & 7)) & ((1u << n_bits) - 1u);
}

HH_KERNEL void hh_levels_scalar(const uint8_t *codes, ptrdiff_t n_cols, int rate, int n_bits, const int8_t *table,
                                float gain, float *out) {
    for (ptrdiff_t t = 0; t < n_cols; t++) out[t] = gain * (float)table[hh_window_(codes, t, rate, n_bits)];
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
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
#define HH_BOTH(k) \
    _mm256_or_si256(hh_look16_avx2_(table + 16 * (k), low_i8x32), hh_look16_avx2_(table + 128 + 16 * (k), high_i8x32))
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
} hh_block_plan_avx2;

HH_KERNEL void hh_block_plan_avx2_(int rate, hh_block_plan_avx2 *plan) {
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

/* The levels, plus 128, of a pair of groups: 32 weights. */
HH_INLINE __m256i hh_levels32_avx2_(const uint8_t *codes, const uint8_t *table, const hh_block_plan_avx2 *plan,
                                    int pair) {
    const __m256i bytes_i8x32 = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(codes + plan->first[2 * pair]))),
        _mm_loadu_si128((const __m128i *)(codes + plan->first[2 * pair + 1])), 1);
    const __m256i even_i16x16 =
        _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes_i8x32, plan->even_i8x32[pair]), plan->even_factor_i16x16[pair]);
    const __m256i odd_i16x16 =
        _mm256_mullo_epi16(_mm256_shuffle_epi8(bytes_i8x32, plan->odd_i8x32[pair]), plan->odd_factor_i16x16[pair]);
    return hh_look256_avx2_(table, _mm256_or_si256(_mm256_srli_epi16(even_i16x16, 8),
                                                   _mm256_andnot_si256(_mm256_set1_epi16(0xFF), odd_i16x16)));
}

/* The bytes of 16 weights' windows, `offset` bits behind the first byte, shifted into 32-bit lanes, for larger tables. */
HH_INLINE __m256i hh_states8_avx2_(__m256i bytes_i8x32, __m256i offset_i32x8, __m256i mask_i32x8) {
    const __m256i spread_i8x32 = _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4,
                                                  4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    const __m256i at_i8x32 = _mm256_add_epi8(_mm256_shuffle_epi8(_mm256_srli_epi32(offset_i32x8, 3), spread_i8x32),
                                             _mm256_set1_epi32(0x03020100));
    return _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(bytes_i8x32, at_i8x32),
                                              _mm256_and_si256(offset_i32x8, _mm256_set1_epi32(7))),
                            mask_i32x8);
}

HH_INLINE void hh_widen32_avx2_(float *out, __m256i level_i8x32, __m256 gain_f32x8) {
    const __m256i signed_i8x32 = _mm256_xor_si256(level_i8x32, _mm256_set1_epi8(-128));
    const __m128i low_i8x16 = _mm256_castsi256_si128(signed_i8x32),
                  high_i8x16 = _mm256_extracti128_si256(signed_i8x32, 1);
#define HH_EIGHT(k, level_i8x16) \
    _mm256_storeu_ps(out + 8 * (k), _mm256_mul_ps(gain_f32x8, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(level_i8x16))));
    HH_EIGHT(0, low_i8x16)
    HH_EIGHT(1, _mm_unpackhi_epi64(low_i8x16, low_i8x16))
    HH_EIGHT(2, high_i8x16)
    HH_EIGHT(3, _mm_unpackhi_epi64(high_i8x16, high_i8x16))
#undef HH_EIGHT
}

/* Up to 256 levels. */
HH_KERNEL void hh_levels8_avx2(const uint8_t *codes, ptrdiff_t n_cols, int rate, const hh_block_plan_avx2 *plan,
                               const uint8_t *table, float gain, float *out) {
    const __m256 gain_f32x8 = _mm256_set1_ps(gain);
    float rest[HH_TRELLIS_BLOCK];
    for (ptrdiff_t t = 0; t < n_cols; t += HH_TRELLIS_BLOCK, codes += rate) {
        float *const to = t + HH_TRELLIS_BLOCK <= n_cols ? out + t : rest;
        for (int pair = 0; pair < 4; pair++)
            hh_widen32_avx2_(to + 32 * pair, hh_levels32_avx2_(codes, table, plan, pair), gain_f32x8);
        if (to == rest) memcpy(out + t, rest, (size_t)(n_cols - t) * sizeof(float));
    }
}

/* Larger tables, levels gathered; 16 weights take exactly `rate` bits. */
HH_KERNEL void hh_levels_wide_avx2(const uint8_t *codes, ptrdiff_t n_cols, int rate, int n_bits, const int32_t *wide,
                                   float gain, float *out) {
    const __m256i mask_i32x8 = _mm256_set1_epi32((1 << n_bits) - 1);
    const __m256 gain_f32x8 = _mm256_set1_ps(gain);
    int32_t offsets[16];
    for (int t = 0; t < 16; t++) offsets[t] = (int32_t)hh_bit_offset(t, rate);
    const __m256i low_i32x8 = _mm256_loadu_si256((const __m256i *)offsets),
                  high_i32x8 = _mm256_loadu_si256((const __m256i *)(offsets + 8));
    float rest[16];
    ptrdiff_t bit = 0;
    for (ptrdiff_t t = 0; t < n_cols; t += 16, bit += rate) {
        float *const to = t + 16 <= n_cols ? out + t : rest;
        const __m256i bytes_i8x32 = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(codes + (bit >> 3))));
        const __m256i at_i32x8 = _mm256_set1_epi32((int)(bit & 7));
        const __m256i first_i32x8 = hh_states8_avx2_(bytes_i8x32, _mm256_add_epi32(low_i32x8, at_i32x8), mask_i32x8);
        const __m256i second_i32x8 = hh_states8_avx2_(bytes_i8x32, _mm256_add_epi32(high_i32x8, at_i32x8), mask_i32x8);
        _mm256_storeu_ps(to,
                         _mm256_mul_ps(gain_f32x8, _mm256_cvtepi32_ps(_mm256_i32gather_epi32(wide, first_i32x8, 4))));
        _mm256_storeu_ps(to + 8,
                         _mm256_mul_ps(gain_f32x8, _mm256_cvtepi32_ps(_mm256_i32gather_epi32(wide, second_i32x8, 4))));
        if (to == rest) memcpy(out + t, rest, (size_t)(n_cols - t) * sizeof(float));
    }
}

HH_KERNEL void hh_trellis_decode_avx2(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                      const uint8_t *table, const int32_t *wide, const float *gains, uint8_t *padded,
                                      ptrdiff_t n_whole, float *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    hh_block_plan_avx2 plan;
    hh_block_plan_avx2_(rate, &plan);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        const uint8_t *row = codes + r * row_nbytes;
        if (r >= n_whole) row = memcpy(padded, row, (size_t)row_nbytes);
        if (n_bits <= 8) hh_levels8_avx2(row, n_cols, rate, &plan, table, gains[r], out + r * n_cols);
        else hh_levels_wide_avx2(row, n_cols, rate, n_bits, wide, gains[r], out + r * n_cols);
    }
}
HH_TARGET_END

HH_TARGET_AVX512VNNI_BEGIN
/* For each half of a block: the bytes of every 8 weights (at most 42 + 7 + 12 bits) to one 64-bit lane, the first bit
 * of every weight's window in it, and the bit 8 places on. */
typedef struct {
    __m512i spread_i8x64[2], shift_i8x64[2], above_i8x64[2];
    int second; /* first byte of the second half */
} hh_block_plan_avx512vnni;

HH_KERNEL void hh_block_plan_avx512vnni_(int rate, hh_block_plan_avx512vnni *plan) {
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
    return _mm512_mask_mov_epi8(hh_look128_avx512vnni_(table, state_i8x64), bit7,
                                hh_look128_avx512vnni_(table + 128, state_i8x64));
}

HH_INLINE __m512i hh_look1024_avx512vnni_(const uint8_t *table, __m512i state_i8x64, __mmask64 bit7, __mmask64 bit8,
                                          __mmask64 bit9) {
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
    const __mmask64 bit8 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(1)),
                    bit9 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(2));
    const __m512i first_i8x64 = hh_look1024_avx512vnni_(table, state_i8x64, bit7, bit8, bit9);
    if (n_bits == 10) return first_i8x64;
    const __mmask64 bit10 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(4)),
                    bit11 = _mm512_test_epi8_mask(high_i8x64, _mm512_set1_epi8(8));
    const __m512i low_i8x64 =
        _mm512_mask_mov_epi8(first_i8x64, bit10, hh_look1024_avx512vnni_(table + 1024, state_i8x64, bit7, bit8, bit9));
    const __m512i third_i8x64 = hh_look1024_avx512vnni_(table + 2048, state_i8x64, bit7, bit8, bit9);
    return _mm512_mask_mov_epi8(
        low_i8x64, bit11,
        _mm512_mask_mov_epi8(third_i8x64, bit10, hh_look1024_avx512vnni_(table + 3072, state_i8x64, bit7, bit8, bit9)));
}

HH_INLINE void hh_widen64_avx512vnni_(float *out, __m512i level_i8x64, __m512 gain_f32x16) {
    const __m512i signed_i8x64 = _mm512_xor_si512(level_i8x64, _mm512_set1_epi8(-128));
#define HH_QUARTER(k)                                                                                    \
    _mm512_storeu_ps(out + 16 * (k), _mm512_mul_ps(gain_f32x16, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32( \
                                                                    _mm512_extracti32x4_epi32(signed_i8x64, k)))));
    HH_QUARTER(0)
    HH_QUARTER(1)
    HH_QUARTER(2)
    HH_QUARTER(3)
#undef HH_QUARTER
}

HH_INLINE void hh_levels_avx512vnni_(const uint8_t *codes, ptrdiff_t n_cols, int rate, int n_bits,
                                     const hh_block_plan_avx512vnni *plan, const uint8_t *table, float gain,
                                     float *out) {
    const __m512i spread0_i8x64 = plan->spread_i8x64[0], shift0_i8x64 = plan->shift_i8x64[0],
                  above0_i8x64 = plan->above_i8x64[0];
    const __m512i spread1_i8x64 = plan->spread_i8x64[1], shift1_i8x64 = plan->shift_i8x64[1],
                  above1_i8x64 = plan->above_i8x64[1];
    const __m512 gain_f32x16 = _mm512_set1_ps(gain);
    const ptrdiff_t second = plan->second;
    float rest[HH_TRELLIS_BLOCK];
    for (ptrdiff_t t = 0; t < n_cols; t += HH_TRELLIS_BLOCK, codes += rate) {
        float *const to = t + HH_TRELLIS_BLOCK <= n_cols ? out + t : rest;
        hh_widen64_avx512vnni_(
            to, hh_levels64_avx512vnni_(codes, n_bits, table, spread0_i8x64, shift0_i8x64, above0_i8x64), gain_f32x16);
        hh_widen64_avx512vnni_(
            to + 64, hh_levels64_avx512vnni_(codes + second, n_bits, table, spread1_i8x64, shift1_i8x64, above1_i8x64),
            gain_f32x16);
        if (to == rest) memcpy(out + t, rest, (size_t)(n_cols - t) * sizeof(float));
    }
}

HH_KERNEL void hh_trellis_decode_avx512vnni(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                            int n_bits, const uint8_t *table, const float *gains, uint8_t *padded,
                                            ptrdiff_t n_whole, float *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    hh_block_plan_avx512vnni plan;
    hh_block_plan_avx512vnni_(rate, &plan);
    for (ptrdiff_t r = 0; r < n_rows; r++, out += n_cols) {
        const uint8_t *row = codes + r * row_nbytes;
        if (r >= n_whole) row = memcpy(padded, row, (size_t)row_nbytes);
        if (n_bits <= 8) hh_levels_avx512vnni_(row, n_cols, rate, 8, &plan, table, gains[r], out);
        else if (n_bits <= 10) hh_levels_avx512vnni_(row, n_cols, rate, 10, &plan, table, gains[r], out);
        else hh_levels_avx512vnni_(row, n_cols, rate, 12, &plan, table, gains[r], out);
    }
}
HH_TARGET_END
#endif

#if HH_NEON
/* Where the windows of 16 weights lie, for the 8 groups of a block: which bytes to bring to each lane, and how far to
 * shift it. A window of up to 8 bits lies in two bytes, a longer one in three, so lanes have 16 or 32 bits. */
typedef struct {
    uint8_t pick[8][4][16];
    int8_t shift[8][4][16]; /* negative: to the right */
    int first[8];           /* byte of each group */
    int lane_nbytes;
    unsigned mask; /* of a window */
} hh_block_plan_neon;

HH_KERNEL void hh_block_plan_neon_(int rate, int n_bits, hh_block_plan_neon *plan) {
    const int nbytes = n_bits <= 8 ? 2 : 4, per_vector = 16 / nbytes;
    memset(plan->shift, 0xFF, sizeof plan->shift); /* the upper bytes of a negative number */
    plan->lane_nbytes = nbytes, plan->mask = (1u << n_bits) - 1u;
    for (int group = 0; group < 8; group++) {
        plan->first[group] = group * rate / 8;
        for (int i = 0; i < 16; i++) {
            const int bit = (int)hh_bit_offset(16 * group + i, rate) - 8 * plan->first[group];
            const int vector = i / per_vector, at = i % per_vector * nbytes;
            for (int byte = 0; byte < nbytes; byte++)
                plan->pick[group][vector][at + byte] = (uint8_t)((bit >> 3) + byte);
            plan->shift[group][vector][at] = (int8_t)-(bit & 7);
            if (!(bit & 7)) memset(plan->shift[group][vector] + at, 0, (size_t)nbytes);
        }
    }
}

/* The bytes of a table of up to 256 levels; one of 128 stands there twice. */
HH_INLINE void hh_look256_neon_(const int8_t *table, int n_bits, uint8_t *look) {
    for (int s = 0; s < 256; s++) look[s] = (uint8_t)table[s & ((1 << n_bits) - 1)];
}

/* The windows of 16 weights of group `group`, `vector`-th lanes. */
#define HH_WINDOWS16(vector)                                                                      \
    vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(bytes_u8x16, vld1q_u8(plan->pick[group][vector]))), \
              vreinterpretq_s16_s8(vld1q_s8(plan->shift[group][vector])))
#define HH_WINDOWS32(vector)                                                                      \
    vshlq_u32(vreinterpretq_u32_u8(vqtbl1q_u8(bytes_u8x16, vld1q_u8(plan->pick[group][vector]))), \
              vreinterpretq_s32_s8(vld1q_s8(plan->shift[group][vector])))

/* The levels of 16 weights; `wide` is constant where this is inlined. */
HH_INLINE int8x16_t hh_levels16_neon_(int wide, const uint8_t *codes, const hh_block_plan_neon *plan, int group,
                                      const uint8_t *look, const int8_t *table) {
    const uint8x16_t bytes_u8x16 = vld1q_u8(codes + plan->first[group]);
    if (wide) {
        uint16_t states[16];
        int8_t levels[16];
        const uint16x8_t mask_u16x8 = vdupq_n_u16((uint16_t)plan->mask);
        vst1q_u16(states, vandq_u16(mask_u16x8, vuzp1q_u16(vreinterpretq_u16_u32(HH_WINDOWS32(0)),
                                                           vreinterpretq_u16_u32(HH_WINDOWS32(1)))));
        vst1q_u16(states + 8, vandq_u16(mask_u16x8, vuzp1q_u16(vreinterpretq_u16_u32(HH_WINDOWS32(2)),
                                                               vreinterpretq_u16_u32(HH_WINDOWS32(3)))));
        for (int i = 0; i < 16; i++) levels[i] = table[states[i]]; /* NEON has no look-up in more than 64 bytes */
        return vld1q_s8(levels);
    }
    const uint8x16_t state_u8x16 =
        vuzp1q_u8(vreinterpretq_u8_u16(HH_WINDOWS16(0)), vreinterpretq_u8_u16(HH_WINDOWS16(1)));
    uint8x16_t level_u8x16 = vqtbl4q_u8(vld1q_u8_x4(look), state_u8x16);
    for (int part = 1; part < 4; part++)
        level_u8x16 = vqtbx4q_u8(level_u8x16, vld1q_u8_x4(look + 64 * part),
                                 vsubq_u8(state_u8x16, vdupq_n_u8((uint8_t)(64 * part))));
    return vreinterpretq_s8_u8(level_u8x16);
}
#undef HH_WINDOWS16
#undef HH_WINDOWS32

HH_INLINE void hh_widen16_neon_(float *out, int8x16_t level_i8x16, float gain) {
    const int16x8_t level_i16x8[2] = {vmovl_s8(vget_low_s8(level_i8x16)), vmovl_high_s8(level_i8x16)};
    for (int half = 0; half < 2; half++) {
        vst1q_f32(out + 8 * half, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(level_i16x8[half]))), gain));
        vst1q_f32(out + 8 * half + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(level_i16x8[half])), gain));
    }
}

HH_INLINE void hh_levels_row_neon_(int wide, const uint8_t *codes, ptrdiff_t n_cols, int rate,
                                   const hh_block_plan_neon *plan, const uint8_t *look, const int8_t *table, float gain,
                                   float *out) {
    float rest[16];
    for (ptrdiff_t t = 0; t < n_cols; t += 16) {
        const uint8_t *const block = codes + t / HH_TRELLIS_BLOCK * rate;
        const int8x16_t level_i8x16 =
            hh_levels16_neon_(wide, block, plan, (int)(t % HH_TRELLIS_BLOCK / 16), look, table);
        hh_widen16_neon_(n_cols - t < 16 ? rest : out + t, level_i8x16, gain);
        if (n_cols - t < 16) memcpy(out + t, rest, (size_t)(n_cols - t) * sizeof(float));
    }
}

HH_KERNEL void hh_trellis_decode_neon(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                                      const int8_t *table, const float *gains, uint8_t *padded, uint8_t *look,
                                      float *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    const ptrdiff_t n_whole = hh_trellis_whole_rows(n_rows, n_cols, rate, n_bits);
    hh_block_plan_neon plan;
    hh_block_plan_neon_(rate, n_bits, &plan);
    if (n_bits <= 8) hh_look256_neon_(table, n_bits, look);
    memset(padded, 0, (size_t)hh_trellis_reach_nbytes(n_cols, rate));
    for (ptrdiff_t r = 0; r < n_rows; r++, codes += row_nbytes, out += n_cols) {
        const uint8_t *const row = r < n_whole ? codes : memcpy(padded, codes, (size_t)row_nbytes);
        if (n_bits <= 8) hh_levels_row_neon_(0, row, n_cols, rate, &plan, look, table, gains[r], out);
        else hh_levels_row_neon_(1, row, n_cols, rate, &plan, look, table, gains[r], out);
    }
}
#endif

/* Write gain * level of every weight: rotated rows. `padded` is scratch of hh_trellis_reach_nbytes, `wide` of 2^12
 * int32, `bytes` of 2^12 bytes. */
HH_KERNEL void hh_trellis_decode(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                 int n_bits, const int8_t *table, const float *gains, uint8_t *padded, int32_t *wide,
                                 uint8_t *bytes, float *out) {
#if HH_X86
    if (tier >= HH_TIER_AVX2) {
        const ptrdiff_t n_whole = hh_trellis_whole_rows(n_rows, n_cols, rate, n_bits);
        for (int s = 0; s < 1 << n_bits; s++) wide[s] = table[s];
        hh_trellis_bytes_table(table, n_bits, bytes);
        memset(padded, 0, (size_t)hh_trellis_reach_nbytes(n_cols, rate));
        if (tier >= HH_TIER_AVX512VNNI)
            hh_trellis_decode_avx512vnni(codes, n_rows, n_cols, rate, n_bits, bytes, gains, padded, n_whole, out);
        else hh_trellis_decode_avx2(codes, n_rows, n_cols, rate, n_bits, bytes, wide, gains, padded, n_whole, out);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_trellis_decode_neon(codes, n_rows, n_cols, rate, n_bits, table, gains, padded, bytes, out);
        return;
    }
#endif
    (void)tier, (void)padded, (void)wide, (void)bytes;
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    for (ptrdiff_t r = 0; r < n_rows; r++)
        hh_levels_scalar(codes + r * row_nbytes, n_cols, rate, n_bits, table, gains[r], out + r * n_cols);
}

#endif
