"""Weights that are quantized already, recognised by the names and types that lie together.

Every scheme packs integers, or floats of 8 bits and fewer, and puts floats beside them: scales, zero points, tables.
The floats look like small weights, and coding them would ruin all the weights they scale. No config needs to say so: a
packed tensor and its companions tell a scheme, in a folder, a shard or a lone file alike. A model of plain floats has
no packed tensor, whatever its tensors are called.

`SCHEMES` is the whole of what is known. A new scheme is a new line there. `likely_scales` finds what looks like the
scales of a scheme that nobody has told us of.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hhtld.errors import shown
from hhtld.matrix import TensorInfo

__all__ = ["SCHEMES", "Scheme", "likely_scales", "packed_tensors", "quantized_tensors", "refusal"]

_BYTES = frozenset({"U8", "I8"})
_INTEGERS = _BYTES | {"I16", "U16", "I32", "U32"}
_FLOATS8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_FLOATS4 = frozenset({"F4", "F6_E2M3", "F6_E3M2"})
_DEEPEST = 4  # parts of a name below its module, as in weight.quant_state.bitsandbytes__nf4, and one to spare
_PACKED = _INTEGERS | _FLOATS8 | _FLOATS4


@dataclass(frozen=True)
class Scheme:
    """One way to quantize weights, and how it is recognised.

    Attributes
    ----------
    name : str
        For messages.
    packed : str
        What a packed tensor is called within its module; ``*`` stands for any name without a dot.
    dtypes : frozenset of str
        The types it may have; empty for any.
    beside : tuple of str
        What other tensors of the module are called, ``*`` standing for the same name; one of them must be there.
    library : str
        What turns such weights back into plain ones.
    """

    name: str
    packed: str
    dtypes: frozenset[str]
    beside: tuple[str, ...]
    library: str

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(r"((?:.*\.)?)" + re.escape(self.packed).replace(r"\*", r"([^.]+)"), re.DOTALL)

    @functools.cached_property
    def _ending(self) -> str:
        return self.packed.rpartition("*")[2]

    def match(self, info: TensorInfo, names: Mapping[str, object]) -> tuple[str, list[str]] | None:
        """Return a packed tensor's module and what lies beside it there, or None for one that is of another scheme."""
        if (self.dtypes and info.dtype.name not in self.dtypes) or (self.packed == "*" and len(info.shape) < 2):
            return None
        matched = self._pattern.fullmatch(info.name) if info.name.endswith(self._ending) else None
        if matched is None:
            return None
        stem = matched[2] if "*" in self.packed else ""
        beside = [name for other in self.beside if (name := matched[1] + other.replace("*", stem)) in names]
        return (matched[1], beside) if beside or not self.beside else None


_COMPRESSED = "compressed-tensors"
_TRANSFORMERS = "transformers (model.dequantize())"
_MODELOPT = "the library that wrote it (ModelOpt)"
_WRITER = "the library that wrote it"

# The first line that fits a packed tensor names its scheme, so what says more stands above what says less.
SCHEMES = (
    Scheme("bitsandbytes", "*.quant_state.bitsandbytes__nf4", frozenset(), (), _TRANSFORMERS),
    Scheme("bitsandbytes", "*.quant_state.bitsandbytes__fp4", frozenset(), (), _TRANSFORMERS),
    Scheme(
        "bitsandbytes",
        "*",
        _INTEGERS,
        ("*.absmax", "*.nested_absmax", "*.quant_map"),
        _TRANSFORMERS,
    ),
    Scheme("bitsandbytes", "*", _BYTES, ("SCB",), _TRANSFORMERS),
    Scheme("MLX", "weight", frozenset({"U32"}), ("scales", "biases", "qbiases"), "mlx_lm.convert --dequantize"),
    Scheme("NVFP4", "*", _BYTES | _FLOATS4, ("*_scale_2",), _MODELOPT),
    Scheme("NVFP4", "*_packed", _BYTES, ("*_global_scale",), _COMPRESSED),
    Scheme("MXFP4", "*_blocks", _BYTES, ("*_scales",), "transformers (Mxfp4Config(dequantize=True))"),
    Scheme("compressed-tensors", "*_packed", _INTEGERS, ("*_scale",), _COMPRESSED),
    Scheme("compressed-tensors", "*_shape", frozenset({"I64", "I32"}), ("*_packed",), _COMPRESSED),
    Scheme("GPTQ or AWQ", "qweight", _INTEGERS, ("scales", "qzeros", "scale", "wscales"), "GPTQModel"),
    Scheme("GPTQ or AWQ", "qzeros", _INTEGERS, ("scales",), "GPTQModel"),
    Scheme("Marlin", "B", frozenset({"I32"}), ("s",), "GPTQModel"),
    Scheme("HQQ", "W_q", frozenset(), ("scale", "zero", "meta"), "hqq (HQQLinear.dequantize())"),
    Scheme("quanto", "*._data", _PACKED, ("*._scale",), "optimum-quanto (QTensor.dequantize())"),
    Scheme("quanto", "*._data._data", _PACKED, ("*._scale",), "optimum-quanto (QTensor.dequantize())"),
    Scheme(
        "torchao",
        "_*_qdata",
        frozenset(),
        ("_*_scale", "_*_scale_and_zero", "_*_per_tensor_scale", "_*_zero_point"),
        "torchao (weight.dequantize())",
    ),
    Scheme("EXL2", "q_weight", frozenset({"I32"}), ("q_scale", "q_scale_max"), "exllamav2"),
    Scheme("EXL3", "trellis", frozenset({"I16"}), ("suh", "svh", "su", "sv"), "exllamav3"),
    Scheme("AQLM", "codes", _INTEGERS, ("codebooks",), "aqlm"),
    Scheme("VPTQ", "indices", _INTEGERS, ("centroids", "centroids.weight"), "vptq"),
    Scheme("QuIP#", "Qidxs", frozenset({"I64", "I32", "I16"}), ("SU", "SV"), _WRITER),
    Scheme("HIGGS", "weight", frozenset({"I16"}), ("tables",), _TRANSFORMERS),
    Scheme("BitNet", "weight", frozenset({"U8"}), ("weight_scale",), "transformers"),
    Scheme("integers with scales", "weight", _INTEGERS, ("scales", "scale"), _WRITER),
    Scheme("integers with scales", "*", _INTEGERS, ("*_scale", "*_scales", "*_scale_inv"), _WRITER),
    Scheme("integers with scales", "*_quantized", _INTEGERS, ("*_scale",), _WRITER),
    Scheme("floats of 4 or 6 bits with scales", "*", _FLOATS4, ("*_scale", "*_scales", "*_scale_inv"), _WRITER),
    Scheme("FP8 with scales", "*", _FLOATS8, ("*_scale", "*_scales", "*_scale_inv"), _WRITER),
)


def _declared(method: str) -> Scheme:
    """Return the scheme of a model that says it is quantized, in a way of which no line above knows more."""
    return Scheme(method, "*", _PACKED, (), _WRITER)


def _packed(infos: Mapping[str, TensorInfo], declared: str | None) -> Iterator[tuple[str, Scheme, str, list[str]]]:
    """Every packed tensor, its scheme, its module, and what lies beside it."""
    schemes = SCHEMES if declared is None else (*SCHEMES, _declared(declared))
    for info in infos.values():
        if info.dtype.is_weight and info.dtype.nbits > 8 and not info.name.endswith(("W_q", "_qdata")):
            continue  # most tensors of most models; these two may be packed in floats
        for scheme in schemes:
            matched = scheme.match(info, infos)
            if matched is not None:
                yield info.name, scheme, *matched
                break


def packed_tensors(infos: Mapping[str, TensorInfo]) -> dict[str, Scheme]:
    """Return packed tensors and what lies beside them by its name alone, and the scheme."""
    return {name: scheme for packed, scheme, _, beside in _packed(infos, None) for name in (packed, *beside)}


def quantized_tensors(infos: Mapping[str, TensorInfo], declared: str | None = None) -> dict[str, Scheme]:
    """Return every tensor of a module whose weights are quantized, and the scheme.

    Parameters
    ----------
    infos : mapping of name to TensorInfo
    declared : str, optional
        How the model says that it is quantized; then any packed tensor is taken for a weight.
    """
    schemes: dict[str, Scheme] = {}
    modules: dict[str, Scheme] = {}
    for packed, scheme, module, beside in _packed(infos, declared):
        for name in (packed, *beside):
            schemes.setdefault(name, scheme)
        if module:
            modules.setdefault(module.removesuffix("."), scheme)
    for name in infos if modules else ():
        module = name
        for _ in range(_DEEPEST):
            module = module.rpartition(".")[0]
            if module in modules:
                schemes.setdefault(name, modules[module])
                break
    return {name: schemes[name] for name in infos if name in schemes}


def likely_scales(infos: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return floats that lie in a module beside integers of more elements, and the largest of these.

    Scales, minima and tables of values are smaller than the codes that they belong to. A weight is not: neither its
    mask nor the numbers of the entries that were pruned from it have more elements.
    """
    codes: dict[str, TensorInfo] = {}
    for info in infos.values():
        module = info.name.rpartition(".")[0]
        if module and info.dtype.name in _INTEGERS and len(info.shape) >= 2:
            codes[module] = max(codes.get(module, info), info, key=_n_elements)
    scales: dict[str, str] = {}
    for info in infos.values():
        beside = codes.get(info.name.rpartition(".")[0])
        if beside and info.dtype.is_weight and info.has_rows and _n_elements(info) < _n_elements(beside):
            scales[info.name] = beside.name
    return scales


def _n_elements(info: TensorInfo) -> int:
    return math.prod(info.shape)


def refusal(found: Mapping[str, Scheme], infos: Mapping[str, TensorInfo], declared: str | None = None) -> str:
    """Return why a quantized model is not coded, and the ways on.

    Parameters
    ----------
    found : mapping of name to Scheme
        From `quantized_tensors`; not empty.
    infos : mapping of name to TensorInfo
    declared : str, optional
        As there.
    """
    scheme = Counter(found.values()).most_common(1)[0][0]
    same = [name for name, other in found.items() if other == scheme]
    packed = next((name for name in same if scheme.match(infos[name], infos) is not None), same[0])
    module = packed[: packed.rfind(".") + 1]
    beside = [name for name in same if name.startswith(module) and name != packed and infos[name].dtype.is_weight]
    example = f"{shown(packed)} is {infos[packed].dtype.name}" + (f" beside {_listed(beside)}" if beside else "")
    evidence = (
        declared
        if declared is not None and scheme.name in declared
        else ", ".join(text for text in (scheme.name, declared) if text)
    )
    counted = "1 tensor" if len(found) == 1 else f"{len(found)} tensors"
    return (
        f"the model is already quantized ({evidence}: {example}); encoding scales and zero points would destroy it. "
        f"Convert the original, unquantized model instead, or one dequantized with {scheme.library}; or use "
        f"quantized='keep' (--quantized keep), which keeps what belongs to quantized weights byte for byte, here "
        f"{counted}, and encodes the rest"
    )


def _listed(names: Iterable[str]) -> str:
    every = sorted(names)
    return ", ".join(shown(name, 80) for name in every[:3]) + (", ..." if len(every) > 3 else "")
