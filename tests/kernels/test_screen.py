"""screen.h on every tier against its twin."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _screen
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]
ENTRY, LEAF = ("twigs", "tables"), ("slot_l", "lanes")
ROWS = (1, 2, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 200, 1000)


def drawn(n_queries: int, n_rows: int, k: int = 5) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng((n_queries, n_rows, k))
    return {
        "twigs": rng.integers(0, k, n_rows).astype(np.uint8),
        "tables": rng.standard_normal((n_queries, k)).astype(np.float32),
        "slot_l": rng.integers(-128, 128, (n_rows, 8)).astype(np.int8),
        "lanes": rng.standard_normal((n_queries, 8)).astype(np.float32),
        "dots": rng.integers(-(2**31), 2**31, (n_queries, n_rows)).astype(np.int32),
        "gains": rng.standard_normal(n_rows).astype(np.float32),
        "scales": rng.standard_normal(n_queries).astype(np.float32),
        "out": rng.standard_normal((n_queries, n_rows)).astype(np.float32),
    }


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("n_queries", [1, 3])
@pytest.mark.parametrize(
    "parts", [(), ("twigs", "tables"), ("slot_l", "lanes"), ("twigs", "tables", "slot_l", "lanes")]
)
def test_estimate(parts: tuple[str, ...], n_queries: int, n_rows: int, isa: str, fenced: Fence) -> None:
    case = drawn(n_queries, n_rows)
    given = [fenced(case[name]) if name in parts else None for name in ("twigs", "tables", "slot_l", "lanes")]
    out, expected = fenced(case["out"]), np.empty_like(case["out"])
    _screen.estimate(*given, out, isa=isa)
    reference.estimate(*given, expected)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("k", [1, 16, 256])
def test_estimate_by_every_twig(k: int, isa: str) -> None:
    case = drawn(2, 700, k)
    out = np.empty((2, 700), np.float32)
    _screen.estimate(case["twigs"], case["tables"], None, None, out, isa=isa)
    np.testing.assert_array_equal(out, case["tables"][:, case["twigs"]])


@pytest.mark.parametrize("n_rows", ROWS)
def test_add_dots(n_rows: int, isa: str, fenced: Fence) -> None:
    case = drawn(3, n_rows)
    out, expected = fenced(case["out"]), case["out"].copy()
    _screen.add_dots(fenced(case["dots"]), fenced(case["gains"]), fenced(case["scales"]), out, isa=isa)
    reference.add_dots(case["dots"], case["gains"], case["scales"], expected)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("n_rows", ROWS)
@pytest.mark.parametrize("room", [0, 1, 5, 5000])
@pytest.mark.parametrize("floor", [-np.inf, 0.0, 2.5, np.inf])
def test_collect(floor: float, room: int, n_rows: int, isa: str, fenced: Fence) -> None:
    case = drawn(4, n_rows)
    spreads = np.abs(case["gains"])
    rng = np.random.default_rng(5)
    factors, slacks = rng.random((2, 4)).astype(np.float32)
    floors = np.full(4, floor, np.float32)
    given = [fenced(case["out"]), fenced(spreads), fenced(factors), fenced(slacks), fenced(floors)]
    found, expected = np.full((2, 2, room), -1, np.int32)
    queries, rows = fenced(found[0]), fenced(found[1])
    assert _screen.collect(*given, queries, rows, isa=isa) == reference.collect(*given, *expected)
    np.testing.assert_array_equal([queries, rows], expected)


def test_what_is_not_a_number_never_wins(isa: str) -> None:
    nothing = np.zeros(1, np.float32)
    queries, rows = np.empty((2, 9), np.int32)
    estimates = np.full((1, 9), np.nan, np.float32)
    estimates[0, 4] = 1
    assert _screen.collect(estimates, np.zeros(9, np.float32), nothing, nothing, nothing, queries, rows, isa=isa) == 1
    assert rows[0] == 4


def test_no_rows_or_queries(isa: str) -> None:
    for shape in ((0, 3), (3, 0)):
        case = drawn(*shape)
        _screen.estimate(case["twigs"], case["tables"], case["slot_l"], case["lanes"], case["out"], isa=isa)
        _screen.add_dots(case["dots"], case["gains"], case["scales"], case["out"], isa=isa)
        flat = np.zeros(shape[0], np.float32)
        none = np.empty(0, np.int32)
        assert _screen.collect(case["out"], case["gains"], flat, flat, flat, none, none, isa=isa) == 0


def test_what_the_doors_refuse() -> None:
    case = drawn(2, 9)
    out, flat, found = case["out"], np.zeros(2, np.float32), np.empty(4, np.int32)
    with pytest.raises(ValueError, match="come in pairs"):
        _screen.estimate(case["twigs"], None, None, None, out)
    with pytest.raises(ValueError, match="come in pairs"):
        _screen.estimate(None, None, None, case["lanes"], out)
    with pytest.raises(ValueError, match=r"twigs must be \(9,\) and tables \(2, k\)"):
        _screen.estimate(case["twigs"][1:], case["tables"], None, None, out)
    with pytest.raises(ValueError, match="a twig is not below 5"):
        _screen.estimate(case["twigs"] + np.uint8(1), case["tables"], None, None, out)
    with pytest.raises(ValueError, match=r"slot_l must be \(9, 8\) and lanes \(2, 8\)"):
        _screen.estimate(None, None, case["slot_l"][:, :4].copy(), case["lanes"], out)
    with pytest.raises(ValueError, match=r"gains \(9,\) and scales \(2,\)"):
        _screen.add_dots(case["dots"], case["gains"][1:], case["scales"], out)
    with pytest.raises(ValueError, match="factors, slacks and floors"):
        _screen.collect(out, case["gains"], flat[1:], flat, flat, found, found.copy())
    with pytest.raises(ValueError, match="queries and rows must be of equal length"):
        _screen.collect(out, case["gains"], flat, flat, flat, found, found[1:])
    read_only = out.copy()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        _screen.estimate(None, None, None, None, read_only)
    odd = np.zeros(8 * 9 + 1, np.uint8)[1:].view(np.float32).reshape(2, 9)
    with pytest.raises(ValueError, match="out is not aligned"):
        _screen.estimate(None, None, None, None, odd)
