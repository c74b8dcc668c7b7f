"""trellis.h on every tier against its twin, its bit stream, its gains and how near it comes to the weights."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _isa, _rotate, _trellis
from hhtld.slots.rotation import Rotation
from hhtld.slots.slot_t import Trellis
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]
Array = NDArray[Any]
STEP = 200
RATES = (16, 17, 24, 31, 32, 37, 48, 56, 64, 72, 80, 88, 96)
EVERY_RATE = range(_trellis.MIN_RATE, _trellis.MAX_RATE + 1)


@functools.cache
def random_table(n_bits: int) -> NDArray[np.int8]:
    """Gaussian levels, made for no rate in particular, all int8 values among them."""
    table = np.random.default_rng(n_bits).standard_normal(1 << n_bits) * 60
    table[:4] = -128, 127, 0, -127
    return table.clip(-128, 127).astype(np.int8)


def awkward_rows(n_rows: int, n_cols: int) -> NDArray[np.float32]:
    """Gaussian rows, and among them zeros, denormals, large and constant rows, and rows of outliers."""
    rng = np.random.default_rng([n_rows, n_cols])
    rows = rng.standard_normal((n_rows, n_cols))
    rows[1::9] = 0
    rows[2::9] *= 1e-40
    rows[3::9] *= 1e30
    rows[4::9] = -2.5
    rows[5::9] *= 10.0 ** rng.integers(-9, 9, n_cols)
    rows[6::9] = -0.0
    return rows.astype(np.float32)


def encode(
    rows: Array, table: Array, rate: int, isa: str | None = None, fenced: Fence = np.array, step: int = STEP
) -> tuple[Array, Array]:
    nbytes = _trellis.row_nbytes(rows.shape[1], rate, len(table).bit_length() - 1)
    codes, gains = fenced(np.full((len(rows), nbytes), 0x5A, np.uint8)), fenced(np.full(len(rows), 9, np.float32))
    _trellis.encode(fenced(rows), fenced(table), step, rate, codes, gains, isa=isa)
    return codes, gains


@functools.cache
def twin(n_rows: int, n_cols: int, rate: int, n_bits: int) -> tuple[Array, Array, Array]:
    rows, table = awkward_rows(n_rows, n_cols), random_table(n_bits)
    codes = np.zeros((n_rows, reference.row_nbytes(n_cols, rate, n_bits)), np.uint8)
    gains, out = np.zeros(n_rows, np.float32), np.zeros((n_rows, n_cols), np.float32)
    reference.encode(rows, table, STEP, rate, codes, gains)
    reference.decode(codes, table, rate, gains, out)
    return codes, gains, out


def windows(codes: Array, n_cols: int, rate: int, n_bits: int) -> NDArray[np.int64]:
    """The state of every weight, read bit by bit."""
    bits = np.unpackbits(codes, axis=1, bitorder="little").astype(np.int64)
    first = np.arange(n_cols) * rate // 16
    assert first[-1] + n_bits <= bits.shape[1] < first[-1] + n_bits + 8
    states: NDArray[np.int64] = bits[:, first[:, None] + np.arange(n_bits)] @ (1 << np.arange(n_bits))
    return states


def same_bits(actual: Array, expected: Array) -> None:
    unsigned = f"u{expected.itemsize}"
    np.testing.assert_array_equal(actual.view(unsigned), expected.view(unsigned))


def cosines(x: Array, y: Array) -> Array:
    a, b = x.astype(np.float64), y.astype(np.float64)
    found: Array = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return found


# ---- every tier and the twin ----


@pytest.mark.parametrize("rate", RATES)
def test_like_the_twin(rate: int, isa: str, fenced: Fence) -> None:
    table, n_bits = random_table(8), 8
    for n_cols in (1, 2, 3, 5, 16, 17, 33, 50):
        expected_codes, expected_gains, expected_out = twin(33, n_cols, rate, n_bits)
        rows = awkward_rows(33, n_cols)
        for n_rows in (1, 2, 5, 16, 17, 31, 32, 33):
            codes, gains = encode(rows[:n_rows], table, rate, isa, fenced)
            np.testing.assert_array_equal(codes, expected_codes[:n_rows])
            same_bits(gains, expected_gains[:n_rows])
        out = fenced(np.zeros((33, n_cols), np.float32))
        _trellis.decode(fenced(codes), fenced(table), rate, fenced(gains), out, isa=isa)
        same_bits(out, expected_out)


@pytest.mark.parametrize(
    ("n_bits", "rate"), [(7, 96), (7, 81), (7, 16), (9, 37), (10, 20), (10, 55), (11, 70), (12, 45)]
)
def test_other_tables_like_the_twin(n_bits: int, rate: int, isa: str, fenced: Fence) -> None:
    codes, gains, out = twin(17, 21, rate, n_bits)
    found_codes, found_gains = encode(awkward_rows(17, 21), random_table(n_bits), rate, isa, fenced)
    np.testing.assert_array_equal(found_codes, codes)
    same_bits(found_gains, gains)
    found = fenced(np.zeros(out.shape, np.float32))
    _trellis.decode(fenced(codes), random_table(n_bits), rate, gains, found, isa=isa)
    same_bits(found, out)


@pytest.mark.parametrize("step", [1, 64, 8192])
@pytest.mark.parametrize("level", [-128, 0, 127, None])
def test_costs_that_saturate_like_the_twin(level: int | None, step: int, isa: str) -> None:
    table = random_table(8) if level is None else np.full(256, level, np.int8)
    rows = awkward_rows(7, 40)
    for rate in (24, 80):
        codes, gains = encode(rows, table, rate, isa, step=step)
        expected_codes, expected_gains = np.zeros_like(codes), np.zeros_like(gains)
        reference.encode(rows, table, step, rate, expected_codes, expected_gains)
        np.testing.assert_array_equal(codes, expected_codes)
        same_bits(gains, expected_gains)


@pytest.mark.parametrize(("n_bits", "n_rows", "n_cols"), [(8, 35, 90), (10, 18, 90), (12, 3, 70)])
def test_tiers_agree_at_every_rate(n_bits: int, n_rows: int, n_cols: int) -> None:
    rows, table = awkward_rows(n_rows, n_cols), random_table(n_bits)
    for rate in EVERY_RATE if n_bits == 8 else RATES:
        codes, gains = encode(rows, table, rate)
        for isa in _isa.available_tiers()[:-1]:
            other_codes, other_gains = encode(rows, table, rate, isa)
            np.testing.assert_array_equal(codes, other_codes)
            same_bits(gains, other_gains)


@functools.cache
def scalar_search(rate: int) -> tuple[Array, Array, Array]:
    """Return Gaussian rows, the last with outliers, and what the scalar search makes of them with a shipped code."""
    code, rng = Trellis.trained(rate), np.random.default_rng(rate)
    rows = rng.standard_normal((36, 160)).astype(np.float32)
    rows[33:] = rng.standard_t(1.5, (3, 160))
    return rows, *encode(rows, code.levels, rate, "scalar", step=code.step)


@pytest.mark.parametrize("rate", [16, 24, 32, 40, 48, 52, 56, 64, 70, 80, 88, 96])
def test_shipped_codebooks_like_the_scalar_search(rate: int, isa: str) -> None:
    """The quick search is sure of Gaussian rows; where it is not, `test_costs_that_saturate_like_the_twin` tells."""
    code, (rows, expected_codes, expected_gains) = Trellis.trained(rate), scalar_search(rate)
    codes, gains = encode(rows, code.levels, rate, isa, step=code.step)
    np.testing.assert_array_equal(codes, expected_codes)
    same_bits(gains, expected_gains)


@pytest.mark.parametrize("rate", [56, 64, 80, 96])
def test_a_last_weight_beyond_all_levels_like_the_scalar_search(rate: int, isa: str) -> None:
    """Its costs saturate at every state, and all of them are alike."""
    table = np.where(np.random.default_rng(0).random(4096) < 0.5, 127, -127).astype(np.int8)
    for n_cols in range(20, 26):
        rows = np.zeros((2, n_cols), np.float32)
        rows[:, -1] = 1, 2
        codes, gains = encode(rows, table, rate, isa, step=20)
        expected_codes, expected_gains = encode(rows, table, rate, "scalar", step=20)
        np.testing.assert_array_equal(codes, expected_codes)
        same_bits(gains, expected_gains)


def test_tiers_agree_on_long_rows(isa: str, fenced: Fence) -> None:
    rows, table = awkward_rows(2, 20_001), random_table(8)
    for rate in (29, 93):
        codes, gains = encode(rows, table, rate)
        other_codes, other_gains = encode(rows, table, rate, isa, fenced)
        np.testing.assert_array_equal(codes, other_codes)
        same_bits(gains, other_gains)


def test_a_row_does_not_depend_on_its_company(isa: str) -> None:
    rows, table = awkward_rows(40, 60), random_table(8)
    codes, gains = encode(rows, table, 40, isa)
    for r in range(0, 40, 7):
        alone, gain = encode(rows[r : r + 1], table, 40, isa)
        np.testing.assert_array_equal(alone[0], codes[r])
        same_bits(gain, gains[r : r + 1])


# ---- the bit stream ----


@pytest.mark.parametrize("n_bits", [8, 10, 12])
def test_decoding_any_codes(n_bits: int, isa: str, fenced: Fence) -> None:
    rng, table = np.random.default_rng(n_bits), random_table(n_bits)
    for rate in EVERY_RATE:
        for n_cols in (1, 15, 16, 17, 131):
            codes = rng.integers(0, 256, (3, reference.row_nbytes(n_cols, rate, n_bits)), dtype=np.uint8)
            gains = np.array([1.7, -1e-39, 2e36], np.float32)
            out = fenced(np.zeros((3, n_cols), np.float32))
            _trellis.decode(fenced(codes), fenced(table), rate, fenced(gains), out, isa=isa)
            same_bits(out, gains[:, None] * table[windows(codes, n_cols, rate, n_bits)].astype(np.float32))


@pytest.mark.parametrize("n_rows", [0, 1, 3])
@pytest.mark.parametrize(("rate", "n_cols"), [(16, 1), (37, 131), (64, 576), (96, 200)])
def test_rows_are_decoded_and_rotated_back_in_one_call(
    n_rows: int, rate: int, n_cols: int, isa: str, fenced: Fence
) -> None:
    rng, signs = np.random.default_rng(rate), Rotation(n_cols, 5).signs
    trained = Trellis.trained(rate)
    for levels, crossed in ((trained.levels, trained.crossed), (random_table(8), None)):
        n_bits = len(levels).bit_length() - 1
        codes = rng.integers(0, 256, (n_rows, _trellis.row_nbytes(n_cols, rate, n_bits)), dtype=np.uint8)
        slot_v = rng.integers(0, 0x7F80, n_rows).astype(np.uint16)  # every size of a bfloat16
        expected, out = np.empty((n_rows, n_cols), np.float32), np.empty((n_rows, n_cols), np.float32)
        gains = (slot_v.astype(np.uint32) << 16).view(np.float32) / np.float32(64)
        _trellis.decode(codes, levels, rate, gains, expected, crossed=crossed, isa=isa)
        _rotate.unrotate(expected, signs, isa=isa)
        decoder = _trellis.RowDecoder(levels, rate, crossed, signs, 1 / 64)
        decoder.decode(fenced(codes), fenced(slot_v), out, isa=isa)
        same_bits(out, expected)
        centroids = rng.standard_normal((5, n_cols)).astype(np.float32)
        twigs = rng.integers(0, 5, n_rows).astype(np.uint8)
        with_centroids = _trellis.RowDecoder(levels, rate, crossed, signs, 1 / 64, centroids)
        with_centroids.decode(codes, slot_v, out, fenced(twigs), isa=isa)
        same_bits(out, expected + centroids[twigs])
        with pytest.raises(ValueError, match="come together"):
            with_centroids.decode(codes, slot_v, out)
        with pytest.raises(ValueError, match="twigs must be"):
            with_centroids.decode(codes, slot_v, out, np.zeros(n_rows + 1, np.uint8))
        if n_rows:
            with pytest.raises(ValueError, match="not below 5"):
                with_centroids.decode(codes, slot_v, out, np.full(n_rows, 5, np.uint8))
        with pytest.raises(ValueError, match="centroids must be"):
            _trellis.RowDecoder(levels, rate, crossed, signs, 1 / 64, np.zeros((5, n_cols + 1), np.float32))
        for wrong in (
            (codes[:, :-1].copy(), slot_v, out),
            (codes, np.zeros(n_rows + 1, np.uint16), out),
            (codes, slot_v, np.zeros((n_rows, n_cols + 1), np.float32)),
        ):
            with pytest.raises(ValueError, match="codes must be"):
                decoder.decode(*wrong)
        with pytest.raises(ValueError, match="signs must be"):
            _trellis.RowDecoder(levels, rate, crossed, signs[:1], 1)


def test_decoding_a_long_row(isa: str) -> None:
    n_cols, table = 300_007, random_table(8)
    for rate in (17, 95):
        codes = np.random.default_rng(rate).integers(0, 256, (1, _trellis.row_nbytes(n_cols, rate, 8)), dtype=np.uint8)
        out = np.empty((1, n_cols), np.float32)
        _trellis.decode(codes, table, rate, np.array([0.3], np.float32), out, isa=isa)
        same_bits(out, np.float32(0.3) * table[windows(codes, n_cols, rate, 8)].astype(np.float32))


def test_row_nbytes() -> None:
    for n_bits in (7, 8, 10, 12):
        for rate in EVERY_RATE:
            for n_cols in (0, 1, 2, 16, 17, 1000, 2**40):
                assert _trellis.row_nbytes(n_cols, rate, n_bits) == reference.row_nbytes(n_cols, rate, n_bits)
    assert _trellis.row_nbytes(1024, 32, 8) == 1024 * 2 // 8 + 1
    for arguments in ((-1, 32, 8), (sys.maxsize, 32, 8), (5, 15, 8), (5, 97, 8), (5, 32, 6), (5, 32, 13)):
        with pytest.raises(ValueError, match="must be"):
            _trellis.row_nbytes(*arguments)


def test_the_last_byte_is_filled_with_zeros(isa: str) -> None:
    for rate, n_cols in ((17, 4), (33, 18), (50, 30)):
        used = (n_cols - 1) * rate // 16 + 8
        codes, _ = encode(awkward_rows(20, n_cols), random_table(8), rate, isa)
        assert used % 8
        assert not (codes[:, -1] >> (used % 8)).any()


# ---- gains and special rows ----


@pytest.mark.parametrize("rate", [16, 37, 64, 96])
def test_gains_are_least_squares(rate: int, isa: str) -> None:
    rows, table = awkward_rows(45, 150), random_table(8)
    codes, gains = encode(rows, table, rate, isa)
    levels, wide = table[windows(codes, 150, rate, 8)].astype(np.float64), rows.astype(np.float64)
    own = (levels * levels).sum(axis=1)
    expected = np.divide((wide * levels).sum(axis=1), own, out=np.zeros(len(own)), where=own > 0)
    np.testing.assert_allclose(gains, expected, rtol=1e-6, atol=1e-45)


def test_rows_of_zeros_have_gain_zero(isa: str) -> None:
    rows = np.zeros((3, 70), np.float32)
    rows[1] = -0.0
    codes, gains = encode(rows, random_table(8), 32, isa)
    same_bits(gains, np.zeros(3, np.float32))
    out = np.ones((3, 70), np.float32)
    _trellis.decode(codes, random_table(8), 32, gains, out, isa=isa)
    assert not out.any()


def test_levels_of_zero_have_gain_zero(isa: str) -> None:
    _, gains = encode(awkward_rows(3, 70), np.zeros(256, np.int8), 32, isa)
    same_bits(gains, np.zeros(3, np.float32))


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e30])
def test_codes_do_not_depend_on_scale(scale: float, isa: str) -> None:
    rows = np.random.default_rng(1).standard_normal((9, 64)).astype(np.float32)
    codes, _ = encode(rows, random_table(8), 48, isa)
    scaled, _ = encode(rows * np.float32(2.0 ** round(np.log2(scale))), random_table(8), 48, isa)
    np.testing.assert_array_equal(codes, scaled)


def test_denormal_rows_keep_their_shape(isa: str) -> None:
    rows = (np.random.default_rng(2).standard_normal((4, 256)) * 1e-40).astype(np.float32)
    codes, _ = encode(rows, random_table(8), 48, isa)
    levels = random_table(8)[windows(codes, 256, 48, 8)]
    assert cosines(rows, levels).min() > 0.95


def test_constant_rows_and_single_columns(isa: str) -> None:
    for n_cols in (1, 2, 300):
        rows = np.array([[5.0], [-5.0], [1e30]], np.float32).repeat(n_cols, 1)
        codes, gains = encode(rows, random_table(8), 64, isa)
        out = np.empty_like(rows)
        _trellis.decode(codes, random_table(8), 64, gains, out, isa=isa)
        np.testing.assert_allclose(out, rows, rtol=1e-6 if n_cols == 1 else 0.2)


def test_rows_that_are_not_finite_are_the_same_everywhere() -> None:
    rows = awkward_rows(5, 40)
    rows[0, 3], rows[2, 5], rows[3, 0] = np.nan, np.inf, -np.inf
    codes = [encode(rows, random_table(8), 32, isa)[0] for isa in _isa.available_tiers()]
    for other in codes[1:]:
        np.testing.assert_array_equal(codes[0], other)


def test_no_rows_and_no_columns(isa: str, fenced: Fence) -> None:
    table = random_table(8)
    codes, gains = encode(np.empty((0, 5), np.float32), table, 32, isa, fenced)
    _trellis.decode(codes, table, 32, gains, np.empty((0, 5), np.float32), isa=isa)
    codes, gains = encode(np.empty((3, 0), np.float32), table, 32, isa, fenced)
    assert codes.shape == (3, 0)
    assert not gains.any()
    _trellis.decode(codes, table, 32, gains, np.empty((3, 0), np.float32), isa=isa)


# ---- quality with the trained tables ----


def median_cosine(rows: Array, rate: int) -> float:
    trellis = Trellis.trained(rate)
    return float(np.median(cosines(rows, trellis.decode(*trellis.encode(rows), rows.shape[1]))))


@functools.cache
def gaussian_rows() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((256, 1024)).astype(np.float32)


def test_gaussian_rows_keep_their_direction() -> None:
    assert median_cosine(gaussian_rows(), 32) >= 0.9600
    assert median_cosine(gaussian_rows(), 48) >= 0.989


def test_uneven_columns_cost_little_after_the_rotation() -> None:
    rng = np.random.default_rng(2)
    outliers = np.ones(1024)
    outliers[rng.choice(1024, 8, replace=False)] = 10
    plain = median_cosine(gaussian_rows(), 32)
    for scales in (np.exp(rng.standard_normal(1024)), outliers):
        rows = (gaussian_rows() * scales).astype(np.float32)
        Rotation(1024).rotate(rows)  # keeps cosines
        assert median_cosine(rows, 32) > plain - 0.004


# ---- doors ----


def arguments(name: str) -> dict[str, Any]:
    codes, gains = np.zeros((3, 6), np.uint8), np.zeros(3, np.float32)  # 19 * 2 + 8 bits
    rows = np.zeros((3, 20), np.float32)
    if name == "encode":
        return {"rows": rows, "table": random_table(8), "step": 9, "rate": 32, "codes": codes, "gains": gains}
    return {"codes": codes, "table": random_table(8), "rate": 32, "gains": gains, "out": rows}


ARRAYS = [
    pytest.param(name, key, id=f"{name}-{key}")
    for name in ("encode", "decode")
    for key, value in arguments(name).items()
    if isinstance(value, np.ndarray)
]
BOTH = pytest.mark.parametrize("name", ["encode", "decode"])
EVERY_ARRAY = pytest.mark.parametrize(("name", "key"), ARRAYS)


def refused(name: str, wrong: dict[str, Any], match: str = ".", error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=match):
        getattr(_trellis, name)(**arguments(name) | wrong)


@BOTH
def test_the_valid_call_is_valid(name: str, isa: str) -> None:
    getattr(_trellis, name)(**arguments(name), isa=isa)
    getattr(_trellis, name)(*arguments(name).values(), isa=isa)


@EVERY_ARRAY
def test_what_is_no_such_array_is_refused(name: str, key: str) -> None:
    array = arguments(name)[key]
    refused(name, {key: None}, error=TypeError)
    refused(name, {key: array.tolist()}, error=TypeError)
    for dtype in (np.int8, np.uint8, np.int16, np.float16, np.float32, np.float64, object):
        if array.dtype != dtype:
            refused(name, {key: array.astype(dtype)})
    for wrong in (array[None], np.array(0, array.dtype), array.repeat(2, -1)[..., ::2], array[::-1]):
        refused(name, {key: wrong})
    if array.itemsize > 1:
        memory = bytearray(array.nbytes + 1)
        refused(name, {key: np.frombuffer(memory, array.dtype, array.size, 1).reshape(array.shape)}, "aligned")


@EVERY_ARRAY
def test_only_outputs_must_be_writeable(name: str, key: str) -> None:
    array = arguments(name)[key].copy()
    array.flags.writeable = False
    if key in ({"codes", "gains"} if name == "encode" else {"out"}):
        refused(name, {key: array}, "read-only")
    else:
        getattr(_trellis, name)(**arguments(name) | {key: array})


@BOTH
@pytest.mark.parametrize(
    ("key", "shape"),
    [("codes", (2, 6)), ("codes", (3, 5)), ("codes", (3, 7)), ("codes", (0, 6)), ("gains", (2,)), ("gains", (4,))],
)
def test_wrong_shapes_are_refused(name: str, key: str, shape: tuple[int, ...]) -> None:
    array = arguments(name)[key]
    refused(name, {key: np.zeros(shape, array.dtype)}, "codes must be")
    rows = "rows" if name == "encode" else "out"
    for other in ((4, 20), (3, 16), (3, 24)):
        refused(name, {rows: np.zeros(other, np.float32)}, "codes must be")


@BOTH
@pytest.mark.parametrize("n_levels", [0, 1, 64, 127, 129, 255, 257, 3000, 4095, 4097, 8192])
def test_tables_of_another_size_are_refused(name: str, n_levels: int) -> None:
    refused(name, {"table": np.zeros(n_levels, np.int8)}, f"power of two; got {n_levels}")


@BOTH
@pytest.mark.parametrize("rate", [-32, 0, 15, 97, 1 << 20])
def test_rates_out_of_range_are_refused(name: str, rate: int) -> None:
    refused(name, {"rate": rate}, "rate must be 16..96")


@pytest.mark.parametrize("step", [-1, 0, 8193])
def test_steps_out_of_range_are_refused(step: int) -> None:
    refused("encode", {"step": step}, "step must be 1..8192")


@BOTH
def test_an_unknown_tier_is_refused(name: str) -> None:
    refused(name, {"isa": "sse9"}, "no instruction tier 'sse9'")


@functools.cache
def twin_of_feedback(shape: tuple[int, int], rate: int) -> tuple[Array, Array, Array]:
    feedback = (np.random.default_rng(shape[1]).standard_normal((shape[1], shape[1])) * 0.2).astype(np.float32)
    codes = np.zeros((shape[0], reference.row_nbytes(shape[1], rate, 8)), np.uint8)
    gains = np.zeros(shape[0], np.float32)
    reference.encode(awkward_rows(*shape), random_table(8), STEP, rate, codes, gains, feedback)
    return feedback, codes, gains


@pytest.mark.parametrize("rate", [16, 37, 56, 80, 96])
@pytest.mark.parametrize("shape", [(3, 1), (2, 31), (35, 33), (18, 100), (5, 161)])
def test_feedback_is_the_twins_on_every_tier(isa: str, shape: tuple[int, int], rate: int) -> None:
    rows, table = awkward_rows(*shape), random_table(8)
    feedback, expected, gains = twin_of_feedback(shape, rate)
    codes, own = np.full_like(expected, 0x5A), np.full_like(gains, 9)
    _trellis.encode(rows, table, STEP, rate, codes, own, feedback, isa=isa)
    same_bits(codes, expected)
    same_bits(own, gains)


@pytest.mark.parametrize("seed", [5, 17, 45, 80, 100_005, 100_015, 100_041])
def test_feedback_that_throws_weights_far_out_like_the_scalar_search(isa: str, seed: int) -> None:
    """The block behind saturates, so its path does not begin where the block before ended, which is searched again."""
    rng = np.random.default_rng(seed)
    rate, table = int(rng.integers(56, 63)), (rng.standard_normal(4096) * 50).clip(-127, 127).astype(np.int8)
    step, n_cols = int(rng.choice([50, 100])), int(rng.choice([40, 64, 96]))
    rows = rng.standard_normal((32, n_cols)).astype(np.float32)
    rows[:, :32] *= rng.choice([0.05, 0.2, 1])
    feedback = np.zeros((n_cols, n_cols), np.float32)
    feedback[32 : 34 + rng.integers(0, 8), :32] = rng.standard_normal(32) * rng.choice([10, 100, 1e4])
    found = []
    for tier in ("scalar", isa):
        codes = np.zeros((32, _trellis.row_nbytes(n_cols, rate, 12)), np.uint8)
        gains = np.zeros(32, np.float32)
        _trellis.encode(rows, table, step, rate, codes, gains, feedback, isa=tier)
        found.append((codes, gains))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    same_bits(found[0][1], found[1][1])


def test_feedback_of_zeros_changes_no_code_of_one_block(isa: str) -> None:
    rows, code = awkward_rows(20, 32), Trellis.trained(48)
    plain, gains = encode(rows, code.levels, 48, isa, step=code.step)
    codes, own = np.zeros_like(plain), np.zeros_like(gains)
    # What is aimed at is rounded to float32 before int16: a handful of weights of a row of outliers may differ.
    _trellis.encode(rows, code.levels, code.step, 48, codes, own, np.zeros((32, 32), np.float32), isa=isa)
    assert (codes == plain).mean() > 0.99
    np.testing.assert_allclose(own, gains, rtol=2e-3, atol=0)


def test_settling_blocks_early_costs_little() -> None:
    """On one tier: `test_feedback_is_the_twins_on_every_tier` says that the others give the same codes."""
    rows = np.random.default_rng(5).standard_normal((40, 600)).astype(np.float32)
    for rate, most in ((16, 1.06), (32, 1.06), (84, 1.01), (48, 1.02)):
        code, lost = Trellis.trained(rate), []
        for feedback in (None, np.zeros((600, 600), np.float32)):
            codes = np.zeros((40, code.row_nbytes(600)), np.uint8)
            gains, out = np.zeros(40, np.float32), np.empty_like(rows)
            _trellis.encode(rows, code.levels, code.step, rate, codes, gains, feedback)
            _trellis.decode(codes, code.levels, rate, gains, out)
            lost.append(float(((out - rows).astype(np.float64) ** 2).sum()))
        assert 0.999 < lost[1] / lost[0] < most


def test_feedback_of_another_width_is_refused() -> None:
    rows, code = awkward_rows(2, 64), Trellis.trained(32)
    with pytest.raises(ValueError, match=r"feedback must be \(64, 64\), got \(64, 63\)"):
        _trellis.encode(
            rows,
            code.levels,
            code.step,
            32,
            np.zeros((2, 18), np.uint8),
            np.zeros(2, np.float32),
            np.zeros((64, 63), np.float32),
        )


# ---- wide rows ----


@functools.cache
def twin_in_pieces(n_cols: int, rate: int) -> tuple[Array, Array]:
    rows = awkward_rows(9, n_cols)[:6]
    codes, gains = np.zeros((len(rows), _trellis.row_nbytes(n_cols, rate, 7)), np.uint8), np.zeros(6, np.float32)
    reference.encode(rows, random_table(7), STEP, rate, codes, gains, whole=512)
    return codes, gains


@pytest.mark.parametrize(("n_cols", "rate"), [(1025, 16), (700, 37), (2056, 96)])
def test_pieces_of_wide_rows_are_the_twins_on_every_tier(n_cols: int, rate: int, isa: str) -> None:
    rows, table = awkward_rows(9, n_cols)[:6], random_table(7)
    expected_codes, expected_gains = twin_in_pieces(n_cols, rate)
    codes, gains = np.zeros_like(expected_codes), np.zeros_like(expected_gains)
    _trellis.encode(rows, table, STEP, rate, codes, gains, whole=512, isa=isa)
    np.testing.assert_array_equal(codes, expected_codes)
    same_bits(gains, expected_gains)


@pytest.mark.parametrize("rate", [16, 37, 64, 84])
def test_a_row_in_33_pieces_is_worth_what_it_is_whole(rate: int) -> None:
    rows = np.random.default_rng(rate).standard_normal((3, 5000)).astype(np.float32)
    code = Trellis.trained(rate)
    found = []
    for whole in (512, 5000):
        codes, gains = np.zeros((3, code.row_nbytes(5000)), np.uint8), np.zeros(3, np.float32)
        _trellis.encode(rows, code.levels, code.step, rate, codes, gains, whole=whole)
        found.append(code.decode(codes, gains, 5000))
    np.testing.assert_allclose(*(1 - cosines(rows, decoded) for decoded in found), rtol=0.01)


def test_rows_are_searched_whole_up_to_65536_weights() -> None:
    assert [_trellis.search_cols(n) for n in (1, 5760, 65_536)] == [1, 5760, 65_536]
    assert [_trellis.search_cols(n) for n in (65_537, 131_072, 1 << 20)] == [2064 + 1, 4096 + 16, 4096 + 16]


@pytest.mark.parametrize(
    "n_cols", [0, 1, 300, 65_536, 65_537, 65_550, 131_072, 131_073, 1 << 20, (1 << 20) + 7, 20_000_000]
)
def test_weights_searched_at_once_are_the_twins(n_cols: int) -> None:
    assert _trellis.search_cols(n_cols) == reference.search_cols(n_cols)


# ---- rings ----


def rings(rows: Array, table: Array, step: int, rate: int, isa: str | None = None) -> tuple[Array, Array]:
    nbytes = _trellis.row_nbytes(rows.shape[1], rate, len(table).bit_length() - 1)
    codes, gains = np.zeros((len(rows), nbytes), np.uint8), np.zeros(len(rows), np.float32)
    _trellis.encode(rows, table, step, rate, codes, gains, is_ring=True, isa=isa)
    return codes, gains


@functools.cache
def twin_of_rings(n_cols: int, rate: int) -> tuple[Array, Array, Array]:
    rows, table = awkward_rows(35, n_cols)[:20], random_table(7)
    codes, gains = np.zeros((20, reference.row_nbytes(n_cols, rate, 7)), np.uint8), np.zeros(20, np.float32)
    reference.encode(rows, table, STEP, rate, codes, gains, is_ring=True)
    return rows, codes, gains


@pytest.mark.parametrize(("n_cols", "rate"), [(16, 16), (31, 32), (80, 37), (160, 48), (67, 96)])
def test_rings_are_the_twins_on_every_tier(n_cols: int, rate: int, isa: str) -> None:
    rows, expected_codes, expected_gains = twin_of_rings(n_cols, rate)
    codes, gains = rings(rows, random_table(7), STEP, rate, isa)
    np.testing.assert_array_equal(codes, expected_codes)
    same_bits(gains, expected_gains)


@pytest.mark.parametrize("rate", EVERY_RATE)
def test_rings_of_shipped_codebooks_end_as_they_begin(rate: int) -> None:
    code = Trellis.trained(rate)
    for n_cols in (16 * 16 // rate + 1, 64, 161):
        spikes = np.eye(n_cols, dtype=np.float32)[:: max(1, n_cols // 5)] * 7  # all that a row holds, in one weight
        rows = np.concatenate([awkward_rows(9, n_cols), spikes])
        codes, _ = rings(rows, code.levels, code.step, rate)
        n_bits = n_cols * rate // 16
        bits = np.unpackbits(codes, axis=1, bitorder="little")
        reach = (n_cols - 1) * rate // 16 + 12
        np.testing.assert_array_equal(bits[:, n_bits:reach], bits[:, : reach - n_bits])


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n_bits", [7, 10, 12])
def test_rings_are_opened_as_the_twin_opens_them(rate: int, n_bits: int, fenced: Fence) -> None:
    rng = np.random.default_rng(rate)
    for n_cols in (17, 64, 161, 250):
        held = rng.integers(0, 256, (5, _trellis.ring_nbytes(n_cols, rate, n_bits)), np.uint8)  # bits to spare, too
        codes = fenced(np.zeros((5, _trellis.row_nbytes(n_cols, rate, n_bits)), np.uint8))
        expected = codes.copy()
        _trellis.open_rings(fenced(held), n_cols, rate, n_bits, codes)
        reference.open_rings(held, n_cols, rate, n_bits, expected)
        np.testing.assert_array_equal(codes, expected)
        assert held.shape[1] == reference.ring_nbytes(n_cols, rate, n_bits)


@pytest.mark.parametrize(("rate", "most"), [(16, 1.11), (32, 1.08), (64, 1.06), (96, 1.06)])
def test_a_ring_loses_less_than_its_bits_are_worth(rate: int, most: float) -> None:
    rows = np.random.default_rng(rate).standard_normal((500, 160)).astype(np.float32)
    lost = []
    for is_ring in (False, True):
        code = Trellis.trained(rate, is_ring)
        decoded = code.decode(*code.encode(rows), 160)
        lost.append(np.median(1 - cosines(rows, decoded) ** 2))
    saved_bits = 12 - rate // 16
    assert lost[1] / lost[0] < min(most, 2 ** (2 * saved_bits / 160) + 0.01)


def test_what_closes_to_no_ring_is_refused() -> None:
    far = np.where(np.random.default_rng(6).random(4096) < 0.1, 0, 127).astype(np.int8)  # so that costs saturate
    rows = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    with pytest.raises(ValueError, match="3 rows close to no ring with these levels"):
        _trellis.encode(rows, far, 8192, 16, np.zeros((4, 10), np.uint8), np.zeros(4, np.float32), is_ring=True)
    rows, table = rows[:2], random_table(7)
    codes, gains = np.zeros((2, 16), np.uint8), np.zeros(2, np.float32)
    with pytest.raises(ValueError, match="a ring is searched whole and without feedback"):
        _trellis.encode(rows, table, 1, 32, np.zeros((2, 17), np.uint8), gains, np.zeros((64, 64), "f4"), is_ring=True)
    with pytest.raises(ValueError, match="a ring is searched whole and without feedback"):
        _trellis.encode(rows, table, 1, 32, np.zeros((2, 17), np.uint8), gains, whole=60, is_ring=True)
    for n_cols in (0, 7):
        with pytest.raises(ValueError, match=f"a ring has 16 bits at least, got {n_cols} weights of 32 sixteenths"):
            _trellis.ring_nbytes(n_cols, 32, 12)
    with pytest.raises(ValueError, match=r"rings must be \(2, 16\) and codes \(2, 17\), got \(2, 16\) and \(2, 16\)"):
        _trellis.open_rings(codes, 64, 32, 7, codes.copy())
    with pytest.raises(ValueError, match="Buffer dtype mismatch"):
        _trellis.open_rings(codes.astype(np.int16), 64, 32, 7, codes)
