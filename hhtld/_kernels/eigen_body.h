/* The three loops of eigen.h, once for every vector tier: 16 lanes are HH_REGISTERS registers. */
#define HH_REGISTERS (HH_TILE / HH_LANES_D)
HH_KERNEL double HH_NAME(hh_dot_f64_)(const double *x, const double *y, ptrdiff_t count) {
    HH_D sum[HH_REGISTERS];
    for (int r = 0; r < HH_REGISTERS; r++) sum[r] = HH_SET1(0);
    const ptrdiff_t whole = count & ~(ptrdiff_t)15;
    for (ptrdiff_t j = 0; j < whole; j += HH_TILE)
        for (int r = 0; r < HH_REGISTERS; r++)
            sum[r] = HH_ADD(sum[r], HH_MUL(HH_LOAD(x + j + r * HH_LANES_D), HH_LOAD(y + j + r * HH_LANES_D)));
    if (whole == count) return HH_TREE(sum);
    double lane[16];
    for (int r = 0; r < HH_REGISTERS; r++) HH_STORE(lane + r * HH_LANES_D, sum[r]);
    for (ptrdiff_t j = whole; j < count; j++) lane[j - whole] += x[j] * y[j];
    return hh_tree16_f64(lane);
}

HH_KERNEL void HH_NAME(hh_subtract_f64_)(double *y, const double *x, double factor, ptrdiff_t count) {
    const HH_D all = HH_SET1(factor);
    const ptrdiff_t whole = count & ~(ptrdiff_t)(HH_LANES_D - 1);
    for (ptrdiff_t j = 0; j < whole; j += HH_LANES_D)
        HH_STORE(y + j, HH_SUB(HH_LOAD(y + j), HH_MUL(all, HH_LOAD(x + j))));
    for (ptrdiff_t j = whole; j < count; j++) y[j] -= factor * x[j];
}

/* Rows i and, where `both`, i + 1, which lie in one tile: what they read of columns is read once. */
HH_INLINE void HH_NAME(hh_reflect_rows_)(double *row, ptrdiff_t i, int both, ptrdiff_t n_padded, const double *v,
                                         const double *w, const double *next, double *product) {
    const ptrdiff_t tile = i & ~(ptrdiff_t)15, end = tile + HH_TILE, other = both ? i + 1 : i;
    double *const row_2 = row + n_padded;
    const HH_D v_1 = HH_SET1(v[i]), w_1 = HH_SET1(w[i]), next_1 = HH_SET1(next[i]);
    const HH_D v_2 = HH_SET1(v[other]), w_2 = HH_SET1(w[other]), next_2 = HH_SET1(next[other]);
    HH_D sum_1[HH_REGISTERS], sum_2[HH_REGISTERS];
    for (int r = 0; r < HH_REGISTERS; r++) sum_1[r] = sum_2[r] = HH_SET1(0);
    for (ptrdiff_t j = tile; j < n_padded; j += HH_TILE) {
        for (int r = 0; r < HH_REGISTERS; r++) {
            const ptrdiff_t at = j + r * HH_LANES_D;
            const HH_D v_j = HH_LOAD(v + at), w_j = HH_LOAD(w + at), next_j = HH_LOAD(next + at);
            HH_D product_j = HH_LOAD(product + at);
            const HH_D a_1 = HH_SUB(HH_LOAD(row + at), HH_ADD(HH_MUL(v_1, w_j), HH_MUL(w_1, v_j)));
            HH_STORE(row + at, a_1);
            sum_1[r] = HH_ADD(sum_1[r], HH_MUL(a_1, next_j));
            product_j = HH_ADD(product_j, HH_MUL(a_1, next_1));
            if (both) {
                const HH_D a_2 = HH_SUB(HH_LOAD(row_2 + at), HH_ADD(HH_MUL(v_2, w_j), HH_MUL(w_2, v_j)));
                HH_STORE(row_2 + at, a_2);
                sum_2[r] = HH_ADD(sum_2[r], HH_MUL(a_2, next_j));
                product_j = HH_ADD(product_j, HH_MUL(a_2, next_2));
            }
            if (j >= end) HH_STORE(product + at, product_j);
        }
    }
    product[i] += HH_TREE(sum_1);
    if (both) product[other] += HH_TREE(sum_2);
}

HH_KERNEL void HH_NAME(hh_reflect_)(double *a, ptrdiff_t first, ptrdiff_t n, ptrdiff_t n_padded, const double *v,
                                    const double *w, const double *next, double *product) {
    ptrdiff_t i = first;
    if ((i & 1) && i < n) HH_NAME(hh_reflect_rows_)(a + i * n_padded, i, 0, n_padded, v, w, next, product), i++;
    for (; i + 2 <= n; i += 2) HH_NAME(hh_reflect_rows_)(a + i * n_padded, i, 1, n_padded, v, w, next, product);
    if (i < n) HH_NAME(hh_reflect_rows_)(a + i * n_padded, i, 0, n_padded, v, w, next, product);
}
#undef HH_REGISTERS
#undef HH_D
#undef HH_LANES_D
#undef HH_NAME
#undef HH_LOAD
#undef HH_STORE
#undef HH_SET1
#undef HH_ADD
#undef HH_SUB
#undef HH_MUL
#undef HH_TREE
