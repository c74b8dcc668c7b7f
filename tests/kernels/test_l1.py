"""l1.h on every tier against its twin: the same index."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _l1
from tests.kernels import reference
from tests.kernels.conftest import ENTRY_COUNTS

Fence = Callable[[Any], NDArray[Any]]


def base17_rows(rng: np.random.Generator, n_rows: int, kind: str) -> NDArray[np.int16]:
    match kind:
        case "spread":
            return rng.integers(-32768, 32768, (n_rows, 17), dtype=np.int16)
        case "ties":
            return rng.integers(-1, 2, (n_rows, 17), dtype=np.int16)
        case "extremes":
            return rng.choice(np.array([-32768, 32767], np.int16), (n_rows, 17))
        case _:
            return np.full((n_rows, 17), -5, np.int16)


L1_KINDS = ("spread", "ties", "extremes", "equal")


@pytest.mark.parametrize("kind", L1_KINDS)
@pytest.mark.parametrize("k", ENTRY_COUNTS)
def test_nearest_l1(k: int, kind: str, isa: str, ragged_rows: tuple[int, ...], fenced: Fence) -> None:
    rng = np.random.default_rng(k)
    entries = base17_rows(rng, k, kind)
    for n_rows in (*ragged_rows[:3], ragged_rows[-1]):
        rows = base17_rows(rng, n_rows, kind)
        rows[0] = entries[-1]
        nearest, distances = fenced(np.zeros(n_rows, np.uint8)), fenced(np.zeros(n_rows, np.uint32))
        _l1.nearest_l1(fenced(rows), fenced(entries), nearest, distances, isa=isa)
        expected, expected_distances = np.zeros(n_rows, np.uint8), np.zeros(n_rows, np.uint32)
        reference.nearest_l1(rows, entries, expected, expected_distances)
        np.testing.assert_array_equal(nearest, expected)
        np.testing.assert_array_equal(distances, expected_distances)


@pytest.mark.parametrize("k", ENTRY_COUNTS)
def test_nearest_l1_first_wins_a_tie(k: int, isa: str) -> None:
    rng = np.random.default_rng(k)
    row = base17_rows(rng, 1, "spread")
    nearest, distances = np.zeros(1, np.uint8), np.zeros(1, np.uint32)
    for first in range(0, k, max(1, k // 7)):
        entries = base17_rows(rng, k, "extremes")
        entries[first:] = row
        _l1.nearest_l1(row, entries, nearest, distances, isa=isa)
        assert (nearest[0], distances[0]) == (first, 0)


@pytest.mark.parametrize("k", ENTRY_COUNTS)
def test_nearest_l1_furthest_apart(k: int, isa: str) -> None:
    rows, entries = np.full((3, 17), -32768, np.int16), np.full((k, 17), 32767, np.int16)
    nearest, distances = np.full(3, 9, np.uint8), np.zeros(3, np.uint32)
    _l1.nearest_l1(rows, entries, nearest, distances, isa=isa)
    assert nearest.tolist() == [0, 0, 0]
    assert distances.tolist() == [17 * 65535] * 3


def run_furthest_l1(
    search: Callable[..., Any], columns: NDArray[np.int16], k: int, fenced: Fence, **isa: str
) -> tuple[NDArray[Any], ...]:
    n_rows = columns.shape[1]
    picks = fenced(np.full(k, n_rows // 2, np.int64))
    nearest_distance, nearest = fenced(np.zeros(n_rows, np.uint32)), fenced(np.zeros(n_rows, np.int32))
    search(fenced(columns), picks, nearest_distance, nearest, **isa)
    return picks, nearest_distance, nearest


@pytest.mark.parametrize("kind", L1_KINDS)
@pytest.mark.parametrize("n_rows", [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 97, 200, 1000])
def test_furthest_l1(n_rows: int, kind: str, isa: str, fenced: Fence) -> None:
    columns = np.ascontiguousarray(base17_rows(np.random.default_rng(n_rows), n_rows, kind).T)
    for k in {1, min(2, n_rows), min(17, n_rows), min(64, n_rows)}:
        actual = run_furthest_l1(_l1.furthest_l1, columns, k, fenced, isa=isa)
        expected = run_furthest_l1(reference.furthest_l1, columns, k, np.array)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("n_rows", [2, 9, 16, 17, 32, 33, 50, 100])
def test_furthest_l1_last_wins_a_tie(n_rows: int, isa: str) -> None:
    nearest_distance, nearest = np.zeros(n_rows, np.uint32), np.zeros(n_rows, np.int32)
    for last in range(1, n_rows):
        columns = np.full((17, n_rows), -32768, np.int16)
        columns[:, 1 : last + 1] = 32767
        picks = np.zeros(2, np.int64)
        _l1.furthest_l1(columns, picks, nearest_distance, nearest, isa=isa)
        assert picks.tolist() == [0, last]
