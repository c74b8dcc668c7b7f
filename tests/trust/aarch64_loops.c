/* The hot loops of the NEON bodies, each in a function of its own that aarch64_loops.py finds in the disassembly. */
#include "cast.h"
#include "cholesky.h"
#include "crossed.h"
#include "dot.h"
#include "eigen.h"
#include "fold.h"
#include "l1.h"
#include "l2.h"
#include "leaf.h"
#include "rotate.h"
#include "score.h"
#include "screen.h"
#include "trellis.h"

void widen_bf16(const uint16_t *in, float *out, ptrdiff_t n) { hh_widen_bf16_neon(in, out, n); }
void widen_f16(const uint16_t *in, float *out, ptrdiff_t n) { hh_widen_f16_neon(in, out, n); }
void narrow_bf16(const float *in, uint16_t *out, ptrdiff_t n) { hh_narrow_f32_bf16_neon(in, out, n); }
void narrow_f16(const float *in, uint16_t *out, ptrdiff_t n) { hh_narrow_f32_f16_neon(in, out, n); }
ptrdiff_t first_nonfinite(const float *in, ptrdiff_t n) { return hh_first_nonfinite_f32_neon(in, n); }

void rotation_inside(float *x, ptrdiff_t n) { hh_first_neon(x, n, 8, 0, vdupq_n_f32(1), NULL, NULL); }
void rotation_across(float *x, ptrdiff_t n, ptrdiff_t half) { hh_across_neon(x, n, half, 8, 0, vdupq_n_f32(1), NULL); }

int16x8_t viterbi_states_4(const int16_t *groups, const uint16_t *places, const int16_t *costs, int16_t *to,
                           int16_t *back) {
    return hh_quick_step_neon(4, 12, 4, 4, groups, places, costs, to, back).a;
}
int16x8_t viterbi_states_2(const int16_t *groups, const uint16_t *places, const int16_t *costs, int16_t *to,
                           int16_t *back) {
    return hh_quick_step_neon(2, 12, 8, 2, groups, places, costs, to, back).a;
}
void viterbi_levels(const int16_t *x, const hh_levels *levels, int16_t *level_costs) {
    hh_tagged_costs_neon(x, levels, 1, 4, level_costs);
}

void feedback(const hh_search *search, ptrdiff_t from, ptrdiff_t to, hh_feedback feedback) {
    hh_settle_neon(search, from, to, feedback);
}

void decode_256(const uint8_t *codes, ptrdiff_t n, const hh_block_plan_neon *plan, const uint8_t *look, float gain,
                float *out) {
    hh_levels_row_neon_(0, codes, n, 64, plan, look, NULL, gain, out);
}
void decode_4096(const uint8_t *codes, ptrdiff_t n, const hh_block_plan_neon *plan, const int8_t *table, float gain,
                 float *out) {
    hh_levels_row_neon_(1, codes, n, 64, plan, NULL, table, gain, out);
}

void crossed_4_bits(const hh_crossed *tables, const uint8_t *codes, ptrdiff_t n, int8_t *levels) {
    const hh_crossed_neon open = hh_crossed_open_neon_(tables);
    hh_crossed_blocks_neon_(64, 64, &open, NULL, codes, n, levels);
}
void crossed_2_bits(const hh_crossed *tables, const uint8_t *codes, ptrdiff_t n, int8_t *levels) {
    const hh_crossed_neon open = hh_crossed_open_neon_(tables);
    hh_crossed_blocks_neon_(32, 32, &open, NULL, codes, n, levels);
}
void crossed_any(const hh_crossed *tables, const hh_crossed_plan_neon *plan, int rate, const uint8_t *codes,
                 ptrdiff_t n, int8_t *levels) {
    const hh_crossed_neon open = hh_crossed_open_neon_(tables);
    hh_crossed_blocks_neon_(0, rate, &open, plan, codes, n, levels);
}
void widen(const int8_t *levels, ptrdiff_t n, float gain, float *out) {
    for (ptrdiff_t t = 0; t < n; t += 16) hh_widen16_neon_(out + t, vld1q_s8(levels + t), gain);
}

void products_1x1(const int8_t *a, const int8_t *b, ptrdiff_t n, int32_t *out) {
    hh_products_neon(1, 1, a, 0, b, 0, n, 0, 0, out);
}
void products_4x4(const int8_t *a, const int8_t *b, ptrdiff_t n, ptrdiff_t stride, int32_t *out) {
    hh_products_neon(4, 4, a, stride, b, stride, n, 0, 4, out);
}
HH_TARGET_NEONDOTPROD_BEGIN
void products_1x1_dotprod(const int8_t *a, const int8_t *b, ptrdiff_t n, int32_t *out) {
    hh_products_neondotprod(1, 1, a, 0, b, 0, n, 0, 0, out);
}
void products_4x4_dotprod(const int8_t *a, const int8_t *b, ptrdiff_t n, ptrdiff_t stride, int32_t *out) {
    hh_products_neondotprod(4, 4, a, stride, b, stride, n, 0, 4, out);
}
void panel_dotprod(const int8_t *queries, ptrdiff_t stride, const int8_t *block, ptrdiff_t depth, int32_t *dots) {
    hh_dot_rows_neondotprod_(4, queries, stride, block, depth, dots, 16);
}
HH_TARGET_END
void panel(const int8_t *query, const int8_t *block, ptrdiff_t depth, int32_t *dots) {
    hh_dot16_i8_neon_(query, block, depth, dots);
}

double l2_exact(const float *a, const float *b, ptrdiff_t n) { return hh_distance2_f32_neon(a, b, n); }
double l2_bound(const float *a, const float *b, ptrdiff_t n) { return hh_distance2_lower_neon(a, b, n); }
ptrdiff_t l2_screen(const hh_code_f64 *query, const hh_panel_i8 *panel, const int32_t *dots, double *lower,
                    int32_t *candidates) {
    return hh_screen_neon(query, panel, dots, 1e-12, lower, candidates);
}
void l1(const int16_t *columns, ptrdiff_t stride, const int16_t *dims, uint32x4_t *sums) {
    uint32x4_t sum_u32x4[4];
    hh_l1_sum16_neon_(columns, stride, dims, sum_u32x4);
    for (int i = 0; i < 4; i++) sums[i] = sum_u32x4[i];
}

void leaf_project(const float *rows, ptrdiff_t n_cols, const float *entries, const double *basis, float *out) {
    hh_project_rows_neon_(rows, 0, 4, n_cols, entries, NULL, basis, out);
}
void leaf_reconstruct(const float *entries, ptrdiff_t n_cols, const int8_t *codes, const float *basis, float *out) {
    hh_reconstruct_neon(entries, NULL, 1, n_cols, codes, 2, basis, out);
}

void fold(const float *rows, ptrdiff_t n_rows, ptrdiff_t n_cols, int16_t *dims) {
    hh_base17_fold_neon(rows, n_rows, n_cols, dims);
}
void gram(const float *x, ptrdiff_t n_rows, ptrdiff_t n_cols, double *out) { hh_gram_neon(x, n_rows, n_cols, out); }
void row_dots(const float *x, const float *y, ptrdiff_t n_cols, double *out) { hh_row_dots_neon(x, y, 1, n_cols, out); }
double dot_f64(const double *x, const double *y, ptrdiff_t n) { return hh_dot_f64_neon(x, y, n); }
void subtract_f64(double *y, const double *x, double factor, ptrdiff_t n) { hh_subtract_f64_neon(y, x, factor, n); }
void reflect(double *row, ptrdiff_t i, ptrdiff_t n, const double *v, const double *w, const double *next, double *out) {
    hh_reflect_rows_neon(row, i, 1, n, v, w, next, out);
}

void estimate_leaf(const int8_t *slot_l, const float *lanes, ptrdiff_t n, float *out) {
    hh_estimate_leaf_neon(slot_l, lanes, n, out);
}
void estimate_dots(const int32_t *dots, const float *gains, float scale, ptrdiff_t n, float *out) {
    hh_estimate_dots_scalar(dots, gains, scale, n, out);
}
ptrdiff_t collect(const float *estimates, const float *spreads, ptrdiff_t n, ptrdiff_t room, int32_t *rows) {
    return hh_collect_neon(estimates, spreads, 2, 3, 4, n, room, rows);
}
