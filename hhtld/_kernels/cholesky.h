/* The Cholesky factor of a symmetric positive definite matrix and division by it, in float64 and in a fixed order.
 *
 *     L[i][j] = (A[i][j] - sum over t < j of L[i][t] * L[j][t]) / L[j][j]      sums over 16 virtual lanes (isa.h)
 *     X L = B:  for t descending, x[t] = b[t] / L[t][t], then b[:t] -= x[t] * L[t][:t]
 *
 * Rows are taken 32 at a time, so that a row of L that all of them meet is read once.
 */
#ifndef HHTLD_CHOLESKY_H
#define HHTLD_CHOLESKY_H

#include "eigen.h"

enum { HH_CHOLESKY_ROWS = 32 };

/* Write L over the lower triangle of a matrix (n, n); what is above stays. Return the number of rows done: fewer than n
 * where the matrix is not positive definite. */
HH_KERNEL ptrdiff_t hh_cholesky(int tier, double *a, ptrdiff_t n) {
    for (ptrdiff_t start = 0; start < n; start += HH_CHOLESKY_ROWS) {
        const ptrdiff_t stop = n - start < HH_CHOLESKY_ROWS ? n : start + HH_CHOLESKY_ROWS;
        for (ptrdiff_t j = 0; j < stop; j++) {
            const double *const other = a + j * n;
            if (j >= start) {
                const double rest = other[j] - hh_dot_f64(tier, other, other, j);
                if (!(rest > 0)) return j;
                a[j * n + j] = sqrt(rest);
            }
            for (ptrdiff_t i = j < start ? start : j + 1; i < stop; i++) {
                double *const row = a + i * n;
                row[j] = (row[j] - hh_dot_f64(tier, row, other, j)) / other[j];
            }
        }
    }
    return n;
}

/* Divide rows (count, m) by L's first m rows and columns, from the right; L's rows have n columns. */
HH_KERNEL void hh_divide_rows(int tier, const double *factor, ptrdiff_t n, double *rows, ptrdiff_t count, ptrdiff_t m) {
    for (ptrdiff_t t = m - 1; t >= 0; t--) {
        const double *const divisor = factor + t * n;
        for (ptrdiff_t r = 0; r < count; r++) {
            double *const row = rows + r * m;
            row[t] /= divisor[t];
            hh_subtract_f64(tier, row, divisor, row[t], t);
        }
    }
}

#endif
