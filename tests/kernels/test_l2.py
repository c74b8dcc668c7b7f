"""l2.h on every tier against its twin: the same index, whatever the screen makes of the numbers."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from hhtld._kernels import _l2
from tests.kernels import reference
from tests.kernels.conftest import ENTRY_COUNTS

Fence = Callable[[Any], NDArray[Any]]
Rows = NDArray[np.float32]

SCREEN_COLS_MAX = 32768
LARGEST = float(np.finfo(np.float32).max)


def scenario_rows(rng: np.random.Generator, shape: tuple[int, int], scenario: str) -> Rows:
    """Rows that make a screen useless, a float32 overflow or underflow, or ties common."""
    n_rows, n_cols = shape
    values: NDArray[Any] = rng.standard_normal(shape)
    match scenario:
        case "normal" | "duplicates" | "ulp":
            pass
        case "grid":
            values = rng.integers(-1, 2, shape).astype(np.float64)
        case "zeros":
            values[rng.random(n_rows) < 0.5] = 0
            values[rng.random(shape) < 0.2] = -0.0
        case "all zero":
            values = np.zeros(shape)
        case "denormal":
            values *= 1e-40
        case "square underflows":  # a float32 square is denormal, so rounding may raise it
            values = rng.integers(-6, 7, shape) * 1e-23
        case "code scale underflows":
            values *= 10.0 ** rng.integers(-32, -28, (n_rows, 1))
        case "huge":
            values *= 1e30
        case "largest":
            values = rng.choice([-LARGEST, 3e38, LARGEST], shape)
        case "square overflows":
            values = 1.8e19 + values * 1e13
        case "outlier column":
            values[:, rng.integers(n_cols)] = 1e20
        case "far away":  # all rows share a large part: the norms cancel
            values = values * 1e-3 + 1e4
        case "any scale":
            values *= 10.0 ** rng.integers(-44, 38, shape)
        case "row scales":
            values *= 10.0 ** rng.integers(-44, 38, (n_rows, 1))
        case _:
            raise ValueError(scenario)
    return values.clip(-LARGEST, LARGEST).astype(np.float32)


SCENARIOS = (
    "normal",
    "duplicates",
    "ulp",
    "grid",
    "zeros",
    "all zero",
    "denormal",
    "square underflows",
    "code scale underflows",
    "huge",
    "largest",
    "square overflows",
    "outlier column",
    "far away",
    "any scale",
    "row scales",
)


@cache
def nearest_l2_case(scenario: str, n_rows: int, n_cols: int, k: int) -> tuple[Rows, Rows, NDArray[np.int32]]:
    rng = np.random.default_rng([n_rows, n_cols, k, *scenario.encode()])
    both = scenario_rows(rng, (n_rows + k, n_cols), scenario)
    rows, centroids = np.ascontiguousarray(both[:n_rows]), np.ascontiguousarray(both[n_rows:])
    if scenario == "duplicates":
        centroids = np.ascontiguousarray(centroids[rng.integers(0, max(1, k // 3), k)])
        rows[::3] = centroids[rng.integers(0, k, len(rows[::3]))]
    if scenario == "ulp":
        centroids[:] = centroids[0]
        at = rng.integers(0, n_cols, k)
        centroids[np.arange(k), at] = np.nextafter(centroids[0, at], np.float32(LARGEST))
        rows[::2] = centroids[0]
    nearest = np.zeros(n_rows, np.int32)
    reference.nearest_l2(rows, centroids, nearest)
    return rows, centroids, nearest


def check_nearest_l2(rows: Rows, centroids: Rows, expected: NDArray[np.int32], isa: str, fenced: Fence) -> None:
    nearest = fenced(np.full(len(rows), -7, np.int32))
    _l2.nearest_l2(fenced(rows), fenced(centroids), nearest, isa=isa)
    np.testing.assert_array_equal(nearest, expected)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("k", [*ENTRY_COUNTS, 300])
def test_nearest_l2_every_palette(k: int, scenario: str, isa: str, fenced: Fence) -> None:
    for n_cols in (3, 37):
        check_nearest_l2(*nearest_l2_case(scenario, 27, n_cols, k), isa, fenced)


@pytest.mark.parametrize("scenario", ["normal", "grid", "square underflows", "any scale"])
def test_nearest_l2_every_width(scenario: str, isa: str, n_cols: int, fenced: Fence) -> None:
    check_nearest_l2(*nearest_l2_case(scenario, 26, n_cols, 66), isa, fenced)


def test_nearest_l2_every_row_count(isa: str, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    for n_rows in (*ragged_rows, 6, 23, 47, 48, 49, 54):  # rows go in batches of 24, those in tiles of 6
        for k in (16, 70):
            check_nearest_l2(*nearest_l2_case("normal", n_rows, 20, k), isa, fenced)


@pytest.mark.parametrize("k", [*ENTRY_COUNTS, 300])
def test_nearest_l2_first_wins_a_tie(k: int, isa: str) -> None:
    rng = np.random.default_rng(k)
    rows, nearest = rng.standard_normal((5, 40)).astype(np.float32), np.zeros(5, np.int32)
    for first in range(0, k, max(1, k // 7)):
        centroids = rng.standard_normal((k, 40)).astype(np.float32) + 50
        centroids[first:] = rows[2]
        _l2.nearest_l2(rows, centroids, nearest, isa=isa)
        assert (nearest == first).all()


def test_nearest_l2_equal_distances_of_different_centroids(isa: str) -> None:
    centroids = np.zeros((64, 64), np.float32)
    np.fill_diagonal(centroids, np.where(np.arange(64) % 2, 1, -1))
    nearest = np.zeros(2, np.int32)
    _l2.nearest_l2(np.zeros((2, 64), np.float32), centroids[::-1].copy(), nearest, isa=isa)
    assert nearest.tolist() == [0, 0]


@pytest.mark.parametrize("n_cols", [SCREEN_COLS_MAX, SCREEN_COLS_MAX + 1])
def test_l2_widest_rows(n_cols: int, isa: str) -> None:
    rng = np.random.default_rng(n_cols)
    rows = rng.choice(np.array([-1, 1], np.float32), (5, n_cols))
    rows[3] = rows[4] = 1  # the largest codes everywhere: an int32 dot at its limit
    rows[4, 7] = np.nextafter(np.float32(1), np.float32(2))
    nearest, expected = np.zeros(3, np.int32), np.zeros(3, np.int32)
    centroids = np.ascontiguousarray(rows[1:])
    _l2.nearest_l2(rows[2:], centroids, nearest, isa=isa)
    reference.nearest_l2(rows[2:], centroids, expected)
    np.testing.assert_array_equal(nearest, expected)
    check_furthest_l2(rows, (5,), isa, np.array)


def test_l2_stays_in_range_on_nonfinite_input(isa: str) -> None:
    rng = np.random.default_rng(6)
    rows, centroids = (rng.standard_normal((n, 20)).astype(np.float32) for n in (30, 50))
    for bad in (np.nan, np.inf, -np.inf):
        rows[::3, 5] = bad
        nearest = np.full(30, -1, np.int32)
        _l2.nearest_l2(rows, centroids, nearest, isa=isa)
        assert ((nearest >= 0) & (nearest < 50)).all()
        _l2.nearest_l2(rows, np.full_like(centroids, bad), nearest, isa=isa)
        assert ((nearest >= 0) & (nearest < 50)).all()
        for some in (rows, np.full_like(rows, bad)):
            count, picks, _, nearest = run_furthest_l2(_l2.furthest_l2, some, 20, np.array, isa=isa)
            assert ((picks[:count] >= 0) & (picks[:count] < 30)).all()
            assert ((nearest >= 0) & (nearest < count)).all()


def test_nearest_l2_of_nothing(isa: str) -> None:
    nearest = np.full(3, 5, np.int32)
    _l2.nearest_l2(np.empty((3, 0), np.float32), np.empty((2, 0), np.float32), nearest, isa=isa)
    assert nearest.tolist() == [0, 0, 0]
    _l2.nearest_l2(np.empty((0, 4), np.float32), np.empty((2, 4), np.float32), nearest[:0], isa=isa)


def run_furthest_l2(
    search: Callable[..., int], rows: Rows, k: int, fenced: Fence, **isa: str
) -> tuple[int, NDArray[Any], NDArray[Any], NDArray[Any]]:
    picks = fenced(np.full(k, -3, np.int64))
    nearest_distance, nearest = fenced(np.full(len(rows), np.nan)), fenced(np.full(len(rows), -1, np.int32))
    count = search(fenced(rows), picks, nearest_distance, nearest, **isa)
    return count, picks, nearest_distance, nearest


def check_furthest_l2(rows: Rows, ks: tuple[int, ...], isa: str, fenced: Fence) -> None:
    for k in ks:
        actual = run_furthest_l2(_l2.furthest_l2, rows, k, fenced, isa=isa)
        expected = run_furthest_l2(reference.furthest_l2, rows, k, np.array)
        assert actual[0] == expected[0]
        for one, other in zip(actual[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("n_rows", [1, 2, 15, 16, 17, 63, 64, 65, 130])
def test_furthest_l2(n_rows: int, scenario: str, isa: str, fenced: Fence) -> None:
    for n_cols in (3, 37):
        rows, centroids, _ = nearest_l2_case(scenario, n_rows, n_cols, 17)
        rows = np.concatenate([rows, centroids[:1]])[:n_rows]
        check_furthest_l2(rows, tuple({1, min(9, n_rows), min(40, n_rows)}), isa, fenced)


@pytest.mark.parametrize("scenario", ["normal", "grid", "square underflows"])
def test_furthest_l2_every_width(scenario: str, isa: str, n_cols: int, fenced: Fence) -> None:
    check_furthest_l2(nearest_l2_case(scenario, 70, n_cols, 1)[0], (12,), isa, fenced)


def test_furthest_l2_every_row_count(isa: str, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    for n_rows in ragged_rows:
        check_furthest_l2(nearest_l2_case("normal", n_rows, 20, 16)[0], (n_rows,), isa, fenced)


@pytest.mark.parametrize("n_rows", [2, 16, 17, 64, 65, 100])
def test_furthest_l2_first_wins_a_tie(n_rows: int, isa: str) -> None:
    nearest_distance, nearest = np.zeros(n_rows), np.zeros(n_rows, np.int32)
    for first in range(1, n_rows, max(1, n_rows // 9)):
        rows = np.zeros((n_rows, 5), np.float32)
        rows[0, 0] = 2
        rows[first:, 1] = 1
        picks = np.full(2, -1, np.int64)
        assert _l2.furthest_l2(rows, picks, nearest_distance, nearest, isa=isa) == 2
        assert picks.tolist() == [0, first]
        rows[:] = 3
        rows[:first] = 1
        _l2.furthest_l2(rows, picks, nearest_distance, nearest, isa=isa)
        assert picks.tolist() == [first, 0]


def test_furthest_l2_ends_when_every_row_is_a_pick(isa: str) -> None:
    rows = np.repeat(np.eye(5, 9, dtype=np.float32), 20, axis=0)
    picks, nearest_distance, nearest = np.full(50, -1, np.int64), np.zeros(100), np.zeros(100, np.int32)
    assert _l2.furthest_l2(rows, picks, nearest_distance, nearest, isa=isa) == 5
    assert sorted(picks[:5]) == [0, 20, 40, 60, 80]
    assert (picks[5:] == -1).all()
    assert not nearest_distance.any()
    assert (rows[picks[nearest]] == rows).all()


def test_furthest_l2_float32_squares_that_underflow(isa: str) -> None:
    # 0.75^2 of the least subnormal is 1 in float32, and then above the 0.9^2 of the first pick.
    unit = np.sqrt(2.0**-149)
    rows = (np.array([[0.0], [0.9], [-0.75]]) * np.full(40, unit)).astype(np.float32)
    picks, nearest_distance, nearest = np.zeros(2, np.int64), np.zeros(3), np.zeros(3, np.int32)
    assert _l2.furthest_l2(rows, picks, nearest_distance, nearest, isa=isa) == 2
    assert picks.tolist() == [1, 2]
    assert nearest.tolist() == [1, 0, 1]


# ---- any numbers at all ----

ADVERSARIAL = [0.0, -0.0, 1.0, -1.0, 127.0, 0.5, 1e4, 1e15, 1e19, 1.85e19, 1e30, 3e38, LARGEST, -LARGEST]
ADVERSARIAL += [
    1.0000001,
    0.99999994,
    1e-45,
    1e-40,
    1.1754944e-38,
    2e-23,
    3e-23,
    -4e-23,
    1e-30,
    1.0000001e-30,
]
FLOATS = st.sampled_from([float(np.float32(value)) for value in ADVERSARIAL]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)
SETTINGS = settings(database=None, derandomize=True)


def adversarial_rows(n_rows: st.SearchStrategy[int], n_cols: int) -> st.SearchStrategy[Rows]:
    return n_rows.flatmap(lambda n: hnp.arrays(np.float32, (n, n_cols), elements=FLOATS, fill=FLOATS))


@SETTINGS
@given(st.data(), st.integers(1, 35))
def test_nearest_l2_property(isa: str, data: st.DataObject, n_cols: int) -> None:
    rows = data.draw(adversarial_rows(st.integers(1, 26), n_cols))
    centroids = data.draw(adversarial_rows(st.integers(1, 20), n_cols))
    nearest, expected = np.full(len(rows), -1, np.int32), np.zeros(len(rows), np.int32)
    _l2.nearest_l2(rows, centroids, nearest, isa=isa)
    reference.nearest_l2(rows, centroids, expected)
    np.testing.assert_array_equal(nearest, expected)


@SETTINGS
@given(st.data(), st.integers(1, 35))
def test_furthest_l2_property(isa: str, data: st.DataObject, n_cols: int) -> None:
    rows = data.draw(adversarial_rows(st.integers(1, 40), n_cols))
    check_furthest_l2(rows, (len(rows),), isa, np.array)
