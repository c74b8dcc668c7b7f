"""The two custom ops: rows by id and products with rows, on packed bytes.

``hhtld::embedding`` and ``hhtld::linear`` take a tensor as its sections, uint8 tensors, and the table that says what
they are: a pack of one tensor, as JSON. Everything that an op needs is in its arguments, so a graph that holds one is
complete: `torch.export.save` writes the packed bytes, and another process that imports `hhtld.integrations.torch`
runs them. A handle into a registry would be shorter, but would mean nothing outside its process.

What is made of the sections (tables, float32 gains, the scorer) is remembered for as long as they live.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hhtld._kernels import _score
from hhtld.integrations.torch.internals import (
    WeakTensorKeyDictionary,
    are_tangents_nested,
    is_batch_innermost,
    is_batched,
    may_carry_tangents,
    without_tangents,
)
from hhtld.pack.pack import HhtldPack
from hhtld.pack.section_interfaces import RowSelection
from hhtld.pack.table import PackTable, TensorRecord
from hhtld.pack.table_checks import read_table
from hhtld.search.linear_layers import RowProducts
from hhtld.search.scorer import Scorer
from hhtld.sources.rows import row_ranges

__all__ = [
    "SCORED_ROWS",
    "Unfolded",
    "check_ids",
    "one_tensor_table",
    "product",
    "refuse_batches",
    "refuse_derivatives",
    "unfolded",
    "with_tangent",
]

# Input rows up to which a product is scored. On one thread, scoring takes a quarter of the time of decoding and
# multiplying at 1 row, and two thirds at 32. More threads speed up only the multiplication, so scoring stops there.
SCORED_ROWS = 32


class _TensorSections:
    """Sections in torch's tensors, as a `SectionReader`; they were verified when they were read from the pack."""

    reads_rows = False

    def __init__(self, kinds: list[str], parts: Sequence[torch.Tensor]) -> None:
        self._kinds = kinds
        # Detached: numpy's view must not keep the key of the cache alive.
        self._arrays: list[NDArray[np.uint8]] = [part.detach().numpy() for part in parts]

    def kinds(self) -> list[str]:
        return self._kinds

    def nbytes(self, index: int) -> int:
        return self._arrays[index].size

    def whole(self, index: int) -> NDArray[np.uint8]:
        return self._arrays[index]

    def check(self, index: int) -> None:
        pass

    def rows(
        self, index: int, width: int, rows: RowSelection, offset: int = 0, nbytes: int | None = None
    ) -> NDArray[np.uint8]:
        end = None if nbytes is None else offset + nbytes
        return self._arrays[index][offset:end].reshape(-1, width)[rows]

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        pass


class Unfolded:
    """A tensor of sections, ready to decode and to score.

    Attributes
    ----------
    table : str
    n_rows, n_cols : int
    tensor : EncodedTensor
    """

    def __init__(self, parts: Sequence[torch.Tensor], table: str) -> None:
        self.table = table
        self.n_rows, self.n_cols = _shape(table)
        facts = json.loads(table)
        records = (*facts["groups"], *facts["tensors"])
        kinds = {number: kind for record in records for kind, number in record["sections"].items()}
        reader = _TensorSections([kinds[number] for number in range(len(parts))], parts)
        self._pack = HhtldPack(read_table(facts, reader), reader)
        (self.name,) = self._pack.keys()
        self.tensor = self._pack.get_encoded(self.name)

    @functools.cached_property
    def scorer(self) -> Scorer:
        """The scorer, made for the first product; embeddings need none."""
        return self._pack.scorer(self.name)

    @functools.cached_property
    def products(self) -> RowProducts | None:
        """Products in one call, of tensors that have them."""
        return RowProducts.of(self.tensor)


_UNFOLDED: Any = WeakTensorKeyDictionary()


def unfolded(parts: Sequence[torch.Tensor], table: str) -> Unfolded:
    """Return what is made of sections, and remember it by the first, which is the tensor's own."""
    known: Unfolded | None = _UNFOLDED.get(parts[0])
    if known is None or known.table != table:
        known = _UNFOLDED[parts[0]] = Unfolded(parts, table)
    return known


def one_tensor_table(table: PackTable, record: TensorRecord) -> tuple[str, list[tuple[str, int]]]:
    """Return the table of a pack that holds one encoded tensor of another pack, and the sections that it needs.

    Returns
    -------
    str
        JSON, with sections numbered from 0 and without what decoding does not need: equal tensors have equal tables.
    list of (kind, number in `table`)
        The tensor's own first, then its group's.
    """
    assert record.group is not None
    group = table.groups[record.group]
    sections = [*record.sections.items(), *group.sections.items()]
    numbers = {kind: i for i, (kind, _) in enumerate(sections)}
    tensor = {key: value for key, value in record.to_json().items() if key not in ("shard", "gates", "source_crc32")}
    tensor |= {"name": "weight", "sections": {kind: numbers[kind] for kind in record.sections}, "group": 0}
    shared = group.to_json() | {"sections": {kind: numbers[kind] for kind in group.sections}}
    facts = {"profile": table.profile, "groups": [shared], "tensors": [tensor], "metadata": {}, "source": {}}
    return json.dumps(facts, sort_keys=True), sections


@functools.lru_cache(maxsize=4096)
def _shape(table: str) -> tuple[int, int]:
    n_rows, n_cols = json.loads(table)["tensors"][0]["shape"]
    return n_rows, n_cols


# ---- rows by id ----


def check_ids(ids: torch.Tensor) -> None:
    """Raise TypeError unless ids are of a type that `nn.Embedding` takes."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids must be int64 or int32, got {ids.dtype}")


def nearest_finite(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return float32 rows as a type, rounded to its nearest finite value as `hhtld.dtypes.narrow` does."""
    if dtype.itemsize >= 4:
        return rows.to(dtype)
    largest = torch.finfo(dtype).max
    return rows.clamp(-largest, largest).to(dtype)


@torch.library.custom_op(
    "hhtld::embedding",
    mutates_args=(),
    schema="(Tensor ids, Tensor[] parts, str table, ScalarType dtype) -> Tensor",
)
def embedding(ids: torch.Tensor, parts: Sequence[torch.Tensor], table: str, dtype: torch.dtype) -> torch.Tensor:
    """Return the rows of ids of any shape, (*ids.shape, n_cols) of `dtype`; an id that repeats is decoded once."""
    check_ids(ids)
    n_rows, n_cols = _shape(table)
    flat = ids.detach().reshape(-1).numpy()
    if not flat.size:
        return torch.empty((*ids.shape, n_cols), dtype=dtype, device="cpu")
    if flat.size == 1:
        unique, places = flat, None
    else:
        unique, places = np.unique(flat, return_inverse=True)
    if unique[0] < 0 or unique[-1] >= n_rows:  # as nn.Embedding, which does not count from the end either
        raise IndexError(f"ids must lie in 0..{n_rows - 1}, got {unique[0]}..{unique[-1]}")
    rows = nearest_finite(torch.from_numpy(unfolded(parts, table).tensor.reconstruct_rows(unique)), dtype)
    if places is not None:
        rows = rows.index_select(0, torch.from_numpy(places.reshape(-1)))
    return rows.view(*ids.shape, n_cols)


@embedding.register_fake
def _(ids: torch.Tensor, parts: Sequence[torch.Tensor], table: str, dtype: torch.dtype) -> torch.Tensor:
    check_ids(ids)
    return ids.new_empty((*ids.shape, _shape(table)[1]), dtype=dtype)


# ---- products with rows ----


def _check_input(x: torch.Tensor, n_rows: int, n_cols: int) -> None:
    if not x.is_floating_point():
        raise TypeError(f"inputs must be floating-point numbers, got {x.dtype}")
    if x.ndim == 0 or x.shape[-1] != n_cols:
        raise ValueError(
            f"inputs must have {n_cols} columns for a weight of ({n_rows}, {n_cols}), got {tuple(x.shape)}"
        )


def _refuse_tangents() -> None:
    """Raise RuntimeError if there may be tangents: those of an op's arguments do not get into it."""
    if may_carry_tangents():
        raise RuntimeError(
            "the op hhtld::linear passes no tangents on: differentiate the layer itself, or the model that holds it, "
            "and no compiled or exported form of it"
        )


@torch.library.custom_op(
    "hhtld::linear",
    mutates_args=(),
    schema="(Tensor x, Tensor[] parts, str table, ScalarType dtype, Tensor? bias, int scored_rows, bool exact)"
    " -> Tensor",
)
def linear(
    x: torch.Tensor,
    parts: Sequence[torch.Tensor],
    table: str,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    scored_rows: int,
    exact: bool,
) -> torch.Tensor:
    """As `product`, for a tensor of sections."""
    _refuse_tangents()
    return product(x, unfolded(parts, table), dtype, bias, scored_rows, exact)


def product(
    x: torch.Tensor, weight: Unfolded, dtype: torch.dtype, bias: torch.Tensor | None, scored_rows: int, exact: bool
) -> torch.Tensor:
    """Return ``x @ weight.T + bias``, (*x.shape[:-1], n_rows) of `dtype`, summed in float32 (float64 for float64 x).

    At most `scored_rows` rows of finite inputs are scored on the slots, as one plane of int8 or, if `exact`, if there
    are more columns than rows, or if rows have centroids, as two; more are multiplied with the weight as it decodes,
    block by block.
    """
    n_rows, n_cols = weight.n_rows, weight.n_cols
    _check_input(x, n_rows, n_cols)
    if x.is_neg() or x.layout is not torch.strided:
        x = x.detach().to_dense().resolve_neg()
    if x.dtype != torch.float64 and 0 < x.numel() <= scored_rows * n_cols and n_cols <= _score.MAX_COLS:
        scored = _scored(x, weight, dtype, bias, exact)
        if scored is not None:
            return scored
    rows = x.detach().reshape(-1, n_cols)
    out = _multiplied(rows if rows.dtype == torch.float64 else rows.float(), weight)
    if bias is not None:
        out += bias.detach()
    return out.to(dtype).view(*x.shape[:-1], n_rows)


# What the kernel reads and writes.
_KERNEL_TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def _scored(
    x: torch.Tensor, weight: Unfolded, dtype: torch.dtype, bias: torch.Tensor | None, exact: bool
) -> torch.Tensor | None:
    """Return the products on the slots, or None: infinities and NaN must spread as they do in nn.Linear."""
    shape, products = (*x.shape[:-1], weight.n_rows), weight.products
    if products is None:
        rows = x.detach().reshape(-1, weight.n_cols).float()
        if not bool(torch.isfinite(rows).all()):
            return None
        out = torch.from_numpy(weight.scorer.scores(rows.numpy())).view(shape)
    else:
        if x.dtype not in _KERNEL_TYPES:
            x = x.detach().float()
        x = x.contiguous()
        if not x.data_ptr():  # zeros that torch holds no memory for, as a tangent may be
            x = x.clone()
        # Inputs that are wider than outputs lose most, and heads, which have centroids, say the next token
        # (docs/decisions/one-plane.md).
        n_planes = 2 if exact or weight.n_cols > weight.n_rows or products.has_centroids else 1
        # A bias is added before anything is rounded.
        out = torch.empty(
            shape, dtype=dtype if bias is None and dtype in _KERNEL_TYPES else torch.float32, device="cpu"
        )
        if not products.write_at(
            x.data_ptr(),
            _KERNEL_TYPES[x.dtype],
            x.numel() // weight.n_cols,
            out.data_ptr(),
            _KERNEL_TYPES[out.dtype],
            n_planes,
            torch.get_num_threads(),
        ):
            return None
    if bias is not None:
        out += bias.detach()
    return out.to(dtype)


def _multiplied(rows: torch.Tensor, weight: Unfolded) -> torch.Tensor:
    """Return ``rows @ weight.T``, the weight decoded a block of rows at a time."""
    out = torch.empty((len(rows), weight.n_rows), dtype=rows.dtype, device="cpu")
    if rows.dtype == torch.float32 and weight.products is not None:
        rotated = weight.products.rotated(rows.numpy())  # the inputs, instead of every row of the weight back
        if rotated is not None:
            inputs = torch.from_numpy(rotated)
            turned = None  # (n_rows, n_inputs), so that what rows of several rates give is written side by side
            for places, block in weight.products.rotated_blocks():
                if isinstance(places, slice):
                    torch.mm(inputs, torch.from_numpy(block).t(), out=out[:, places])
                    continue
                if turned is None:
                    turned = torch.empty((weight.n_rows, len(rows)))
                turned[torch.from_numpy(places)] = torch.from_numpy(block) @ inputs.t()
            if turned is not None:
                out.copy_(turned.t())
            return out
    for start, stop in row_ranges(weight.n_rows, 4 * rows.shape[1]):
        block = torch.from_numpy(weight.tensor.reconstruct_rows(slice(start, stop))).to(rows.dtype)
        torch.mm(rows, block.t(), out=out[:, start:stop])
    return out


@linear.register_fake
def _(
    x: torch.Tensor,
    parts: Sequence[torch.Tensor],
    table: str,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    scored_rows: int,
    exact: bool,
) -> torch.Tensor:
    _refuse_tangents()  # a compiler asks this; what it makes would go on with tangents of zero
    _check_input(x, *_shape(table))
    return x.new_empty((*x.shape[:-1], _shape(table)[0]), dtype=dtype)


# ---- batches ----


def refuse_batches(*tensors: torch.Tensor | None) -> None:
    """Raise RuntimeError if one of the arguments is many, of `torch.vmap`."""
    if any(tensor is not None and is_batched(tensor) for tensor in tensors):
        raise RuntimeError(
            "weights that stay in a file take no batches of torch.vmap: hold them in memory, HhtlEmbedding(..., "
            "resident=True), or call the module with the whole batch"
        )


def _refuse_batches_of_weights(part_axes: Sequence[int | None]) -> None:
    if any(axis is not None for axis in part_axes):
        raise RuntimeError("packed weights cannot be stacked for torch.vmap: call one model after the other")


@embedding.register_vmap
def _(
    _info: Any, in_dims: Any, ids: torch.Tensor, parts: Sequence[torch.Tensor], table: str, dtype: torch.dtype
) -> tuple[torch.Tensor, int]:
    _refuse_batches_of_weights(in_dims[1])
    return torch.ops.hhtld.embedding(ids.movedim(in_dims[0], 0), parts, table, dtype), 0


@linear.register_vmap
def _(
    info: Any,
    in_dims: Any,
    x: torch.Tensor,
    parts: Sequence[torch.Tensor],
    table: str,
    dtype: torch.dtype,
    bias: torch.Tensor | None,
    scored_rows: int,
    exact: bool,
) -> tuple[torch.Tensor, int]:
    """Take the batch as one more leading axis."""
    _refuse_batches_of_weights(in_dims[1])
    x_axis, bias_axis = in_dims[0], in_dims[4]
    x = x.unsqueeze(0) if x_axis is None else x.movedim(x_axis, 0)
    if bias is None or bias_axis is None:
        return torch.ops.hhtld.linear(x, parts, table, dtype, bias, scored_rows, exact), 0
    # A bias is added before anything is rounded.
    summed_in = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = torch.ops.hhtld.linear(x, parts, table, summed_in, None, scored_rows, exact)
    bias = bias.movedim(bias_axis, 0)
    return (out + bias.reshape(len(bias), *[1] * (out.ndim - 2), -1)).to(dtype), 0


# ---- derivatives ----

_INSTEAD = (
    "make the model an ordinary one first, with model.dequantize() (transformers) or "
    "hhtld.integrations.torch.dequantize(model)"
)


def with_tangent(
    layer: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return a layer's output with its tangent: the layer on the tangent of its input, with that of its bias.

    Raises
    ------
    RuntimeError
        If tangents may have tangents, or if a batch of `torch.vmap` has them.
    """
    if is_batch_innermost():
        raise RuntimeError(
            "packed weights pass no tangents of a torch.vmap on: take torch.vmap of what calls torch.func.jvp, or call "
            "the layer with the whole batch"
        )
    if are_tangents_nested():
        raise RuntimeError(f"packed weights pass no tangents of tangents on: {_INSTEAD}")
    (x, x_tangent), bias_tangent = torch.autograd.forward_ad.unpack_dual(x), None
    if bias is not None:
        bias, bias_tangent = torch.autograd.forward_ad.unpack_dual(bias)
    with without_tangents():
        out = layer(x, bias)
        tangent = None if x_tangent is None else layer(x_tangent, bias_tangent)
    if x_tangent is None and bias_tangent is not None:
        tangent = bias_tangent.to(out.dtype).expand_as(out)
    return out if tangent is None else torch.autograd.forward_ad.make_dual(out, tangent)


def refuse_derivatives(x: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Raise RuntimeError if an input or a bias has a gradient, or may have a tangent, to pass on."""
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        _no_gradients()
    if may_carry_tangents():
        raise RuntimeError(f"weights that stay in a file pass no tangents on: {_INSTEAD}")


def _no_gradients(*_: Any) -> Any:
    """Stop training, which would go wrong, and say what to do instead."""
    raise RuntimeError(f"packed weights pass no gradients on: for training, adapters included, {_INSTEAD}")


linear.register_autograd(_no_gradients)
