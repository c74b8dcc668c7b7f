/* Products of int8 rows with int8 queries for NEON, with and without the dot product: included with HH_NAME(x), x with the
 * tier's suffix, and HH_DOT(sum, a, b), int32x4_t that have the 16 products of a and b added to them in any order. Both are
 * taken away again. A load serves `n_queries` products, and the sums of all of them stay in registers. */

/* Both counts are constant where this is inlined, at most 4. n_cols is a multiple of 16. If `more` is set, out is added to.
 */
HH_INLINE void HH_NAME(hh_products_)(int n_rows, int n_queries, const int8_t *rows, ptrdiff_t row_stride,
                                     const int8_t *queries, ptrdiff_t query_stride, ptrdiff_t n_cols, int more,
                                     ptrdiff_t out_stride, int32_t *out) {
    int32x4_t sum_i32x4[4][4];
    for (int r = 0; r < n_rows; r++)
        for (int q = 0; q < n_queries; q++) sum_i32x4[r][q] = vdupq_n_s32(0);
    for (ptrdiff_t t = 0; t < n_cols; t += 16) {
        int8x16_t query_i8x16[4];
        for (int q = 0; q < n_queries; q++) query_i8x16[q] = vld1q_s8(queries + q * query_stride + t);
        for (int r = 0; r < n_rows; r++) {
            const int8x16_t row_i8x16 = vld1q_s8(rows + r * row_stride + t);
            for (int q = 0; q < n_queries; q++) sum_i32x4[r][q] = HH_DOT(sum_i32x4[r][q], row_i8x16, query_i8x16[q]);
        }
    }
    for (int q = 0; q < n_queries; q++, out += out_stride)
        for (int r = 0; r < n_rows; r++) out[r] = vaddvq_s32(sum_i32x4[r][q]) + (more ? out[r] : 0);
}

/* out[q * out_stride + r] of all rows and queries. */
HH_KERNEL void HH_NAME(hh_products_all_)(ptrdiff_t n_rows, ptrdiff_t n_queries, const int8_t *rows,
                                         ptrdiff_t row_stride, const int8_t *queries, ptrdiff_t query_stride,
                                         ptrdiff_t n_cols, int more, ptrdiff_t out_stride, int32_t *out) {
    for (ptrdiff_t r = 0, some; r < n_rows; r += some, rows += some * row_stride, out += some) {
        some = n_rows - r >= 4 ? 4 : 1;
        for (ptrdiff_t q = 0, few; q < n_queries; q += few) {
            const int8_t *const query = queries + q * query_stride;
            int32_t *const to = out + q * out_stride;
            few = n_queries - q >= 4 ? 4 : 1;
#define HH_SOME(n_rows, n_queries) \
    HH_NAME(hh_products_)(n_rows, n_queries, rows, row_stride, query, query_stride, n_cols, more, out_stride, to)
            if (some == 4 && few == 4) HH_SOME(4, 4);
            else if (some == 4) HH_SOME(4, 1);
            else if (few == 4) HH_SOME(1, 4);
            else HH_SOME(1, 1);
#undef HH_SOME
        }
    }
}

#undef HH_NAME
#undef HH_DOT
