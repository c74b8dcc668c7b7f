/* Scores of Slot T's rows without decoding them to memory: int8 levels times int8 queries, summed in int32.
 *
 * out[q][r] = sum over t of table[window(r, t)] * queries[q][t], windows as in trellis.h; and energies,
 * out[r] = sum over t of table[window(r, t)] squared. Integers are exact, so every tier gives the same; up to
 * HH_SCORE_MAX_COLS columns nothing overflows even with -128 on both sides.
 *
 * The vector bodies look levels up as unsigned bytes, level + 128, and 128 * sum(query) comes off again. Queries are
 * filled up with zeros, and what lies behind a row's end is multiplied by them.
 *
 * One query: a row's levels go from the tables straight into the product. Several: HH_SCORE_TILE rows are decoded
 * once, HH_SCORE_COLS columns at a time, into panels of 16 rows that hold 4 columns of each row in a 32-bit lane, so
 * that a sum has a lane of its own and a query's 4 columns are one broadcast; a panel meets a group of queries with all
 * the sums in registers. Panels stay in the first cache, HH_SCORE_QUERIES queries and the sums of
 * HH_SCORE_ROWS rows in the second, where hh_trellis_scores makes them scores.
 */
#ifndef HHTLD_SCORE_H
#define HHTLD_SCORE_H

#include "crossed.h"
#include "isa.h"
#include "screen.h"
#include "trellis.h"

enum {
    HH_SCORE_MAX_COLS = 65536,
    HH_SCORE_PANEL = 16,                   /* rows */
    HH_SCORE_TILE = 3 * HH_SCORE_PANEL,    /* 48 rows of 640 levels are 30 KB */
    HH_SCORE_ROWS = 10 * HH_SCORE_TILE,    /* that share a visit of the queries, and whose sums are made scores */
    HH_SCORE_COLS = 5 * HH_TRELLIS_BLOCK,
    HH_SCORE_QUERIES = 256,
};

/* Scratch; the caller owns the memory. `query` and `halves` are whole for one query and for two, else HH_SCORE_COLS
 * columns of up to HH_SCORE_QUERIES; the last three are for several queries only. */
typedef struct {
    uint8_t *row;    /* [hh_trellis_reach_nbytes] */
    int8_t *query;   /* [n_queries][n_cols up to whole blocks], or [n_queries][HH_SCORE_COLS] */
    int16_t *halves; /* the same, as int16 */
    uint8_t *table;  /* [2^12] */
    int32_t *wide;   /* [2^12] */
    uint8_t *levels; /* [HH_SCORE_PANEL][HH_SCORE_COLS] */
    uint8_t *tile;   /* [HH_SCORE_TILE][HH_SCORE_COLS] */
    int32_t *bias;   /* [n_queries] */
    int32_t *rest;   /* [n_queries][HH_SCORE_TILE] */
} hh_score_scratch;

/* What scores are: gains[r] * scales[q] times a sum, added to scores[q][r] where `more` is set. */
typedef struct {
    const float *gains, *scales;
    int more;
    float *scores;
} hh_score_gains;

/* Scores of rows [from, end) of n_rows and queries [first, first + count), whose sums lie `apart`. */
HH_KERNEL void hh_score_add_(int tier, const int32_t *sums, ptrdiff_t apart, const hh_score_gains *gains,
                             ptrdiff_t first, ptrdiff_t count, ptrdiff_t from, ptrdiff_t end, ptrdiff_t n_rows) {
    for (ptrdiff_t q = first; q < first + count; q++, sums += apart) {
        float *const scores = gains->scores + q * n_rows + from;
        if (!gains->more) memset(scores, 0, (size_t)(end - from) * sizeof(float));
        hh_screen_add_dots(tier, sums, gains->gains + from, gains->scales + q, 1, end - from, scores);
    }
}

/* ---- scalar ---- */

HH_KERNEL int32_t hh_trellis_dot_scalar(const uint8_t *codes, ptrdiff_t n_cols, int rate, int n_bits,
                                        const int8_t *table, const int8_t *query) {
    int32_t sum = 0;
    for (ptrdiff_t t = 0; t < n_cols; t++) sum += (int32_t)table[hh_window_(codes, t, rate, n_bits)] * query[t];
    return sum;
}

HH_KERNEL int32_t hh_trellis_energy_scalar(const uint8_t *codes, ptrdiff_t n_cols, int rate, int n_bits,
                                           const int8_t *table) {
    int32_t sum = 0;
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        const int32_t level = table[hh_window_(codes, t, rate, n_bits)];
        sum += level * level;
    }
    return sum;
}

/* ---- vector bodies ---- */

/* GCC 12 holds a sum of a loop twice, before and after its change of vector type, and spills. This holds it
 * to one register (docs/decisions/score-kernels.md). */
#if defined(__GNUC__)
#define HH_HOLD(v) __asm__("" : "+v"(v))
#else
#define HH_HOLD(v) (void)0
#endif

/* A query as int16 for multiply-adds of pairs: of every `span` weights the even ones first, then the odd ones, as they
 * come out of bytes masked and shifted in 16-bit lanes. */
HH_INLINE void hh_halves_(const int8_t *query, ptrdiff_t n_cols, int span, int16_t *halves) {
    for (ptrdiff_t t = 0; t < n_cols; t++) halves[t / span * span + t % span / 2 + t % 2 * (span / 2)] = query[t];
}

/* Sums of biased levels may pass INT32_MAX on their way, and come back. */
HH_INLINE int32_t hh_less_(int32_t a, int32_t b) { return (int32_t)((uint32_t)a - (uint32_t)b); }

#if HH_X86
/* What it takes to read rows. */
typedef struct {
    int tier, rate, n_bits;
    ptrdiff_t row_nbytes, n_whole;
    const uint8_t *codes;
    hh_score_scratch scratch;
    hh_block_plan_avx2 plan_avx2;
    hh_block_plan_avx512vnni plan_avx512vnni;
    int is_crossed;
    hh_crossed crossed;
    hh_crossed_plan_avx2 crossed_plan_avx2;
} hh_score_rows;

/* Of one query, or of two, whose sums lie `sums_apart`. */
HH_INLINE hh_crossed_use hh_score_crossed_(const hh_score_rows *rows, ptrdiff_t n_queries, ptrdiff_t n_cols,
                                           ptrdiff_t sums_apart) {
    const int8_t *const query = rows->scratch.query, *const magnitude = (const int8_t *)rows->scratch.halves;
    const int32_t *const bias = rows->scratch.bias;
    const ptrdiff_t last = n_queries - 1, apart = last * hh_trellis_blocks(n_cols) * HH_TRELLIS_BLOCK;
    const hh_crossed_use with = {&rows->crossed,         rows->rate,
                                 {query, query + apart}, {magnitude, magnitude + apart},
                                 {bias[0], bias[last]},  sums_apart};
    return with;
}

HH_TARGET_AVX2_BEGIN
HH_INLINE int32_t hh_sum_i32x8_avx2_(__m256i sum_i32x8) {
    __m128i sum_i32x4 = _mm_add_epi32(_mm256_castsi256_si128(sum_i32x8), _mm256_extracti128_si256(sum_i32x8, 1));
    sum_i32x4 = _mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum_i32x4, _mm_shuffle_epi32(sum_i32x4, 0xB1)));
}

/* Of rows either the products with the `halves` of a query, by spans of 32, or, where `keep` says so, the levels,
 * HH_SCORE_COLS apart. `keep` is constant where this is inlined. */
HH_INLINE void hh_score_read8_avx2_(int keep, const hh_score_rows *rows, const uint8_t *codes, ptrdiff_t n_rows,
                                    ptrdiff_t n_cols, const int16_t *halves, int32_t bias, int32_t *out,
                                    uint8_t *levels) {
    const uint8_t *const table = rows->scratch.table;
    const ptrdiff_t row_nbytes = rows->row_nbytes;
    const int rate = rows->rate;
    const __m256i low_i16x16 = _mm256_set1_epi16(0xFF);
    for (ptrdiff_t r = 0; r < n_rows; r++, codes += row_nbytes, levels += keep ? HH_SCORE_COLS : 0) {
        const uint8_t *block = codes;
        __m256i even_sum_i32x8 = _mm256_setzero_si256(), odd_sum_i32x8 = _mm256_setzero_si256();
        for (ptrdiff_t t = 0; t < n_cols; t += HH_TRELLIS_BLOCK, block += rate)
            for (int pair = 0; pair < 4; pair++) {
                const __m256i level_i8x32 = hh_levels32_avx2_(block, table, &rows->plan_avx2, pair);
                if (keep) {
                    _mm256_storeu_si256((__m256i *)(levels + t + 32 * pair), level_i8x32);
                    continue;
                }
                const int16_t *const factors = halves + t + 32 * pair;
                even_sum_i32x8 =
                    _mm256_add_epi32(even_sum_i32x8, _mm256_madd_epi16(_mm256_and_si256(level_i8x32, low_i16x16),
                                                                       _mm256_loadu_si256((const __m256i *)factors)));
                odd_sum_i32x8 = _mm256_add_epi32(
                    odd_sum_i32x8, _mm256_madd_epi16(_mm256_srli_epi16(level_i8x32, 8),
                                                     _mm256_loadu_si256((const __m256i *)(factors + 16))));
            }
        if (!keep) out[r] = hh_less_(hh_sum_i32x8_avx2_(_mm256_add_epi32(even_sum_i32x8, odd_sum_i32x8)), bias);
    }
}

/* The same for larger tables: windows in 32-bit lanes, levels gathered. 16 weights take exactly `rate` bits. */
HH_INLINE void hh_score_read_wide_avx2_(int keep, const hh_score_rows *rows, const uint8_t *codes, ptrdiff_t n_rows,
                                        ptrdiff_t n_cols, const int8_t *query, int32_t bias, int32_t *out,
                                        uint8_t *levels) {
    const int32_t *const wide = rows->scratch.wide;
    const ptrdiff_t row_nbytes = rows->row_nbytes;
    const int rate = rows->rate;
    const __m256i mask_i32x8 = _mm256_set1_epi32((1 << rows->n_bits) - 1);
    int32_t offsets[16];
    for (int t = 0; t < 16; t++) offsets[t] = (int32_t)hh_bit_offset(t, rate);
    const __m256i low_i32x8 = _mm256_loadu_si256((const __m256i *)offsets),
                  high_i32x8 = _mm256_loadu_si256((const __m256i *)(offsets + 8));
    for (ptrdiff_t r = 0; r < n_rows; r++, codes += row_nbytes, levels += keep ? HH_SCORE_COLS : 0) {
        __m256i sum_i32x8 = _mm256_setzero_si256(), other_i32x8 = _mm256_setzero_si256();
        ptrdiff_t bit = 0;
        for (ptrdiff_t t = 0; t < n_cols; t += 16, bit += rate) {
            const __m256i bytes_i8x32 =
                _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(codes + (bit >> 3))));
            const __m256i at_i32x8 = _mm256_set1_epi32((int)(bit & 7));
            const __m256i first_i32x8 = _mm256_i32gather_epi32(
                wide, hh_states8_avx2_(bytes_i8x32, _mm256_add_epi32(low_i32x8, at_i32x8), mask_i32x8), 4);
            const __m256i second_i32x8 = _mm256_i32gather_epi32(
                wide, hh_states8_avx2_(bytes_i8x32, _mm256_add_epi32(high_i32x8, at_i32x8), mask_i32x8), 4);
            if (keep) {
                const __m256i level_i16x16 =
                    _mm256_permute4x64_epi64(_mm256_packus_epi32(first_i32x8, second_i32x8), 0xD8);
                _mm_storeu_si128((__m128i *)(levels + t), _mm_packus_epi16(_mm256_castsi256_si128(level_i16x16),
                                                                           _mm256_extracti128_si256(level_i16x16, 1)));
                continue;
            }
            sum_i32x8 = _mm256_add_epi32(
                sum_i32x8,
                _mm256_madd_epi16(first_i32x8, _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(query + t)))));
            other_i32x8 =
                _mm256_add_epi32(other_i32x8, _mm256_madd_epi16(second_i32x8, _mm256_cvtepi8_epi32(_mm_loadl_epi64(
                                                                                  (const __m128i *)(query + t + 8)))));
        }
        if (!keep) out[r] = hh_less_(hh_sum_i32x8_avx2_(_mm256_add_epi32(sum_i32x8, other_i32x8)), bias);
    }
}

HH_KERNEL void hh_score_dots_avx2(const hh_score_rows *rows, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                  ptrdiff_t n_queries, ptrdiff_t sums_apart, int32_t *out) {
    const hh_score_scratch *const scratch = &rows->scratch;
    if (rows->is_crossed) {
        const hh_crossed_use with = hh_score_crossed_(rows, n_queries, n_cols, sums_apart);
        hh_crossed_dots_avx2(&with, &rows->crossed_plan_avx2, codes, rows->row_nbytes, n_rows, n_cols, n_queries, out);
    } else if (rows->n_bits <= 8)
        hh_score_read8_avx2_(0, rows, codes, n_rows, n_cols, scratch->halves, *scratch->bias, out, NULL);
    else hh_score_read_wide_avx2_(0, rows, codes, n_rows, n_cols, scratch->query, *scratch->bias, out, NULL);
}

HH_KERNEL void hh_score_levels_avx2(const hh_score_rows *rows, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                    uint8_t *levels) {
    if (rows->is_crossed) {
        const hh_crossed_use with = hh_score_crossed_(rows, 1, n_cols, 0);
        hh_crossed_keep_avx2(&with, &rows->crossed_plan_avx2, codes, rows->row_nbytes, n_rows, n_cols, levels,
                             HH_SCORE_COLS);
    } else if (rows->n_bits <= 8) hh_score_read8_avx2_(1, rows, codes, n_rows, n_cols, NULL, 0, NULL, levels);
    else hh_score_read_wide_avx2_(1, rows, codes, n_rows, n_cols, NULL, 0, NULL, levels);
}

/* Squares of levels less 128; n_cols is a multiple of 64. */
HH_KERNEL int32_t hh_energy_avx2(const uint8_t *levels, ptrdiff_t n_cols) {
    __m256i sum_i32x8 = _mm256_setzero_si256();
    for (ptrdiff_t t = 0; t < n_cols; t += 16) {
        const __m256i level_i16x16 = _mm256_sub_epi16(
            _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(levels + t))), _mm256_set1_epi16(128));
        sum_i32x8 = _mm256_add_epi32(sum_i32x8, _mm256_madd_epi16(level_i16x16, level_i16x16));
    }
    return hh_sum_i32x8_avx2_(sum_i32x8);
}

/* Rows of levels to a panel. Lanes of 128 bits are filled by loads, so that two rounds of shuffles remain.
 * There is no body of 512 bits: it gains too little (docs/decisions/score-kernels.md). */
HH_KERNEL void hh_panel_avx2(const uint8_t *levels, ptrdiff_t n_cols, uint8_t *panel) {
    for (ptrdiff_t t = 0; t < n_cols; t += 16, panel += 16 * HH_SCORE_PANEL)
        for (int half = 0; half < 2; half++) {
            const uint8_t *const rows = levels + 8 * half * HH_SCORE_COLS + t;
            __m256i row_i32x8[4];
            for (int r = 0; r < 4; r++)
                row_i32x8[r] = _mm256_inserti128_si256(
                    _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(rows + r * HH_SCORE_COLS))),
                    _mm_loadu_si128((const __m128i *)(rows + (r + 4) * HH_SCORE_COLS)), 1);
            for (int pair = 0; pair < 2; pair++) {
                const __m256i first_i32x8 = pair ? _mm256_unpackhi_epi32(row_i32x8[0], row_i32x8[1])
                                                 : _mm256_unpacklo_epi32(row_i32x8[0], row_i32x8[1]);
                const __m256i second_i32x8 = pair ? _mm256_unpackhi_epi32(row_i32x8[2], row_i32x8[3])
                                                  : _mm256_unpacklo_epi32(row_i32x8[2], row_i32x8[3]);
                _mm256_storeu_si256((__m256i *)(panel + 128 * pair + 32 * half),
                                    _mm256_unpacklo_epi64(first_i32x8, second_i32x8));
                _mm256_storeu_si256((__m256i *)(panel + 128 * pair + 64 + 32 * half),
                                    _mm256_unpackhi_epi64(first_i32x8, second_i32x8));
            }
        }
}

/* A panel and `count` queries, which is constant where this is inlined. */
HH_INLINE void hh_products_avx2_(int count, const uint8_t *panel, ptrdiff_t n_cols, const int16_t *halves,
                                 const int32_t *bias, int more, ptrdiff_t stride, int32_t *out) {
    __m256i sum_i32x8[6][2];
    for (int q = 0; q < count; q++)
        for (int v = 0; v < 2; v++) sum_i32x8[q][v] = _mm256_setzero_si256();
    for (; n_cols > 0; n_cols -= 4, panel += 4 * HH_SCORE_PANEL, halves += 4)
        for (int odd = 0; odd < 2; odd++) {
            __m256i level_i16x16[2];
            for (int v = 0; v < 2; v++) {
                const __m256i level_i8x32 = _mm256_loadu_si256((const __m256i *)(panel + 32 * v));
                level_i16x16[v] =
                    odd ? _mm256_srli_epi16(level_i8x32, 8) : _mm256_and_si256(level_i8x32, _mm256_set1_epi16(0xFF));
            }
            for (int q = 0; q < count; q++) {
                int32_t two;
                memcpy(&two, halves + q * HH_SCORE_COLS + 2 * odd, 4);
                const __m256i factor_i16x16 = _mm256_set1_epi32(two);
                for (int v = 0; v < 2; v++) {
                    sum_i32x8[q][v] =
                        _mm256_add_epi32(sum_i32x8[q][v], _mm256_madd_epi16(level_i16x16[v], factor_i16x16));
                    HH_HOLD(sum_i32x8[q][v]);
                }
            }
        }
    for (int q = 0; q < count; q++, out += stride)
        for (int v = 0; v < 2; v++) {
            __m256i *const to = (__m256i *)(out + 8 * v);
            const __m256i found_i32x8 = _mm256_sub_epi32(sum_i32x8[q][v], _mm256_set1_epi32(bias[q]));
            _mm256_storeu_si256(to, more ? _mm256_add_epi32(found_i32x8, _mm256_loadu_si256(to)) : found_i32x8);
        }
}

HH_KERNEL void hh_products_avx2(const uint8_t *tile, ptrdiff_t n_cols, const int16_t *halves, const int32_t *bias,
                                ptrdiff_t n_queries, int more, ptrdiff_t stride, int32_t *out) {
    for (int p = 0; p < HH_SCORE_TILE; p += HH_SCORE_PANEL)
        for (ptrdiff_t q = 0; q < n_queries; q += 6) switch (n_queries - q) {
#define HH_CASE(count)                                                                                                 \
    case count:                                                                                                        \
        hh_products_avx2_(count, tile + p * HH_SCORE_COLS, n_cols, halves + q * HH_SCORE_COLS, bias + q, more, stride, \
                          out + q * stride + p);                                                                       \
        break;
                HH_CASE(1) HH_CASE(2) HH_CASE(3) HH_CASE(4) HH_CASE(5) default : HH_CASE(6)
#undef HH_CASE
            }
}
HH_TARGET_END

HH_TARGET_AVX512VNNI_BEGIN
/* As hh_score_read8_avx2_; n_bits is 8, 10 or 12 and constant. */
HH_INLINE void hh_score_read_avx512vnni_(int keep, int n_bits, const hh_score_rows *rows, const uint8_t *codes,
                                         ptrdiff_t n_rows, ptrdiff_t n_cols, const int8_t *query, int32_t bias,
                                         int32_t *out, uint8_t *levels) {
    const hh_block_plan_avx512vnni *const plan = &rows->plan_avx512vnni;
    const uint8_t *const table = rows->scratch.table;
    const ptrdiff_t row_nbytes = rows->row_nbytes;
    const int rate = rows->rate;
    const __m512i spread0_i8x64 = plan->spread_i8x64[0], shift0_i8x64 = plan->shift_i8x64[0],
                  above0_i8x64 = plan->above_i8x64[0];
    const __m512i spread1_i8x64 = plan->spread_i8x64[1], shift1_i8x64 = plan->shift_i8x64[1],
                  above1_i8x64 = plan->above_i8x64[1];
    const ptrdiff_t second = plan->second;
    for (ptrdiff_t r = 0; r < n_rows; r++, codes += row_nbytes, levels += keep ? HH_SCORE_COLS : 0) {
        const uint8_t *block = codes;
        __m512i sum0_i32x16 = _mm512_setzero_si512(), sum1_i32x16 = _mm512_setzero_si512();
        for (ptrdiff_t t = 0; t < n_cols; t += HH_TRELLIS_BLOCK, block += rate) {
            if (!keep) _mm_prefetch((const char *)(block + 4096), _MM_HINT_T0); /* for rows that no cache holds */
            const __m512i level0_i8x64 =
                hh_levels64_avx512vnni_(block, n_bits, table, spread0_i8x64, shift0_i8x64, above0_i8x64);
            if (keep) _mm512_storeu_si512(levels + t, level0_i8x64);
            else sum0_i32x16 = _mm512_dpbusd_epi32(sum0_i32x16, level0_i8x64, _mm512_loadu_si512(query + t));
            if (t + 64 >= n_cols) break; /* no second half */
            const __m512i level1_i8x64 =
                hh_levels64_avx512vnni_(block + second, n_bits, table, spread1_i8x64, shift1_i8x64, above1_i8x64);
            if (keep) _mm512_storeu_si512(levels + t + 64, level1_i8x64);
            else sum1_i32x16 = _mm512_dpbusd_epi32(sum1_i32x16, level1_i8x64, _mm512_loadu_si512(query + t + 64));
        }
        if (!keep) out[r] = hh_less_(_mm512_reduce_add_epi32(_mm512_add_epi32(sum0_i32x16, sum1_i32x16)), bias);
    }
}

HH_KERNEL void hh_score_dots_avx512vnni(const hh_score_rows *rows, const uint8_t *codes, ptrdiff_t n_rows,
                                        ptrdiff_t n_cols, ptrdiff_t n_queries, ptrdiff_t sums_apart, int32_t *out) {
    const hh_score_scratch *const scratch = &rows->scratch;
    if (rows->is_crossed) {
        const hh_crossed_use with = hh_score_crossed_(rows, n_queries, n_cols, sums_apart);
        hh_crossed_dots_avx512vnni(&with, &rows->plan_avx512vnni, codes, rows->row_nbytes, n_rows, n_cols, n_queries,
                                   out);
    } else if (rows->n_bits <= 8)
        hh_score_read_avx512vnni_(0, 8, rows, codes, n_rows, n_cols, scratch->query, *scratch->bias, out, NULL);
    else if (rows->n_bits <= 10)
        hh_score_read_avx512vnni_(0, 10, rows, codes, n_rows, n_cols, scratch->query, *scratch->bias, out, NULL);
    else hh_score_read_avx512vnni_(0, 12, rows, codes, n_rows, n_cols, scratch->query, *scratch->bias, out, NULL);
}

HH_KERNEL void hh_score_levels_avx512vnni(const hh_score_rows *rows, const uint8_t *codes, ptrdiff_t n_rows,
                                          ptrdiff_t n_cols, uint8_t *levels) {
    if (rows->is_crossed) {
        const hh_crossed_use with = hh_score_crossed_(rows, 1, n_cols, 0);
        hh_crossed_keep_avx512vnni(&with, &rows->plan_avx512vnni, codes, rows->row_nbytes, n_rows, n_cols, levels,
                                   HH_SCORE_COLS);
    } else if (rows->n_bits <= 8) hh_score_read_avx512vnni_(1, 8, rows, codes, n_rows, n_cols, NULL, 0, NULL, levels);
    else if (rows->n_bits <= 10) hh_score_read_avx512vnni_(1, 10, rows, codes, n_rows, n_cols, NULL, 0, NULL, levels);
    else hh_score_read_avx512vnni_(1, 12, rows, codes, n_rows, n_cols, NULL, 0, NULL, levels);
}

/* As hh_energy_avx2: |level| times -|level|, which fits an int8 where 128 would not. */
HH_KERNEL int32_t hh_energy_avx512vnni(const uint8_t *levels, ptrdiff_t n_cols) {
    __m512i sum_i32x16 = _mm512_setzero_si512();
    for (ptrdiff_t t = 0; t < n_cols; t += 64) {
        const __m512i size_i8x64 =
            _mm512_abs_epi8(_mm512_xor_si512(_mm512_loadu_si512(levels + t), _mm512_set1_epi8(-128)));
        sum_i32x16 = _mm512_dpbusd_epi32(sum_i32x16, size_i8x64, _mm512_sub_epi8(_mm512_setzero_si512(), size_i8x64));
    }
    return -_mm512_reduce_add_epi32(sum_i32x16);
}

/* A tile of three panels and `count` queries, which is constant where this is inlined. */
HH_INLINE void hh_products_avx512vnni_(int count, const uint8_t *tile, ptrdiff_t n_cols, const int8_t *queries,
                                       const int32_t *bias, int more, ptrdiff_t stride, int32_t *out) {
    __m512i sum_i32x16[8][3];
    for (int q = 0; q < count; q++)
        for (int p = 0; p < 3; p++) {
            sum_i32x16[q][p] = _mm512_setzero_si512();
            _mm_prefetch((const char *)(out + q * stride + 16 * p), _MM_HINT_T0);
        }
    for (; n_cols > 0; n_cols -= 4, tile += 4 * HH_SCORE_PANEL, queries += 4) {
        __m512i level_i8x64[3];
        for (int p = 0; p < 3; p++) level_i8x64[p] = _mm512_loadu_si512(tile + p * HH_SCORE_PANEL * HH_SCORE_COLS);
        for (int q = 0; q < count; q++) {
            int32_t four;
            memcpy(&four, queries + q * HH_SCORE_COLS, 4);
            const __m512i factor_i8x64 = _mm512_set1_epi32(four);
            for (int p = 0; p < 3; p++) {
                sum_i32x16[q][p] = _mm512_dpbusd_epi32(sum_i32x16[q][p], level_i8x64[p], factor_i8x64);
                HH_HOLD(sum_i32x16[q][p]);
            }
        }
    }
    for (int q = 0; q < count; q++, out += stride)
        for (int p = 0; p < 3; p++) {
            const __m512i found_i32x16 = _mm512_sub_epi32(sum_i32x16[q][p], _mm512_set1_epi32(bias[q]));
            _mm512_storeu_si512(out + 16 * p,
                                more ? _mm512_add_epi32(found_i32x16, _mm512_loadu_si512(out + 16 * p)) : found_i32x16);
        }
}

HH_KERNEL void hh_products_avx512vnni(const uint8_t *tile, ptrdiff_t n_cols, const int8_t *queries, const int32_t *bias,
                                      ptrdiff_t n_queries, int more, ptrdiff_t stride, int32_t *out) {
    for (ptrdiff_t q = 0; q < n_queries; q += 8) switch (n_queries - q) {
#define HH_CASE(count)                                                                                    \
    case count:                                                                                           \
        hh_products_avx512vnni_(count, tile, n_cols, queries + q * HH_SCORE_COLS, bias + q, more, stride, \
                                out + q * stride);                                                        \
        break;
            HH_CASE(1) HH_CASE(2) HH_CASE(3) HH_CASE(4) HH_CASE(5) HH_CASE(6) HH_CASE(7) default : HH_CASE(8)
#undef HH_CASE
        }
}
HH_TARGET_END

/* ---- rows ---- */

HH_KERNEL void hh_score_open_(hh_score_rows *rows, int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols,
                              int rate, int n_bits, const int8_t *table, const uint8_t *codebook,
                              hh_score_scratch scratch) {
    rows->tier = tier, rows->rate = rate, rows->n_bits = n_bits, rows->codes = codes, rows->scratch = scratch;
    rows->row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    rows->n_whole = hh_trellis_whole_rows(n_rows, n_cols, rate, n_bits);
    memset(scratch.row, 0, (size_t)hh_trellis_reach_nbytes(n_cols, rate));
    rows->is_crossed = codebook != NULL;
    if (codebook) hh_crossed_open(codebook, &rows->crossed);
    else {
        hh_trellis_bytes_table(table, n_bits, scratch.table);
        for (int s = 0; s < 1 << n_bits; s++) scratch.wide[s] = scratch.table[s];
    }
    if (tier >= HH_TIER_AVX512VNNI) hh_block_plan_avx512vnni_(rate, &rows->plan_avx512vnni);
    else if (codebook) hh_crossed_plan_avx2_(rate, &rows->crossed_plan_avx2);
    else hh_block_plan_avx2_(rate, &rows->plan_avx2);
}

HH_INLINE ptrdiff_t hh_least_(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

/* Rows from `from` on to one call of a body: as many as may be read where they lie, or one from scratch. */
HH_INLINE ptrdiff_t hh_score_some_(const hh_score_rows *rows, ptrdiff_t from, ptrdiff_t n_rows, const uint8_t **codes) {
    *codes = rows->codes + from * rows->row_nbytes;
    if (from < rows->n_whole) return hh_least_(rows->n_whole - from, n_rows);
    *codes = memcpy(rows->scratch.row, *codes, (size_t)rows->row_nbytes);
    return 1;
}

/* Levels of n_cols columns from column `first` on, which is a multiple of HH_TRELLIS_BLOCK, of up to HH_SCORE_PANEL
 * rows. */
HH_KERNEL void hh_score_levels_(const hh_score_rows *rows, ptrdiff_t from, ptrdiff_t n_rows, ptrdiff_t first,
                                ptrdiff_t n_cols) {
    for (ptrdiff_t r = 0, some; r < n_rows; r += some) {
        const uint8_t *codes;
        some = hh_score_some_(rows, from + r, n_rows - r, &codes);
        codes += first / HH_TRELLIS_BLOCK * rows->rate;
        uint8_t *const levels = rows->scratch.levels + r * HH_SCORE_COLS;
        if (rows->tier >= HH_TIER_AVX512VNNI) hh_score_levels_avx512vnni(rows, codes, some, n_cols, levels);
        else hh_score_levels_avx2(rows, codes, some, n_cols, levels);
    }
}

/* Columns of queries to scratch, filled up with zeros to n_padded of them and `apart` from each other. */
HH_KERNEL void hh_score_queries_(const hh_score_rows *rows, const int8_t *queries, ptrdiff_t n_queries,
                                 ptrdiff_t stride, ptrdiff_t n_cols, ptrdiff_t n_padded, ptrdiff_t apart, int span) {
    for (ptrdiff_t q = 0; q < n_queries; q++) {
        int8_t *const query = rows->scratch.query + q * apart;
        int32_t sum = 0;
        memcpy(query, queries + q * stride, (size_t)n_cols);
        memset(query + n_cols, 0, (size_t)(n_padded - n_cols));
        for (ptrdiff_t t = 0; t < n_cols; t++) sum += query[t];
        rows->scratch.bias[q] = 128 * sum;
        if (rows->tier < HH_TIER_AVX512VNNI) hh_halves_(query, n_padded, span, rows->scratch.halves + q * apart);
    }
}

/* One query, or two of rows in a crossed code: products as the rows are read, and no levels in memory. */
HH_KERNEL void hh_trellis_dots_few_(const hh_score_rows *rows, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                    const int8_t *queries, ptrdiff_t n_queries, int32_t *out) {
    const ptrdiff_t n_padded = hh_trellis_blocks(n_cols) * HH_TRELLIS_BLOCK;
    if (rows->is_crossed && rows->tier < HH_TIER_AVX512VNNI) {
        memset(rows->scratch.query, 0, (size_t)(n_queries * n_padded));
        memset(rows->scratch.halves, 0, (size_t)(n_queries * n_padded));
        for (ptrdiff_t q = 0; q < n_queries; q++)
            hh_crossed_query_avx2_(rows->rate, queries + q * n_cols, n_cols, rows->scratch.query + q * n_padded,
                                   (int8_t *)rows->scratch.halves + q * n_padded);
    } else hh_score_queries_(rows, queries, n_queries, n_cols, n_cols, n_padded, n_padded, 32);
    if (rows->is_crossed && rows->tier >= HH_TIER_AVX512VNNI && rows->rate == 64)
        hh_crossed_query_avx512vnni_(rows->scratch.query, n_queries * n_padded);
    for (ptrdiff_t r = 0, some; r < n_rows; r += some) {
        const uint8_t *codes;
        some = hh_score_some_(rows, r, n_rows - r, &codes);
        if (rows->tier >= HH_TIER_AVX512VNNI)
            hh_score_dots_avx512vnni(rows, codes, some, n_cols, n_queries, n_rows, out + r);
        else hh_score_dots_avx2(rows, codes, some, n_cols, n_queries, n_rows, out + r);
    }
}

/* A tile of the n_left rows from `from` on, n_cols columns from `first` on, and the queries in scratch. */
HH_KERNEL void hh_score_tile_(const hh_score_rows *rows, ptrdiff_t from, ptrdiff_t n_left, ptrdiff_t first,
                              ptrdiff_t n_cols, ptrdiff_t n_queries, ptrdiff_t stride, int32_t *out) {
    const hh_score_scratch *const scratch = &rows->scratch;
    const ptrdiff_t n_rows = hh_least_(n_left, HH_SCORE_TILE), n_next = hh_least_(n_left - n_rows, HH_SCORE_TILE);
    for (ptrdiff_t r = 0; r < n_rows; r += HH_SCORE_PANEL) {
        hh_score_levels_(rows, from + r, hh_least_(n_rows - r, HH_SCORE_PANEL), first, n_cols);
        hh_panel_avx2(scratch->levels, n_cols, scratch->tile + r * HH_SCORE_COLS);
    }
    /* The next tile comes from memory while this one is multiplied (docs/decisions/score-kernels.md). */
    const uint8_t *const next =
        rows->codes + (from + n_rows) * rows->row_nbytes + first / HH_TRELLIS_BLOCK * rows->rate;
    for (ptrdiff_t r = 0; r < n_next; r++)
        for (ptrdiff_t byte = 0; byte < hh_trellis_blocks(n_cols) * rows->rate; byte += 64)
            _mm_prefetch((const char *)(next + r * rows->row_nbytes + byte), _MM_HINT_T0);
    /* Rows that are not there have sums too, of what lay in scratch, so a last tile's go there. */
    const size_t nbytes = (size_t)n_rows * sizeof(int32_t);
    const int whole = n_rows == HH_SCORE_TILE;
    int32_t *const sums = whole ? out : scratch->rest;
    const ptrdiff_t apart = whole ? stride : HH_SCORE_TILE;
    if (!whole && first)
        for (ptrdiff_t q = 0; q < n_queries; q++) memcpy(sums + q * apart, out + q * stride, nbytes);
    if (rows->tier >= HH_TIER_AVX512VNNI)
        hh_products_avx512vnni(scratch->tile, n_cols, scratch->query, scratch->bias, n_queries, first > 0, apart, sums);
    else hh_products_avx2(scratch->tile, n_cols, scratch->halves, scratch->bias, n_queries, first > 0, apart, sums);
    if (!whole)
        for (ptrdiff_t q = 0; q < n_queries; q++) memcpy(out + q * stride, sums + q * apart, nbytes);
}

/* Sums of rows [from, end) with `count` queries, `stride` apart in out. Where columns come in one part, `part` is n_cols
 * or more and the queries are in scratch already. */
HH_KERNEL void hh_score_visit_(const hh_score_rows *rows, ptrdiff_t from, ptrdiff_t end, ptrdiff_t n_rows,
                               ptrdiff_t n_cols, ptrdiff_t part, const int8_t *queries, ptrdiff_t count,
                               ptrdiff_t stride, int32_t *out) {
    for (ptrdiff_t t = 0; t < n_cols; t += part) {
        const ptrdiff_t width = hh_least_(part, n_cols - t), last = part < n_cols ? end : n_rows;
        if (part < n_cols)
            hh_score_queries_(rows, queries + t, count, n_cols, width, (width + 3) / 4 * 4, HH_SCORE_COLS, 4);
        for (ptrdiff_t r = from; r < end; r += HH_SCORE_TILE)
            hh_score_tile_(rows, r, last - r, t, width, count, stride, out + r - from);
    }
}

/* Into out the sums, or, where there are gains, into scores what they add. Sums are then few enough for the second cache
 * and lie in `sums`: HH_SCORE_ROWS of up to HH_SCORE_QUERIES queries. */
HH_KERNEL void hh_trellis_dots_many_(const hh_score_rows *rows, ptrdiff_t n_rows, ptrdiff_t n_cols,
                                     const int8_t *queries, ptrdiff_t n_queries, const hh_score_gains *gains,
                                     int32_t *out) {
    const ptrdiff_t n_parts = (n_cols + HH_SCORE_COLS - 1) / HH_SCORE_COLS;
    const ptrdiff_t part = hh_trellis_blocks((n_cols + n_parts - 1) / n_parts) * HH_TRELLIS_BLOCK;
    const ptrdiff_t visit = n_parts == 1 && !gains ? n_rows : HH_SCORE_ROWS;
    for (ptrdiff_t q = 0; q < n_queries; q += HH_SCORE_QUERIES) {
        const ptrdiff_t count = hh_least_(HH_SCORE_QUERIES, n_queries - q);
        const int8_t *const own = queries + q * n_cols;
        if (n_parts == 1) hh_score_queries_(rows, own, count, n_cols, n_cols, (n_cols + 3) / 4 * 4, HH_SCORE_COLS, 4);
        for (ptrdiff_t from = 0; from < n_rows; from += visit) {
            const ptrdiff_t end = hh_least_(from + visit, n_rows);
            if (!gains)
                hh_score_visit_(rows, from, end, n_rows, n_cols, part, own, count, n_rows, out + q * n_rows + from);
            else {
                hh_score_visit_(rows, from, end, n_rows, n_cols, part, own, count, HH_SCORE_ROWS, out);
                hh_score_add_(rows->tier, out, HH_SCORE_ROWS, gains, q, count, from, end, n_rows);
            }
        }
    }
}
#endif

#if HH_NEON
HH_INLINE int32x4_t hh_dot16_neon_(int32x4_t sum_i32x4, int8x16_t a, int8x16_t b) {
    sum_i32x4 = vpadalq_s16(sum_i32x4, vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    return vpadalq_s16(sum_i32x4, vmull_high_s8(a, b));
}
#define HH_NAME(x) x##neon
#define HH_DOT(sum, a, b) hh_dot16_neon_(sum, a, b)
#include "products_body.h"

HH_TARGET_NEONDOTPROD_BEGIN
#define HH_NAME(x) x##neondotprod
#define HH_DOT(sum, a, b) vdotq_s32(sum, a, b)
#include "products_body.h"
HH_TARGET_END

HH_INLINE void hh_products_arm(int tier, ptrdiff_t n_rows, ptrdiff_t n_queries, const int8_t *rows,
                               ptrdiff_t row_stride, const int8_t *queries, ptrdiff_t query_stride, ptrdiff_t n_cols,
                               int more, ptrdiff_t out_stride, int32_t *out) {
    if (tier >= HH_TIER_NEONDOTPROD)
        hh_products_all_neondotprod(n_rows, n_queries, rows, row_stride, queries, query_stride, n_cols, more,
                                    out_stride, out);
    else
        hh_products_all_neon(n_rows, n_queries, rows, row_stride, queries, query_stride, n_cols, more, out_stride, out);
}

/* What it takes to read rows: of a crossed codebook its tables, else the listed levels. */
typedef struct {
    int rate, n_bits;
    ptrdiff_t row_nbytes;
    const int8_t *table;
    hh_score_scratch scratch;
    int is_crossed;
    hh_crossed crossed;
    hh_crossed_plan_neon crossed_plan;
    hh_block_plan_neon plan;
} hh_score_rows_neon;

/* Of up to HH_SCORE_PANEL rows the levels of n_cols columns from column `first` on, a multiple of HH_TRELLIS_BLOCK,
 * HH_SCORE_COLS apart and filled up with zeros to a multiple of 16. Rows from `n_whole` on are read from scratch. */
HH_KERNEL void hh_score_levels_neon(const hh_score_rows_neon *rows, const uint8_t *codes, ptrdiff_t n_rows,
                                    ptrdiff_t n_whole, ptrdiff_t first, ptrdiff_t n_cols) {
    int8_t *levels = (int8_t *)rows->scratch.levels;
    for (ptrdiff_t r = 0; r < n_rows; r++, codes += rows->row_nbytes, levels += HH_SCORE_COLS) {
        const uint8_t *const row = r < n_whole ? codes : memcpy(rows->scratch.row, codes, (size_t)rows->row_nbytes);
        const uint8_t *const block = row + first / HH_TRELLIS_BLOCK * rows->rate;
        if (rows->is_crossed)
            hh_crossed_keep_neon(&rows->crossed, &rows->crossed_plan, rows->rate, block, n_cols, levels);
        for (ptrdiff_t t = 0; t < n_cols && !rows->is_crossed; t += 16) {
            const uint8_t *const from = block + t / HH_TRELLIS_BLOCK * rows->rate;
            const int group = (int)(t % HH_TRELLIS_BLOCK / 16);
            vst1q_s8(levels + t,
                     hh_levels16_neon_(rows->n_bits > 8, from, &rows->plan, group, rows->scratch.table, rows->table));
        }
        if (n_cols % 16) memset(levels + n_cols, 0, (size_t)(16 - n_cols % 16));
    }
}

/* Scores, or energies if there are no queries: HH_SCORE_PANEL rows of HH_SCORE_COLS levels meet all queries of a group
 * while they lie in the first cache. */
HH_KERNEL void hh_trellis_dots_neon(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                    int n_bits, const int8_t *table, const uint8_t *codebook, const int8_t *queries,
                                    ptrdiff_t n_queries, hh_score_scratch scratch, int32_t *out) {
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    const ptrdiff_t n_whole = hh_trellis_whole_rows(n_rows, n_cols, rate, n_bits);
    int8_t *const levels = (int8_t *)scratch.levels;
    hh_score_rows_neon rows;
    rows.rate = rate, rows.n_bits = n_bits, rows.row_nbytes = row_nbytes, rows.table = table, rows.scratch = scratch;
    rows.is_crossed = codebook != NULL;
    if (codebook) hh_crossed_open(codebook, &rows.crossed), hh_crossed_plan_neon_(rate, &rows.crossed_plan);
    else hh_block_plan_neon_(rate, n_bits, &rows.plan);
    if (n_bits <= 8) hh_look256_neon_(table, n_bits, scratch.table);
    memset(scratch.row, 0, (size_t)hh_trellis_reach_nbytes(n_cols, rate));
    for (ptrdiff_t first = 0; first < n_cols; first += HH_SCORE_COLS) {
        const ptrdiff_t width = n_cols - first < HH_SCORE_COLS ? n_cols - first : HH_SCORE_COLS;
        const ptrdiff_t n_padded = (width + 15) / 16 * 16;
        for (ptrdiff_t q = 0; q < n_queries || q == 0; q += HH_SCORE_QUERIES) {
            const ptrdiff_t count = n_queries - q < HH_SCORE_QUERIES ? n_queries - q : HH_SCORE_QUERIES;
            for (ptrdiff_t i = 0; i < count; i++) {
                int8_t *const query = scratch.query + i * HH_SCORE_COLS;
                memcpy(query, queries + (q + i) * n_cols + first, (size_t)width);
                memset(query + width, 0, (size_t)(n_padded - width));
            }
            for (ptrdiff_t r = 0; r < n_rows; r += HH_SCORE_PANEL) {
                const ptrdiff_t some = n_rows - r < HH_SCORE_PANEL ? n_rows - r : HH_SCORE_PANEL;
                hh_score_levels_neon(&rows, codes + r * row_nbytes, some, n_whole - r, first, width);
                if (queries)
                    hh_products_arm(tier, some, count, levels, HH_SCORE_COLS, scratch.query, HH_SCORE_COLS, n_padded,
                                    first > 0, n_rows, out + q * n_rows + r);
                for (ptrdiff_t i = 0; !queries && i < some; i++)
                    hh_products_arm(tier, 1, 1, levels + i * HH_SCORE_COLS, 0, levels + i * HH_SCORE_COLS, 0, n_padded,
                                    first > 0, 0, out + r + i);
            }
        }
    }
}
#endif

/* Scores of rows against queries. `codebook` is the crossed codebook whose levels `table` holds, or NULL. */
HH_KERNEL void hh_trellis_dots(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate, int n_bits,
                               const int8_t *table, const uint8_t *codebook, const int8_t *queries, ptrdiff_t n_queries,
                               hh_score_scratch scratch, int32_t *out) {
#if HH_X86
    if (tier >= HH_TIER_AVX2) {
        hh_score_rows rows;
        hh_score_open_(&rows, tier, codes, n_rows, n_cols, rate, n_bits, table, codebook, scratch);
        if (n_queries == 1 || (n_queries == 2 && rows.is_crossed))
            hh_trellis_dots_few_(&rows, n_rows, n_cols, queries, n_queries, out);
        else hh_trellis_dots_many_(&rows, n_rows, n_cols, queries, n_queries, NULL, out);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_trellis_dots_neon(tier, codes, n_rows, n_cols, rate, n_bits, table, codebook, queries, n_queries, scratch,
                             out);
        return;
    }
#endif
    (void)tier, (void)scratch, (void)codebook;
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    for (ptrdiff_t q = 0; q < n_queries; q++)
        for (ptrdiff_t r = 0; r < n_rows; r++)
            out[q * n_rows + r] =
                hh_trellis_dot_scalar(codes + r * row_nbytes, n_cols, rate, n_bits, table, queries + q * n_cols);
}

/* How many sums hh_trellis_scores wants room for. */
HH_KERNEL ptrdiff_t hh_score_sums(int tier, ptrdiff_t n_rows, ptrdiff_t n_queries) {
#if HH_X86
    if (tier >= HH_TIER_AVX2 && n_queries > 2)
        return (n_queries < HH_SCORE_QUERIES ? n_queries : HH_SCORE_QUERIES) * HH_SCORE_ROWS;
#endif
    (void)tier;
    return n_rows * n_queries;
}

/* The sums of hh_trellis_dots made scores. */
HH_KERNEL void hh_trellis_scores(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                 int n_bits, const int8_t *table, const uint8_t *codebook, const int8_t *queries,
                                 ptrdiff_t n_queries, const hh_score_gains *gains, hh_score_scratch scratch,
                                 int32_t *sums) {
#if HH_X86
    if (tier >= HH_TIER_AVX2 && n_queries > 2) {
        hh_score_rows rows;
        hh_score_open_(&rows, tier, codes, n_rows, n_cols, rate, n_bits, table, codebook, scratch);
        hh_trellis_dots_many_(&rows, n_rows, n_cols, queries, n_queries, gains, sums);
        return;
    }
#endif
    hh_trellis_dots(tier, codes, n_rows, n_cols, rate, n_bits, table, codebook, queries, n_queries, scratch, sums);
    hh_score_add_(tier, sums, n_rows, gains, 0, n_queries, 0, n_rows, n_rows);
}

/* Squared lengths of rows, in levels. */
HH_KERNEL void hh_trellis_energies(int tier, const uint8_t *codes, ptrdiff_t n_rows, ptrdiff_t n_cols, int rate,
                                   int n_bits, const int8_t *table, const uint8_t *codebook, hh_score_scratch scratch,
                                   int32_t *out) {
#if HH_X86
    if (tier >= HH_TIER_AVX2) {
        hh_score_rows rows;
        hh_score_open_(&rows, tier, codes, n_rows, n_cols, rate, n_bits, table, codebook, scratch);
        for (ptrdiff_t from = 0; from < n_rows; from += HH_SCORE_PANEL) {
            const ptrdiff_t count = hh_least_(n_rows - from, HH_SCORE_PANEL);
            for (ptrdiff_t t = 0; t < n_cols; t += HH_SCORE_COLS) {
                const ptrdiff_t width = hh_least_(n_cols - t, HH_SCORE_COLS), n_padded = (width + 63) / 64 * 64;
                hh_score_levels_(&rows, from, count, t, width);
                for (ptrdiff_t r = 0; r < count; r++) {
                    uint8_t *const levels = scratch.levels + r * HH_SCORE_COLS;
                    memset(levels + width, 128, (size_t)(n_padded - width)); /* levels of 0 */
                    const int32_t part = tier >= HH_TIER_AVX512VNNI ? hh_energy_avx512vnni(levels, n_padded)
                                                                    : hh_energy_avx2(levels, n_padded);
                    out[from + r] = t ? out[from + r] + part : part;
                }
            }
        }
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_trellis_dots_neon(tier, codes, n_rows, n_cols, rate, n_bits, table, codebook, NULL, 0, scratch, out);
        return;
    }
#endif
    (void)tier, (void)scratch, (void)codebook;
    const ptrdiff_t row_nbytes = hh_trellis_row_nbytes(n_cols, rate, n_bits);
    for (ptrdiff_t r = 0; r < n_rows; r++)
        out[r] = hh_trellis_energy_scalar(codes + r * row_nbytes, n_cols, rate, n_bits, table);
}

#endif
