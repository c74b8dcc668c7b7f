"""Sizes computed from what a file declares; nothing else in hhtld multiplies declared numbers.

Python integers do not overflow, so the danger is not a wrap but a petabyte: every result is held
below 2**63 and a caller compares it with what is really there before it allocates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hhtld.errors import HeaderError

__all__ = [
    "BLOCK_NBYTES",
    "MAX_DIMENSIONS",
    "MAX_NBYTES",
    "MAX_NESTING",
    "align_up",
    "checked_shape",
    "is_deep",
    "tensor_nbytes",
]

BLOCK_NBYTES = 1 << 20  # of rows, read or decoded at once: an L2 cache, and 7 ms of the slowest encoder

MAX_NBYTES = 2**63 - 1
MAX_DIMENSIONS = 32  # numpy's own limit until 2.0
MAX_DIMENSION = 2**48  # the limit of the safetensors schema
MAX_NESTING = 64  # of JSON that is handed on; Python's parser takes more than its printer does


def checked_shape(shape: object, where: str) -> tuple[int, ...]:
    """Return `shape` as a tuple of sizes, or raise `HeaderError` naming `where`."""
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMENSIONS:
        count = f"{len(shape)}" if isinstance(shape, list | tuple) else f"a {type(shape).__name__}"
        raise HeaderError(f"{where}: shape must be a list of at most {MAX_DIMENSIONS} sizes, got {count}")
    for size in shape:
        if type(size) is not int:
            raise HeaderError(f"{where}: every size must be an integer, got a {type(size).__name__}")
        if not 0 <= size <= MAX_DIMENSION:
            raise HeaderError(f"{where}: every size must lie in 0..2^48, got one of {size.bit_length()} bits")
    return tuple(shape)


def tensor_nbytes(shape: Sequence[int], nbits: int, where: str) -> int:
    """Return the bytes of a packed tensor of `nbits` bits an element.

    Raises
    ------
    HeaderError
        If the size passes 2**63 - 1 or does not fill whole bytes.
    """
    total = math.prod(shape) * nbits
    # numpy refuses an empty array whose other axes alone are too large.
    if math.prod(size for size in shape if size) * nbits > MAX_NBYTES * 8:
        raise HeaderError(f"{where}: shape {list(shape)} needs more than 2^63 bytes")
    if total % 8:
        raise HeaderError(f"{where}: shape {list(shape)} of {nbits}-bit elements does not fill whole bytes")
    return total // 8


def align_up(offset: int, alignment: int) -> int:
    """Return the first multiple of `alignment` not below `offset`."""
    return -(-offset // alignment) * alignment


def is_deep(value: object) -> bool:
    """Whether JSON is nested deeper than `MAX_NESTING`."""
    level = [value]
    for _ in range(MAX_NESTING):
        level = [
            child
            for item in level
            if isinstance(item, list | dict)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
