/* The Hadamard transform of rotate.h, once for every vector tier.
 *
 * In a register, the partner of lane i is lane i ^ half; where bit `half` of i is set the result is
 * partner - x, else partner + x: partner + (+-x), which rounds the same. Across registers three stages are
 * taken at once, the first three together with those inside the registers, so that a block of 1024 is loaded
 * and stored twice; signs go with the first load or the last store. */
/* One line is one stage. */
/* clang-format off */
#define HH_BUTTERFLY(a, b) { const HH_F t = a; a = HH_ADD(t, b), b = HH_SUB(t, b); }
#define HH_RADICES \
    if (radix == 1) { HH_GET(a, 0) HH_PUT(a, 0) } \
    else if (radix == 2) { HH_GET(a, 0) HH_GET(b, 1) HH_BUTTERFLY(a, b) HH_PUT(a, 0) HH_PUT(b, 1) } \
    else if (radix == 4) { \
        HH_GET(a, 0) HH_GET(b, 1) HH_GET(c, 2) HH_GET(d, 3) \
        HH_BUTTERFLY(a, b) HH_BUTTERFLY(c, d) HH_BUTTERFLY(a, c) HH_BUTTERFLY(b, d) \
        HH_PUT(a, 0) HH_PUT(b, 1) HH_PUT(c, 2) HH_PUT(d, 3) \
    } else { \
        HH_GET(a, 0) HH_GET(b, 1) HH_GET(c, 2) HH_GET(d, 3) HH_GET(e, 4) HH_GET(f, 5) HH_GET(g, 6) HH_GET(h, 7) \
        HH_BUTTERFLY(a, b) HH_BUTTERFLY(c, d) HH_BUTTERFLY(e, f) HH_BUTTERFLY(g, h) \
        HH_BUTTERFLY(a, c) HH_BUTTERFLY(b, d) HH_BUTTERFLY(e, g) HH_BUTTERFLY(f, h) \
        HH_BUTTERFLY(a, e) HH_BUTTERFLY(b, f) HH_BUTTERFLY(c, g) HH_BUTTERFLY(d, h) \
        HH_PUT(a, 0) HH_PUT(b, 1) HH_PUT(c, 2) HH_PUT(d, 3) HH_PUT(e, 4) HH_PUT(f, 5) HH_PUT(g, 6) HH_PUT(h, 7) \
    }
/* clang-format on */
HH_INLINE HH_F HH_NAME(hh_in_)(const float *x, ptrdiff_t i, const float *before) {
    return before ? HH_MUL(HH_LOAD(x + i), HH_LOAD(before + i)) : HH_LOAD(x + i);
}
HH_INLINE void HH_NAME(hh_out_)(float *x, ptrdiff_t i, HH_F v, int last, HH_F scale, const float *after) {
    if (last) v = HH_MUL(v, scale);
    HH_STORE(x + i, last && after ? HH_MUL(v, HH_LOAD(after + i)) : v);
}
/* The stages inside registers and up to three across; `radix` registers. */
HH_INLINE void HH_NAME(hh_first_)(float *x, ptrdiff_t block, int radix, int last, HH_F scale, const float *before,
                                  const float *after) {
    const ptrdiff_t W = HH_LANES_F;
    for (ptrdiff_t i = 0; i < block; i += radix * W) {
#define HH_GET(v, k) HH_F v = HH_WITHIN(HH_NAME(hh_in_)(x, i + (k) * W, before));
#define HH_PUT(v, k) HH_NAME(hh_out_)(x, i + (k) * W, v, last, scale, after);
        HH_RADICES
#undef HH_GET
#undef HH_PUT
    }
}
/* Up to three stages across registers from `half` on. */
HH_INLINE void HH_NAME(hh_across_)(float *x, ptrdiff_t block, ptrdiff_t half, int radix, int last, HH_F scale,
                                   const float *after) {
    for (ptrdiff_t start = 0; start < block; start += radix * half)
        for (ptrdiff_t i = start; i < start + half; i += HH_LANES_F) {
#define HH_GET(v, k) HH_F v = HH_LOAD(x + i + (k) * half);
#define HH_PUT(v, k) HH_NAME(hh_out_)(x, i + (k) * half, v, last, scale, after);
            HH_RADICES
#undef HH_GET
#undef HH_PUT
        }
}
HH_INLINE void HH_NAME(hh_hadamard_)(float *x, ptrdiff_t block, const float *before, const float *after) {
    const HH_F scale = HH_SET1((float)(1.0 / sqrt((double)block)));
    ptrdiff_t half = HH_LANES_F;
    if (block == half) {
        HH_NAME(hh_first_)(x, block, 1, 1, scale, before, after);
        return;
    }
    if (block == 2 * half) {
        HH_NAME(hh_first_)(x, block, 2, 1, scale, before, after);
        return;
    }
    if (block == 4 * half) {
        HH_NAME(hh_first_)(x, block, 4, 1, scale, before, after);
        return;
    }
    if (block == 8 * half) {
        HH_NAME(hh_first_)(x, block, 8, 1, scale, before, after);
        return;
    }
    HH_NAME(hh_first_)(x, block, 8, 0, scale, before, after);
    for (half *= 8; 8 * half < block; half *= 8) HH_NAME(hh_across_)(x, block, half, 8, 0, scale, after);
    if (8 * half == block) HH_NAME(hh_across_)(x, block, half, 8, 1, scale, after);
    else if (4 * half == block) HH_NAME(hh_across_)(x, block, half, 4, 1, scale, after);
    else HH_NAME(hh_across_)(x, block, half, 2, 1, scale, after);
}
#undef HH_RADICES
#undef HH_BUTTERFLY
#undef HH_F
#undef HH_LANES_F
#undef HH_NAME
#undef HH_LOAD
#undef HH_STORE
#undef HH_SET1
#undef HH_ADD
#undef HH_SUB
#undef HH_MUL
#undef HH_WITHIN
