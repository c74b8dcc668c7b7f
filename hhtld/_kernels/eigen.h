/* The largest eigenvalues of a symmetric matrix and their vectors, in float64 and in a fixed order.
 *
 * Householder: step k takes the reflection I - tau v v^T of columns k + 1 on that leaves row k with d[k] and e[k]
 * alone, v[k + 1] being 1, and turns the rest by it, A -= v w^T + w v^T with w = tau A v - (tau^2 v.A v / 2) v. What is
 * stored of A are the rows from the 16 columns on that hold the diagonal (a tile), in rows of a multiple of 16 columns;
 * beyond the matrix, and where v and w are not yet, there are zeros. One pass over the rest subtracts what the step
 * before found and multiplies by the new v:
 *     a = A[i][j] - (v[i] * w[j] + w[i] * v[j])    stored; columns ascending from the tile on
 *     product[i] += a * next[j]                    over 16 virtual lanes (isa.h), column j in lane j % 16
 *     product[j] += a * next[i]                    where column j lies beyond the tile; rows ascending
 * Eigenvalues of the tridiagonal matrix are bisected (Sturm counts); vectors come from inverse iteration (LU with
 * partial pivoting) of numbers that a fixed generator gives, made orthogonal to those before them, so that equal
 * eigenvalues get vectors too: which, is for this order of operations to say, and no processor's. Reflections turn them
 * back. Entries are multiplied by a power of two first, so that the largest is 0.5 or more and below 1. Every operation
 * is rounded on its own; bodies differ in how many they do at once.
 *
 * Source: Golub and Van Loan, Matrix Computations, 8.3 and 8.4; LAPACK's dsytd2, dstebz and dstein.
 */
#ifndef HHTLD_EIGEN_H
#define HHTLD_EIGEN_H

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "isa.h"

enum { HH_TILE = 16, HH_INVERSE_TURNS = 4 };

/* What is shorter than the square of a rounding, of entries below 1, is taken for zero: its squares would be none. */
#define HH_NOTHING (DBL_EPSILON * DBL_EPSILON)

/* ---- scalar ---- */

HH_KERNEL double hh_dot_f64_scalar(const double *x, const double *y, ptrdiff_t count) {
    double lane[16] = {0};
    for (ptrdiff_t j = 0; j < count; j++) lane[j & 15] += x[j] * y[j];
    return hh_tree16_f64(lane);
}

/* y -= factor * x */
HH_KERNEL void hh_subtract_f64_scalar(double *y, const double *x, double factor, ptrdiff_t count) {
    for (ptrdiff_t j = 0; j < count; j++) y[j] -= factor * x[j];
}

/* One row of the pass above, from `tile` on, and its product. */
HH_KERNEL double hh_reflect_row_scalar(double *row, ptrdiff_t i, ptrdiff_t tile, ptrdiff_t n_padded, const double *v,
                                       const double *w, const double *next, double *product) {
    double lane[16] = {0};
    for (ptrdiff_t j = tile; j < n_padded; j++) {
        const double a = row[j] - (v[i] * w[j] + w[i] * v[j]);
        row[j] = a;
        lane[j & 15] += a * next[j];
        if (j >= tile + HH_TILE) product[j] += a * next[i];
    }
    return hh_tree16_f64(lane);
}

HH_KERNEL void hh_reflect_scalar(double *a, ptrdiff_t first, ptrdiff_t n, ptrdiff_t n_padded, const double *v,
                                 const double *w, const double *next, double *product) {
    for (ptrdiff_t i = first; i < n; i++)
        product[i] += hh_reflect_row_scalar(a + i * n_padded, i, i & ~(ptrdiff_t)15, n_padded, v, w, next, product);
}

#if HH_X86
HH_TARGET_AVX2_BEGIN
#define HH_D __m256d
#define HH_LANES_D 4
#define HH_NAME(x) x##avx2
#define HH_LOAD(p) _mm256_loadu_pd(p)
#define HH_STORE(p, x) _mm256_storeu_pd(p, x)
#define HH_SET1(x) _mm256_set1_pd(x)
#define HH_ADD(x, y) _mm256_add_pd(x, y)
#define HH_SUB(x, y) _mm256_sub_pd(x, y)
#define HH_MUL(x, y) _mm256_mul_pd(x, y)
#define HH_TREE(s) hh_tree16_f64_avx2((s)[0], (s)[1], (s)[2], (s)[3])
#include "eigen_body.h"
HH_TARGET_END

HH_TARGET_AVX512_BEGIN
#define HH_D __m512d
#define HH_LANES_D 8
#define HH_NAME(x) x##avx512
#define HH_LOAD(p) _mm512_loadu_pd(p)
#define HH_STORE(p, x) _mm512_storeu_pd(p, x)
#define HH_SET1(x) _mm512_set1_pd(x)
#define HH_ADD(x, y) _mm512_add_pd(x, y)
#define HH_SUB(x, y) _mm512_sub_pd(x, y)
#define HH_MUL(x, y) _mm512_mul_pd(x, y)
#define HH_TREE(s) hh_tree16_f64_avx512((s)[0], (s)[1])
#include "eigen_body.h"
HH_TARGET_END
#elif HH_NEON
#define HH_D float64x2_t
#define HH_LANES_D 2
#define HH_NAME(x) x##neon
#define HH_LOAD(p) vld1q_f64(p)
#define HH_STORE(p, x) vst1q_f64(p, x)
#define HH_SET1(x) vdupq_n_f64(x)
#define HH_ADD(x, y) vaddq_f64(x, y)
#define HH_SUB(x, y) vsubq_f64(x, y)
#define HH_MUL(x, y) vmulq_f64(x, y)
#define HH_TREE(s) hh_tree16_f64_neon(s)
#include "eigen_body.h"
#endif

HH_INLINE double hh_dot_f64(int tier, const double *x, const double *y, ptrdiff_t count) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) return hh_dot_f64_avx512(x, y, count);
    if (tier >= HH_TIER_AVX2) return hh_dot_f64_avx2(x, y, count);
#elif HH_NEON
    if (tier >= HH_TIER_NEON) return hh_dot_f64_neon(x, y, count);
#endif
    (void)tier;
    return hh_dot_f64_scalar(x, y, count);
}

HH_INLINE void hh_subtract_f64(int tier, double *y, const double *x, double factor, ptrdiff_t count) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_subtract_f64_avx512(y, x, factor, count);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_subtract_f64_avx2(y, x, factor, count);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_subtract_f64_neon(y, x, factor, count);
        return;
    }
#endif
    (void)tier;
    hh_subtract_f64_scalar(y, x, factor, count);
}

HH_INLINE void hh_reflect(int tier, double *a, ptrdiff_t first, ptrdiff_t n, ptrdiff_t n_padded, const double *v,
                          const double *w, const double *next, double *product) {
#if HH_X86
    if (tier >= HH_TIER_AVX512) {
        hh_reflect_avx512(a, first, n, n_padded, v, w, next, product);
        return;
    }
    if (tier >= HH_TIER_AVX2) {
        hh_reflect_avx2(a, first, n, n_padded, v, w, next, product);
        return;
    }
#elif HH_NEON
    if (tier >= HH_TIER_NEON) {
        hh_reflect_neon(a, first, n, n_padded, v, w, next, product);
        return;
    }
#endif
    (void)tier;
    hh_reflect_scalar(a, first, n, n_padded, v, w, next, product);
}

/* ---- to a tridiagonal matrix ---- */

/* Leave d and e (n each, e[n - 1] = 0), in row k of `a` from column k + 1 on the vector of reflection k and zeros
 * before it, and tau[k]. `work` holds 4 * n_padded doubles. */
HH_KERNEL void hh_tridiagonalize(int tier, double *a, ptrdiff_t n, ptrdiff_t n_padded, double *d, double *e,
                                 double *tau, double *work) {
    double *v = work, *w = work + n_padded, *next = work + 2 * n_padded, *product = work + 3 * n_padded;
    memset(work, 0, 4 * (size_t)n_padded * sizeof(double));
    for (ptrdiff_t k = 0; k < n; k++) {
        double *const row = a + k * n_padded;
        const ptrdiff_t tile = k & ~(ptrdiff_t)15, rest = (k + 1) & ~(ptrdiff_t)15;
        for (ptrdiff_t j = k; j < n; j++) row[j] -= v[k] * w[j] + w[k] * v[j];
        d[k] = row[k], e[k] = 0, tau[k] = 0;
        for (ptrdiff_t j = tile; j <= k; j++) row[j] = 0;
        if (k == n - 1) break;
        const double head = row[k + 1];
        row[k + 1] = 0;
        const double below = hh_dot_f64(tier, row + tile, row + tile, n_padded - tile);
        e[k] = head;
        if (below <= HH_NOTHING * HH_NOTHING) {
            for (ptrdiff_t j = k + 2; j < n; j++) row[j] = 0;
        } else {
            const double length = sqrt(head * head + below);
            e[k] = head > 0 ? -length : length;
            tau[k] = (e[k] - head) / e[k];
            const double divisor = head - e[k];
            for (ptrdiff_t j = k + 2; j < n; j++) row[j] /= divisor;
            row[k + 1] = 1;
        }
        memcpy(next + tile, row + tile, (size_t)(n_padded - tile) * sizeof(double));
        memset(product + tile, 0, (size_t)(n_padded - tile) * sizeof(double));
        v[k] = w[k] = 0; /* a column that is done */
        hh_reflect(tier, a, k + 1, n, n_padded, v, w, next, product);
        const double half = tau[k] * tau[k] * hh_dot_f64(tier, product + rest, next + rest, n_padded - rest) / 2;
        for (ptrdiff_t j = k + 1; j < n; j++) w[j] = tau[k] * product[j] - half * next[j];
        double *const free_now = v;
        v = next, next = free_now;
    }
}

/* ---- of the tridiagonal matrix ---- */

/* How many eigenvalues lie above x. */
HH_KERNEL ptrdiff_t hh_count_above(const double *d, const double *e, ptrdiff_t n, double x, double least) {
    ptrdiff_t count = 0;
    double pivot = 1, before = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        pivot = d[i] - x - before * before / pivot;
        if (fabs(pivot) < least) pivot = -least;
        count += pivot > 0;
        before = e[i];
    }
    return count;
}

/* The j-th largest eigenvalue, j from 0, all of which lie within +-bound. */
HH_KERNEL double hh_eigenvalue(const double *d, const double *e, ptrdiff_t n, ptrdiff_t j, double bound, double least) {
    double low = -bound, high = bound;
    while (high - low > DBL_EPSILON / 16 * bound) {
        const double middle = low + (high - low) / 2;
        if (middle <= low || middle >= high) break;
        if (hh_count_above(d, e, n, middle, least) > j) low = middle;
        else high = middle;
    }
    return low + (high - low) / 2;
}

/* A number in [-1, 1): the k-th of splitmix64, seed 0. */
HH_INLINE double hh_start_(uint64_t k) {
    uint64_t z = (k + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double)(int64_t)(z >> 11) * (1.0 / 4503599627370496.0) - 1.0;
}

/* Turn vector number j (of those before it in `vectors`, rows of n_padded) to the eigenvector of `value`; `work` holds
 * 5 * n_padded doubles. */
HH_KERNEL void hh_inverse_iteration(int tier, const double *d, const double *e, ptrdiff_t n, ptrdiff_t n_padded,
                                    ptrdiff_t j, double value, double least, double *vectors, double *work) {
    double *const diagonal = work, *const above = work + n_padded, *const twice = work + 2 * n_padded;
    double *const factor = work + 3 * n_padded, *const swapped = work + 4 * n_padded, *const y = vectors + j * n_padded;
    double a = d[0] - value, b = e[0];
    for (ptrdiff_t i = 0; i + 1 < n; i++) {
        const double below = e[i], own = d[i + 1] - value, beyond = e[i + 1];
        swapped[i] = fabs(a) < fabs(below);
        if (swapped[i] != 0) {
            factor[i] = a / below, diagonal[i] = below, above[i] = own, twice[i] = beyond;
            a = b - factor[i] * own, b = -(factor[i] * beyond);
        } else {
            factor[i] = a != 0 ? below / a : 0, diagonal[i] = a, above[i] = b, twice[i] = 0;
            a = own - factor[i] * b, b = beyond;
        }
    }
    diagonal[n - 1] = a, above[n - 1] = twice[n - 1] = 0;
    for (ptrdiff_t i = 0; i < n; i++)
        if (fabs(diagonal[i]) < least) diagonal[i] = diagonal[i] < 0 ? -least : least;
    for (ptrdiff_t i = 0; i < n; i++) y[i] = hh_start_((uint64_t)(j * n + i));
    for (ptrdiff_t i = n; i < n_padded; i++) y[i] = 0;
    for (int turn = 0; turn < HH_INVERSE_TURNS; turn++) {
        for (ptrdiff_t i = 0; i + 1 < n; i++) {
            const double old = y[i];
            if (swapped[i] != 0) y[i] = y[i + 1], y[i + 1] = old - factor[i] * y[i];
            else y[i + 1] -= factor[i] * old;
        }
        for (ptrdiff_t i = n - 1; i >= 0; i--) {
            double sum = y[i];
            if (i + 1 < n) sum -= above[i] * y[i + 1];
            if (i + 2 < n) sum -= twice[i] * y[i + 2];
            y[i] = sum / diagonal[i];
        }
        for (int again = 0; again < 2; again++)
            for (ptrdiff_t other = 0; other < j; other++) {
                const double *const x = vectors + other * n_padded;
                hh_subtract_f64(tier, y, x, hh_dot_f64(tier, x, y, n_padded), n_padded);
            }
        const double length = sqrt(hh_dot_f64(tier, y, y, n_padded));
        for (ptrdiff_t i = 0; i < n; i++) y[i] = length > 0 ? y[i] / length : 0;
    }
}

/* ---- both ---- */

/* Write the `count` largest eigenvalues of a symmetric matrix (n, n) in descending order and their vectors (count, n).
 * Return 0, or 1 where there is no memory for a padded copy. */
HH_KERNEL int hh_largest_eigenpairs(int tier, const double *matrix, ptrdiff_t n, ptrdiff_t count, double *values,
                                    double *vectors) {
    const ptrdiff_t n_padded = (n + HH_TILE - 1) & ~(ptrdiff_t)15;
    double *const a = (double *)malloc(((size_t)n + (size_t)count + 8) * (size_t)n_padded * sizeof(double));
    if (!a) return 1;
    double *const turned = a + n * n_padded, *const d = turned + count * n_padded, *const e = d + n_padded;
    double *const tau = e + n_padded, *const work = tau + n_padded;
    double largest = 0;
    for (ptrdiff_t i = 0; i < n * n; i++) largest = fabs(matrix[i]) > largest ? fabs(matrix[i]) : largest;
    int exponent;
    (void)frexp(largest, &exponent);
    if (exponent < -1000) exponent = -1000; /* its inverse would be infinite */
    const double down = ldexp(1, -exponent);
    memset(a, 0, (size_t)n * (size_t)n_padded * sizeof(double));
    for (ptrdiff_t i = 0; i < n; i++)
        for (ptrdiff_t j = i & ~(ptrdiff_t)15; j < n; j++) a[i * n_padded + j] = matrix[i * n + j] * down;
    hh_tridiagonalize(tier, a, n, n_padded, d, e, tau, work);
    double bound = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double reach = fabs(d[i]) + (i ? fabs(e[i - 1]) : 0) + fabs(e[i]);
        if (reach > bound) bound = reach;
    }
    bound = bound > 0 ? bound * (1 + 4 * DBL_EPSILON) : 1;
    for (ptrdiff_t j = 0; j < count; j++) {
        values[j] = hh_eigenvalue(d, e, n, j, bound, HH_NOTHING * bound);
        hh_inverse_iteration(tier, d, e, n, n_padded, j, values[j], DBL_EPSILON * bound, turned, work);
    }
    for (ptrdiff_t k = n - 2; k >= 0; k--) {
        const ptrdiff_t rest = (k + 1) & ~(ptrdiff_t)15;
        const double *const v = a + k * n_padded + rest;
        for (ptrdiff_t j = 0; j < count; j++) {
            double *const y = turned + j * n_padded + rest;
            hh_subtract_f64(tier, y, v, tau[k] * hh_dot_f64(tier, v, y, n_padded - rest), n_padded - rest);
        }
    }
    for (ptrdiff_t j = 0; j < count; j++) {
        values[j] = ldexp(values[j], exponent);
        memcpy(vectors + j * n, turned + j * n_padded, (size_t)n * sizeof(double));
    }
    free(a);
    return 0;
}

#endif
