"""The one table of element types: names as safetensors spells them, sizes, and conversion.

float32 is what every codec computes in. `widen` is exact for every float up to 32 bits; `narrow`
rounds to the nearest finite value, ties to even.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels
from hhtld.errors import HeaderError, shown

__all__ = [
    "DTYPES",
    "FLOAT32",
    "DType",
    "bf16_bits",
    "bf16_values",
    "dtype_named",
    "dtype_of",
    "exact_values",
    "first_beyond_float32",
    "narrow",
    "rounded",
    "view",
    "widen",
]


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes
    ----------
    name : str
        As in safetensors headers and `.hhtld` tables.
    nbits : int
        Bits of one element; below 8 elements are packed and only ever passed through.
    numpy : numpy.dtype or None
        Little-endian element type, None for packed ones.
    is_weight : bool
        A float that codecs may encode.
    """

    name: str
    nbits: int
    numpy: np.dtype[Any] | None
    is_weight: bool = False


DTYPES: dict[str, DType] = {
    entry.name: entry
    for entry in (
        DType("BOOL", 8, np.dtype(np.bool_)),
        DType("F4", 4, None),
        DType("F6_E2M3", 6, None),
        DType("F6_E3M2", 6, None),
        DType("U8", 8, np.dtype("u1")),
        DType("I8", 8, np.dtype("i1")),
        DType("F8_E5M2", 8, np.dtype(ml_dtypes.float8_e5m2), True),
        DType("F8_E4M3", 8, np.dtype(ml_dtypes.float8_e4m3fn), True),
        DType("F8_E8M0", 8, np.dtype(ml_dtypes.float8_e8m0fnu)),
        DType("F8_E4M3FNUZ", 8, np.dtype(ml_dtypes.float8_e4m3fnuz), True),
        DType("F8_E5M2FNUZ", 8, np.dtype(ml_dtypes.float8_e5m2fnuz), True),
        DType("I16", 16, np.dtype("<i2")),
        DType("U16", 16, np.dtype("<u2")),
        DType("F16", 16, np.dtype("<f2"), True),
        DType("BF16", 16, np.dtype(ml_dtypes.bfloat16), True),
        DType("I32", 32, np.dtype("<i4")),
        DType("U32", 32, np.dtype("<u4")),
        DType("F32", 32, np.dtype("<f4"), True),
        DType("C64", 64, np.dtype("<c8")),
        DType("F64", 64, np.dtype("<f8"), True),
        DType("I64", 64, np.dtype("<i8")),
        DType("U64", 64, np.dtype("<u8")),
    )
}

FLOAT32 = DTYPES["F32"]
_BY_NUMPY = {entry.numpy: entry for entry in DTYPES.values() if entry.numpy is not None}


def dtype_named(name: object, where: str) -> DType:
    """Return the type called `name`, or raise `HeaderError` naming `where`."""
    if not isinstance(name, str) or name not in DTYPES:
        given = shown(name, 40) if isinstance(name, str) else f"a {type(name).__name__}"
        raise HeaderError(f"{where}: unknown dtype {given}; known: {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_of(array: NDArray[Any]) -> DType:
    """Return the type of an array, of either byte order, or raise `TypeError`."""
    dtype = _BY_NUMPY.get(array.dtype.newbyteorder("<") if array.dtype.byteorder in ">=" else array.dtype)
    if dtype is None:
        raise TypeError(f"arrays of dtype {array.dtype} cannot be stored; use one of {', '.join(DTYPES)}")
    return dtype


@functools.cache
def _f8_values(dtype: DType) -> NDArray[np.float32]:
    assert dtype.numpy is not None
    return np.arange(256, dtype=np.uint8).view(dtype.numpy).astype(np.float32)


def first_beyond_float32(rows: NDArray[Any]) -> int | None:
    """Return the first of rows (n, n_cols) that float32 does not hold, or None.

    That is one with a finite value beyond float32's range, or one that is not zeros and whose largest value lies below
    2^-126, where float32 loses digits and at last all of it. Values that are not finite are not looked at.
    """
    if rows.dtype.kind != "f" or rows.dtype.itemsize <= 4 or not rows.size:
        return None
    sizes = np.where(np.isfinite(rows), np.abs(rows), 0).max(axis=1)
    limits = np.finfo(np.float32)
    with np.errstate(over="ignore"):
        beyond = np.isinf(sizes.astype(np.float32)) | ((sizes > 0) & (sizes < limits.tiny))
    return int(beyond.argmax()) if beyond.any() else None


def view(raw: NDArray[np.uint8], dtype: DType, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return bytes as an array of `shape`; packed types come as the flat bytes they are."""
    return raw.reshape(-1) if dtype.numpy is None else raw.reshape(-1).view(dtype.numpy).reshape(shape)


def widen(raw: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32]:
    """Return the flat float32 values of the bytes of a weight type.

    float64 is rounded; what passes float32's range becomes infinite and is refused downstream.
    """
    flat = np.ascontiguousarray(raw).reshape(-1)
    if dtype.name == "F32":
        values = flat.view("<f4")
        return values if values.flags.aligned else values.copy()
    if dtype.name == "F64":
        with np.errstate(over="ignore"):
            return flat.view("<f8").astype(np.float32)
    out = np.empty(flat.size * 8 // dtype.nbits, np.float32)
    if dtype.nbits == 8:
        _kernels._cast.widen_f8(flat, _f8_values(dtype), out)
        return out
    bits = np.require(flat.view("<u2"), requirements="A")
    if dtype.name == "BF16":
        _kernels._cast.widen_bf16(bits, out)
    else:
        _kernels._cast.widen_f16(bits, out)
    return out


def exact_values(raw: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32] | NDArray[np.float64]:
    """Return the flat values of the bytes of a weight type, none rounded: float64 as it is, others as float32."""
    if dtype.name != "F64":
        return widen(raw, dtype)
    values = np.ascontiguousarray(raw).reshape(-1).view("<f8")
    return values if values.flags.aligned else values.copy()


@functools.cache
def _largest(dtype: DType) -> np.float32:
    """The largest finite value of a weight type of fewer than 32 bits."""
    if dtype.nbits == 8:
        values = _f8_values(dtype)
        return np.float32(values[np.isfinite(values)].max())
    return np.float32(65504) if dtype.name == "F16" else np.uint32(0x7F7F0000).view(np.float32)


def _held(flat: NDArray[np.float32], dtype: DType) -> NDArray[np.float32]:
    """Finite values brought into a type's range, so that they stay finite; of 8-bit types infinities too."""
    largest = _largest(dtype)
    if flat.max(initial=0) <= largest and flat.min(initial=0) >= -largest:  # neither holds if there is a NaN
        return flat
    clipped = flat.clip(-largest, largest)
    return clipped if dtype.nbits == 8 else np.where(np.isinf(flat), flat, clipped)


def narrow(values: NDArray[np.float32], dtype: DType) -> NDArray[np.uint8]:
    """Return the flat bytes of float32 values rounded to the nearest finite value of a weight type.

    NaN stays, and infinities do if the type has 16 bits or more; in 8 bits they become its largest finite value.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    if dtype.nbits < 32:
        flat = _held(flat, dtype)
    if dtype.name in ("BF16", "F16"):
        bits = np.empty(flat.size, np.uint16)
        (_kernels._cast.narrow_f32_bf16 if dtype.name == "BF16" else _kernels._cast.narrow_f32_f16)(flat, bits)
        return bits.view(np.uint8)
    assert dtype.numpy is not None
    return flat.astype(dtype.numpy).view(np.uint8)  # 8 bits are rare on the way out, so ml_dtypes rounds them


def rounded(values: NDArray[np.float32], dtype: DType) -> NDArray[np.float32]:
    """Return float32 values as they are once given back in a weight type: `narrow`, then `widen`."""
    return values if dtype.nbits >= 32 else widen(narrow(values, dtype), dtype).reshape(values.shape)


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return bfloat16 bits as float32 of the same shape."""
    out = np.empty(bits.shape, np.float32)
    _kernels._cast.widen_bf16(np.require(bits, np.uint16, ["C", "A"]).reshape(-1), out.reshape(-1))
    return out


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return float32 values of any shape as bfloat16 bits, rounded to nearest even."""
    bits = np.empty(values.shape, np.uint16)
    _kernels._cast.narrow_f32_bf16(np.ascontiguousarray(values).reshape(-1), bits.reshape(-1))
    return bits
