/* Products of a few float32 inputs with Slot T's rows, as a layer of a model takes them.
 *
 * An input is divided by the column scale and rotated; a plane of it is integers of -127..127 times a scale, its largest
 * magnitude / 127; another plane is what the one before leaves. out[q][r] = gain[r] * (scale0[q] * sum0 + scale1[q] *
 * sum1), where sum is that of level times integer, as score.h gives it; rows that have a centroid add its product with the
 * rotated input. Everything is float32, one rounding an operation and in this order, so that every tier gives the same.
 */
#ifndef HHTLD_PRODUCT_H
#define HHTLD_PRODUCT_H

#include "cast.h"
#include "isa.h"
#include "rotate.h"
#include "score.h"

/* What inputs and products are held as. */
enum { HH_PRODUCT_F32, HH_PRODUCT_BF16, HH_PRODUCT_F16 };

/* Inputs (n_inputs, n_cols) to rotated ones. */
HH_KERNEL void hh_product_inputs(int tier, const void *inputs, int type, ptrdiff_t n_inputs, ptrdiff_t n_cols,
                                 const float *column_scale, const float *signs, float *rotated) {
    const ptrdiff_t count = n_inputs * n_cols;
    if (type == HH_PRODUCT_BF16) hh_widen_bf16(tier, (const uint16_t *)inputs, rotated, count);
    else if (type == HH_PRODUCT_F16) hh_widen_f16(tier, (const uint16_t *)inputs, rotated, count);
    else memcpy(rotated, inputs, (size_t)count * sizeof(float));
    for (ptrdiff_t q = 0; column_scale && q < n_inputs; q++)
        for (ptrdiff_t t = 0; t < n_cols; t++) rotated[q * n_cols + t] /= column_scale[t];
    hh_rotate_f32(tier, rotated, n_inputs, n_cols, signs);
}

/* A plane of one rotated input, which keeps what is left. Returns its scale, or -1 if a number is not finite. rint is
 * adding 1.5 * 2^23, which every compiler makes vectors of. */
HH_KERNEL float hh_product_plane(float *rest, ptrdiff_t n_cols, int8_t *codes) {
    int32_t most =
        0; /* the bits of magnitudes are ordered as they are, and compilers make vectors of integers' maxima */
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        const int32_t size = (int32_t)(hh_bits_f32(rest[t]) & 0x7FFFFFFFu);
        most = size > most ? size : most;
    }
    if (most >= 0x7F800000) return -1;
    const float scale = hh_f32_bits((uint32_t)most) / 127.0f, step = scale > 0 ? scale : 1.0f;
    for (ptrdiff_t t = 0; t < n_cols; t++) {
        float whole = (rest[t] / step + 12582912.0f) - 12582912.0f;
        whole = whole > 127.0f ? 127.0f : whole < -127.0f ? -127.0f : whole;
        codes[t] = (int8_t)whole;
        rest[t] -= whole * step;
    }
    return scale;
}

/* The products of a rotated input with rotated centroids (n_centroids, n_cols), each the sum of 16 sums of every
 * sixteenth column. */
HH_KERNEL void hh_product_centroids(const float *rotated, const float *centroids, ptrdiff_t n_centroids,
                                    ptrdiff_t n_cols, float *products) {
    for (ptrdiff_t k = 0; k < n_centroids; k++, centroids += n_cols) {
        float sums[16] = {0};
        ptrdiff_t t = 0;
        for (; t + 16 <= n_cols; t += 16)
            for (int i = 0; i < 16; i++) sums[i] += rotated[t + i] * centroids[t + i];
        for (int i = 0; t < n_cols; t++, i++) sums[i] += rotated[t] * centroids[t];
        for (int half = 8; half; half /= 2)
            for (int i = 0; i < half; i++) sums[i] += sums[i + half];
        products[k] = sums[0];
    }
}

/* The products of the sums of all planes, [n_planes][n_inputs][n_rows]. Row r goes to out[rows[r]], or to out[r] if there
 * are no `rows`; the next input's lie `out_apart` on. If there are `twigs`, row out[i] adds the product of centroid twigs[i],
 * of `n_centroids` an input. `type` is constant where this is inlined. */
HH_INLINE void hh_product_add_(int type, const int32_t *sums, const float *scales, const float *gains, int n_planes,
                               ptrdiff_t n_inputs, ptrdiff_t n_rows, const ptrdiff_t *rows, const uint8_t *twigs,
                               const float *products, ptrdiff_t n_centroids, ptrdiff_t out_apart, void *out) {
    const ptrdiff_t plane = n_inputs * n_rows;
    for (ptrdiff_t q = 0; q < n_inputs; q++, sums += n_rows, products += n_centroids)
        for (ptrdiff_t r = 0; r < n_rows; r++) {
            const ptrdiff_t place = rows ? rows[r] : r;
            float all = scales[q] * (float)sums[r];
            if (n_planes == 2) {
                const float part = scales[n_inputs + q] * (float)sums[plane + r];
                all = all + part;
            }
            all = all * gains[r];
            if (twigs) all = all + products[twigs[place]];
            if (type == HH_PRODUCT_F32) ((float *)out)[q * out_apart + place] = all;
            else
                ((uint16_t *)out)[q * out_apart + place] = type == HH_PRODUCT_BF16
                                                               ? hh_narrow_bf16_one(hh_bits_f32(all))
                                                               : hh_narrow_f16_one(hh_bits_f32(all));
        }
}

HH_KERNEL void hh_product_add(int type, const int32_t *sums, const float *scales, const float *gains, int n_planes,
                              ptrdiff_t n_inputs, ptrdiff_t n_rows, const ptrdiff_t *rows, const uint8_t *twigs,
                              const float *products, ptrdiff_t n_centroids, ptrdiff_t out_apart, void *out) {
#define HH_ADD(type)                                                                                           \
    hh_product_add_(type, sums, scales, gains, n_planes, n_inputs, n_rows, rows, twigs, products, n_centroids, \
                    out_apart, out)
    if (type == HH_PRODUCT_BF16) HH_ADD(HH_PRODUCT_BF16);
    else if (type == HH_PRODUCT_F16) HH_ADD(HH_PRODUCT_F16);
    else HH_ADD(HH_PRODUCT_F32);
#undef HH_ADD
}

#endif
