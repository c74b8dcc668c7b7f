"""`HhtlEmbedding` and `HhtlLinear`: modules for inference whose weights stay packed."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from hhtld.errors import shown
from hhtld.integrations.torch.file_rows import FileRows, is_read_from_a_file
from hhtld.integrations.torch.ops import SCORED_ROWS
from hhtld.integrations.torch.packed import HOW_TO_DECODE, PackedWeight
from hhtld.integrations.torch.tensors import PackOrPath, checked_dtype, loaded, opened
from hhtld.pack.opening import open_pack as open_file
from hhtld.pack.pack import HhtldPack

__all__ = ["HhtlEmbedding", "HhtlLinear", "weight_of"]


def weight_of(pack: HhtldPack, name: str, dtype: torch.dtype | str | None) -> PackedWeight | nn.Parameter:
    """Return a matrix packed if the pack encodes it, and as a Parameter otherwise."""
    record = pack.info(name)
    if record.is_encoded:
        return PackedWeight(pack, name, dtype)
    _check_matrix(pack, name)
    return nn.Parameter(loaded(pack, record, checked_dtype(dtype), "cpu"), requires_grad=False)


def _check_matrix(pack: HhtldPack, name: str) -> None:
    info = pack.info(name).info
    if len(info.shape) != 2 or not info.dtype.is_weight:
        raise ValueError(f"tensor {shown(name)}, {info.dtype.name} {list(info.shape)}, is not a matrix of weights")


class _PackedModule(nn.Module):
    """A module that may have a packed weight."""

    weight: PackedWeight | nn.Parameter

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing: Any,
        unexpected: Any,
        errors: Any,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        if isinstance(self.weight, PackedWeight) and f"{prefix}weight" in state_dict:
            name = shown(f"{prefix}weight")
            errors.append(f"{name} is packed, so no other numbers can be loaded into it: {HOW_TO_DECODE}")

    def _packed_repr(self) -> str:
        ordinary = "Embedding" if isinstance(self, HhtlEmbedding) else "Linear"
        return f", packed (dequantize() gives nn.{ordinary})" if isinstance(self.weight, PackedWeight) else ""


class HhtlEmbedding(_PackedModule):
    """`nn.Embedding` for inference with a packed weight: a lookup decodes the rows that it is asked for.

    The rows are those of ``load_state_dict(..., dtype=dtype)``, bit for bit.

    Parameters
    ----------
    pack : HhtldPack
    name : str
        A matrix (num_embeddings, embedding_dim).
    padding_idx : int, optional
        Only gradients depend on it; it is kept for code that asks for it.
    dtype : torch.dtype or str, optional
        The type of the rows, by default that of the source; ``.to(dtype)`` changes it.
    resident : bool, optional
        True copies the packed bytes into memory, after which the pack may be closed; a matrix that the pack keeps as it
        came is held dense. False leaves them in the file of the pack, which must stay open: a lookup reads the rows
        that it is asked for, with the options that the pack was opened with, and memory is the page cache's, which
        processes share. By default the bytes of an open local file stay there, and others are copied.

    Attributes
    ----------
    weight : FileRows, PackedWeight or Parameter
        What models ask of it (shape, dtype, device) costs nothing: transformers reads ``weight.dtype`` at every step of
        some models. Only ``weight.decoded()`` decodes it. Two modules are tied if the weight of one is assigned to the
        other.
    num_embeddings, embedding_dim : int

    Notes
    -----
    ``state_dict()`` raises ValueError, and loading a state dict that has a weight for the module raises RuntimeError.
    `copy.deepcopy`, `pickle` and `torch.save` of the module take packed bytes along that are resident, and otherwise
    where the file lies: it is opened again, and refused if it has changed.
    """

    def __init__(
        self,
        pack: HhtldPack,
        name: str,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype | str | None = None,
        resident: bool | None = None,
    ) -> None:
        super().__init__()
        if resident is None:
            resident = not is_read_from_a_file(pack)
        if not resident:
            _check_matrix(pack, name)
        self._hold(weight_of(pack, name, dtype) if resident else FileRows(pack, name, dtype), padding_idx)

    def _hold(self, weight: PackedWeight | nn.Parameter, padding_idx: int | None) -> None:
        self.weight = weight
        self.num_embeddings, self.embedding_dim = weight.shape
        if padding_idx is not None and not -self.num_embeddings <= padding_idx < self.num_embeddings:
            raise ValueError(f"padding_idx must lie within {self.num_embeddings} embeddings, got {padding_idx}")
        self.padding_idx = padding_idx if padding_idx is None or padding_idx >= 0 else self.num_embeddings + padding_idx

    @classmethod
    def from_pack(
        cls,
        path_or_pack: PackOrPath,
        name: str,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype | str | None = None,
        resident: bool | None = None,
    ) -> Self:
        """Return a module of a pack, or of a file, which stays open for as long as the module needs it."""
        if isinstance(path_or_pack, HhtldPack):
            return cls(path_or_pack, name, padding_idx=padding_idx, dtype=dtype, resident=resident)
        pack = open_file(path_or_pack)
        try:
            module = cls(pack, name, padding_idx=padding_idx, dtype=dtype, resident=resident)
        except BaseException:
            pack.close()
            raise
        if not isinstance(module.weight, FileRows):
            pack.close()
        return module

    @classmethod
    def of_weight(cls, weight: PackedWeight, padding_idx: int | None = None) -> Self:
        """Return a module of a weight that is packed already, tied to whatever else holds it."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._hold(weight, padding_idx)
        return module

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids of any shape, int64 or int32, as (*ids.shape, embedding_dim).

        Raises
        ------
        IndexError
            If an id lies outside 0..num_embeddings - 1.
        """
        if isinstance(self.weight, PackedWeight):
            return self.weight.rows(input_ids)
        return nn.functional.embedding(input_ids, self.weight, self.padding_idx)

    def prefetch(self, input_ids: torch.Tensor) -> None:
        """Begin to read the rows of ids, and return at once; the call with these ids finds them. Resident rows wait."""
        if isinstance(self.weight, FileRows):
            self.weight.prefetch(input_ids)

    def extra_repr(self) -> str:
        """Return the sizes, as `nn.Embedding` does."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}{self._packed_repr()}"


class HhtlLinear(_PackedModule):
    """`nn.Linear` for inference with a packed weight.

    At most `scored_rows` rows of input (all leading axes together) are scored on the slots without decoding: a row is
    rotated and taken as int8 times a scale, which loses about 0.8 % of its norm, as llama.cpp's Q8 activations do. With
    `exact` it is taken as two such planes, and the products, which are float32, differ from those with the decoded
    weight by a few 1e-5 of the output's norm (see `Scorer.scores`). Weights with centroids, Slot L, a second level, or
    more columns than rows always have two. More rows are multiplied, in float32, with the weight as it decodes, 1 or
    2 MiB at a time. The same input always gives the same output; a row that is scored alone and one that is multiplied
    among many differ by that error.

    Parameters
    ----------
    pack : HhtldPack
        Its bytes are copied; it may be closed afterwards.
    name : str
        A matrix (out_features, in_features), as `nn.Linear` has it. GPT-2's Conv1D holds its weights transposed and is
        not supported. If the pack keeps the matrix as it came, it is held dense.
    bias : Tensor of (out_features,) or str, optional
        The bias itself, or its name in the pack.
    dtype : torch.dtype or str, optional
        The type of the output, by default that of the source; ``.to(dtype)`` changes it. Inputs may have any
        floating-point type.
    scored_rows : int
        With 0 the weight is always decoded, and outputs are those of the decoded weight within float32's rounding.
    exact : bool
        Whether scored rows are taken as two planes of int8. A packed weight has one answer, which tied layers share.

    Attributes
    ----------
    weight : PackedWeight or Parameter
        See `HhtlEmbedding`.
    bias : Parameter or None
    in_features, out_features, scored_rows : int
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        pack: HhtldPack,
        name: str,
        bias: torch.Tensor | str | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        scored_rows: int = SCORED_ROWS,
        exact: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(bias, str):
            bias = loaded(pack, pack.info(bias), checked_dtype(dtype), "cpu")
        weight = weight_of(pack, name, dtype)
        if exact and isinstance(weight, PackedWeight):
            weight.exact = True
        self._hold(weight, bias, scored_rows)

    def _hold(self, weight: PackedWeight | nn.Parameter, bias: torch.Tensor | None, scored_rows: int) -> None:
        self.weight = weight
        self.out_features, self.in_features = weight.shape
        self.scored_rows = scored_rows
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ValueError(f"bias must have shape ({self.out_features},), got {tuple(bias.shape)}")
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", bias)

    @classmethod
    def from_pack(
        cls,
        path_or_pack: PackOrPath,
        name: str,
        *,
        dtype: torch.dtype | str | None = None,
        scored_rows: int = SCORED_ROWS,
        exact: bool = False,
    ) -> Self:
        """Return a module of a pack, or of a file, which is closed again; ``x.weight`` brings its ``x.bias`` along."""
        with opened(path_or_pack) as pack:
            bias = name.removesuffix("weight") + "bias"
            has_bias = name.endswith(".weight") and bias in pack
            return cls(pack, name, bias if has_bias else None, dtype=dtype, scored_rows=scored_rows, exact=exact)

    @classmethod
    def of_weight(
        cls, weight: PackedWeight, bias: torch.Tensor | None = None, *, scored_rows: int = SCORED_ROWS
    ) -> Self:
        """Return a module of a weight that is packed already, tied to whatever else holds it."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        module._hold(weight, bias, scored_rows)
        return module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x @ weight.T + bias``, (..., out_features), for floats (..., in_features)."""
        weight = self.weight  # asked for once: what a module holds takes a microsecond to find
        if isinstance(weight, PackedWeight):
            return weight.product(x, self.bias, self.scored_rows)
        if x.dtype == weight.dtype or not x.is_floating_point() or torch.is_autocast_enabled(x.device.type):
            return nn.functional.linear(x, weight, self.bias)
        wider = torch.promote_types(x.dtype, weight.dtype)
        bias = None if self.bias is None else self.bias.to(wider)
        return nn.functional.linear(x.to(wider), weight.to(wider), bias).to(weight.dtype)

    def extra_repr(self) -> str:
        """Return the sizes, as `nn.Linear` does."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return sizes + self._packed_repr()
