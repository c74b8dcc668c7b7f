"""score.h on every tier against its twin."""

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _score, _trellis
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]

RATES = range(16, 97)
WIDTHS = (*range(1, 71), 100, 127, 128, 129, 384, 576, 639, 640, 641, 1000, 1024, 1281)
FEW = (*range(1, 10), 12, 13)  # queries, on both sides of the groups that meet a panel
QUERY_COUNTS = (*range(1, 10), 11, 12, 13, 63, 64, 65, 200, 255, 256, 257, 513)


@functools.cache
def random_case(
    n_rows: int, n_cols: int, rate: int, n_bits: int, n_queries: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.int8], NDArray[np.int8]]:
    """Codes, levels and queries of every value an int8 has."""
    rng = np.random.default_rng((n_cols, rate, n_bits, n_queries))
    codes = rng.integers(0, 256, (n_rows, _trellis.row_nbytes(n_cols, rate, n_bits)), np.uint8)
    return codes, rng.integers(-128, 128, 1 << n_bits, np.int8), rng.integers(-128, 128, (n_queries, n_cols), np.int8)


@functools.cache
def twin(n_rows: int, n_cols: int, rate: int, n_bits: int, n_queries: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Products and energies of a random case, once for all tiers."""
    codes, levels, queries = random_case(n_rows, n_cols, rate, n_bits, n_queries)
    dots, energies = np.empty((n_queries, n_rows), np.int32), np.empty(n_rows, np.int32)
    reference.trellis_dots(codes, levels, rate, queries, dots)
    reference.trellis_energies(codes, levels, rate, n_cols, energies)
    return dots, energies


def check(case: tuple[int, int, int, int, int], isa: str, fenced: Fence, *, alone: bool = True) -> None:
    """Compare the products of a random case, those of its first query `alone`, and the energies of its rows."""
    (n_rows, n_cols, rate, _, n_queries), (dots, energies) = case, twin(*case)
    codes, levels, queries = random_case(*case)
    for n in {1, n_queries} if alone else {n_queries}:
        out = fenced(np.full((n, n_rows), -1, np.int32))
        _score.trellis_dots(fenced(codes), fenced(levels), rate, fenced(queries[:n]), out, isa=isa)
        np.testing.assert_array_equal(out, dots[:n])
    out = fenced(np.full(n_rows, -1, np.int32))
    _score.trellis_energies(fenced(codes), fenced(levels), rate, n_cols, out, isa=isa)
    np.testing.assert_array_equal(out, energies)


@pytest.mark.parametrize("n_bits", [8, 10, 12])
@pytest.mark.parametrize("n_cols", WIDTHS)
def test_every_width(n_cols: int, n_bits: int, isa: str, fenced: Fence) -> None:
    for rate in (16, 29, 32, 43, 96):
        check((3, n_cols, rate, n_bits, 3), isa, fenced)


@pytest.mark.parametrize("n_bits", [7, 8, 9, 10, 11, 12])
@pytest.mark.parametrize("rate", RATES)
def test_every_rate(rate: int, n_bits: int, isa: str, fenced: Fence) -> None:
    for n_cols in (41, 300):
        check((2, n_cols, rate, n_bits, 2), isa, fenced)


@pytest.mark.parametrize("n_bits", [8, 10, 12])
def test_rows_of_many_blocks(n_bits: int, isa: str, fenced: Fence) -> None:
    for rate in (16, 37, 96):
        check((2, 4097, rate, n_bits, 10), isa, fenced)


def test_every_row_count(isa: str, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    for n_rows in (*ragged_rows, 31, 47, 48, 49, 96, 97):  # short rows: many of them lie within reach of the end
        for n_cols in (1, 9, 130):
            check((n_rows, n_cols, 33, 10, 9), isa, fenced)


@pytest.mark.parametrize("n_queries", QUERY_COUNTS)
def test_every_query_count(n_queries: int, isa: str, fenced: Fence) -> None:
    for n_rows, n_cols in ((1, 20), (50, 70), (48, 7), (3, 650)):
        check((n_rows, n_cols, 35, 9, n_queries), isa, fenced, alone=False)


@pytest.mark.parametrize("n_queries", FEW)
def test_rows_and_columns_in_parts(n_queries: int, isa: str, fenced: Fence) -> None:
    for n_rows in (480, 481, 530):  # the queries of each part are visited twice
        check((n_rows, 643, 33, 10, n_queries), isa, fenced, alone=False)


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("n_queries", [1, 2, 3, 8, 65, 257])
def test_scores_are_the_sums_by_gains_and_scales(n_queries: int, more: bool, isa: str, fenced: Fence) -> None:
    for n_rows, n_cols in ((1, 20), (47, 130), (481, 7), (970, 90), (530, 643)):
        codes, levels, queries = random_case(n_rows, n_cols, 35, 9, n_queries)
        dots = np.empty((n_queries, n_rows), np.int32)
        _score.trellis_dots(codes, levels, 35, queries, dots, isa=isa)
        rng = np.random.default_rng(n_rows)
        gains, scales = (rng.standard_normal(n).astype(np.float32) for n in (n_rows, n_queries))
        scores = rng.standard_normal((n_queries, n_rows)).astype(np.float32)
        expected = scores.copy() if more else np.zeros_like(scores)
        reference.add_dots(dots, gains, scales, expected)
        out = fenced(scores)
        given = (fenced(codes), fenced(levels), 35, fenced(queries), fenced(gains), fenced(scales), out)
        _score.trellis_scores(*given, more=more, isa=isa)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("level", [-128, -127, 127])
@pytest.mark.parametrize("factor", [-128, -127, 0, 127])
@pytest.mark.parametrize("n_bits", [8, 12])
def test_the_largest_sums_are_exact(level: int, factor: int, n_bits: int, isa: str) -> None:
    n_cols = _score.MAX_COLS
    codes = np.zeros((2, _trellis.row_nbytes(n_cols, 16, n_bits)), np.uint8)
    levels, queries = np.full(1 << n_bits, level, np.int8), np.full((3, n_cols), factor, np.int8)
    for n_queries in (1, 3):
        out = np.empty((n_queries, 2), np.int32)
        _score.trellis_dots(codes, levels, 16, queries[:n_queries], out, isa=isa)
        assert (out == level * factor * n_cols).all()
    energies = np.empty(2, np.int32)
    _score.trellis_energies(codes, levels, 16, n_cols, energies, isa=isa)
    assert energies.tolist() == [level * level * n_cols] * 2


@pytest.mark.parametrize("n_bits", [8, 10, 12])
def test_agrees_with_decoding(n_bits: int, isa: str) -> None:
    for rate in (16, 24, 35, 48, 64, 96):
        codes, levels, queries = random_case(5, 1000, rate, n_bits, 7)
        decoded, out, energies = np.empty((5, 1000), np.float32), np.empty((7, 5), np.int32), np.empty(5, np.int32)
        _trellis.decode(codes, levels, rate, np.ones(5, np.float32), decoded, isa=isa)
        _score.trellis_dots(codes, levels, rate, queries, out, isa=isa)
        _score.trellis_energies(codes, levels, rate, 1000, energies, isa=isa)
        np.testing.assert_array_equal(out, queries.astype(np.int64) @ decoded.astype(np.int64).T)
        np.testing.assert_array_equal(energies, (decoded.astype(np.int64) ** 2).sum(1))


def test_nothing_to_score(isa: str) -> None:
    codes, levels, queries = np.zeros((3, 6), np.uint8), np.zeros(256, np.int8), np.zeros((2, 20), np.int8)
    _score.trellis_dots(codes[:0], levels, 32, queries, np.empty((2, 0), np.int32), isa=isa)
    _score.trellis_dots(codes, levels, 32, queries[:0], np.empty((0, 3), np.int32), isa=isa)
    _score.trellis_energies(codes[:0], levels, 32, 20, np.empty(0, np.int32), isa=isa)
    out = np.ones((2, 3), np.int32)
    _score.trellis_dots(codes[:, :0], levels, 32, queries[:, :0], out, isa=isa)
    assert not out.any()
    gains, scales, scores = np.ones(3, np.float32), np.ones(2, np.float32), np.ones((2, 3), np.float32)
    _score.trellis_scores(codes, levels, 32, queries[:0], gains, scales[:0], scores[:0], more=True, isa=isa)
    _score.trellis_scores(codes[:, :0], levels, 32, queries[:, :0], gains, scales, scores, more=True, isa=isa)
    assert scores.all()
    _score.trellis_scores(codes[:, :0], levels, 32, queries[:, :0], gains, scales, scores, more=False, isa=isa)
    assert not scores.any()
    for wrong in ((gains[1:], scales, scores), (gains, scales[1:], scores), (gains, scales, scores[1:])):
        with pytest.raises(ValueError, match="out must be"):
            _score.trellis_scores(codes, levels, 32, queries, *wrong, more=True, isa=isa)
    energies = np.ones(3, np.int32)
    _score.trellis_energies(codes[:, :0], levels, 32, 0, energies, isa=isa)
    assert not energies.any()


def refused(message: str, *given: Any, isa: str | None = None) -> None:
    """Both doors look at codes, levels and rate; the fourth says which one is meant, by queries or a width."""
    door: Callable[..., None] = _score.trellis_energies if isinstance(given[3], int) else _score.trellis_dots
    with pytest.raises(ValueError, match=message):
        door(*given, isa=isa)


@pytest.mark.parametrize("door", ["dots", "energies"])
def test_what_the_doors_refuse(door: str) -> None:
    codes, levels = np.zeros((3, 6), np.uint8), np.zeros(256, np.int8)
    rows: Any = np.zeros((2, 20), np.int8) if door == "dots" else 20
    wide: Any = np.zeros((2, 65537), np.int8) if door == "dots" else 65537
    shape = (2, 3) if door == "dots" else (3,)
    out = np.zeros(shape, np.int32)
    (_score.trellis_dots if door == "dots" else _score.trellis_energies)(codes, levels, 32, rows, out)
    for n_levels in (0, 1, 64, 255, 257, 8192):
        refused("power of two", codes, np.zeros(n_levels, np.int8), 32, rows, out)
    for rate in (-1, 0, 15, 97):
        refused("sixteenths", codes, levels, rate, rows, out)
    for wrong in (np.zeros((3, 5), np.uint8), np.zeros((3, 7), np.uint8)):
        refused("codes must be", wrong, levels, 32, rows, out)
    refused("at most 65536", codes, levels, 32, wide, out)
    for wrong_shape in ((*shape[:-1], 2), (*shape[:-1], 4), (0,) * len(shape)):
        refused("out must be", codes, levels, 32, rows, np.zeros(wrong_shape, np.int32))
    unaligned = np.zeros(out.nbytes + 1, np.uint8)[1:].view(np.int32).reshape(shape)
    refused("aligned", codes, levels, 32, rows, unaligned)
    refused("no instruction tier", codes, levels, 32, rows, out, isa="avx1024")


def test_what_one_door_refuses() -> None:
    codes, levels, queries = np.zeros((3, 6), np.uint8), np.zeros(256, np.int8), np.zeros((2, 20), np.int8)
    refused("out must be", codes, levels, 32, queries, np.zeros((3, 2), np.int32))
    refused("out must be", codes, levels, 32, queries, np.zeros((1, 3), np.int32))
    refused("dimensions", codes, levels, 32, queries[0], np.zeros((1, 3), np.int32))
    refused("columns", codes, levels, 32, -1, np.zeros(3, np.int32))


@pytest.mark.parametrize("door", ["one query", "queries", "energies"])
def test_other_threads_run_while_a_kernel_does(door: str) -> None:
    codes, levels, queries = random_case(100, 60000, 32, 10, 1 if door == "one query" else 9)
    called, returned, ran = threading.Event(), threading.Event(), []

    def run() -> None:
        called.wait()
        time.sleep(0.001)
        ran.append(not returned.is_set())

    for _ in range(20):  # a busy machine may give the thread no turn in time
        thread = threading.Thread(target=run)
        thread.start()
        called.set()
        if door == "energies":
            _score.trellis_energies(codes, levels, 32, 60000, np.empty(100, np.int32), isa="scalar")
        else:
            out = np.empty((len(queries), 100), np.int32)
            _score.trellis_dots(codes, levels, 32, queries, out, isa="scalar")
        returned.set()
        thread.join()
        if ran[-1]:
            return
        called.clear()
        returned.clear()
    pytest.fail("no other thread ran")
