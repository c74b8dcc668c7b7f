"""Tensors of a pack as torch tensors: element types, streaming, and dicts of them."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from hhtld.dtypes import DType, narrow
from hhtld.errors import HeaderError, did_you_mean, shown
from hhtld.pack.opening import open_pack as open_file
from hhtld.pack.pack import HhtldPack
from hhtld.pack.table import TensorRecord
from hhtld.sources.rows import row_ranges

__all__ = [
    "checked_dtype",
    "fill",
    "iter_tensors",
    "load_state_dict",
    "opened",
    "selected",
    "torch_dtype",
    "torch_shape",
]

PackOrPath = HhtldPack | str | os.PathLike[str]

# By torch's attribute, since not every torch has all of them.
_TORCH_NAMES = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


def torch_dtype(dtype: DType | str, name: str = "") -> torch.dtype:
    """Return torch's type for one of the pack's, given itself or by its safetensors name.

    Raises
    ------
    TypeError
        If this torch has none (6-bit floats; 4-bit ones before 2.8); the message names tensor `name`.
    """
    kind = dtype if isinstance(dtype, str) else dtype.name
    torch_type = getattr(torch, _TORCH_NAMES.get(kind, ""), None)
    if not isinstance(torch_type, torch.dtype):
        where = f"tensor {shown(name)}: " if name else ""
        raise TypeError(f"{where}torch {torch.__version__} has no type for {kind}; leave such tensors out with names=")
    return torch_type


def torch_shape(record: TensorRecord) -> tuple[int, ...]:
    """Return a tensor's shape as torch counts it: two 4-bit floats are one element, as in safetensors.torch."""
    shape, dtype = record.info.shape, record.info.dtype
    if dtype.name != "F4" or not shape:
        return shape
    if shape[-1] % 2:
        raise TypeError(
            f"tensor {shown(record.name)}: F4 of shape {list(shape)} does not fill pairs along its last axis"
        )
    return (*shape[:-1], shape[-1] // 2)


def checked_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a floating-point type that is given itself or by name, or None for None, or raise ValueError."""
    if dtype is None:
        return None
    torch_type = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(torch_type, torch.dtype) or not torch_type.is_floating_point:
        raise ValueError(f"dtype must be None or a torch floating-point type such as 'float32', got {dtype!r}")
    return torch_type


@contextlib.contextmanager
def opened(source: PackOrPath) -> Iterator[HhtldPack]:
    """Give a pack as it is, or a file opened for as long as the block runs."""
    if isinstance(source, HhtldPack):
        yield source
        return
    with open_file(source) as pack:
        yield pack


def selected(names: Iterable[str], patterns: Iterable[str] | str | None, of: str) -> list[str]:
    """Return the names that patterns (exact names or globs; None: all) pick, in the order of `names`.

    Raises
    ------
    KeyError
        If a pattern picks nothing.
    """
    known = list(names)
    if patterns is None:
        return known
    picked: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matching = {pattern} & set(known) or set(fnmatch.filter(known, pattern))
        if not matching:
            raise KeyError(f"{shown(pattern)} names no {of}{did_you_mean(pattern, known)}")
        picked |= matching
    return [name for name in known if name in picked]


def fill(out: torch.Tensor, pack: HhtldPack, record: TensorRecord) -> None:
    """Write a tensor of a pack, block by block, into `out`, which has its shape, any type, and any device but meta.

    If `out` has the source's type, values are rounded as `hhtld convert` rounds them on the way back, and kept tensors
    are equal bit for bit. Otherwise torch converts them, encoded ones from float32.
    """
    if not out.is_contiguous():
        plain = torch.empty(out.shape, dtype=out.dtype, device=out.device)
        fill(plain, pack, record)
        out.copy_(plain)
        return
    native = torch_dtype(record.info.dtype, record.name)
    as_bytes = out.dtype == native  # torch moves the bytes of every type, but not the values of every type
    flat = out.view(-1).view(torch.uint8) if as_bytes else out.view(-1)
    blocks = _decoded_blocks(pack, record, as_bytes) if record.is_encoded else _kept_blocks(pack, record)
    start = 0
    for array in blocks:
        block = torch.from_numpy(array)
        if not record.is_encoded and not as_bytes:
            block = block.view(native)
        flat[start : start + len(block)].copy_(block)
        start += len(block)


def _kept_blocks(pack: HhtldPack, record: TensorRecord) -> Iterator[NDArray[np.uint8]]:
    """Yield bytes of whole elements, copied, because torch warns of arrays that are read-only, as mapped ones are."""
    raw = pack.get_tensor(record.name, "source").reshape(-1).view(np.uint8)
    width = max(1, record.info.dtype.nbits // 8)
    for start, stop in row_ranges(len(raw) // width, width):
        yield np.array(raw[start * width : stop * width])


def _decoded_blocks(pack: HhtldPack, record: TensorRecord, as_bytes: bool) -> Iterator[NDArray[np.generic]]:
    """Yield float32 values, flat, or the bytes of the source's type that they round to."""
    encoded = pack.get_encoded(record.name)  # all slots at once, for their checksums: a fraction of the result
    for start, stop in row_ranges(record.info.n_rows, 4 * record.info.n_cols):
        rows = encoded.reconstruct_rows(slice(start, stop))
        yield narrow(rows, record.info.dtype) if as_bytes else rows.reshape(-1)


def loaded(
    pack: HhtldPack, record: TensorRecord, dtype: torch.dtype | None, device: torch.device | str
) -> torch.Tensor:
    """Return a tensor, decoded, as `dtype` if that is given and the tensor holds weights; else as the source's type."""
    native = torch_dtype(record.info.dtype, record.name)
    kind = dtype if dtype is not None and record.info.dtype.is_weight else native
    shape = torch_shape(record)
    if torch.device(device).type == "meta":
        return torch.empty(shape, dtype=kind, device=device)
    nbytes = math.prod(shape) * kind.itemsize
    if record.is_encoded and nbytes > pack.budget:
        raise HeaderError(
            f"tensor {shown(record.name)} takes {nbytes} bytes to decode, the budget is {pack.budget}; "
            f"raise it with hhtld.open(path, budget=...) and pass the pack"
        )
    out = torch.empty(shape, dtype=kind, device=device)
    fill(out, pack, record)
    return out


def iter_tensors(
    path_or_pack: PackOrPath,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    names: Iterable[str] | str | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and decoded tensors one by one; parameters and errors are those of `load_state_dict`.

    Names that share a tensor follow one another and yield the same object, so no tensor must be remembered.
    """
    kind = checked_dtype(dtype)
    with opened(path_or_pack) as pack:
        sharing: dict[str, list[str]] = {}
        for name in selected(pack.keys(), names, "tensor of the pack"):
            sharing.setdefault(pack.info(name).name, []).append(name)
        for record_name, sharers in sharing.items():
            tensor = loaded(pack, pack.info(record_name), kind, device)
            for name in sharers:
                yield name, tensor
            del tensor  # before the next one is made


def load_state_dict(
    path_or_pack: PackOrPath,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    names: Iterable[str] | str | None = None,
) -> dict[str, torch.Tensor]:
    """Return a pack's tensors, decoded, as a state dict for ``model.load_state_dict``.

    It works tensor by tensor and block by block: at most the result, one tensor's slots and one block of rows are in
    memory.

    Parameters
    ----------
    path_or_pack : path or HhtldPack
    dtype : torch.dtype or str, optional
        The type of tensors of weights; None gives the source's types. Others (integers, bools) keep theirs.
    device : torch.device or str
        "meta" gives shapes and types and decodes nothing.
    names : str or iterable of str, optional
        Exact names or globs of the tensors to return; None for all.

    Returns
    -------
    dict of str to torch.Tensor
        In the pack's order, with the source's shapes. Names that share a tensor have one object. Kept tensors are
        equal to the source bit for bit.

    Raises
    ------
    KeyError
        If a name or glob picks nothing.
    ValueError
        If `dtype` is no floating-point type.
    TypeError
        If torch has no type for a tensor (6-bit floats).
    FormatError
        If the file is damaged or is no pack, or if a tensor takes more than the pack's budget.
    """
    tensors = dict(iter_tensors(path_or_pack, dtype=dtype, device=device, names=names))
    return {name: tensors[name] for name in sorted(tensors)}
