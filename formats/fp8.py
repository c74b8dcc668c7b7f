"""FP8 weights that come with scales, read as the weights they mean.

Layout
------
==================================  ========================================================================
tensor                              meaning
==================================  ========================================================================
``X`` F8_E4M3 or F8_E5M2            weights divided by their scales; the last two axes are a matrix, those before
(..., n_rows, n_cols)               them count matrices, as of experts
``X_scale_inv``                     one scale for each block, (..., ceil(n_rows / block), ceil(n_cols / block)); block
                                    is config.json's ``weight_block_size``, 128 x 128 unless it says otherwise; where
                                    it is null, one scale for the tensor or for each matrix
``X_scale``                         one scale for the tensor, (), (1,) or (1, 1); for each matrix, (...), (..., 1) or
                                    (..., 1, 1); for each row, (..., n_rows) or (..., n_rows, 1); for each column of
                                    experts, (..., 1, n_cols); or for each block, as above, or of one matrix
                                    (blocks down, 1, blocks across, 1), as ModelOpt writes them
``Y.scale_weight``                  the same of ``Y.weight``, in files of ComfyUI, whose marker ``scaled_fp8`` goes too
``Y.scale`` F8_E8M0                 the same of ``Y.weight``, as DeepSeek publishes it since V4, of n-gram tables too;
                                    where config.json gives no block of that shape, blocks of 128 x 128 or 32 x 32, or
                                    groups of 32 or 128 weights of a row
==================================  ========================================================================

A weight is ``float32(X) * scale``, rounded to bfloat16; the name ``inv`` notwithstanding, both kinds multiply.
Scales are F32, BF16, F16 or F8_E8M0. Edge blocks are cut off, not padded.

Rounding: one in float32 and one to bfloat16, both to nearest, ties to even, as DeepSeek's own conversion does.

FP8 weights without scales are the weights they are, also beside scaled ones, unless config.json says that all have
scales, or a scaled weight has the same name but for its numbers: then the scale was left in another shard.

Refused, naming the tensor: a scale of another shape or type, or not finite, or negative, or 0 for weights that are
not; a weight without its scale, as above, of another type or of one axis; a scale without its weight.

Source: https://github.com/deepseek-ai/DeepSeek-V3 (README_WEIGHTS.md, inference/fp8_cast_bf16.py, kernel.py);
https://github.com/vllm-project/compressed-tensors (format float-quantized); quantization methods `fp8` and
`fbgemm_fp8` of https://github.com/huggingface/transformers; https://github.com/NVIDIA/Model-Optimizer (`FP8`,
`FP8_PB_WO`, `FP8_PER_CHANNEL_PER_TOKEN`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hhtld.dtypes import DTYPES, DType, narrow, view, widen
from hhtld.errors import HeaderError, shown
from hhtld.matrix import TensorInfo
from hhtld.sources.contract import TensorSource, requested_tensor
from hhtld.sources.model_config import CONFIG, config_bytes, config_object

__all__ = ["QUANTIZATION_FILES", "Declared", "DequantizedSource", "Fp8Scheme", "declared", "has_scales", "holds_fp8"]

BLOCK = (128, 128)
INVERSE, PLAIN = "_scale_inv", "_scale"
POWERS = ".scale"  # beside X.weight, and F8_E8M0
_POWER_BLOCKS = ((128, 128), (32, 32), (1, 32), (1, 128))
COMFY, COMFY_MARKER = ".scale_weight", "scaled_fp8"  # beside X.weight; the marker says that a file has such scales
# Scales of activations, which no weight needs; they lie beside the weight in its module.
ACTIVATIONS = ("input_scale", "output_scale", "activation_scale", "input_scale_ub", "scale_input")
# Where config.json tells of it (the first counts; the last is MLX's), and which other files do.
_QUANTIZED = ("quantization_config", "compression_config", "quantization")
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quanto_qmap.json")
_STORED, _SHOWN = frozenset({"F8_E4M3", "F8_E5M2"}), DTYPES["BF16"]
_SCALES = ("F32", "BF16", "F16", "F8_E8M0")
_WAY_ON = "dequantize the model with the library that wrote it, then convert that"
_MODELOPT = {"FP8": None, "FP8_PER_CHANNEL_PER_TOKEN": None, "FP8_PB_WO": BLOCK}


@dataclass(frozen=True)
class Fp8Scheme:
    """How weights are scaled: what config.json declares, or the usual if it says nothing.

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


class Declared(NamedTuple):
    """What a model's configs say of its quantization: FP8 that is read, something else, or neither."""

    scheme: Fp8Scheme | None = None
    other: str | None = None


def declared(config: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]], where: str) -> Declared:
    """Return how a model says that it is quantized.

    Parameters
    ----------
    config : dict
        config.json; empty where there is none.
    beside : mapping of file name to dict
        Those of `QUANTIZATION_FILES` that are there.
    where : str
        Of config.json, for messages.

    Raises
    ------
    HeaderError
        For a block size that is none; starts with `where`.
    """
    for key in _QUANTIZED:
        if config.get(key) is not None:
            return _declared(config[key], key, f"{CONFIG} says", where)
    for name in QUANTIZATION_FILES:
        if name in beside:
            return _declared(beside[name], name, f"{name} says", where)
    return Declared()


def _declared(found: Any, key: str, says: str, where: str) -> Declared:
    quantization = found if isinstance(found, dict) else {}
    method = quantization.get("quant_method")
    inner = quantization.get("quantization")
    algorithm = (inner if isinstance(inner, dict) else quantization).get("quant_algo")
    kind = method.lower() if isinstance(method, str) else None
    is_e4m3 = kind == "fp8" and quantization.get("fmt", "e4m3") in ("e4m3", "float8_e4m3fn")
    if is_e4m3 and quantization.get("expert_dtype", "fp8") == "fp8":  # DeepSeek-V4 has experts of 4 bits beside
        return Declared(Fp8Scheme(method, _block(quantization.get("weight_block_size", BLOCK), where)))
    if kind == "fbgemm_fp8":
        return Declared(Fp8Scheme(method, None))
    if isinstance(algorithm, str) and algorithm in _MODELOPT and kind in (None, "modelopt"):
        return Declared(Fp8Scheme("modelopt", _MODELOPT[algorithm]))
    if kind == "compressed-tensors" and _is_float8(quantization):
        weights = [group["weights"] for group in quantization["config_groups"].values()]
        blocks = {_block(weight["block_structure"], where) for weight in weights if weight.get("block_structure")}
        if len(blocks) < 2:
            return Declared(Fp8Scheme(method, blocks.pop() if blocks else None))
    if method is None and algorithm is None:
        return Declared(None, f"{says} so" if key in QUANTIZATION_FILES else f"{says} so in {key}")
    names = " ".join(shown(str(name), 40) for name in (method, algorithm) if name is not None)
    return Declared(None, f"{says} {names}")


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
    raise HeaderError(f"{where}: weight_block_size must be two positive integers, and is {str(found)[:80]}")


# --- the source -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    """Where a weight's scales lie, how many of its rows and columns share one, and the grid that they form."""

    info: TensorInfo
    n_rows: int
    n_cols: int
    weight: tuple[int, ...]

    @property
    def n_across(self) -> int:
        """Scales in one row of the grid."""
        return -(-self.weight[-1] // self.n_cols)

    def grid_rows(self, start: int, stop: int) -> NDArray[np.intp]:
        """Return the grid's row for each row [start, stop) of all matrices, one below the other."""
        n_rows = self.weight[-2]
        n_down = -(-n_rows // self.n_rows)
        matrix, row = np.divmod(np.arange(start, stop), n_rows)
        if math.prod(self.info.shape) == n_down * self.n_across:  # the same for every matrix
            matrix[:] = 0
        grid_row: NDArray[np.intp] = matrix * n_down + row // self.n_rows
        return grid_row


def _scale_values(raw: NDArray[np.uint8], dtype: DType) -> NDArray[np.float32]:
    """Return scales as float32, flat."""
    if dtype.is_weight:
        return widen(raw, dtype)
    return view(raw, dtype, (-1,)).astype(np.float32)


def holds_fp8(infos: Mapping[str, TensorInfo]) -> bool:
    """Whether there is an FP8 weight or a scale that only such a weight can have."""
    return any(info.dtype.name in _STORED or name.endswith(INVERSE) for name, info in infos.items())


def has_scales(infos: Mapping[str, TensorInfo]) -> bool:
    """Whether some FP8 weight with a scale, or a scale that only such a weight can have, is among tensors."""
    return any(
        (name.endswith(INVERSE) and not _scales_integers(name, infos))
        or (info.dtype.name in _STORED and (name + PLAIN in infos or name + INVERSE in infos))
        or _comfy_weight(name, infos) is not None
        or _power_weight(name, infos) is not None
        for name, info in infos.items()
    )


def _comfy_weight(scale: str, infos: Mapping[str, TensorInfo]) -> str | None:
    """Return the FP8 weight that a scale of ComfyUI's name belongs to, or None if there is none."""
    weight = scale.removesuffix(COMFY) + ".weight"
    return weight if scale.endswith(COMFY) and weight in infos and infos[weight].dtype.name in _STORED else None


def _power_weight(scale: str, infos: Mapping[str, TensorInfo]) -> str | None:
    """Return the FP8 weight that a scale of DeepSeek's newer name and type belongs to, or None if there is none."""
    weight = scale.removesuffix(POWERS) + ".weight"
    if not scale.endswith(POWERS) or infos[scale].dtype.name != "F8_E8M0" or weight not in infos:
        return None
    return weight if infos[weight].dtype.name in _STORED else None


def _scales_integers(scale: str, infos: Mapping[str, TensorInfo]) -> bool:
    """Whether an inverse scale belongs to a weight of another scheme, see `hhtld.sources.quantized`."""
    weight = infos.get(scale.removesuffix(INVERSE))
    return weight is not None and not weight.dtype.is_weight


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
        If weights and scales do not go together; see the module. Values of scales are checked when they are read.
    """

    def __init__(self, source: TensorSource, scheme: Fp8Scheme, where: str) -> None:
        self._source, self._scheme, self._where = source, scheme, where
        source_infos = source.infos()
        self._scales = _paired(source_infos, scheme, where)
        left_out = {scale.info.name for scale in self._scales.values()}
        modules = {name.rpartition(".")[0] for name in self._scales}
        left_out |= {name for name in source_infos if name.rpartition(".")[0] in modules and _of_activations(name)}
        if any(scale.info.name.endswith(COMFY) for scale in self._scales.values()):
            left_out |= {name for name in source_infos if name.rpartition(".")[2] == COMFY_MARKER}
        self._n_left_out = len(left_out)
        self._infos = {
            name: replace(info, dtype=_SHOWN) if name in self._scales else info
            for name, info in source_infos.items()
            if name not in left_out
        }

    @property
    def metadata(self) -> dict[str, str]:
        return self._source.metadata

    @property
    def description(self) -> dict[str, Any]:
        """The source's own, and under "dequantized" what became of FP8 weights and scales."""
        source_infos = self._source.infos()
        kinds = sorted({source_infos[name].dtype.name for name in self._scales} or {"F8_E4M3"})
        facts: dict[str, Any] = {"from": ", ".join(kinds), "to": _SHOWN.name}
        if self._scheme.method is not None:
            facts["quant_method"] = self._scheme.method
        if self._scheme.block is not None:
            facts["block"] = list(self._scheme.block)
        facts |= {"n_tensors": len(self._scales), "n_scales_left_out": self._n_left_out}
        nbytes = sum(self.stored(name)[1] for name in self._infos)
        return self._source.description | {"dequantized": facts, "stored_nbytes": nbytes}

    @property
    def notes(self) -> list[str]:
        return self._source.notes

    def stored(self, name: str) -> tuple[str, int]:
        kind, nbytes = self._source.stored(name)
        scale = self._scales.get(name)
        return kind, nbytes if scale is None else nbytes + scale.info.nbytes

    def infos(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._infos)

    def aliases(self) -> Mapping[str, str]:
        source_aliases = self._source.aliases()
        return {name: of for name, of in source_aliases.items() if name in self._infos and of in self._infos}

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info = requested_tensor(self._infos, name, start, stop, self._where)
        raw = self._source.read_rows(name, start, stop)
        scale = self._scales.get(name)
        if scale is None:
            return raw
        if not raw.size:
            return np.empty((stop - start, info.row_nbytes), np.uint8)
        width = info.shape[-1]
        first, last = (row * info.n_cols // width for row in (start, stop))
        values = widen(raw, self._source.infos()[name].dtype).reshape(last - first, width)
        of_row = scale.grid_rows(first, last)
        grid = self._grid(scale, int(of_row[0]), int(of_row[-1]) + 1)
        numbers = of_row - of_row[0]
        with np.errstate(over="ignore"):  # what passes float32 is refused by whoever needs finite weights
            if scale.n_across == 1:
                self._multiply(values, grid[numbers], scale, of_row)
            else:
                ends = [0, *(np.flatnonzero(np.diff(of_row)) + 1).tolist(), last - first]
                for begin, end in itertools.pairwise(ends):
                    scales = np.repeat(grid[numbers[begin]], scale.n_cols)[:width]
                    self._multiply(values[begin:end], scales, scale, of_row[begin:end])
        return narrow(values, _SHOWN).reshape(stop - start, info.row_nbytes)

    def _multiply(
        self,
        values: NDArray[np.float32],
        scales: NDArray[np.float32],
        scale: _Scale,
        of_row: NDArray[np.intp],
    ) -> None:
        """Multiply stored weights in place; a scale of 0 is refused for any that is not 0."""
        if (scales == 0).any():
            bad = np.argwhere((scales == 0) & (values != 0))
            if len(bad):
                raise self._bad_scale(scale.info, 0.0, int(of_row[bad[0, 0]]), int(bad[0, 1]) // scale.n_cols)
        values *= scales

    def _grid(self, scale: _Scale, first: int, last: int) -> NDArray[np.float32]:
        """Return rows [first, last) of the grid of a weight's scales, checked."""
        info, across = scale.info, scale.n_across
        begin, end = first * across, last * across
        start, stop = begin // info.n_cols, -(-end // info.n_cols)
        scales = _scale_values(self._source.read_rows(info.name, start, stop), info.dtype)
        grid = scales[begin - start * info.n_cols :][: end - begin].reshape(last - first, across)
        bad = np.argwhere(~np.isfinite(grid) | np.signbit(grid))
        if len(bad):
            row, column = (int(n) for n in bad[0])
            raise self._bad_scale(info, float(grid[row, column]), first + row, column)
        return grid

    def _bad_scale(self, info: TensorInfo, value: float, row: int, column: int) -> HeaderError:
        return HeaderError(
            f"{self._where}: tensor {shown(info.name)} holds {value} at row {row}, column {column}; "
            f"scales must be finite and above 0, or 0 where all their weights are"
        )

    def files(self) -> Mapping[str, int]:
        kept_files = {name: nbytes for name, nbytes in self._source.files().items() if name not in QUANTIZATION_FILES}
        if CONFIG in kept_files:
            kept_files[CONFIG] = len(self._plain_config)
        return kept_files

    @property
    def file_notes(self) -> list[str]:
        return self._source.file_notes

    def read_file(self, name: str) -> bytes:
        """Return a side file; config.json without how the weights were quantized, which they no longer are."""
        if name in QUANTIZATION_FILES:
            raise KeyError(name)
        return self._plain_config if name == CONFIG else self._source.read_file(name)

    @cached_property
    def _plain_config(self) -> bytes:
        config = config_object(self._source.read_file(CONFIG), f"{self._where}: {CONFIG}")
        return config_bytes({key: value for key, value in config.items() if key not in _QUANTIZED})

    def close(self) -> None:
        self._source.close()


def _paired(infos: Mapping[str, TensorInfo], scheme: Fp8Scheme, where: str) -> dict[str, _Scale]:
    """Return the scales of every weight that has some; refuse what does not go together."""
    scales: dict[str, _Scale] = {}
    for name in infos:
        weight = _weight_of(name, infos, scheme)
        if weight is None:
            continue
        if weight not in infos:
            raise HeaderError(
                f"{where}: tensor {shown(name)} scales {shown(weight)}, which is not here; if the model is sharded, "
                f"give the folder or the index"
            )
        if weight in scales:
            raise HeaderError(f"{where}: tensor {shown(weight)} has two scales, and {shown(name)} is the second")
        scales[weight] = _checked(infos[weight], infos[name], scheme, where)
    scaled = {_without_numbers(name) for name in scales}
    for name, info in infos.items():
        is_weight = info.dtype.name in _STORED and name not in scales
        if is_weight and (scheme.method is not None or _without_numbers(name) in scaled):
            raise HeaderError(
                f"{where}: tensor {shown(name)} is {info.dtype.name} and its scale, {shown(name + INVERSE)} or "
                f"{shown(name + PLAIN)}, is missing; if the model is sharded, give the folder or the index"
            )
    return scales


def _without_numbers(name: str) -> str:
    return re.sub("[0-9]+", "#", name)


def _of_activations(name: str) -> bool:
    """Whether a tensor scales activations; the name may begin with that of the weight, as experts have it."""
    return name.rpartition(".")[2].endswith(ACTIVATIONS)


def _weight_of(name: str, infos: Mapping[str, TensorInfo], scheme: Fp8Scheme) -> str | None:
    """Return the weight that a tensor scales, or None when it is no scale of weights."""
    if name.endswith(INVERSE):
        return None if _scales_integers(name, infos) else name.removesuffix(INVERSE)
    if not name.endswith(PLAIN):
        return _comfy_weight(name, infos) or _power_weight(name, infos)
    weight = name.removesuffix(PLAIN)
    if scheme.method is None:  # other models, too, have tensors of such names
        return weight if weight in infos and infos[weight].dtype.name in _STORED else None
    return weight if weight in infos or weight.endswith(".weight") else None


def _checked(weight: TensorInfo, scale: TensorInfo, scheme: Fp8Scheme, where: str) -> _Scale:
    """Return a weight's scale, type and shape of both agreeing."""
    what = f"{where}: tensor {shown(weight.name)}"
    if weight.dtype.name not in _STORED:
        raise HeaderError(
            f"{what} has the scale {shown(scale.name)} and is {weight.dtype.name}, and F8_E4M3 or F8_E5M2 was "
            f"expected; if the weights are scaled already, leave the scales out"
        )
    if len(weight.shape) < 2:
        raise HeaderError(f"{what} has a scale and the shape {list(weight.shape)}, and two axes or more were expected")
    if scale.dtype.name not in _SCALES:
        raise HeaderError(
            f"{what}: its scale {shown(scale.name)} is {scale.dtype.name}, and {', '.join(_SCALES[:-1])} or "
            f"{_SCALES[-1]} was expected; {_WAY_ON}"
        )
    allowed = _blocks_of(weight.shape, scheme.block, not scale.name.endswith(INVERSE))
    if scale.name.endswith(POWERS):
        for block in _POWER_BLOCKS:
            for shape, shared in _blocks_of(weight.shape, block, is_plain=False).items():
                allowed.setdefault(shape, shared)
    if scale.shape not in allowed:
        declared_block = scheme.block
        grids = " or ".join(str(list(shape)) for shape in allowed)
        raise HeaderError(
            f"{what} of shape {list(weight.shape)}: its scale {shown(scale.name)} has shape {list(scale.shape)}, "
            f"expected {grids}"
            + (f" for blocks of {declared_block[0]} x {declared_block[1]}" if declared_block is not None else "")
            + f"; {_WAY_ON}"
        )
    return _Scale(scale, *allowed[scale.shape], weight.shape)


def _blocks_of(
    shape: tuple[int, ...], block: tuple[int, int] | None, is_plain: bool
) -> dict[tuple[int, ...], tuple[int, int]]:
    """Return the rows and columns of a weight that share a scale, by the shape that the scales then have."""
    *leading, n_rows, n_cols = shape
    each, whole = tuple(leading), (max(n_rows, 1), max(n_cols, 1))
    blocks: dict[tuple[int, ...], tuple[int, int]] = {}
    if is_plain:
        blocks |= {(*each, n_rows): (1, whole[1]), (*each, n_rows, 1): (1, whole[1])}
        if each:
            blocks[*each, 1, n_cols] = (whole[0], 1)
    if is_plain or block is None:
        blocks |= dict.fromkeys(((), (1,), (1, 1), each, (*each, 1), (*each, 1, 1)), whole)
    if block is not None:
        down, across = math.ceil(n_rows / block[0]), math.ceil(n_cols / block[1])
        blocks[*each, down, across] = block
        if is_plain and not each:
            blocks[down, 1, across, 1] = block
    return blocks
