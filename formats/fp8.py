"""FP8 weights that come with scales, read as the weights they mean.

Layout
------
==============================  ============================================================================
tensor                          meaning
==============================  ============================================================================
``X`` F8_E4M3 (n_rows, n_cols)  weights divided by their scales
``X_scale_inv``                 one scale for each block, (ceil(n_rows / block), ceil(n_cols / block)); block is
                                config.json's ``weight_block_size``, 128 x 128 unless it says otherwise; where it
                                is null, one scale for the tensor
``X_scale``                     one scale for the tensor, (), (1,) or (1, 1); for each row, (n_rows,) or
                                (n_rows, 1); or for each block, as above
==============================  ============================================================================

A weight is ``float32(X) * scale``, rounded to bfloat16; the name ``inv`` notwithstanding, both kinds multiply.
Scales are F32, BF16 or F16. Edge blocks are cut off, not padded.

Rounding: one in float32 and one to bfloat16, both to nearest, ties to even, as DeepSeek's own conversion does.

Refused, naming the tensor: a scale of another shape or type, or not finite, or not above 0; a weight without its
scale, of another type or not of two axes; a scale without its weight.

Source: https://github.com/deepseek-ai/DeepSeek-V3 (README_WEIGHTS.md, inference/fp8_cast_bf16.py, kernel.py);
https://github.com/vllm-project/compressed-tensors (format float-quantized); quantization methods `fp8` and
`fbgemm_fp8` of https://github.com/huggingface/transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import DTYPES, narrow, widen
from hhtld.errors import HeaderError, shown
from hhtld.formats.model_config import CONFIG, config_bytes, config_object
from hhtld.source import TensorInfo, TensorSource

__all__ = ["DequantizedSource", "Fp8Scheme", "declared_scheme", "has_scales", "holds_fp8"]

BLOCK = (128, 128)
INVERSE, PLAIN = "_scale_inv", "_scale"
# Scales of activations, which no weight needs; they lie beside the weight in its module.
ACTIVATIONS = ("input_scale", "output_scale", "activation_scale", "input_scale_ub")
_QUANTIZED = ("quantization_config", "compression_config")  # where config.json tells of it; the first counts
_STORED, _SHOWN = DTYPES["F8_E4M3"], DTYPES["BF16"]


@dataclass(frozen=True)
class Fp8Scheme:
    """How weights are scaled: what config.json declares, or the usual where it says nothing.

    Attributes
    ----------
    method : str or None
        `quant_method`; None where nothing is declared.
    block : (int, int) or None
        Rows and columns that share a scale; None for the whole tensor.
    """

    method: str | None = None
    block: tuple[int, int] | None = BLOCK


# --- what config.json declares ----------------------------------------------------------------


def declared_scheme(config: Mapping[str, Any], where: str) -> Fp8Scheme | None:
    """Return the scheme that a config declares, or None for a model that is not quantized.

    Raises
    ------
    HeaderError
        For every quantization other than FP8 with scales; starts with `where`.
    """
    found = next((config[key] for key in _QUANTIZED if key in config), None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    is_e4m3 = method == "fp8" and found.get("fmt", "e4m3") in ("e4m3", "float8_e4m3fn")
    if is_e4m3 and found.get("expert_dtype", "fp8") == "fp8":  # DeepSeek-V4 has experts of 4 bits beside
        return Fp8Scheme(method, _block(found.get("weight_block_size", BLOCK), where))
    if method == "fbgemm_fp8":
        return Fp8Scheme(method, None)
    if method == "compressed-tensors" and _is_float8(found):
        blocks = {tuple(group["weights"].get("block_structure") or ()) for group in found["config_groups"].values()}
        chosen = [block for block in blocks if block]
        if len(chosen) < 2:
            return Fp8Scheme(method, _block(chosen[0], where) if chosen else None)
    raise HeaderError(
        f"{where}: the model is already quantized with {shown(str(method or 'an unnamed method'), 40)}; "
        f"convert the original, unquantized model instead, or dequantize this one and remove "
        f"quantization_config first (FP8 with scales is read as it is)"
    )


def _is_float8(found: Mapping[str, Any]) -> bool:
    """Whether every group of a compressed-tensors config holds 8-bit floats with scales alone."""
    groups = found.get("config_groups")
    if found.get("format") != "float-quantized" or not isinstance(groups, dict) or not groups:
        return False
    sparse = found.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        return False
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict) or group.get("format") not in (None, "float-quantized"):
            return False
        kind = (weights.get("num_bits"), weights.get("type"), weights.get("symmetric", True))
        if kind != (8, "float", True) or weights.get("strategy") not in ("tensor", "channel", "block"):
            return False
    return True


def _block(found: object, where: str) -> tuple[int, int] | None:
    if found is None:
        return None
    if isinstance(found, list | tuple) and len(found) == 2:
        n_rows, n_cols = found
        if type(n_rows) is int and type(n_cols) is int and min(n_rows, n_cols) > 0:
            return n_rows, n_cols
    raise HeaderError(f"{where}: weight_block_size must be two positive integers, got {str(found)[:80]}")


# --- the source -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """Where a weight's scales lie, and how many of its rows and columns share one."""

    info: TensorInfo
    n_rows: int
    n_cols: int


def holds_fp8(infos: Mapping[str, TensorInfo]) -> bool:
    """Whether there is an FP8 weight or a scale that only such a weight can have."""
    return any(info.dtype is _STORED or name.endswith(INVERSE) for name, info in infos.items())


def has_scales(infos: Mapping[str, TensorInfo]) -> bool:
    """Whether some FP8 weight, or a scale that only such a weight can have, is among tensors."""
    return any(
        name.endswith(INVERSE) or (info.dtype is _STORED and name + PLAIN in infos) for name, info in infos.items()
    )


class DequantizedSource(TensorSource):
    """A source whose FP8 weights appear as BF16, multiplied by their scales as rows are read, without the scales.

    Parameters
    ----------
    source : TensorSource
        Closed with this one.
    scheme : Fp8Scheme
    where : str
        What messages begin with.

    Raises
    ------
    HeaderError
        When weights and scales do not go together; see the module. Values of scales are checked when they are read.
    """

    def __init__(self, source: TensorSource, scheme: Fp8Scheme, where: str) -> None:
        self._source, self._scheme, self._where = source, scheme, where
        held = source.infos()
        self._scales = _paired(held, scheme, where)
        left_out = {scale.info.name for scale in self._scales.values()}
        modules = {name.rpartition(".")[0] for name in self._scales}
        left_out |= {
            name
            for name in held
            if name.rpartition(".")[2] in ACTIVATIONS and name.rpartition(".")[0] in modules and name not in left_out
        }
        self._n_left_out = len(left_out)
        self._infos = {
            name: replace(info, dtype=_SHOWN) if name in self._scales else info
            for name, info in held.items()
            if name not in left_out
        }

    @property
    def metadata(self) -> dict[str, str]:
        return self._source.metadata

    @property
    def description(self) -> dict[str, Any]:
        """The source's own, and under "dequantized" what became of FP8 weights and scales."""
        facts: dict[str, Any] = {"from": _STORED.name, "to": _SHOWN.name}
        if self._scheme.method is not None:
            facts["quant_method"] = self._scheme.method
        if self._scheme.block is not None:
            facts["block"] = list(self._scheme.block)
        facts |= {"n_tensors": len(self._scales), "n_scales_left_out": self._n_left_out}
        return self._source.description | {"dequantized": facts}

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def aliases(self) -> Mapping[str, str]:
        found = self._source.aliases()
        return {name: of for name, of in found.items() if name in self._infos and of in self._infos}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info = self._infos.get(name)
        if info is None:
            raise ValueError(f"{self._where}: no tensor {shown(name)}")
        raw = self._source.read_rows(name, start, stop)
        scale = self._scales.get(name)
        if scale is None:
            return raw
        if not raw.size:
            return np.empty((stop - start, info.row_nbytes), np.uint8)
        values = widen(raw, _STORED).reshape(stop - start, info.n_cols)
        first = start // scale.n_rows
        grid = self._grid(scale, first, -(-stop // scale.n_rows))
        with np.errstate(over="ignore"):  # what passes float32 is refused by whoever needs finite weights
            if grid.shape[1] == 1:
                each = np.repeat(grid, scale.n_rows, axis=0) if scale.n_rows > 1 and len(grid) > 1 else grid
                values *= each[start - first * scale.n_rows :][: len(values)] if len(each) > 1 else each
            else:
                for number, scales in enumerate(grid, first):
                    rows = slice(max(number * scale.n_rows - start, 0), (number + 1) * scale.n_rows - start)
                    values[rows] *= np.repeat(scales, scale.n_cols)[: info.n_cols]
        return narrow(values, _SHOWN).reshape(stop - start, info.row_nbytes)

    def _grid(self, scale: _Scale, first: int, last: int) -> NDArray[np.float32]:
        """Return rows [first, last) of a weight's scales, checked."""
        info = scale.info
        if len(info.shape) == 2:
            raw = self._source.read_rows(info.name, first, last)
            grid = widen(raw, info.dtype).reshape(last - first, info.shape[1])
        else:
            whole = widen(self._source.read_rows(info.name, 0, info.n_rows), info.dtype)
            grid = whole.reshape(-1, 1)[first:last]
        bad = np.argwhere(~(np.isfinite(grid) & (grid > 0)))
        if len(bad):
            row, column = (int(n) for n in bad[0])
            raise HeaderError(
                f"{self._where}: tensor {shown(info.name)} holds {grid[row, column]} at row {first + row}, column "
                f"{column}; scales must be finite and above 0"
            )
        return grid

    def files(self) -> Mapping[str, int]:
        found = dict(self._source.files())
        if CONFIG in found:
            found[CONFIG] = len(self._plain_config)
        return found

    def read_file(self, name: str) -> bytes:
        """Return a side file; config.json without how the weights were quantized, which they no longer are."""
        return self._plain_config if name == CONFIG else self._source.read_file(name)

    @cached_property
    def _plain_config(self) -> bytes:
        config = config_object(self._source.read_file(CONFIG), f"{self._where}: {CONFIG}")
        return config_bytes({key: value for key, value in config.items() if key not in _QUANTIZED})

    def close(self) -> None:
        self._source.close()


def _paired(infos: Mapping[str, TensorInfo], scheme: Fp8Scheme, where: str) -> dict[str, _Scale]:
    """Return the scales of every weight that has some; refuse what does not go together."""
    found: dict[str, _Scale] = {}
    for name in infos:
        weight = _weight_of(name, infos, scheme)
        if weight is None:
            continue
        if weight not in infos:
            raise HeaderError(
                f"{where}: tensor {shown(name)} scales {shown(weight)}, which is not here; of a sharded model, give "
                f"the folder or the index"
            )
        if weight in found:
            raise HeaderError(f"{where}: tensor {shown(weight)} has two scales, {shown(name)} is the second")
        found[weight] = _checked(infos[weight], infos[name], scheme, where)
    for name, info in infos.items():
        if info.dtype is _STORED and name not in found:
            raise HeaderError(
                f"{where}: tensor {shown(name)} is {info.dtype.name} and its scale, {shown(name + INVERSE)} or "
                f"{shown(name + PLAIN)}, is missing; of a sharded model, give the folder or the index"
            )
    return found


def _weight_of(name: str, infos: Mapping[str, TensorInfo], scheme: Fp8Scheme) -> str | None:
    """Return the weight that a tensor scales, or None when it is no scale of weights."""
    if name.endswith(INVERSE):
        return name.removesuffix(INVERSE)
    if not name.endswith(PLAIN):
        return None
    weight = name.removesuffix(PLAIN)
    if scheme.method is None:  # other models, too, have tensors of such names
        return weight if weight in infos and infos[weight].dtype is _STORED else None
    return weight if weight in infos or weight.endswith(".weight") else None


def _checked(weight: TensorInfo, scale: TensorInfo, scheme: Fp8Scheme, where: str) -> _Scale:
    """Return a weight's scale, type and shape of both agreeing."""
    what = f"{where}: tensor {shown(weight.name)}"
    if weight.dtype is not _STORED:
        raise HeaderError(f"{what} has the scale {shown(scale.name)} and is {weight.dtype.name}, expected F8_E4M3")
    if len(weight.shape) != 2:
        raise HeaderError(f"{what} has a scale and shape {list(weight.shape)}, expected two axes")
    if scale.dtype.name not in ("F32", "BF16", "F16"):
        raise HeaderError(f"{what}: its scale {shown(scale.name)} is {scale.dtype.name}, expected F32, BF16 or F16")
    n_rows, n_cols = weight.shape
    whole = (max(n_rows, 1), max(n_cols, 1))
    block = scheme.block
    allowed: dict[tuple[int, ...], tuple[int, int]] = {}
    if scale.name.endswith(PLAIN):
        allowed |= {(n_rows,): (1, whole[1]), (n_rows, 1): (1, whole[1])}
    if scale.name.endswith(PLAIN) or block is None:
        allowed |= dict.fromkeys(((), (1,), (1, 1)), whole)
    if block is not None:
        allowed[math.ceil(n_rows / block[0]), math.ceil(n_cols / block[1])] = block
    if scale.shape not in allowed:
        grids = " or ".join(str(list(shape)) for shape in allowed)
        raise HeaderError(
            f"{what} of shape {list(weight.shape)}: its scale {shown(scale.name)} has shape {list(scale.shape)}, "
            f"expected {grids}" + (f" for blocks of {block[0]} x {block[1]}" if block is not None else "")
        )
    return _Scale(scale, *allowed[scale.shape])
