/* Crossed codebooks: 4096 levels of Slot T out of six tables of 16 entries, so that no look-up leaves a register.
 *
 * A window of 12 bits is three nibbles, a (the lowest bits, the oldest) to c. They cross and are summed:
 *
 *     c ^= across[a];   a ^= back_a[c];   b ^= back_b[c];   level = level_a[a] + level_b[b] + level_c[c]
 *
 * A codebook is 72 bytes: across, back_a and back_b as nibbles, entry i in nibble i, the lower nibble of a byte first;
 * then 16 int8 of each level table. Every sum of one entry a level table lies in -127..127. The crossing maps the 4096
 * windows one to one, so it loses none (docs/decisions/crossed-nibbles.md).
 *
 * The vector bodies hold the tables in registers. What is added to every level, to make it unsigned or for nothing, is
 * in level_c. Windows come as two planes: their lower 8 bits, and 8 bits from the ninth on.
 */
#ifndef HHTLD_CROSSED_H
#define HHTLD_CROSSED_H

#include "isa.h"
#include "trellis.h"

enum { HH_CROSSED_NBYTES = 72, HH_CROSSED_STATES = 4096 };

/* The tables as bytes; `back` holds back_a in the lower nibble and back_b in the upper one. */
typedef struct {
    uint8_t across[16], back[16], level_a[16], level_b[16], level_c[16];
} hh_crossed;

HH_INLINE int hh_nibble_(const uint8_t *nibbles, int i) { return nibbles[i / 2] >> (4 * (i & 1)) & 15; }

HH_KERNEL void hh_crossed_open(const uint8_t *codebook, hh_crossed *tables) {
    for (int i = 0; i < 16; i++) {
        tables->across[i] = (uint8_t)hh_nibble_(codebook, i);
        tables->back[i] = (uint8_t)(hh_nibble_(codebook + 8, i) | hh_nibble_(codebook + 16, i) << 4);
    }
    memcpy(tables->level_a, codebook + 24, 48);
}

/* The level of every state. Sums wrap; a reader refuses codebooks whose sums would. */
HH_KERNEL void hh_crossed_levels(const uint8_t *codebook, int8_t *levels) {
    hh_crossed tables;
    hh_crossed_open(codebook, &tables);
    for (int state = 0; state < HH_CROSSED_STATES; state++) {
        int a = state & 15, b = state >> 4 & 15, c = state >> 8;
        c ^= tables.across[a];
        a ^= tables.back[c] & 15;
        b ^= tables.back[c] >> 4;
        levels[state] = (int8_t)(uint8_t)(tables.level_a[a] + tables.level_b[b] + tables.level_c[c]);
    }
}

/* What a body does with levels; constant where bodies are inlined. */
enum { HH_CROSSED_DOT, HH_CROSSED_DOT_TWO, HH_CROSSED_KEEP, HH_CROSSED_DECODE };

/* How the levels of a block are found; constant where bodies are inlined. */
enum { HH_CROSSED_ANY, HH_CROSSED_SHARED, HH_CROSSED_TWO_BITS, HH_CROSSED_FOUR_BITS };

/* What a body reads and writes: one query, or two for HH_CROSSED_DOT_TWO, which meet the same levels. They lie as
 * hh_crossed_query_avx2_ or hh_crossed_query_avx512vnni_ puts them. */
typedef struct {
    const hh_crossed *tables;
    int rate;
    const int8_t *query[2], *magnitude[2]; /* [n_cols up to whole blocks]; of 512 bits the queries alone */
    int32_t bias[2]; /* of 512 bits: comes off every sum */
    ptrdiff_t sums_apart; /* of the second query from those of the first */
} hh_crossed_use;

HH_INLINE int hh_crossed_queries_(int use) { return use == HH_CROSSED_DOT ? 1 : use == HH_CROSSED_DOT_TWO ? 2 : 0; }

#if HH_X86
HH_TARGET_AVX2_BEGIN
/* How the weights of a block lie in the bodies' registers: in 2 or 4 vectors of every second or fourth weight where
 * rates are 4 or 2 bits, in swapped pairs at other rates. Puts queries the same way, and their magnitudes. */
HH_INLINE void hh_crossed_put_avx2_(int8_t *placed, int8_t *magnitude, __m256i query_i8x32) {
    _mm256_storeu_si256((__m256i *)placed, query_i8x32);
    _mm256_storeu_si256((__m256i *)magnitude, _mm256_abs_epi8(query_i8x32));
}

/* Every second byte of 64, from the first or the second on. */
HH_INLINE __m256i hh_crossed_every_second_avx2_(__m256i a_i8x32, __m256i b_i8x32, int from) {
    const __m256i low_i16x16 = _mm256_set1_epi16(255);
    if (from) a_i8x32 = _mm256_srli_epi16(a_i8x32, 8), b_i8x32 = _mm256_srli_epi16(b_i8x32, 8);
    else a_i8x32 = _mm256_and_si256(a_i8x32, low_i16x16), b_i8x32 = _mm256_and_si256(b_i8x32, low_i16x16);
    return _mm256_permute4x64_epi64(_mm256_packus_epi16(a_i8x32, b_i8x32), 0xD8);
}

HH_KERNEL void hh_crossed_query_avx2_(int rate, const int8_t *query, ptrdiff_t n_cols, int8_t *placed,
                                      int8_t *magnitude) {
    const __m256i swap_i8x32 =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    ptrdiff_t t = 0;
#define HH_QUERY(k) _mm256_loadu_si256((const __m256i *)(query + t + 32 * (k)))
    for (; rate == 64 && t + 64 <= n_cols; t += 64)
        for (int from = 0; from < 2; from++)
            hh_crossed_put_avx2_(placed + t + 32 * from, magnitude + t + 32 * from,
                                 hh_crossed_every_second_avx2_(HH_QUERY(0), HH_QUERY(1), from));
    for (; rate == 32 && t + 128 <= n_cols; t += 128)
        for (int from = 0; from < 4; from++) {
            const __m256i first_i8x32 = hh_crossed_every_second_avx2_(HH_QUERY(0), HH_QUERY(1), from % 2);
            const __m256i last_i8x32 = hh_crossed_every_second_avx2_(HH_QUERY(2), HH_QUERY(3), from % 2);
            hh_crossed_put_avx2_(placed + t + 32 * from, magnitude + t + 32 * from,
                                 hh_crossed_every_second_avx2_(first_i8x32, last_i8x32, from / 2));
        }
    for (; rate != 64 && rate != 32 && t + 32 <= n_cols; t += 32)
        hh_crossed_put_avx2_(placed + t, magnitude + t, _mm256_shuffle_epi8(HH_QUERY(0), swap_i8x32));
#undef HH_QUERY
    for (; t < n_cols; t++) {
        const ptrdiff_t in = t % HH_TRELLIS_BLOCK;
        const ptrdiff_t to = rate == 64   ? in / 64 * 64 + in % 2 * 32 + in % 64 / 2
                             : rate == 32 ? in % 4 * 32 + in / 4
                                          : in ^ 1;
        placed[t - in + to] = query[t];
        magnitude[t - in + to] = (int8_t)(uint8_t)(query[t] < 0 ? -query[t] : query[t]);
    }
}

/* Tables, and what is constant. */
typedef struct {
    __m256i across_i8x32, back_i8x32, back_a_i8x32, back_b_i8x32, level_a_i8x32, level_b_i8x32, level_c_i8x32;
    __m256i nibble_i8x32;
} hh_crossed_avx2;

HH_INLINE hh_crossed_avx2 hh_crossed_open_avx2_(const hh_crossed *tables, int added) {
    hh_crossed_avx2 open;
    uint8_t back_b[16];
    for (int i = 0; i < 16; i++) back_b[i] = tables->back[i] >> 4;
#define HH_TABLE(table) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table)))
    open.across_i8x32 = HH_TABLE(tables->across), open.back_i8x32 = HH_TABLE(tables->back);
    open.back_b_i8x32 = HH_TABLE(back_b);
    open.level_a_i8x32 = HH_TABLE(tables->level_a), open.level_b_i8x32 = HH_TABLE(tables->level_b);
    open.level_c_i8x32 = _mm256_add_epi8(HH_TABLE(tables->level_c), _mm256_set1_epi8((char)added));
#undef HH_TABLE
    open.nibble_i8x32 = _mm256_set1_epi8(15);
    open.back_a_i8x32 = _mm256_and_si256(open.back_i8x32, open.nibble_i8x32);
    return open;
}

HH_INLINE __m256i hh_lower_nibble_avx2_(__m256i byte_i8x32) {
    return _mm256_and_si256(byte_i8x32, _mm256_set1_epi8(15));
}

HH_INLINE __m256i hh_upper_nibble_avx2_(__m256i byte_i8x32) {
    return hh_lower_nibble_avx2_(_mm256_srli_epi16(byte_i8x32, 4));
}

/* Levels of nibbles that lie apart. */
HH_INLINE __m256i hh_crossed_apart_avx2_(const hh_crossed_avx2 *open, __m256i a_i8x32, __m256i b_i8x32,
                                         __m256i c_i8x32) {
    c_i8x32 = _mm256_xor_si256(c_i8x32, _mm256_shuffle_epi8(open->across_i8x32, a_i8x32));
    a_i8x32 = _mm256_xor_si256(a_i8x32, _mm256_shuffle_epi8(open->back_a_i8x32, c_i8x32));
    b_i8x32 = _mm256_xor_si256(b_i8x32, _mm256_shuffle_epi8(open->back_b_i8x32, c_i8x32));
    return _mm256_add_epi8(_mm256_add_epi8(_mm256_shuffle_epi8(open->level_a_i8x32, a_i8x32),
                                           _mm256_shuffle_epi8(open->level_b_i8x32, b_i8x32)),
                           _mm256_shuffle_epi8(open->level_c_i8x32, c_i8x32));
}

/* Levels of the weights of a byte's first and second nibble; `next` is the byte behind. */
HH_INLINE void hh_crossed_nibbles_avx2_(const hh_crossed_avx2 *open, __m256i byte_i8x32, __m256i next_i8x32,
                                        __m256i *first_i8x32, __m256i *second_i8x32) {
    const __m256i n0_i8x32 = hh_lower_nibble_avx2_(byte_i8x32), n1_i8x32 = hh_upper_nibble_avx2_(byte_i8x32);
    const __m256i n2_i8x32 = hh_lower_nibble_avx2_(next_i8x32), n3_i8x32 = hh_upper_nibble_avx2_(next_i8x32);
    *first_i8x32 = hh_crossed_apart_avx2_(open, n0_i8x32, n1_i8x32, n2_i8x32);
    *second_i8x32 = hh_crossed_apart_avx2_(open, n1_i8x32, n2_i8x32, n3_i8x32);
}

/* 4 bits: a byte holds the oldest nibbles of two weights. */
HH_INLINE void hh_crossed_four_avx2_(const hh_crossed_avx2 *open, const uint8_t *codes, __m256i *level_i8x32) {
    const __m256i byte_i8x32 = _mm256_loadu_si256((const __m256i *)codes);
    const __m256i next_i8x32 = _mm256_loadu_si256((const __m256i *)(codes + 1));
    hh_crossed_nibbles_avx2_(open, byte_i8x32, next_i8x32, level_i8x32, level_i8x32 + 1);
}

/* Bytes two bits on. */
HH_INLINE __m256i hh_on2_avx2_(__m256i byte_i8x32, __m256i next_i8x32) {
    const __m256i rest_i8x32 = _mm256_set1_epi8(0x3F);
    return _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(byte_i8x32, 2), rest_i8x32),
                           _mm256_andnot_si256(rest_i8x32, _mm256_slli_epi16(next_i8x32, 6)));
}

/* 2 bits: a byte holds the oldest bits of four weights. */
HH_INLINE void hh_crossed_two_avx2_(const hh_crossed_avx2 *open, const uint8_t *codes, __m256i *level_i8x32) {
    const __m256i byte_i8x32 = _mm256_loadu_si256((const __m256i *)codes);
    const __m256i next_i8x32 = _mm256_loadu_si256((const __m256i *)(codes + 1));
    const __m256i third_i8x32 = _mm256_loadu_si256((const __m256i *)(codes + 2));
    hh_crossed_nibbles_avx2_(open, byte_i8x32, next_i8x32, level_i8x32, level_i8x32 + 2);
    hh_crossed_nibbles_avx2_(open, hh_on2_avx2_(byte_i8x32, next_i8x32), hh_on2_avx2_(next_i8x32, third_i8x32),
                             level_i8x32 + 1, level_i8x32 + 3);
}

/* Any rate: shuffles that bring each 16-bit lane two bytes, and factors that push the 8 bits of a and b, or of c and
 * what follows, to the upper byte of its lane if its weight is even, and to the lower one if it is odd. Two groups of 16
 * weights make a pair; 16 bytes hold a group, c too. */
typedef struct {
    __m256i even_i8x32[4], odd_i8x32[4], even_factor_i16x16[4], odd_factor_i16x16[4];
    __m256i even_c_i8x32[4], odd_c_i8x32[4], odd_c_factor_i16x16[4];
    int first[8]; /* byte of each group */
    int is_shared; /* two bytes hold c of an even weight and of the next, as they do up to 5 bits */
} hh_crossed_plan_avx2;

HH_KERNEL void hh_crossed_plan_avx2_(int rate, hh_crossed_plan_avx2 *plan) {
    plan->is_shared = 1;
    for (int pair = 0; pair < 4; pair++) {
        uint8_t even[32], odd[32];
        uint16_t even_factor[16], odd_factor[16], odd_c_factor[16];
        for (int i = 0; i < 32; i++) {
            const int group = 2 * pair + i / 16, first = group * rate / 8, lane = i / 2;
            const int bit = (int)hh_bit_offset(32 * pair + i, rate) - 8 * first;
            plan->first[group] = first;
            if (i & 1) {
                const int byte = (bit - 1) >> 3; /* an odd weight's bit is at least 1: shifts are 1 to 8 */
                const int on = bit - 8 * even[2 * lane]; /* from the even weight's byte */
                odd[2 * lane] = (uint8_t)byte, odd[2 * lane + 1] = (uint8_t)(byte + 1);
                odd_factor[lane] = (uint16_t)(1 << (16 - (bit - 8 * byte)));
                odd_c_factor[lane] = (uint16_t)(1 << (16 - on)); /* on is 1 to 13 */
                if (on > 12) plan->is_shared = 0;
            } else {
                even[2 * lane] = (uint8_t)(bit >> 3), even[2 * lane + 1] = (uint8_t)((bit >> 3) + 1);
                even_factor[lane] = (uint16_t)(256 >> (bit & 7));
            }
        }
        plan->even_i8x32[pair] = _mm256_loadu_si256((const __m256i *)even);
        plan->odd_i8x32[pair] = _mm256_loadu_si256((const __m256i *)odd);
        plan->even_factor_i16x16[pair] = _mm256_loadu_si256((const __m256i *)even_factor);
        plan->odd_factor_i16x16[pair] = _mm256_loadu_si256((const __m256i *)odd_factor);
        plan->even_c_i8x32[pair] = _mm256_add_epi8(plan->even_i8x32[pair], _mm256_set1_epi8(1));
        plan->odd_c_i8x32[pair] = _mm256_add_epi8(plan->odd_i8x32[pair], _mm256_set1_epi8(1));
        plan->odd_c_factor_i16x16[pair] = _mm256_loadu_si256((const __m256i *)odd_c_factor);
    }
}

/* The bytes of a pair, a group each lane. */
HH_INLINE __m256i hh_crossed_bytes_avx2_(const hh_crossed_plan_avx2 *plan, const uint8_t *codes, int pair) {
    const __m128i first_i8x16 = _mm_loadu_si128((const __m128i *)(codes + plan->first[2 * pair]));
    const __m128i second_i8x16 = _mm_loadu_si128((const __m128i *)(codes + plan->first[2 * pair + 1]));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(first_i8x16), second_i8x16, 1);
}

/* What follows takes the vectors of `n` rows, 1 or 2 and constant, a step of both rows before the next step, so that a
 * step need not wait for the one before it. */
#define HH_EACH for (int i = 0; i < n; i++)

/* Windows of a pair, odd weights first: a and b as a byte, and c. */
HH_INLINE void hh_crossed_windows_avx2_(int n, int is_shared, const hh_crossed_plan_avx2 *plan,
                                        const uint8_t *const *codes, int pair, __m256i *ab_i8x32, __m256i *c_i8x32) {
    const __m256i even_i8x32 = plan->even_i8x32[pair], even_factor_i16x16 = plan->even_factor_i16x16[pair];
    const __m256i odd_i8x32 = plan->odd_i8x32[pair], odd_factor_i16x16 = plan->odd_factor_i16x16[pair];
    const __m256i even_c_i8x32 = plan->even_c_i8x32[pair], odd_c_i8x32 = plan->odd_c_i8x32[pair];
    const __m256i odd_c_factor_i16x16 = is_shared ? plan->odd_c_factor_i16x16[pair] : odd_factor_i16x16;
    const __m256i lower_i8x32 = _mm256_set1_epi16(0xFF);
    __m256i bytes_i8x32[2], upper_i16x16[2], lower_i16x16[2];
    HH_EACH bytes_i8x32[i] = hh_crossed_bytes_avx2_(plan, codes[i], pair);
    HH_EACH upper_i16x16[i] = _mm256_shuffle_epi8(bytes_i8x32[i], even_i8x32);
    HH_EACH lower_i16x16[i] = _mm256_shuffle_epi8(bytes_i8x32[i], odd_i8x32);
    HH_EACH upper_i16x16[i] = _mm256_mullo_epi16(upper_i16x16[i], even_factor_i16x16);
    HH_EACH lower_i16x16[i] = _mm256_mulhi_epu16(lower_i16x16[i], odd_factor_i16x16);
    HH_EACH ab_i8x32[i] = _mm256_blendv_epi8(upper_i16x16[i], lower_i16x16[i], lower_i8x32);
    HH_EACH upper_i16x16[i] = _mm256_shuffle_epi8(bytes_i8x32[i], even_c_i8x32);
    HH_EACH lower_i16x16[i] = is_shared ? upper_i16x16[i] : _mm256_shuffle_epi8(bytes_i8x32[i], odd_c_i8x32);
    HH_EACH lower_i16x16[i] = _mm256_mulhi_epu16(lower_i16x16[i], odd_c_factor_i16x16);
    HH_EACH upper_i16x16[i] = _mm256_mullo_epi16(upper_i16x16[i], even_factor_i16x16);
    HH_EACH c_i8x32[i] = hh_lower_nibble_avx2_(_mm256_blendv_epi8(upper_i16x16[i], lower_i16x16[i], lower_i8x32));
}

/* Levels of windows. */
HH_INLINE void hh_crossed_planes_avx2_(int n, const hh_crossed_avx2 *open, const __m256i *window_ab_i8x32,
                                       const __m256i *window_c_i8x32, __m256i *level_i8x32) {
    __m256i a_i8x32[2], b_i8x32[2], ab_i8x32[2], c_i8x32[2];
    HH_EACH a_i8x32[i] = hh_lower_nibble_avx2_(window_ab_i8x32[i]);
    HH_EACH c_i8x32[i] = _mm256_xor_si256(window_c_i8x32[i], _mm256_shuffle_epi8(open->across_i8x32, a_i8x32[i]));
    HH_EACH ab_i8x32[i] = _mm256_xor_si256(window_ab_i8x32[i], _mm256_shuffle_epi8(open->back_i8x32, c_i8x32[i]));
    HH_EACH level_i8x32[i] = _mm256_shuffle_epi8(open->level_c_i8x32, c_i8x32[i]);
    HH_EACH b_i8x32[i] = hh_upper_nibble_avx2_(ab_i8x32[i]);
    HH_EACH a_i8x32[i] = _mm256_shuffle_epi8(open->level_a_i8x32, hh_lower_nibble_avx2_(ab_i8x32[i]));
    HH_EACH b_i8x32[i] = _mm256_shuffle_epi8(open->level_b_i8x32, b_i8x32[i]);
    HH_EACH level_i8x32[i] = _mm256_add_epi8(level_i8x32[i], a_i8x32[i]);
    HH_EACH level_i8x32[i] = _mm256_add_epi8(level_i8x32[i], b_i8x32[i]);
}
#undef HH_EACH

/* Vectors that come at once. */
HH_INLINE int hh_crossed_count_(int body) {
    return body == HH_CROSSED_FOUR_BITS ? 2 : body == HH_CROSSED_TWO_BITS ? 4 : 1;
}

/* Vectors in the order of their weights. */
HH_INLINE void hh_crossed_order_avx2_(int body, __m256i *level_i8x32) {
    if (body == HH_CROSSED_FOUR_BITS) { /* two: even and odd weights of 64 */
        const __m256i low_i8x32 = _mm256_unpacklo_epi8(level_i8x32[0], level_i8x32[1]);
        const __m256i high_i8x32 = _mm256_unpackhi_epi8(level_i8x32[0], level_i8x32[1]);
        level_i8x32[0] = _mm256_permute2x128_si256(low_i8x32, high_i8x32, 0x20);
        level_i8x32[1] = _mm256_permute2x128_si256(low_i8x32, high_i8x32, 0x31);
    } else if (body == HH_CROSSED_TWO_BITS) { /* four: every fourth weight of 128 */
        const __m256i even0_i8x32 = _mm256_unpacklo_epi8(level_i8x32[0], level_i8x32[1]);
        const __m256i even1_i8x32 = _mm256_unpackhi_epi8(level_i8x32[0], level_i8x32[1]);
        const __m256i odd0_i8x32 = _mm256_unpacklo_epi8(level_i8x32[2], level_i8x32[3]);
        const __m256i odd1_i8x32 = _mm256_unpackhi_epi8(level_i8x32[2], level_i8x32[3]);
        const __m256i part0_i8x32 = _mm256_unpacklo_epi16(even0_i8x32, odd0_i8x32);
        const __m256i part1_i8x32 = _mm256_unpackhi_epi16(even0_i8x32, odd0_i8x32);
        const __m256i part2_i8x32 = _mm256_unpacklo_epi16(even1_i8x32, odd1_i8x32);
        const __m256i part3_i8x32 = _mm256_unpackhi_epi16(even1_i8x32, odd1_i8x32);
        level_i8x32[0] = _mm256_permute2x128_si256(part0_i8x32, part1_i8x32, 0x20);
        level_i8x32[1] = _mm256_permute2x128_si256(part2_i8x32, part3_i8x32, 0x20);
        level_i8x32[2] = _mm256_permute2x128_si256(part0_i8x32, part1_i8x32, 0x31);
        level_i8x32[3] = _mm256_permute2x128_si256(part2_i8x32, part3_i8x32, 0x31);
    } else {
        const __m256i swap_i8x32 =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
        *level_i8x32 = _mm256_shuffle_epi8(*level_i8x32, swap_i8x32);
    }
}

/* Adds the products of 32 levels with a query. The levels take the query's signs, so one factor is unsigned and two
 * products fit an int16. */
HH_INLINE __m256i hh_crossed_dot_avx2_(__m256i sum_i32x8, __m256i level_i8x32, const int8_t *query,
                                       const int8_t *magnitude) {
    level_i8x32 = _mm256_sign_epi8(level_i8x32, _mm256_loadu_si256((const __m256i *)query));
    level_i8x32 = _mm256_maddubs_epi16(_mm256_loadu_si256((const __m256i *)magnitude), level_i8x32);
    return _mm256_add_epi32(sum_i32x8, _mm256_madd_epi16(level_i8x32, _mm256_set1_epi16(1)));
}

HH_INLINE int32_t hh_crossed_total_avx2_(__m256i sum_i32x8) {
    __m128i sum_i32x4 = _mm_add_epi32(_mm256_castsi256_si128(sum_i32x8), _mm256_extracti128_si256(sum_i32x8, 1));
    sum_i32x4 = _mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0xB1)));
}

/* Rows: products, levels plus 128 `apart` bytes from each other, or floats. `use` and `body` are constant where this is
 * inlined. Two rows at once meet one query: they share what is loaded of it and of the plan. */
HH_INLINE void hh_crossed_read_avx2_(int use, int body, const hh_crossed_use *with, const hh_crossed_plan_avx2 *plan,
                                     const uint8_t *codes, ptrdiff_t row_nbytes, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                     int32_t *sums, uint8_t *levels, ptrdiff_t apart, const float *gains, float *out) {
    const hh_crossed_avx2 open = hh_crossed_open_avx2_(with->tables, use == HH_CROSSED_KEEP ? 128 : 0);
    const int count = hh_crossed_count_(body), n_queries = hh_crossed_queries_(use);
    const int n = n_queries == 1 ? 2 : 1; /* rows at once */
    const ptrdiff_t block_nbytes = with->rate;
    for (ptrdiff_t r = 0; r < n_rows; r += n) {
        const ptrdiff_t last = r + n <= n_rows ? r + n - 1 : r; /* an odd last row is read twice */
        const uint8_t *block[2] = {codes + r * row_nbytes, codes + last * row_nbytes};
        __m256i sum_i32x8[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}; /* of rows, or of queries */
        for (ptrdiff_t t = 0; t < n_cols; t += HH_TRELLIS_BLOCK) {
            float rest[HH_TRELLIS_BLOCK];
            float *const to = use != HH_CROSSED_DECODE         ? NULL
                              : t + HH_TRELLIS_BLOCK <= n_cols ? out + r * n_cols + t
                                                               : rest;
            for (int i = 0; i < n && n_queries; i++) /* for rows that no cache holds */
                _mm_prefetch((const char *)(block[i] + 4096), _MM_HINT_T0);
            for (int first = 0; first < 4; first += count) {
                __m256i level_i8x32[2][4], ab_i8x32[2], c_i8x32[2], any_i8x32[2]; /* of each row */
                if (body == HH_CROSSED_ANY || body == HH_CROSSED_SHARED) {
                    hh_crossed_windows_avx2_(n, body == HH_CROSSED_SHARED, plan, block, first, ab_i8x32, c_i8x32);
                    hh_crossed_planes_avx2_(n, &open, ab_i8x32, c_i8x32, any_i8x32);
                }
                for (int i = 0; i < n; i++) {
                    if (body == HH_CROSSED_FOUR_BITS)
                        hh_crossed_four_avx2_(&open, block[i] + 16 * first, level_i8x32[i]);
                    else if (body == HH_CROSSED_TWO_BITS) hh_crossed_two_avx2_(&open, block[i], level_i8x32[i]);
                    else level_i8x32[i][0] = any_i8x32[i];
                    if (!n_queries) hh_crossed_order_avx2_(body, level_i8x32[i]);
                    for (int v = 0; v < count; v++) {
                        const ptrdiff_t at = 32 * (first + v);
                        if (use == HH_CROSSED_KEEP) {
                            _mm256_storeu_si256((__m256i *)(levels + r * apart + t + at), level_i8x32[i][v]);
                        } else if (use == HH_CROSSED_DECODE) {
                            hh_widen32_avx2_(to + at, _mm256_xor_si256(level_i8x32[i][v], _mm256_set1_epi8(-128)),
                                             _mm256_set1_ps(gains[r]));
                        }
                        for (int q = 0; q < n_queries; q++)
                            sum_i32x8[i + q] =
                                hh_crossed_dot_avx2_(sum_i32x8[i + q], level_i8x32[i][v], with->query[q] + t + at,
                                                     with->magnitude[q] + t + at);
                    }
                }
            }
            if (use == HH_CROSSED_DECODE && to == rest)
                memcpy(out + r * n_cols + t, rest, (size_t)(n_cols - t) * sizeof(float));
            for (int i = 0; i < n; i++) block[i] += block_nbytes;
        }
        for (int q = 0; q < n_queries; q++) sums[r + q * with->sums_apart] = hh_crossed_total_avx2_(sum_i32x8[q]);
        if (n == 2) sums[last] = hh_crossed_total_avx2_(sum_i32x8[1]);
    }
}

#define HH_CROSSED_BODIES(use, ...)                                                                          \
    do {                                                                                                     \
        if (with->rate == 64) hh_crossed_read_avx2_(use, HH_CROSSED_FOUR_BITS, with, plan, __VA_ARGS__);     \
        else if (with->rate == 32) hh_crossed_read_avx2_(use, HH_CROSSED_TWO_BITS, with, plan, __VA_ARGS__); \
        else if (plan->is_shared) hh_crossed_read_avx2_(use, HH_CROSSED_SHARED, with, plan, __VA_ARGS__);    \
        else hh_crossed_read_avx2_(use, HH_CROSSED_ANY, with, plan, __VA_ARGS__);                            \
    } while (0)

HH_KERNEL void hh_crossed_dots_avx2(const hh_crossed_use *with, const hh_crossed_plan_avx2 *plan, const uint8_t *codes,
                                    ptrdiff_t row_nbytes, ptrdiff_t n_rows, ptrdiff_t n_cols, ptrdiff_t n_queries,
                                    int32_t *out) {
    if (n_queries == 2)
        HH_CROSSED_BODIES(HH_CROSSED_DOT_TWO, codes, row_nbytes, n_rows, n_cols, out, NULL, 0, NULL, NULL);
    else HH_CROSSED_BODIES(HH_CROSSED_DOT, codes, row_nbytes, n_rows, n_cols, out, NULL, 0, NULL, NULL);
}

HH_KERNEL void hh_crossed_keep_avx2(const hh_crossed_use *with, const hh_crossed_plan_avx2 *plan, const uint8_t *codes,
                                    ptrdiff_t row_nbytes, ptrdiff_t n_rows, ptrdiff_t n_cols, uint8_t *levels,
                                    ptrdiff_t apart) {
    HH_CROSSED_BODIES(HH_CROSSED_KEEP, codes, row_nbytes, n_rows, n_cols, NULL, levels, apart, NULL, NULL);
}

HH_KERNEL void hh_crossed_decode_avx2(const hh_crossed_use *with, const hh_crossed_plan_avx2 *plan,
                                      const uint8_t *codes, ptrdiff_t row_nbytes, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                      const float *gains, float *out) {
    HH_CROSSED_BODIES(HH_CROSSED_DECODE, codes, row_nbytes, n_rows, n_cols, NULL, NULL, 0, gains, out);
}
#undef HH_CROSSED_BODIES
HH_TARGET_END

HH_TARGET_AVX512VNNI_BEGIN
/* Tables four times over: a look-up by the lower nibble of a byte is one permutation, whatever its upper bits are. */
typedef struct {
    __m512i across_i8x64, back_i8x64, level_a_i8x64, level_b_i8x64, level_c_i8x64;
} hh_crossed_avx512vnni;

HH_INLINE hh_crossed_avx512vnni hh_crossed_open_avx512vnni_(const hh_crossed *tables, int added) {
    hh_crossed_avx512vnni open;
#define HH_TABLE(table) _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(table)))
    open.across_i8x64 = HH_TABLE(tables->across), open.back_i8x64 = HH_TABLE(tables->back);
    open.level_a_i8x64 = HH_TABLE(tables->level_a), open.level_b_i8x64 = HH_TABLE(tables->level_b);
    open.level_c_i8x64 = _mm512_add_epi8(HH_TABLE(tables->level_c), _mm512_set1_epi8((char)added));
#undef HH_TABLE
    return open;
}

/* Levels of windows: a and b of `low`, and the lower nibble of `c`. */
HH_INLINE __m512i hh_crossed_planes_avx512vnni_(const hh_crossed_avx512vnni *open, __m512i low_i8x64, __m512i c_i8x64) {
    c_i8x64 = _mm512_xor_si512(c_i8x64, _mm512_permutexvar_epi8(low_i8x64, open->across_i8x64));
    low_i8x64 = _mm512_xor_si512(low_i8x64, _mm512_permutexvar_epi8(c_i8x64, open->back_i8x64));
    return _mm512_add_epi8(
        _mm512_add_epi8(_mm512_permutexvar_epi8(low_i8x64, open->level_a_i8x64),
                        _mm512_permutexvar_epi8(_mm512_srli_epi16(low_i8x64, 4), open->level_b_i8x64)),
        _mm512_permutexvar_epi8(c_i8x64, open->level_c_i8x64));
}

/* The levels of half a block. */
HH_INLINE __m512i hh_crossed_any_avx512vnni_(const hh_crossed_avx512vnni *open, const hh_block_plan_avx512vnni *plan,
                                             const uint8_t *block, int half) {
    const __m512i bytes_i8x64 =
        _mm512_permutexvar_epi8(plan->spread_i8x64[half], _mm512_loadu_si512(block + half * plan->second));
    return hh_crossed_planes_avx512vnni_(open, _mm512_multishift_epi64_epi8(plan->shift_i8x64[half], bytes_i8x64),
                                         _mm512_multishift_epi64_epi8(plan->above_i8x64[half], bytes_i8x64));
}

/* 4 bits: the levels of the even or of the odd weights of a block. */
HH_INLINE __m512i hh_crossed_four_avx512vnni_(const hh_crossed_avx512vnni *open, const uint8_t *block, int odd) {
    const __m512i byte_i8x64 = _mm512_loadu_si512(block), next_i8x64 = _mm512_loadu_si512(block + 1);
    if (!odd) return hh_crossed_planes_avx512vnni_(open, byte_i8x64, next_i8x64);
    const __m512i next_up_i8x64 = _mm512_slli_epi16(next_i8x64, 4);
    /* the lower nibble from the byte's upper one, the upper nibble from the next byte's lower one */
    const __m512i low_i8x64 =
        _mm512_ternarylogic_epi64(_mm512_set1_epi8(15), _mm512_srli_epi16(byte_i8x64, 4), next_up_i8x64, 0xCA);
    return hh_crossed_planes_avx512vnni_(open, low_i8x64, _mm512_srli_epi16(next_i8x64, 4));
}

/* Puts a query, up to whole blocks, as these levels lie. */
HH_KERNEL void hh_crossed_query_avx512vnni_(int8_t *query, ptrdiff_t n_padded) {
    uint8_t even[64];
    for (int i = 0; i < 64; i++) even[i] = (uint8_t)(2 * i);
    const __m512i even_i8x64 = _mm512_loadu_si512(even), odd_i8x64 = _mm512_add_epi8(even_i8x64, _mm512_set1_epi8(1));
    for (int8_t *block = query; block < query + n_padded; block += HH_TRELLIS_BLOCK) {
        const __m512i first_i8x64 = _mm512_loadu_si512(block), second_i8x64 = _mm512_loadu_si512(block + 64);
        _mm512_storeu_si512(block, _mm512_permutex2var_epi8(first_i8x64, even_i8x64, second_i8x64));
        _mm512_storeu_si512(block + 64, _mm512_permutex2var_epi8(first_i8x64, odd_i8x64, second_i8x64));
    }
}

/* As hh_crossed_read_avx2_; `body` is HH_CROSSED_FOUR_BITS for queries in that order, else HH_CROSSED_ANY. */
HH_INLINE void hh_crossed_read_avx512vnni_(int use, int body, const hh_crossed_use *with,
                                           const hh_block_plan_avx512vnni *plan, const uint8_t *codes,
                                           ptrdiff_t row_nbytes, ptrdiff_t n_rows, ptrdiff_t n_cols, int32_t *sums,
                                           uint8_t *levels, ptrdiff_t apart, const float *gains, float *out) {
    const hh_crossed_avx512vnni open = hh_crossed_open_avx512vnni_(with->tables, 128);
    const int rate = with->rate, n_queries = hh_crossed_queries_(use);
    for (ptrdiff_t r = 0; r < n_rows; r++, codes += row_nbytes) {
        const uint8_t *block = codes;
        __m512i sum_i32x16[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        for (ptrdiff_t t = 0; t < n_cols; t += HH_TRELLIS_BLOCK, block += rate) {
            float rest[HH_TRELLIS_BLOCK];
            float *const to = use != HH_CROSSED_DECODE         ? NULL
                              : t + HH_TRELLIS_BLOCK <= n_cols ? out + r * n_cols + t
                                                               : rest;
            if (n_queries) _mm_prefetch((const char *)(block + 4096), _MM_HINT_T0);
            for (int half = 0; half < 2; half++) {
                if (half && body == HH_CROSSED_ANY && t + 64 >= n_cols) break; /* no second half */
                const __m512i level_i8x64 = body == HH_CROSSED_FOUR_BITS
                                                ? hh_crossed_four_avx512vnni_(&open, block, half)
                                                : hh_crossed_any_avx512vnni_(&open, plan, block, half);
                if (use == HH_CROSSED_KEEP) _mm512_storeu_si512(levels + r * apart + t + 64 * half, level_i8x64);
                else if (use == HH_CROSSED_DECODE)
                    hh_widen64_avx512vnni_(to + 64 * half, level_i8x64, _mm512_set1_ps(gains[r]));
                for (int q = 0; q < n_queries; q++) {
                    __m512i *const sum = sum_i32x16 + (n_queries == 2 ? q : half);
                    *sum = _mm512_dpbusd_epi32(*sum, level_i8x64, _mm512_loadu_si512(with->query[q] + t + 64 * half));
                }
            }
            if (use == HH_CROSSED_DECODE && to == rest)
                memcpy(out + r * n_cols + t, rest, (size_t)(n_cols - t) * sizeof(float));
        }
        if (n_queries == 1) sum_i32x16[0] = _mm512_add_epi32(sum_i32x16[0], sum_i32x16[1]);
        for (int q = 0; q < n_queries; q++)
            sums[r + q * with->sums_apart] =
                (int32_t)((uint32_t)_mm512_reduce_add_epi32(sum_i32x16[q]) - (uint32_t)with->bias[q]);
    }
}

HH_KERNEL void hh_crossed_dots_avx512vnni(const hh_crossed_use *with, const hh_block_plan_avx512vnni *plan,
                                          const uint8_t *codes, ptrdiff_t row_nbytes, ptrdiff_t n_rows,
                                          ptrdiff_t n_cols, ptrdiff_t n_queries, int32_t *out) {
#define HH_CROSSED_DOTS(use, body) \
    hh_crossed_read_avx512vnni_(use, body, with, plan, codes, row_nbytes, n_rows, n_cols, out, NULL, 0, NULL, NULL)
    if (n_queries == 2 && with->rate == 64) HH_CROSSED_DOTS(HH_CROSSED_DOT_TWO, HH_CROSSED_FOUR_BITS);
    else if (n_queries == 2) HH_CROSSED_DOTS(HH_CROSSED_DOT_TWO, HH_CROSSED_ANY);
    else if (with->rate == 64) HH_CROSSED_DOTS(HH_CROSSED_DOT, HH_CROSSED_FOUR_BITS);
    else HH_CROSSED_DOTS(HH_CROSSED_DOT, HH_CROSSED_ANY);
#undef HH_CROSSED_DOTS
}

HH_KERNEL void hh_crossed_keep_avx512vnni(const hh_crossed_use *with, const hh_block_plan_avx512vnni *plan,
                                          const uint8_t *codes, ptrdiff_t row_nbytes, ptrdiff_t n_rows,
                                          ptrdiff_t n_cols, uint8_t *levels, ptrdiff_t apart) {
    hh_crossed_read_avx512vnni_(HH_CROSSED_KEEP, HH_CROSSED_ANY, with, plan, codes, row_nbytes, n_rows, n_cols, NULL,
                                levels, apart, NULL, NULL);
}

HH_KERNEL void hh_crossed_decode_avx512vnni(const hh_crossed_use *with, const hh_block_plan_avx512vnni *plan,
                                            const uint8_t *codes, ptrdiff_t row_nbytes, ptrdiff_t n_rows,
                                            ptrdiff_t n_cols, const float *gains, float *out) {
    hh_crossed_read_avx512vnni_(HH_CROSSED_DECODE, HH_CROSSED_ANY, with, plan, codes, row_nbytes, n_rows, n_cols, NULL,
                                NULL, 0, gains, out);
}
HH_TARGET_END
#endif

#if HH_NEON
/* Tables, one register each. */
typedef struct {
    uint8x16_t across, back, back_a, back_b, level_a, level_b, level_c;
} hh_crossed_neon;

HH_INLINE hh_crossed_neon hh_crossed_open_neon_(const hh_crossed *tables) {
    hh_crossed_neon open;
    open.across = vld1q_u8(tables->across), open.back = vld1q_u8(tables->back);
    open.back_a = vandq_u8(open.back, vdupq_n_u8(15)), open.back_b = vshrq_n_u8(open.back, 4);
    open.level_a = vld1q_u8(tables->level_a), open.level_b = vld1q_u8(tables->level_b);
    open.level_c = vld1q_u8(tables->level_c);
    return open;
}

HH_INLINE uint8x16_t hh_lower_nibble_neon_(uint8x16_t byte_u8x16) { return vandq_u8(byte_u8x16, vdupq_n_u8(15)); }

HH_INLINE uint8x16_t hh_crossed_sum_neon_(const hh_crossed_neon *open, uint8x16_t a_u8x16, uint8x16_t b_u8x16,
                                          uint8x16_t c_u8x16) {
    return vaddq_u8(vaddq_u8(vqtbl1q_u8(open->level_a, a_u8x16), vqtbl1q_u8(open->level_b, b_u8x16)),
                    vqtbl1q_u8(open->level_c, c_u8x16));
}

/* Levels of nibbles that lie apart. */
HH_INLINE uint8x16_t hh_crossed_apart_neon_(const hh_crossed_neon *open, uint8x16_t a_u8x16, uint8x16_t b_u8x16,
                                            uint8x16_t c_u8x16) {
    c_u8x16 = veorq_u8(c_u8x16, vqtbl1q_u8(open->across, a_u8x16));
    a_u8x16 = veorq_u8(a_u8x16, vqtbl1q_u8(open->back_a, c_u8x16));
    b_u8x16 = veorq_u8(b_u8x16, vqtbl1q_u8(open->back_b, c_u8x16));
    return hh_crossed_sum_neon_(open, a_u8x16, b_u8x16, c_u8x16);
}

/* Levels of windows: a and b of `low`, and c. */
HH_INLINE uint8x16_t hh_crossed_planes_neon_(const hh_crossed_neon *open, uint8x16_t low_u8x16, uint8x16_t c_u8x16) {
    c_u8x16 = veorq_u8(c_u8x16, vqtbl1q_u8(open->across, hh_lower_nibble_neon_(low_u8x16)));
    low_u8x16 = veorq_u8(low_u8x16, vqtbl1q_u8(open->back, c_u8x16));
    return hh_crossed_sum_neon_(open, hh_lower_nibble_neon_(low_u8x16), vshrq_n_u8(low_u8x16, 4), c_u8x16);
}

/* Any rate, for the 8 groups of 16 weights of a block: the byte in which a window begins, how far it and the byte behind
 * it are shifted to the right, and how far the next byte to the left. */
typedef struct {
    uint8_t pick[8][16];
    int8_t down[8][16], up[8][16];
    int first[8]; /* byte of each group */
} hh_crossed_plan_neon;

HH_KERNEL void hh_crossed_plan_neon_(int rate, hh_crossed_plan_neon *plan) {
    for (int group = 0; group < 8; group++) {
        plan->first[group] = group * rate / 8;
        for (int i = 0; i < 16; i++) {
            const int bit = (int)hh_bit_offset(16 * group + i, rate) - 8 * plan->first[group];
            plan->pick[group][i] = (uint8_t)(bit >> 3);
            plan->down[group][i] = (int8_t)-(bit & 7), plan->up[group][i] = (int8_t)(8 - (bit & 7));
        }
    }
}

HH_INLINE uint8x16_t hh_crossed_any_neon_(const hh_crossed_neon *open, const hh_crossed_plan_neon *plan,
                                          const uint8_t *codes, int group) {
    const uint8_t *const from = codes + plan->first[group];
    const uint8x16_t pick_u8x16 = vld1q_u8(plan->pick[group]);
    const int8x16_t down_i8x16 = vld1q_s8(plan->down[group]), up_i8x16 = vld1q_s8(plan->up[group]);
    const uint8x16_t first_u8x16 = vqtbl1q_u8(vld1q_u8(from), pick_u8x16);
    const uint8x16_t next_u8x16 = vqtbl1q_u8(vld1q_u8(from + 1), pick_u8x16);
    const uint8x16_t third_u8x16 = vqtbl1q_u8(vld1q_u8(from + 2), pick_u8x16);
    return hh_crossed_planes_neon_(
        open, vorrq_u8(vshlq_u8(first_u8x16, down_i8x16), vshlq_u8(next_u8x16, up_i8x16)),
        hh_lower_nibble_neon_(vorrq_u8(vshlq_u8(next_u8x16, down_i8x16), vshlq_u8(third_u8x16, up_i8x16))));
}

/* The levels of the 128 weights of a block. `rate` is 64 or 32, whose nibbles and pairs of bits are cut by shifts, or 0
 * for any, and constant where this is inlined. */
HH_INLINE void hh_crossed_block_neon_(int rate, const hh_crossed_neon *open, const hh_crossed_plan_neon *plan,
                                      const uint8_t *codes, uint8_t *levels) {
    if (rate == 64) { /* a byte holds the oldest nibbles of two weights */
        for (int part = 0; part < 4; part++) {
            const uint8x16_t first_u8x16 = vld1q_u8(codes + 16 * part), next_u8x16 = vld1q_u8(codes + 16 * part + 1);
            const uint8x16_t b_u8x16 = hh_lower_nibble_neon_(next_u8x16);
            uint8x16x2_t level_u8x16;
            level_u8x16.val[0] = hh_crossed_planes_neon_(open, first_u8x16, b_u8x16);
            level_u8x16.val[1] =
                hh_crossed_apart_neon_(open, vshrq_n_u8(first_u8x16, 4), b_u8x16, vshrq_n_u8(next_u8x16, 4));
            vst2q_u8(levels + 32 * part, level_u8x16);
        }
    } else if (rate == 32) { /* the oldest bits of four weights */
        for (int part = 0; part < 2; part++) {
            const uint8x16_t first_u8x16 = vld1q_u8(codes + 16 * part), next_u8x16 = vld1q_u8(codes + 16 * part + 1);
            const uint8x16_t third_u8x16 = vld1q_u8(codes + 16 * part + 2);
            const uint8x16_t next_low_u8x16 = hh_lower_nibble_neon_(next_u8x16);
            uint8x16x4_t level_u8x16;
            level_u8x16.val[0] = hh_crossed_planes_neon_(open, first_u8x16, next_low_u8x16);
            level_u8x16.val[1] = hh_crossed_planes_neon_(open, vsliq_n_u8(vshrq_n_u8(first_u8x16, 2), next_u8x16, 6),
                                                         hh_lower_nibble_neon_(vshrq_n_u8(next_u8x16, 2)));
            level_u8x16.val[2] =
                hh_crossed_apart_neon_(open, vshrq_n_u8(first_u8x16, 4), next_low_u8x16, vshrq_n_u8(next_u8x16, 4));
            level_u8x16.val[3] =
                hh_crossed_planes_neon_(open, vsliq_n_u8(vshrq_n_u8(first_u8x16, 6), next_u8x16, 2),
                                        hh_lower_nibble_neon_(vsliq_n_u8(vshrq_n_u8(next_u8x16, 6), third_u8x16, 2)));
            vst4q_u8(levels + 64 * part, level_u8x16);
        }
    } else {
        for (int group = 0; group < 8; group++)
            vst1q_u8(levels + 16 * group, hh_crossed_any_neon_(open, plan, codes, group));
    }
}

/* The levels of as many whole blocks as hold n_cols weights. */
HH_INLINE void hh_crossed_blocks_neon_(int special, int rate, const hh_crossed_neon *open,
                                       const hh_crossed_plan_neon *plan, const uint8_t *codes, ptrdiff_t n_cols,
                                       int8_t *levels) {
    for (ptrdiff_t t = 0; t < n_cols; t += HH_TRELLIS_BLOCK, codes += rate)
        hh_crossed_block_neon_(special, open, plan, codes, (uint8_t *)levels + t);
}

HH_KERNEL void hh_crossed_keep_neon(const hh_crossed *tables, const hh_crossed_plan_neon *plan, int rate,
                                    const uint8_t *codes, ptrdiff_t n_cols, int8_t *levels) {
    const hh_crossed_neon open = hh_crossed_open_neon_(tables);
    if (rate == 64) hh_crossed_blocks_neon_(64, rate, &open, plan, codes, n_cols, levels);
    else if (rate == 32) hh_crossed_blocks_neon_(32, rate, &open, plan, codes, n_cols, levels);
    else hh_crossed_blocks_neon_(0, rate, &open, plan, codes, n_cols, levels);
}

HH_KERNEL void hh_crossed_decode_neon(const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                      const uint8_t *codebook, const float *gains, uint8_t *padded, float *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, 12);
    const ptrdiff_t n_whole = hh_trellis_whole_rows(n_rows, n_cols, rate, 12);
    hh_crossed tables;
    hh_crossed_plan_neon plan;
    hh_crossed_open(codebook, &tables);
    hh_crossed_plan_neon_(rate, &plan);
    memset(padded, 0, (size_t)hh_trellis_reach_nbytes(n_cols, rate));
    for (ptrdiff_t r = 0; r < n_rows; r++, codes += row_nbytes, out += n_cols) {
        const uint8_t *row = r < n_whole ? codes : memcpy(padded, codes, (size_t)row_nbytes);
        enum { AT_ONCE = 4 * HH_TRELLIS_BLOCK }; /* their levels stay in the first cache */
        for (ptrdiff_t t = 0; t < n_cols; t += AT_ONCE, row += 4 * rate) {
            const ptrdiff_t count = n_cols - t < AT_ONCE ? n_cols - t : AT_ONCE, whole = count & ~(ptrdiff_t)15;
            int8_t levels[AT_ONCE];
            float rest[16];
            hh_crossed_keep_neon(&tables, &plan, rate, row, count, levels);
            for (ptrdiff_t i = 0; i < whole; i += 16) hh_widen16_neon_(out + t + i, vld1q_s8(levels + i), gains[r]);
            if (whole == count) continue;
            hh_widen16_neon_(rest, vld1q_s8(levels + whole), gains[r]);
            memcpy(out + t + whole, rest, (size_t)(count - whole) * sizeof(float));
        }
    }
}
#endif

/* Write gain * level of every weight: rotated rows. `padded` is scratch of hh_trellis_reach_nbytes; `levels` are those of
 * hh_crossed_levels. */
HH_KERNEL void hh_crossed_decode(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                 const uint8_t *codebook, const int8_t *levels, const float *gains, uint8_t *padded,
                                 float *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, 12);
#if HH_X86
    if (tier >= HH_TIER_AVX2) {
        const ptrdiff_t n_whole = hh_trellis_whole_rows(n_rows, n_cols, rate, 12);
        hh_crossed tables;
        hh_crossed_plan_avx2 plan_avx2;
        hh_block_plan_avx512vnni plan_avx512vnni;
        const hh_crossed_use with = {&tables, rate, {NULL, NULL}, {NULL, NULL}, {0, 0}, 0};
        hh_crossed_open(codebook, &tables);
        if (tier >= HH_TIER_AVX512VNNI) hh_block_plan_avx512vnni_(rate, &plan_avx512vnni);
        else hh_crossed_plan_avx2_(rate, &plan_avx2);
        memset(padded, 0, (size_t)hh_trellis_reach_nbytes(n_cols, rate));
        for (ptrdiff_t r = 0; r < n_rows;) { /* rows that may be read where they lie, then each of the others */
            const int is_whole = r < n_whole;
            const ptrdiff_t some = is_whole ? n_whole : 1;
            const uint8_t *const row = is_whole ? codes : memcpy(padded, codes + r * row_nbytes, (size_t)row_nbytes);
            if (tier >= HH_TIER_AVX512VNNI)
                hh_crossed_decode_avx512vnni(&with, &plan_avx512vnni, row, row_nbytes, some, n_cols, gains + r,
                                             out + r * n_cols);
            else hh_crossed_decode_avx2(&with, &plan_avx2, row, row_nbytes, some, n_cols, gains + r, out + r * n_cols);
            r += some;
        }
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_crossed_decode_neon(codes, n_rows, n_cols, rate, codebook, gains, padded, out);
        return;
    }
#endif
    (void)tier, (void)codebook, (void)padded;
    for (ptrdiff_t r = 0; r < n_rows; r++)
        hh_levels_scalar(codes + r * row_nbytes, n_cols, rate, 12, levels, gains[r], out + r * n_cols);
}

#endif
