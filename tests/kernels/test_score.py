"""score.h on every tier against its twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _score, _trellis, reference

Fence = Callable[[Any], NDArray[Any]]

RATES = range(16, 97)
WIDTHS = (*range(1, 71), 100, 127, 128, 129, 384, 576, 1000, 1024)


def random_case(
    n_rows: int, n_cols: int, rate: int, n_bits: int, seed: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.int8]]:
    """Codes, levels and a query of every value an int8 has."""
    rng = np.random.default_rng((seed, n_cols, rate, n_bits))
    codes = rng.integers(0, 256, (n_rows, _trellis.row_nbytes(n_cols, rate, n_bits)), np.uint8)
    levels, query = rng.integers(-128, 128, (2, max(1 << n_bits, n_cols)), np.int8)
    return codes, levels[: 1 << n_bits], query[:n_cols]


def check(codes: Any, levels: Any, rate: int, query: Any, isa: str, fenced: Fence) -> None:
    out, expected = fenced(np.full(len(codes), -1, np.int32)), np.empty(len(codes), np.int32)
    _score.trellis_dots(fenced(codes), fenced(levels), rate, fenced(query), out, isa=isa)
    reference.trellis_dots(codes, levels, rate, query, expected)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("n_bits", [8, 10, 12])
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_every_width(n_cols: int, n_bits: int, isa: str, fenced: Fence) -> None:
    for rate in (16, 29, 32, 43, 96):
        codes, levels, query = random_case(3, n_cols, rate, n_bits)
        check(codes, levels, rate, query, isa, fenced)


@pytest.mark.parametrize("n_bits", [7, 8, 9, 10, 11, 12])
@pytest.mark.parametrize("rate", RATES)
def test_every_rate(rate: int, n_bits: int, isa: str, fenced: Fence) -> None:
    for n_cols in (41, 300):
        codes, levels, query = random_case(2, n_cols, rate, n_bits)
        check(codes, levels, rate, query, isa, fenced)


@pytest.mark.parametrize("n_bits", [8, 10, 12])
def test_rows_of_many_blocks(n_bits: int, isa: str, fenced: Fence) -> None:
    for rate in (16, 37, 96):
        codes, levels, query = random_case(2, 4097, rate, n_bits)
        check(codes, levels, rate, query, isa, fenced)


def test_every_row_count(isa: str, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    for n_rows in ragged_rows:  # short rows: many of them lie within reach of the buffer's end
        for n_cols in (1, 9, 130):
            codes, levels, query = random_case(n_rows, n_cols, 33, 10)
            check(codes, levels, 33, query, isa, fenced)


@pytest.mark.parametrize("level", [-128, -127, 127])
@pytest.mark.parametrize("factor", [-128, -127, 0, 127])
@pytest.mark.parametrize("n_bits", [8, 12])
def test_the_largest_sums_are_exact(level: int, factor: int, n_bits: int, isa: str) -> None:
    n_cols = _score.MAX_COLS
    codes = np.zeros((2, _trellis.row_nbytes(n_cols, 16, n_bits)), np.uint8)
    out = np.empty(2, np.int32)
    _score.trellis_dots(codes, np.full(1 << n_bits, level, np.int8), 16, np.full(n_cols, factor, np.int8), out, isa=isa)
    assert out.tolist() == [level * factor * n_cols] * 2


@pytest.mark.parametrize("n_bits", [8, 10, 12])
def test_agrees_with_decoding(n_bits: int, isa: str) -> None:
    for rate in (16, 24, 35, 48, 64, 96):
        codes, levels, query = random_case(5, 1000, rate, n_bits)
        decoded, out = np.empty((5, 1000), np.float32), np.empty(5, np.int32)
        _trellis.decode(codes, levels, rate, np.ones(5, np.float32), decoded, isa=isa)
        _score.trellis_dots(codes, levels, rate, query, out, isa=isa)
        np.testing.assert_array_equal(out, decoded.astype(np.int64) @ query.astype(np.int64))


def test_nothing_to_score(isa: str) -> None:
    levels, query = np.zeros(256, np.int8), np.zeros(20, np.int8)
    _score.trellis_dots(np.empty((0, 6), np.uint8), levels, 32, query, np.empty(0, np.int32), isa=isa)
    out = np.ones(3, np.int32)
    _score.trellis_dots(np.empty((3, 0), np.uint8), levels, 32, query[:0], out, isa=isa)
    assert not out.any()


def test_what_the_door_refuses() -> None:
    codes, levels, query, out = (
        np.zeros((3, 6), np.uint8),
        np.zeros(256, np.int8),
        np.zeros(20, np.int8),
        np.zeros(3, np.int32),
    )
    _score.trellis_dots(codes, levels, 32, query, out)
    for n_levels in (0, 1, 64, 255, 257, 8192):
        with pytest.raises(ValueError, match="power of two"):
            _score.trellis_dots(codes, np.zeros(n_levels, np.int8), 32, query, out)
    for rate in (-1, 0, 15, 97):
        with pytest.raises(ValueError, match="sixteenths"):
            _score.trellis_dots(codes, levels, rate, query, out)
    for wrong in (np.zeros((3, 5), np.uint8), np.zeros((3, 7), np.uint8), np.zeros((2, 6), np.uint8)):
        with pytest.raises(ValueError, match="codes must be"):
            _score.trellis_dots(wrong, levels, 32, query, out)
    with pytest.raises(ValueError, match="at most 65536"):
        _score.trellis_dots(codes, levels, 32, np.zeros(65537, np.int8), out)
    with pytest.raises(ValueError, match="aligned"):
        _score.trellis_dots(codes, levels, 32, query, np.zeros(13, np.uint8)[1:].view(np.int32))
    with pytest.raises(ValueError, match="no instruction tier"):
        _score.trellis_dots(codes, levels, 32, query, out, isa="avx1024")
