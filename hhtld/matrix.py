"""Which matrix a tensor of any rank is: how many leading axes count its rows.

A row is what a model looks up or multiplies by. Of two axes that is the last: a row of a linear layer, of an embedding.
Of more axes it is the last as well, but for convolutions, whose filters are all that follows the first axis:

=============================  ==============================  ===================  ===============
tensor                         shape                           rows x columns       why
=============================  ==============================  ===================  ===============
fused experts                  (experts, out, in)              experts * out x in   last axis
recurrent weights of ONNX      (directions, 4 hidden, in)      dirs * 4 hidden x in last axis
positions, masks               (1, n, d), (1, 1, n, n)         n x d, n x n         last axis
heads of attention             (heads, width, head)            heads * width x head last axis
convolution, patch embedding   (out, in, k), (out, in, k, k)   out x in * k * k     kernel
1 x 1 and depthwise            (out, in, 1, 1), (out, 1, k)    out x in, out x k    kernel
kernel first (TensorFlow)      (k, k, in, out)                 k * k * in x out     last axis
=============================  ==============================  ===================  ===============

Shapes alone decide, so that every reader of a model finds the same rows. The axes from the third on are a kernel when
they are short, at most 7 (of three axes) or 11 (of more: style transfer and super-resolution end in 9 x 9) each; or
when they are at most 16 (the longest kernels of speech models) or 64 (patches of 32 pixels) each and no longer than the
first axis, which counts filters. Where there is no kernel, axes of length 1 at the start and the end say nothing and
are passed over: what is left is looked at in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from hhtld.dtypes import DType
from hhtld.errors import shown
from hhtld.sizes import tensor_nbytes

__all__ = ["TensorInfo", "checked_name", "is_vector", "row_axes"]

_SHORT, _LONGEST = 7, 16  # kernels of three axes
_SHORT_OF_MORE, _LONGEST_OF_MORE = 11, 64


def row_axes(shape: Sequence[int]) -> int:
    """Return how many leading axes of a shape of two axes or more count rows; the rest are columns."""
    n_axes = len(shape)
    if n_axes == 2 or _has_kernel(shape):
        return 1
    if shape[0] == 1:
        return 1 + row_axes(shape[1:])
    if shape[-1] == 1:
        return row_axes(shape[:-1])
    return n_axes - 1


def _has_kernel(shape: Sequence[int]) -> bool:
    short, longest = (_SHORT, _LONGEST) if len(shape) == 3 else (_SHORT_OF_MORE, _LONGEST_OF_MORE)
    return max(shape[2:]) <= max(short, min(shape[0], longest))


def is_vector(shape: Sequence[int]) -> bool:
    """Whether at most one axis is longer than 1: gains, biases, scalars, whatever axes were added to broadcast them."""
    return sum(size > 1 for size in shape) <= 1


@dataclass(frozen=True)
class TensorInfo:
    """What a source says of a tensor before any of it is read.

    Attributes
    ----------
    name : str
    dtype : DType
    shape : tuple of int
    shard : str or None
        File that held it.
    row_axes : int
        Leading axes that count its rows, 0 for a tensor without rows of its own. The shape decides, but in files
        that say otherwise.
    nbytes : int
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    shard: str | None = None
    row_axes: int = -1
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        nbytes = tensor_nbytes(self.shape, self.dtype.nbits, f"tensor {shown(self.name)}")
        object.__setattr__(self, "nbytes", nbytes)
        if self.row_axes < 0:
            object.__setattr__(self, "row_axes", self._row_axes())

    def _row_axes(self) -> int:
        """The axes that count rows; of packed types fewer, or none, if rows would not fill whole bytes."""
        n_axes = row_axes(self.shape) if len(self.shape) > 1 else 0
        while n_axes and math.prod(self.shape[n_axes:]) * self.dtype.nbits % 8:
            n_axes -= 1
        return n_axes

    @property
    def has_rows(self) -> bool:
        """Whether it has two axes or more and its rows fill whole bytes."""
        return self.row_axes > 0

    @cached_property
    def n_rows(self) -> int:
        """Number of rows; 1 for a tensor without rows of its own."""
        return math.prod(self.shape[: self.row_axes])

    @cached_property
    def n_cols(self) -> int:
        """Elements of one row."""
        return math.prod(self.shape[self.row_axes :])

    @cached_property
    def row_nbytes(self) -> int:
        """Bytes of one row."""
        return self.nbytes // self.n_rows if self.n_rows else 0


def checked_name(name: object) -> str:
    """Return a tensor name that every container can hold, or raise."""
    if not isinstance(name, str):
        raise TypeError(f"tensor names must be str, got {type(name).__name__}")
    if name == "__metadata__":
        raise ValueError("'__metadata__' is not a tensor name: safetensors readers take it for metadata")
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"tensor name {shown(name)} is not valid Unicode (a lone surrogate)") from None
    if len(encoded) > 65535:
        raise ValueError(f"tensor name {shown(name, 40)} is {len(encoded)} bytes long, the limit is 65535")
    return name
