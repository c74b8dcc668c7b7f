"""A numpy twin of every kernel door: same names, same arguments less `isa`, obviously right.

Tests compare each kernel with its twin. Every sum is taken in the order the headers specify, so a twin and
its kernel agree bit for bit on finite input: either one accumulator an output, fed in ascending order, or 16
virtual lanes (element j goes to lane j % 16) folded by a fixed tree. The twins do not validate; the doors do.
"""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "add_dots",
    "base17_fold",
    "base17_unfold",
    "cholesky",
    "collect",
    "crossed_levels",
    "decode",
    "divide_rows",
    "encode",
    "estimate",
    "first_nonfinite_bf16",
    "first_nonfinite_f32",
    "furthest_l1",
    "furthest_l2",
    "gram",
    "largest_eigenpairs",
    "narrow_f32_bf16",
    "narrow_f32_f16",
    "nearest_l1",
    "nearest_l2",
    "open_rings",
    "project",
    "quantize_i8",
    "reconstruct",
    "ring_nbytes",
    "rotate",
    "row_dots",
    "row_nbytes",
    "search_cols",
    "trellis_dots",
    "trellis_energies",
    "trellis_scores",
    "truncate_f32_bf16",
    "unrotate",
    "widen_bf16",
    "widen_f8",
    "widen_f16",
]

BASE17 = 17
LANES = 8
VIRTUAL_LANES = 16

_INFINITY_F32 = 0x7F800000
_MAGNITUDE_F32 = 0x7FFFFFFF


# ---- cast ----


def widen_bf16(values: NDArray[np.uint16], out: NDArray[np.float32], factor: float = 1) -> None:
    """Widen bfloat16 bits (n,) to float32 (n,), times a factor; a signalling NaN comes out quiet."""
    bits = values.astype(np.uint32) << 16
    is_nan = (bits & _MAGNITUDE_F32) > _INFINITY_F32
    out[:] = np.where(is_nan, bits | 0x00400000, bits).astype(np.uint32).view(np.float32)
    if factor != 1:
        out *= np.float32(factor)


def widen_f16(values: NDArray[np.uint16], out: NDArray[np.float32]) -> None:
    """Widen float16 bits (n,) to float32 (n,); a signalling NaN comes out quiet."""
    is_nan = (values & 0x7FFF) > 0x7C00
    quiet = np.where(is_nan, values | 0x0200, values).astype(np.uint16)
    out[:] = quiet.view(np.float16).astype(np.float32)


def widen_f8(values: NDArray[np.uint8], table: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Widen 8-bit floats (n,) through the 256 values of their format."""
    out[:] = table[values]


def narrow_f32_bf16(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Round float32 (n,) to bfloat16 bits (n,), nearest, ties to even; a NaN stays a NaN and quiet."""
    bits = values.view(np.uint32).astype(np.uint64)
    kept, dropped = bits >> 16, bits & 0xFFFF
    up = (dropped > 0x8000) | ((dropped == 0x8000) & (kept & 1 == 1))
    is_nan = (bits & _MAGNITUDE_F32) > _INFINITY_F32
    out[:] = np.where(is_nan, kept | 0x40, kept + up).astype(np.uint16)


def narrow_f32_f16(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Round float32 (n,) to float16 bits (n,), nearest, ties to even; a NaN stays a NaN and quiet."""
    bits = values.view(np.uint32)
    is_nan = (bits & _MAGNITUDE_F32) > _INFINITY_F32
    quiet = ((bits >> 16) & 0x8000) | 0x7E00 | ((bits >> 13) & 0x3FF)
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.where(is_nan, np.float32(0), values).astype(np.float16)
    out[:] = np.where(is_nan, quiet, rounded.view(np.uint16)).astype(np.uint16)


def truncate_f32_bf16(values: NDArray[np.float32], out: NDArray[np.uint16]) -> None:
    """Drop the low 16 bits of float32 (n,)."""
    out[:] = (values.view(np.uint32) >> 16).astype(np.uint16)


def first_nonfinite_bf16(values: NDArray[np.uint16]) -> int:
    """Return the index of the first infinity or NaN of (n,), bfloat16 bits, or -1."""
    return first_nonfinite_f32((values.astype(np.uint32) << 16).view(np.float32))


def first_nonfinite_f32(values: NDArray[np.float32]) -> int:
    """Return the index of the first infinity or NaN of (n,), or -1."""
    for index, finite in enumerate(np.isfinite(values)):
        if not finite:
            return index
    return -1


# ---- fold ----


def base17_fold(rows: NDArray[np.float32], dims: NDArray[np.int16]) -> None:
    """Fold rows (n_rows, n_cols) to dims (n_rows, 17): means of every 17th column in 1/256."""
    n_rows, n_cols = rows.shape
    sums = np.zeros((n_rows, BASE17))
    for column in range(n_cols):
        sums[:, column % BASE17] += rows[:, column].astype(np.float64)
    for i in range(BASE17):
        position = 11 * i % BASE17
        count = len(range(position, n_cols, BASE17))
        if count == 0:
            dims[:, i] = 0
            continue
        scaled = np.clip(sums[:, position] / float(count) * 256.0, -32768.0, 32767.0)
        dims[:, i] = _half_away_from_zero(scaled).astype(np.int16)


def base17_unfold(dims: NDArray[np.int16], rows: NDArray[np.float32]) -> None:
    """Unfold dims (n_rows, 17) to rows (n_rows, n_cols): column c takes the dim whose position is c % 17."""
    dim_of = {11 * i % BASE17: i for i in range(BASE17)}
    for column in range(rows.shape[1]):
        rows[:, column] = dims[:, dim_of[column % BASE17]].astype(np.float32) / np.float32(256)


# ---- search ----


def nearest_l1(
    rows: NDArray[np.int16],
    entries: NDArray[np.int16],
    nearest: NDArray[np.uint8],
    distances: NDArray[np.uint32],
) -> None:
    """Assign each row (n_rows, 17) the first of its nearest entries (k, 17) by L1."""
    for r in range(rows.shape[0]):
        apart = np.abs(entries.astype(np.int64) - rows[r].astype(np.int64)).sum(axis=1)
        nearest[r] = apart.argmin()
        distances[r] = apart.min()


def furthest_l1(
    columns: NDArray[np.int16],
    picks: NDArray[np.int64],
    nearest_distance: NDArray[np.uint32],
    nearest: NDArray[np.int32],
) -> None:
    """Pick rows of columns (17, n_rows) after picks[0], each the LAST furthest from its nearest pick."""
    wide = columns.astype(np.int64)
    nearest_distance[:] = np.iinfo(np.uint32).max
    nearest[:] = 0
    for pick in range(len(picks)):
        apart = np.abs(wide - wide[:, picks[pick], None]).sum(axis=0)
        closer = apart < nearest_distance
        nearest_distance[closer] = apart[closer]
        nearest[closer] = pick
        if pick + 1 < len(picks):
            picks[pick + 1] = np.flatnonzero(nearest_distance == nearest_distance.max())[-1]


def nearest_l2(rows: NDArray[np.float32], centroids: NDArray[np.float32], nearest: NDArray[np.int32]) -> None:
    """Assign each row (n_rows, n_cols) the first of its nearest centroids (k, n_cols) by squared L2."""
    for r in range(rows.shape[0]):
        nearest[r] = _distances2(centroids, rows[r]).argmin()


def furthest_l2(
    rows: NDArray[np.float32],
    picks: NDArray[np.int64],
    nearest_distance: NDArray[np.float64],
    nearest: NDArray[np.int32],
) -> int:
    """Pick rows (n_rows, n_cols), the largest norm first, then the FIRST furthest from its nearest pick.

    Returns
    -------
    int
        The number of picks made: it ends when every row is a pick or equal to one.
    """
    wide = rows.astype(np.float64)
    furthest = int(_tree16(wide * wide).argmax())
    nearest_distance[:] = np.finfo(np.float64).max
    nearest[:] = 0
    for pick in range(len(picks)):
        if nearest_distance[furthest] == 0:
            return pick
        picks[pick] = furthest
        apart = _distances2(rows, rows[furthest])
        closer = apart < nearest_distance
        nearest_distance[closer] = apart[closer]
        nearest[closer] = pick
        furthest = int(nearest_distance.argmax())
    return len(picks)


# ---- leaf ----


def project(
    rows: NDArray[np.float32],
    entries: NDArray[np.float32],
    twigs: NDArray[np.uint8] | None,
    basis: NDArray[np.float64],
    coefficients: NDArray[np.float32],
) -> None:
    """Project rows (n_rows, n_cols) less their entries on basis (n_cols, 8); coefficients are (n_rows, 8)."""
    residual = (rows - (entries if twigs is None else entries[twigs])).astype(np.float64)
    sums = np.zeros((rows.shape[0], LANES))
    for column in range(rows.shape[1]):
        sums += residual[:, column, None] * basis[column]
    coefficients[:] = sums.astype(np.float32)


def quantize_i8(coefficients: NDArray[np.float32], scale: float | np.float32, codes: NDArray[np.int8]) -> None:
    """Quantize coefficients (n,) to codes (n,) in -127..127: float32 division, half away from zero."""
    with np.errstate(over="ignore", under="ignore"):
        scaled = np.clip(coefficients / np.float32(scale), np.float32(-127), np.float32(127))
    codes[:] = _half_away_from_zero(scaled.astype(np.float64)).astype(np.int8)


def reconstruct(
    entries: NDArray[np.float32],
    twigs: NDArray[np.uint8] | None,
    codes: NDArray[np.int8] | None,
    scale: float | np.float32,
    basis: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> None:
    """Write entries plus codes (n_rows, 8) times scale on basis (8, n_cols) to out (n_rows, n_cols)."""
    out[:] = entries if twigs is None else entries[twigs]
    if codes is None or basis is None:
        return
    coefficients = codes.astype(np.float32) * np.float32(scale)
    for i in range(LANES):
        out += coefficients[:, i, None] * basis[i]


# ---- dot ----


def gram(x: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Write x.T @ x of x (n_rows, n_cols) to out (n_cols, n_cols), rows summed in ascending order."""
    wide = x.astype(np.float64)
    out[:] = 0
    for row in wide:
        out += np.outer(row, row)


def row_dots(x: NDArray[np.float32], y: NDArray[np.float32], out: NDArray[np.float64]) -> None:
    """Write x.y, x.x and y.y of every row pair (n_rows, n_cols) to out (n_rows, 3)."""
    a, b = x.astype(np.float64), y.astype(np.float64)
    for column, terms in enumerate((a * b, a * a, b * b)):
        out[:, column] = _tree16(terms)


# ---- eigen ----

_NOTHING = float(np.finfo(np.float64).eps) ** 2


def largest_eigenpairs(matrix: NDArray[np.float64], values: NDArray[np.float64], vectors: NDArray[np.float64]) -> None:
    """Write the largest eigenvalues of a symmetric matrix (n, n) to values (count,), descending; vectors (count, n)."""
    n, epsilon = len(matrix), float(np.finfo(np.float64).eps)
    exponent = max(int(np.frexp(np.abs(matrix).max())[1]), -1000)
    a, d, e, tau = _tridiagonalized(matrix * math.ldexp(1.0, -exponent))
    sides = np.abs(np.concatenate([[0.0], e]))
    bound = float((np.abs(d) + sides[:-1] + sides[1:]).max()) * (1 + 4 * epsilon) or 1.0
    found = np.zeros((len(values), a.shape[1]))
    for j in range(len(values)):
        value = _eigenvalue(d.tolist(), e.tolist(), j, bound, _NOTHING * bound)
        _inverse_iteration(d.tolist(), e.tolist(), j, value, epsilon * bound, found)
        values[j] = math.ldexp(value, exponent)
    for k in range(n - 2, -1, -1):
        rest = k + 1 & ~15
        for y in found:
            y[rest:] -= tau[k] * _dot16(a[k, rest:], y[rest:]) * a[k, rest:]
    vectors[:] = found[:, :n]


def _tridiagonalized(
    matrix: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the reflections (n, padded), diagonal, what is beside it, and tau."""
    n = len(matrix)
    a, (d, e, tau) = np.zeros((n, -(-n // 16) * 16)), np.zeros((3, n))
    for i in range(n):
        a[i, i & ~15 : n] = matrix[i, i & ~15 :]
    v, w = np.zeros((2, a.shape[1]))
    for k in range(n):
        row, tile, rest = a[k], k & ~15, k + 1 & ~15
        row[k:n] -= v[k] * w[k:n] + w[k] * v[k:n]
        d[k] = row[k]
        row[tile : k + 1] = 0
        if k == n - 1:
            break
        head = e[k] = row[k + 1]
        row[k + 1] = 0
        below = _dot16(row[tile:], row[tile:])
        if below <= _NOTHING * _NOTHING:
            row[k + 2 :] = 0
        else:
            e[k] = -math.sqrt(head * head + below) if head > 0 else math.sqrt(head * head + below)
            tau[k] = (e[k] - head) / e[k]
            row[k + 2 : n] /= head - e[k]
            row[k + 1] = 1
        following, product = np.zeros_like(row), np.zeros_like(row)
        following[tile:] = row[tile:]
        v[k] = w[k] = 0
        for i in range(k + 1, n):
            own = i & ~15
            a[i, own:] -= v[i] * w[own:] + w[i] * v[own:]
            product[own + 16 :] += a[i, own + 16 :] * following[i]
            product[i] += _dot16(a[i, own:], following[own:])
        half = tau[k] * tau[k] * _dot16(product[rest:], following[rest:]) / 2
        w[k + 1 : n] = tau[k] * product[k + 1 : n] - half * following[k + 1 : n]
        v = following
    return a, d, e, tau


def _eigenvalue(d: list[float], e: list[float], j: int, bound: float, least: float) -> float:
    """Return the j-th largest eigenvalue of a tridiagonal matrix, bisected."""

    def count_above(x: float) -> int:
        count, pivot, before = 0, 1.0, 0.0
        for own, beside in zip(d, e, strict=True):
            pivot = own - x - before * before / pivot
            if abs(pivot) < least:
                pivot = -least
            count, before = count + (pivot > 0), beside
        return count

    low, high = -bound, bound
    while high - low > float(np.finfo(np.float64).eps) / 16 * bound:
        middle = low + (high - low) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if count_above(middle) > j else (low, middle)
    return low + (high - low) / 2


def _inverse_iteration(
    d: list[float], e: list[float], j: int, value: float, least: float, vectors: NDArray[np.float64]
) -> None:
    """Turn vectors[j] to the eigenvector of `value`, orthogonal to those before it."""
    n = len(d)
    factor, swapped, upper = [], [], []  # rows of the upper factor: diagonal, next, next but one
    a, b = d[0] - value, e[0]
    for i in range(n - 1):
        below, own, beyond = e[i], d[i + 1] - value, e[i + 1]
        swapped.append(abs(a) < abs(below))
        if swapped[i]:
            factor.append(a / below)
            upper.append((below, own, beyond))
            a, b = b - factor[i] * own, -(factor[i] * beyond)
        else:
            factor.append(below / a if a != 0 else 0.0)
            upper.append((a, b, 0.0))
            a, b = own - factor[i] * b, beyond
    upper.append((a, 0.0, 0.0))
    start = _splitmix64(j * n, n)
    y = (start >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    for _ in range(4):
        solved = [*y.tolist(), 0.0, 0.0]
        for i in range(n - 1):
            if swapped[i]:
                solved[i], solved[i + 1] = solved[i + 1], solved[i] - factor[i] * solved[i + 1]
            else:
                solved[i + 1] -= factor[i] * solved[i]
        for i in range(n - 1, -1, -1):
            pivot, near, far = upper[i]
            if abs(pivot) < least:
                pivot = -least if pivot < 0 else least
            solved[i] = (solved[i] - near * solved[i + 1] - far * solved[i + 2]) / pivot
        padded = np.zeros(vectors.shape[1])
        padded[:n] = solved[:n]
        for _ in range(2):
            for x in vectors[:j]:
                padded -= _dot16(x, padded) * x
        length = math.sqrt(_dot16(padded, padded))
        y = padded[:n] / length if length > 0 else np.zeros(n)
    vectors[j, :n] = y


def _splitmix64(first: int, count: int) -> NDArray[np.uint64]:
    """Return outputs number `first` on, of seed 0."""
    with np.errstate(over="ignore"):
        z = (np.arange(first, first + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


# ---- cholesky ----


def cholesky(matrix: NDArray[np.float64]) -> None:
    """Write the lower factor of a symmetric positive definite matrix (n, n) over its lower triangle."""
    for j, row in enumerate(matrix):
        for i, below in enumerate(matrix[j:], j):
            rest = below[j] - _dot16(below[:j], row[:j])
            below[j] = math.sqrt(rest) if i == j else rest / row[j]


def divide_rows(factor: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
    """Divide rows (count, m) by the first m rows and columns of a lower factor (n, n), from the right, in place."""
    for t in range(rows.shape[1] - 1, -1, -1):
        rows[:, t] /= factor[t, t]
        rows[:, :t] -= rows[:, t : t + 1] * factor[t, :t]


# ---- rotate ----


def rotate(rows: NDArray[np.float32], signs: NDArray[np.float32]) -> None:
    """Rotate rows (n_rows, n_cols) in place by signs (2, n_cols): two Hadamard blocks that overlap, or one."""
    block = _hadamard_block(rows.shape[1])
    rows *= signs[0]
    _hadamard(rows[:, :block])
    if block < rows.shape[1]:
        rows *= signs[1]
        _hadamard(rows[:, -block:])


def unrotate(rows: NDArray[np.float32], signs: NDArray[np.float32]) -> None:
    """Rotate rows (n_rows, n_cols) back in place: the steps of `rotate` in reverse, each its own inverse."""
    block = _hadamard_block(rows.shape[1])
    if block < rows.shape[1]:
        _hadamard(rows[:, -block:])
        rows *= signs[1]
    _hadamard(rows[:, :block])
    rows *= signs[0]


def _hadamard_block(n_cols: int) -> int:
    return 1 << max(n_cols.bit_length() - 1, 0)


def _hadamard(x: NDArray[np.float32]) -> None:
    """Transform the columns of x (n_rows, a power of two) in place, neighbours first."""
    block = x.shape[1]
    half = 1
    while half < block:
        for start in range(0, block, 2 * half):
            a, b = x[:, start : start + half].copy(), x[:, start + half : start + 2 * half].copy()
            x[:, start : start + half] = a + b
            x[:, start + half : start + 2 * half] = a - b
        half *= 2
    x *= np.float32(1 / math.sqrt(block))


# ---- trellis ----

_SIGMA = 8192
_RENORMALISE = 8
_LEAST_COST = -32768
_FEEDBACK_BLOCK, _FEEDBACK_AHEAD = 32, 32
_WHOLE_COLS, _PIECE_COLS, _SEAM_COLS, _RING_COLS = 65536, 4096, 256, 64


def row_nbytes(n_cols: int, rate: int, n_bits: int) -> int:
    """Return the bytes of a row of `n_cols` weights at `rate` sixteenths of a bit with 2**n_bits states."""
    return ((n_cols - 1) * rate // 16 + n_bits + 7) // 8 if n_cols else 0


def ring_nbytes(n_cols: int, rate: int, n_bits: int) -> int:
    """Return the bytes of a ring of `n_cols` weights."""
    return (n_cols * rate // 16 + 7) // 8


def open_rings(rings: NDArray[np.uint8], n_cols: int, rate: int, n_bits: int, codes: NDArray[np.uint8]) -> None:
    """Write the codes (n_rows, row_nbytes) of rings (n_rows, ring_nbytes): what the last windows reach, once more."""
    end, reach = n_cols * rate // 16, (n_cols - 1) * rate // 16 + n_bits
    bits = np.unpackbits(rings, axis=1, count=end, bitorder="little")
    codes[...] = np.packbits(bits[:, np.arange(reach) % end], axis=1, bitorder="little")


def search_cols(n_cols: int) -> int:
    """Return how many weights of rows of `n_cols` are searched at once without feedback: all, or a piece's."""
    if n_cols <= _WHOLE_COLS:
        return n_cols
    piece = math.ceil(math.ceil(n_cols / (32 * math.ceil(n_cols / (32 * _PIECE_COLS)))) / 16) * 16
    most = max(piece + (n_cols + 15) % 16 + 1, _SEAM_COLS)
    return min(most, n_cols)


def encode(
    rows: NDArray[np.float32],
    table: NDArray[np.int8],
    step: int,
    rate: int,
    codes: NDArray[np.uint8],
    gains: NDArray[np.float32],
    feedback: NDArray[np.float32] | None = None,
    whole: int = _WHOLE_COLS,
    is_ring: bool = False,
) -> None:
    """Encode rows (n_rows, n_cols) into codes (n_rows, row_nbytes) and least-squares gains (n_rows,).

    `feedback` (n_cols, n_cols): what errors of blocks of weights add to the targets of those to come. `whole`: rows of
    more weights are searched in pieces. `is_ring`: codes end with the bits that they begin with.
    """
    values = np.clip(table.astype(np.int32) * step, -32767, 32767)
    for r, row in enumerate(rows):
        units = _units(row)
        aimed = row
        if feedback is None:
            targets = np.rint(np.clip(row.astype(np.float64) * units, -32767, 32767)).astype(np.int32)
            path = _path_of_ring if is_ring else _path_of_pieces if len(row) > whole else _cheapest_path
            states = path(targets, values, rate) if len(row) else []
        else:
            aimed = (row.astype(np.float64) * units).astype(np.float32)
            states = _cheapest_path_fed(aimed, values, rate, feedback) if len(row) else []
        stream = 0
        for t, state in enumerate(states):  # windows overlap, and agree where they do
            stream |= state << (t * rate // 16)
        codes[r] = np.frombuffer(stream.to_bytes(codes.shape[1], "little"), np.uint8)
        cross = own = 0.0
        for t in reversed(range(len(states))):
            level = float(table[states[t]])
            cross += float(aimed[t]) * level
            own += level * level
        gain = cross / own if own > 0 else 0.0
        gains[r] = gain if feedback is None else gain / units if units else 0


def crossed_levels(crossed: NDArray[np.uint8], levels: NDArray[np.int8]) -> None:
    """Write the level of every state (4096,) of a crossed codebook (72,)."""
    nibbles = np.stack([crossed[:24] & 15, crossed[:24] >> 4], axis=1).reshape(3, 16)
    tables = crossed[24:].view(np.int8).reshape(3, 16).astype(np.int64)
    a, b, c = (np.arange(4096) >> shift & 15 for shift in (0, 4, 8))
    c = c ^ nibbles[0][a]
    a = a ^ nibbles[1][c]
    b = b ^ nibbles[2][c]
    levels[...] = (tables[0][a] + tables[1][b] + tables[2][c]).astype(np.int8)


def decode(
    codes: NDArray[np.uint8],
    table: NDArray[np.int8],
    rate: int,
    gains: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Decode codes (n_rows, row_nbytes) and gains (n_rows,) to rows (n_rows, n_cols)."""
    for r in range(out.shape[0]):
        stream = int.from_bytes(codes[r].tobytes(), "little")
        for t in range(out.shape[1]):
            state = (stream >> (t * rate // 16)) & (len(table) - 1)
            out[r, t] = gains[r] * np.float32(table[state])


def _units(row: NDArray[np.float32]) -> float:
    """What brings a row (n_cols,) to 1/8192 of its root mean square; 0 for zeros."""
    wide = row.astype(np.float64)
    norm2 = float(_tree16((wide * wide)[None])[0])
    return _SIGMA * math.sqrt(len(row) / norm2) if norm2 > 0 else 0.0


class _Search:
    """The Viterbi search: one state for every weight, each following from the one before.

    A state's successors drop its low `bits` bits and put any others on top, so the states that lead to the same
    2**bits successors are consecutive, and differ in the bits that leave.
    """

    def __init__(self, values: NDArray[np.int32], rate: int) -> None:
        self._values, self._rate = values, rate
        self._doublings = 0 if rate < 56 else 1 if rate < 68 else 2
        self._costs = np.zeros(0, np.int32)
        self._came_from: list[NDArray[np.int64]] = []

    def _squares(self, weight: np.int32) -> NDArray[np.int32]:
        apart = _saturated(weight - self._values)
        wide = apart
        for _ in range(self._doublings):
            wide = _saturated(wide + wide)
        return ((wide * wide) >> 16) + (((apart * apart) >> 16) if self._doublings else 0)

    def step(self, weight: np.int32) -> None:
        """Go on by one weight."""
        if not len(self._costs):
            self._costs = _saturated(_LEAST_COST + self._squares(weight))
            return
        t = len(self._came_from) + 1
        bits = t * self._rate // 16 - (t - 1) * self._rate // 16
        groups = self._costs.reshape(-1, 1 << bits)
        self._came_from.append((np.arange(len(groups)) << bits) + groups.argmin(axis=1))  # the first of the least
        best = groups.min(axis=1)
        if t % _RENORMALISE == 0:
            best = _saturated(best - _saturated(self._costs.min() - np.int32(_LEAST_COST)))
        self._costs = _saturated(np.tile(best, 1 << bits) + self._squares(weight))

    @property
    def length(self) -> int:
        """Weights gone by."""
        return len(self._came_from) + (len(self._costs) > 0)

    def path(self, state: int | None = None) -> list[int]:
        """Return the states of the cheapest way to here, or to a state here."""
        states = [int(self._costs.argmin()) if state is None else state]
        for origins in reversed(self._came_from):
            states.append(int(origins[states[-1] % len(origins)]))
        return states[::-1]

    def settle(self, t: int, state: int) -> None:
        """Be back at weight `t`, where any other state than this costs the most there is."""
        del self._came_from[t:]
        self._costs = np.where(np.arange(len(self._values)) == state, np.int32(_LEAST_COST), np.int32(32767))


def _cheapest_path(x: NDArray[np.int32], values: NDArray[np.int32], rate: int) -> list[int]:
    search = _Search(values, rate)
    for weight in x:
        search.step(weight)
    return search.path()


def _path_of_pieces(x: NDArray[np.int32], values: NDArray[np.int32], rate: int) -> list[int]:
    """The states of cheapest paths between states that the weights around them give."""
    n_cols = len(x)
    piece = math.ceil(math.ceil(n_cols / (32 * math.ceil(n_cols / (32 * _PIECE_COLS)))) / 16) * 16
    reach = piece + (n_cols - 1) % 16 + 1
    if n_cols <= max(reach, _SEAM_COLS):
        return _cheapest_path(x, values, rate)
    begins = [*range(0, n_cols - reach, piece), n_cols - reach]
    path: list[int] = []
    seam = -1
    for begin, end in pairwise([*begins, n_cols]):
        search = _Search(values, rate)
        for weight in x[begin : begin + reach]:
            search.step(weight)
            if seam >= 0 and search.length == 1:
                search.settle(0, seam)
            if search.length == end - begin + 1:
                break
        if end == n_cols:
            return path + search.path()
        around = min(max(0, end - _SEAM_COLS // 2), (n_cols - _SEAM_COLS) // 16 * 16)
        seam = _cheapest_path(x[around : around + _SEAM_COLS], values, rate)[end - around]
        path += search.path(seam)[:-1]
    raise AssertionError


def _path_of_ring(x: NDArray[np.int32], values: NDArray[np.int32], rate: int) -> list[int]:
    """The states of the cheapest path that comes back to the state it begins at, which the weights around it give."""
    half = _RING_COLS // 2
    begin = _cheapest_path(x[np.arange(-half, half) % len(x)], values, rate)[half]
    while True:
        search = _Search(values, rate)
        for weight in [*x, x[0]]:
            search.step(weight)
            if search.length == 1:
                search.settle(0, begin)
        path = search.path(begin)
        if path[0] == begin:
            return path[:-1]
        x = np.fix(x / 2).astype(np.int32)  # costs saturated, and a path from elsewhere was as cheap


def _cheapest_path_fed(
    targets: NDArray[np.float32], values: NDArray[np.int32], rate: int, feedback: NDArray[np.float32]
) -> list[int]:
    """The same, `targets` (n_cols,) taking up in place what the weights before them lost."""
    search, begun = _Search(values, rate), 0
    while True:
        for target in targets[begun : begun + _FEEDBACK_BLOCK + _FEEDBACK_AHEAD]:
            search.step(np.int32(np.rint(np.clip(target, np.float32(-32767), np.float32(32767)))))
        path, end = search.path(), begun + _FEEDBACK_BLOCK
        if end >= len(targets):
            return path
        for k in range(begun, end):
            targets[end:] += feedback[end:, k] * (targets[k] - np.float32(values[path[k]]))
        search.settle(end - 1, path[end - 1])
        begun = end


def _saturated(values: NDArray[np.int32] | np.int32) -> NDArray[np.int32]:
    """What int16 arithmetic that saturates makes of sums."""
    return np.clip(values, -32768, 32767)


# ---- score ----


def trellis_dots(
    codes: NDArray[np.uint8], levels: NDArray[np.int8], rate: int, queries: NDArray[np.int8], out: NDArray[np.int32]
) -> None:
    """Write to out (n_queries, n_rows) the sums of level times query (n_queries, n_cols) of codes."""
    out[...] = queries.astype(np.int64) @ _levels(codes, levels, rate, queries.shape[1]).T


def trellis_scores(
    codes: NDArray[np.uint8],
    levels: NDArray[np.int8],
    rate: int,
    queries: NDArray[np.int8],
    gains: NDArray[np.float32],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
    more: bool,
) -> None:
    """Write to out (n_queries, n_rows), or add if `more`, gains (n_rows,) times scales (n_queries,) times the sums."""
    dots = np.empty(out.shape, np.int32)
    trellis_dots(codes, levels, rate, queries, dots)
    if not more:
        out[...] = 0
    add_dots(dots, gains, scales, out)


def trellis_energies(
    codes: NDArray[np.uint8], levels: NDArray[np.int8], rate: int, n_cols: int, out: NDArray[np.int32]
) -> None:
    """Write to out (n_rows,) the sums of squared levels of codes (n_rows, row_nbytes)."""
    out[...] = (_levels(codes, levels, rate, n_cols) ** 2).sum(1)


def trellis_products(
    codes: NDArray[np.uint8],
    levels: NDArray[np.int8],
    rate: int,
    gains: NDArray[np.float32],
    signs: NDArray[np.float32],
    inputs: NDArray[np.float32],
    n_planes: int,
    out: NDArray[np.float32],
    column_scale: NDArray[np.float32] | None = None,
    centroids: NDArray[np.float32] | None = None,
    twigs: NDArray[np.uint8] | None = None,
) -> bool:
    """Write to out (n_inputs, n_rows) the products of inputs with rows, by planes of int8; whether all was finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        rest = inputs / column_scale if column_scale is not None else inputs.copy()
        rotate(rest, signs)
        if not np.isfinite(rest).all():
            return False
        rotated = rest.copy()
        for plane in range(n_planes):
            scales = np.abs(rest).max(axis=1) / np.float32(127)
            steps = np.where(scales > 0, scales, np.float32(1))[:, None]
            whole = np.clip(np.rint(rest / steps), -127, 127).astype(np.float32)
            rest -= whole * steps
            sums = np.empty(out.shape, np.int32)
            trellis_dots(codes, levels, rate, whole.astype(np.int8), sums)
            part = scales[:, None] * sums.astype(np.float32)
            out[...] = part if plane == 0 else out + part
        out *= gains
        if centroids is not None and twigs is not None:
            out += _centroid_products(rotated, centroids)[:, twigs]
    return True


def _centroid_products(rotated: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the products (n_inputs, n_centroids), each the sum of 16 sums of every sixteenth column."""
    n_inputs, n_cols = rotated.shape
    padded = np.zeros((n_inputs, len(centroids), (n_cols + 15) // 16 * 16), np.float32)
    padded[:, :, :n_cols] = rotated[:, None] * centroids
    sums = np.zeros((n_inputs, len(centroids), 16), np.float32)
    for t in range(0, n_cols, 16):
        sums += padded[:, :, t : t + 16]
    for half in (8, 4, 2, 1):
        sums[:, :, :half] += sums[:, :, half : 2 * half]
    return sums[:, :, 0]


def _levels(codes: NDArray[np.uint8], levels: NDArray[np.int8], rate: int, n_cols: int) -> NDArray[np.int64]:
    found = np.empty((len(codes), n_cols), np.int64)
    for r, row in enumerate(codes):
        stream = int.from_bytes(row.tobytes(), "little")
        found[r] = [levels[(stream >> (t * rate // 16)) & (len(levels) - 1)] for t in range(n_cols)]
    return found


# ---- screen ----


def estimate(
    twigs: NDArray[np.uint8] | None,
    tables: NDArray[np.float32] | None,
    slot_l: NDArray[np.int8] | None,
    lanes: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> None:
    """Write to out (n_queries, n_rows) the tables at twigs plus slot_l (n_rows, 8) times lanes (n_queries, 8)."""
    out[...] = 0 if twigs is None or tables is None else tables[:, twigs]
    if slot_l is not None and lanes is not None:
        total = np.zeros_like(out)
        for lane in range(8):
            total += lanes[:, lane, None] * slot_l[:, lane].astype(np.float32)
        out += total


def add_dots(
    dots: NDArray[np.int32], gains: NDArray[np.float32], scales: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Add to out (n_queries, n_rows) gains (n_rows,) times scales (n_queries,) times dots."""
    out += gains * scales[:, None] * dots.astype(np.float32)


def collect(
    estimates: NDArray[np.float32],
    spreads: NDArray[np.float32],
    factors: NDArray[np.float32],
    slacks: NDArray[np.float32],
    floors: NDArray[np.float32],
    queries: NDArray[np.int32],
    rows: NDArray[np.int32],
) -> int:
    """Write the pairs with estimate + (factor * spread + slack) >= floor that there is room for; return how many."""
    found = np.argwhere(estimates + (factors[:, None] * spreads + slacks[:, None]) >= floors[:, None])
    room = min(len(found), len(rows))
    queries[:room], rows[:room] = found[:room].T
    return len(found)


# ---- order of sums ----


def _half_away_from_zero(values: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = np.trunc(values)
    rest = values - whole  # exact
    return whole + (rest >= 0.5) - (rest <= -0.5)


def _tree16(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum terms (n_rows, n_cols) to (n_rows,) over 16 virtual lanes."""
    n_rows, n_cols = terms.shape
    lanes = np.zeros((n_rows, VIRTUAL_LANES))
    for start in range(0, n_cols, VIRTUAL_LANES):
        chunk = terms[:, start : start + VIRTUAL_LANES]
        lanes[:, : chunk.shape[1]] += chunk
    width = VIRTUAL_LANES
    while width > 1:
        width //= 2
        lanes = lanes[:, :width] + lanes[:, width:]
    return lanes[:, 0]


def _dot16(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Sum the products of two vectors over 16 virtual lanes."""
    return float(_tree16((x * y)[None])[0])


def _distances2(rows: NDArray[np.float32], point: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared L2 distances (n_rows,) of rows (n_rows, n_cols) from point (n_cols,)."""
    apart = rows.astype(np.float64) - point.astype(np.float64)
    return _tree16(apart * apart)
