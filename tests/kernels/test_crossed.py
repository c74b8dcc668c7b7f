"""crossed.h: levels against their twin, and every tier's bodies against the levels listed one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _score, _trellis
from hhtld.slots.slot_t import Trellis
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]

WIDTHS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 160, 255, 256, 576, 1281)
# 2 and 4 bits have bodies of their own, and so have 85 and 91 sixteenths, where two weights share no two bytes
RATES = (16, 17, 31, 32, 33, 40, 48, 63, 64, 65, 80, 85, 91, 96)


def random_codebook(seed: int) -> NDArray[np.uint8]:
    """Any crossing, and levels that sum up to all of -126..126."""
    rng = np.random.default_rng(seed)
    codebook = rng.integers(0, 256, 72, np.uint8)
    tables = rng.integers(-42, 43, (3, 16)).astype(np.int8)
    tables[:, 0], tables[:, 1] = -42, 42
    codebook[24:] = tables.reshape(-1).view(np.uint8)
    return codebook


def listed(codebook: NDArray[np.uint8]) -> NDArray[np.int8]:
    levels = np.empty(4096, np.int8)
    _trellis.crossed_levels(codebook, levels)
    return levels


def test_levels_are_the_twins(fenced: Fence) -> None:
    for seed in range(20):
        codebook, levels, expected = random_codebook(seed), fenced(np.zeros(4096, np.int8)), np.zeros(4096, np.int8)
        _trellis.crossed_levels(fenced(codebook), levels)
        reference.crossed_levels(codebook, expected)
        np.testing.assert_array_equal(levels, expected)


def test_a_crossing_loses_no_state() -> None:
    codebook, entries = random_codebook(3), np.zeros(4096, np.int64)
    for table in range(3):  # the entries of a state in the three level tables, as one number
        alone = codebook.copy()
        alone[24:] = 0
        alone[24 + 16 * table : 40 + 16 * table] = np.arange(16)
        entries = 16 * entries + listed(alone)
    assert sorted(entries.tolist()) == list(range(4096))


@pytest.mark.parametrize("n_cols", WIDTHS)
def test_products_energies_and_rows_are_those_of_the_levels(n_cols: int, isa: str, fenced: Fence) -> None:
    rng = np.random.default_rng(n_cols)
    for rate in RATES:
        codebook = random_codebook(rate)
        levels = listed(codebook)
        for n_rows in (1, 3, 50):
            codes = rng.integers(0, 256, (n_rows, _trellis.row_nbytes(n_cols, rate, 12)), np.uint8)
            for n_queries in (1, 2, 3):
                queries = rng.integers(-128, 128, (n_queries, n_cols), np.int8)
                queries[:, 0] = -128
                sums, expected = (np.full((n_queries, n_rows), -1, np.int32) for _ in range(2))
                out = fenced(sums)
                _score.trellis_dots(
                    fenced(codes), levels, rate, fenced(queries), out, crossed=fenced(codebook), isa=isa
                )
                _score.trellis_dots(codes, levels, rate, queries, expected, isa="scalar")
                np.testing.assert_array_equal(out, expected)
            energies, expected = fenced(np.full(n_rows, -1, np.int32)), np.full(n_rows, -1, np.int32)
            _score.trellis_energies(fenced(codes), levels, rate, n_cols, energies, crossed=fenced(codebook), isa=isa)
            _score.trellis_energies(codes, levels, rate, n_cols, expected, isa="scalar")
            np.testing.assert_array_equal(energies, expected)
            gains = rng.standard_normal(n_rows).astype(np.float32)
            rows, decoded = fenced(np.zeros((n_rows, n_cols), np.float32)), np.zeros((n_rows, n_cols), np.float32)
            _trellis.decode(fenced(codes), levels, rate, fenced(gains), rows, crossed=fenced(codebook), isa=isa)
            _trellis.decode(codes, levels, rate, gains, decoded, isa="scalar")
            np.testing.assert_array_equal(rows.view(np.uint32), decoded.view(np.uint32))


def test_codebooks_of_other_sizes_are_refused() -> None:
    codes, out = np.zeros((1, 3), np.uint8), np.zeros((1, 1), np.int32)
    for codebook, levels in ((np.zeros(71, np.uint8), 4096), (np.zeros(72, np.uint8), 1024)):
        message = f"a crossed codebook has 72 bytes and 4096 levels, got {len(codebook)} bytes and {levels} levels"
        table, n_bits = np.zeros(levels, np.int8), levels.bit_length() - 1
        codes = np.zeros((1, _trellis.row_nbytes(2, 32, n_bits)), np.uint8)
        with pytest.raises(ValueError, match=message):
            _score.trellis_dots(codes, table, 32, np.zeros((1, 2), np.int8), out, crossed=codebook)
        with pytest.raises(ValueError, match=message):
            _score.trellis_energies(codes, table, 32, 2, out[0], crossed=codebook)
        with pytest.raises(ValueError, match=message):
            _trellis.decode(codes, table, 32, np.ones(1, np.float32), np.zeros((1, 2), np.float32), crossed=codebook)
        with pytest.raises(ValueError, match=message):
            _trellis.crossed_levels(codebook, table)


def test_codes_for_every_rate_hold_what_they_are_read_as() -> None:
    for rate in range(16, 97):
        code = Trellis.trained(rate)
        again = Trellis.of_codebook(rate, code.codebook.tobytes())
        np.testing.assert_array_equal(again.levels, code.levels)
        assert code.codebook.nbytes == 72
        assert 1 <= code.step <= 8192
        assert np.abs(code.levels.astype(int)).max() <= 127
