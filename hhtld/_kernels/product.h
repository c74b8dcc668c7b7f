/* Products of a few float32 inputs with Slot T's rows, as a layer of a model takes them.
 *
 * An input is divided by the column scale and rotated; a plane of it is integers of -127..127 times a scale, its largest
 * magnitude / 127; another plane is what the one before leaves. out[q][r] = gain[r] * (scale0[q] * sum0 + scale1[q] *
 * sum1), where sum is that of level times integer, as score.h gives it. Everything is float32, one rounding an operation
 * and in this order, so that every tier gives the same.
 */
#ifndef HHTLD_PRODUCT_H
#define HHTLD_PRODUCT_H

#include <float.h>

#include "isa.h"
#include "rotate.h"
#include "score.h"

/* Inputs (n_inputs, n_cols) to rotated ones. */
HH_KERNEL void hh_product_inputs(int tier, const float *inputs, ptrdiff_t n_inputs, ptrdiff_t n_cols,
                                 const float *column_scale, const float *signs, float *rotated) {
    for (ptrdiff_t q = 0; q < n_inputs; q++)
        for (ptrdiff_t t = 0; t < n_cols; t++)
            rotated[q * n_cols + t] = column_scale ? inputs[q * n_cols + t] / column_scale[t] : inputs[q * n_cols + t];
    hh_rotate_f32(tier, rotated, n_inputs, n_cols, signs);
}

/* A plane of one rotated input, which keeps what is left. Returns its scale, or -1 if a number is not finite. rint is
 * adding 1.5 * 2^23, which every compiler makes vectors of. */
HH_KERNEL float hh_product_plane(float *rest, ptrdiff_t n_cols, int8_t *codes) {
    float most = 0;
    int n_bad = 0;
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        const float size = rest[t] < 0 ? -rest[t] : rest[t];
        most = size > most ? size : most;
        n_bad += !(size <= FLT_MAX);
    }
    if (n_bad) return -1;
    const float scale = most / 127.0f, step = scale > 0 ? scale : 1.0f;
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        float whole = (rest[t] / step + 12582912.0f) - 12582912.0f;
        whole = whole > 127.0f ? 127.0f : whole < -127.0f ? -127.0f : whole;
        codes[t] = (int8_t)whole;
        rest[t] -= whole * step;
    }
    return scale;
}

/* The products of the sums of all planes, [n_planes][n_inputs][n_rows]. Row r goes to out[rows[r]], or to out[r] if there
 * are no `rows`; the next input's lie `out_apart` on. */
HH_KERNEL void hh_product_add(const int32_t *sums, const float *scales, const float *gains, int n_planes,
                              ptrdiff_t n_inputs, ptrdiff_t n_rows, const ptrdiff_t *rows, ptrdiff_t out_apart,
                              float *out) {
    const ptrdiff_t plane = n_inputs * n_rows;
    for (ptrdiff_t q = 0; q < n_inputs; q++, sums += n_rows, out += out_apart)
        for (ptrdiff_t r = 0; r < n_rows; r++) {
            float all = scales[q] * (float)sums[r];
            if (n_planes == 2) {
                const float part = scales[n_inputs + q] * (float)sums[plane + r];
                all = all + part;
            }
            out[rows ? rows[r] : r] = all * gains[r];
        }
}

#endif
