"""cast.h on every tier against its twin, ml_dtypes and numpy."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from hhtld._kernels import _cast
from tests.kernels import reference

Fence = Callable[[Any], NDArray[Any]]
EVERY_U16 = np.arange(1 << 16, dtype=np.uint16)
COUNTS = (*range(35), 47, 48, 49, 63, 64, 65, 97, 128, 200, 384)


def bits_f32(*words: int) -> NDArray[np.float32]:
    return np.array(words, np.uint32).view(np.float32)


def narrowing_inputs() -> NDArray[np.float32]:
    """Every 16-bit pattern as a float's top, at the ties of both formats and one bit to either side."""
    rng = np.random.default_rng(17)
    tops = EVERY_U16.astype(np.uint32) << 16
    near_tie = np.concatenate([tops | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    # A float16 keeps 10 of 23 mantissa bits, fewer when subnormal: ties lie at every bit below those.
    with np.errstate(invalid="ignore"):  # some machines tell of signalling NaN
        half = EVERY_U16.view(np.float16).astype(np.float32).view(np.uint32)
    half_ties = np.concatenate([half + np.uint32(step) for step in (0, 1, 0xFFF, 0x1000, 0x1001)])
    powers = np.arange(1, 255, dtype=np.uint32) << 23
    halves = np.concatenate([powers | np.uint32(1 << bit) for bit in range(23)])
    ulp = [halves - np.uint32(1), halves, halves + np.uint32(1)]
    signed = [np.concatenate([word, word | np.uint32(0x80000000)]) for word in ulp]
    random = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32)
    return np.concatenate([near_tie, half_ties, *signed, random]).astype(np.uint32).view(np.float32)


NARROWING = narrowing_inputs()
NARROWING_IS_NAN = np.isnan(NARROWING)


def test_widen_bf16_every_value(isa: str) -> None:
    out = np.empty(1 << 16, np.float32)
    _cast.widen_bf16(EVERY_U16, out, isa=isa)
    with np.errstate(invalid="ignore"):
        expected = EVERY_U16.view(ml_dtypes.bfloat16).astype(np.float32)
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(out.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])
    assert np.isnan(out[is_nan]).all()
    assert (out[is_nan].view(np.uint32) & 0x00400000).all(), "a NaN must come out quiet"


def test_widen_bf16_by_a_factor(isa: str) -> None:
    finite = EVERY_U16[(EVERY_U16 & 0x7F80) != 0x7F80]
    out = np.empty(len(finite), np.float32)
    _cast.widen_bf16(finite, out, factor=1 / 64, isa=isa)
    expected = (finite.astype(np.uint32) << 16).view(np.float32) / np.float32(64)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


def test_widen_f16_every_value(isa: str) -> None:
    out = np.empty(1 << 16, np.float32)
    _cast.widen_f16(EVERY_U16, out, isa=isa)
    with np.errstate(invalid="ignore"):
        expected = EVERY_U16.view(np.float16).astype(np.float32)
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(out.view(np.uint32)[~is_nan], expected.view(np.uint32)[~is_nan])
    assert np.isnan(out[is_nan]).all()
    assert (out[is_nan].view(np.uint32) & 0x00400000).all(), "a NaN must come out quiet"


@pytest.mark.parametrize("name", ["widen_bf16", "widen_f16"])
def test_widen_every_value_is_the_twins(name: str, isa: str) -> None:
    out, expected = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.float32)
    getattr(_cast, name)(EVERY_U16, out, isa=isa)
    getattr(reference, name)(EVERY_U16, expected)
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ["widen_bf16", "widen_f16"])
def test_widen_every_length(name: str, isa: str, fenced: Fence) -> None:
    rng = np.random.default_rng(1)
    for count in COUNTS:
        values = fenced(rng.integers(0, 1 << 16, count, dtype=np.uint16))
        out, expected = fenced(np.zeros(count, np.float32)), np.zeros(count, np.float32)
        getattr(_cast, name)(values, out, isa=isa)
        getattr(reference, name)(values, expected)
        np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_widen_f8_every_value(dtype: Any, isa: str, fenced: Fence) -> None:
    every = np.arange(256, dtype=np.uint8)
    table = fenced(every.view(dtype).astype(np.float32))
    for count in (0, 1, 7, 256):
        out, expected = fenced(np.zeros(count, np.float32)), np.zeros(count, np.float32)
        _cast.widen_f8(every[:count], table, out, isa=isa)
        reference.widen_f8(every[:count], table, expected)
        np.testing.assert_array_equal(out, every[:count].view(dtype).astype(np.float32))
        np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(
    ("name", "dtype", "quiet"),
    [("narrow_f32_bf16", ml_dtypes.bfloat16, 0x0040), ("narrow_f32_f16", np.float16, 0x0200)],
)
def test_narrow(name: str, dtype: Any, quiet: int, isa: str) -> None:
    out, twin = np.empty(len(NARROWING), np.uint16), np.empty(len(NARROWING), np.uint16)
    getattr(_cast, name)(NARROWING, out, isa=isa)
    getattr(reference, name)(NARROWING, twin)
    np.testing.assert_array_equal(out, twin)
    with np.errstate(all="ignore"):
        expected = NARROWING.astype(dtype)
    np.testing.assert_array_equal(out[~NARROWING_IS_NAN], expected.view(np.uint16)[~NARROWING_IS_NAN])
    assert np.isnan(out.view(dtype)[NARROWING_IS_NAN].astype(np.float32)).all()
    assert (out[NARROWING_IS_NAN] & quiet).all(), "a NaN must come out quiet"


@pytest.mark.parametrize(
    ("word", "half"),
    [
        (0x33000000, 0x0000),  # 2^-25: half of the least subnormal, to even
        (0x33000001, 0x0001),
        (0x33800000, 0x0001),  # 2^-24, the least subnormal
        (0x33C00000, 0x0002),  # 1.5 * 2^-24, to even
        (0x387FE000, 0x0400),  # rounds up into the normal halves
        (0x477FEFFF, 0x7BFF),
        (0x477FF000, 0x7C00),  # 65520 is infinity
        (0x7F800000, 0x7C00),
        (0x7F800001, 0x7E00),  # a signalling NaN whose payload is cut off
        (0x00000001, 0x0000),
        (0x80000001, 0x8000),
    ],
)
def test_narrow_f16_boundaries(word: int, half: int, isa: str) -> None:
    out = np.empty(17, np.uint16)
    _cast.narrow_f32_f16(np.repeat(bits_f32(word), 17), out, isa=isa)
    assert (out == half).all()


@pytest.mark.parametrize(
    ("word", "bf16"),
    [
        (0x3F808000, 0x3F80),  # a tie to even, down
        (0x3F818000, 0x3F82),  # a tie to even, up
        (0x3F808001, 0x3F81),
        (0x00008000, 0x0000),  # subnormals round like the rest
        (0x00018000, 0x0002),
        (0x7F7F7FFF, 0x7F7F),
        (0x7F7F8000, 0x7F80),  # the largest floats round to infinity
        (0xFF7FFFFF, 0xFF80),
        (0x7F800001, 0x7FC0),  # a NaN whose payload lies in the dropped bits
        (0xFFFFFFFF, 0xFFFF),
    ],
)
def test_narrow_bf16_boundaries(word: int, bf16: int, isa: str) -> None:
    out = np.empty(17, np.uint16)
    _cast.narrow_f32_bf16(np.repeat(bits_f32(word), 17), out, isa=isa)
    assert (out == bf16).all()


@pytest.mark.parametrize("name", ["narrow_f32_bf16", "narrow_f32_f16", "truncate_f32_bf16"])
def test_narrow_every_length(name: str, isa: str, fenced: Fence) -> None:
    rng = np.random.default_rng(2)
    for count in COUNTS:
        values = fenced(rng.integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32))
        out, expected = fenced(np.zeros(count, np.uint16)), np.zeros(count, np.uint16)
        getattr(_cast, name)(values, out, isa=isa)
        getattr(reference, name)(values, expected)
        np.testing.assert_array_equal(out, expected)


def test_truncate_bf16_keeps_the_top_half(isa: str) -> None:
    values = NARROWING[np.isfinite(NARROWING)]
    out = np.empty(len(values), np.uint16)
    _cast.truncate_f32_bf16(values, out, isa=isa)
    np.testing.assert_array_equal(out, values.view(np.uint32) >> 16)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_narrowing_undoes_widening(name: str, isa: str) -> None:
    wide, narrow = np.empty(1 << 16, np.float32), np.empty(1 << 16, np.uint16)
    getattr(_cast, f"widen_{name}")(EVERY_U16, wide, isa=isa)
    getattr(_cast, f"narrow_f32_{name}")(wide, narrow, isa=isa)
    quiet = np.where(np.isnan(wide), EVERY_U16 | {"bf16": 0x40, "f16": 0x200}[name], EVERY_U16)
    np.testing.assert_array_equal(narrow, quiet)


@pytest.mark.parametrize("word", [0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF])
def test_first_nonfinite_at_every_position(word: int, isa: str, fenced: Fence) -> None:
    bad = bits_f32(word)[0]
    largest = np.finfo(np.float32).max
    for count in (1, 7, 8, 9, 15, 16, 17, 31, 33, 50):
        values = fenced(np.full(count, largest, np.float32))  # the fence itself is NaN
        assert _cast.first_nonfinite_f32(values, isa=isa) == -1
        for position in range(count):
            values[position:] = bad
            assert _cast.first_nonfinite_f32(values, isa=isa) == position
            values[position + 1 :] = -largest
            assert _cast.first_nonfinite_f32(values, isa=isa) == position
            assert reference.first_nonfinite_f32(values) == position
            values[position] = 1e-45


def test_first_nonfinite_of_nothing(isa: str) -> None:
    assert _cast.first_nonfinite_f32(np.empty(0, np.float32), isa=isa) == -1


def test_first_nonfinite_of_every_bfloat16() -> None:
    for bits in range(1 << 16):
        values = np.array([0x3F80, bits, 0x7F80], np.uint16)
        assert _cast.first_nonfinite_bf16(values) == (1 if bits & 0x7F80 == 0x7F80 else 2)
    assert _cast.first_nonfinite_bf16(EVERY_U16) == reference.first_nonfinite_bf16(EVERY_U16) == 0x7F80
    assert _cast.first_nonfinite_bf16(EVERY_U16[:0x7F80]) == -1
    assert _cast.first_nonfinite_bf16(np.empty(0, np.uint16)) == -1
