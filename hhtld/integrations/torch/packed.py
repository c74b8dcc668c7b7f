"""`PackedWeight`: one tensor of a pack, still packed, in the place of a module's weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from torch import nn

from hhtld.errors import shown
from hhtld.integrations.torch.internals import may_carry_tangents, runs_plainly
from hhtld.integrations.torch.ops import SCORED_ROWS, Unfolded, one_tensor_table, product, unfolded, with_tangent
from hhtld.integrations.torch.tensors import checked_dtype, torch_dtype
from hhtld.pack.pack import HhtldPack

__all__ = ["HOW_TO_DECODE", "PackedWeight", "PackedWeightError"]

HOW_TO_DECODE = (
    "make it an ordinary model first, with model.dequantize() (transformers) or "
    "hhtld.integrations.torch.dequantize(model)"
)

# Sections by pack and number for as long as a weight holds them, so that what a group's tensors share is held once.
_SECTIONS: WeakKeyDictionary[HhtldPack, WeakValueDictionary[int, torch.Tensor]] = WeakKeyDictionary()


def _section(pack: HhtldPack, number: int) -> torch.Tensor:
    sections = _SECTIONS.setdefault(pack, WeakValueDictionary())
    section = sections.get(number)
    if section is None:
        section = sections[number] = torch.from_numpy(np.array(pack.sections.whole(number)))
    return section


class PackedWeightError(TypeError, AttributeError):
    """What was asked of a packed weight needs its numbers, which it does not hold.

    It is a TypeError for people, and an AttributeError as well for code that looks whether a weight has an attribute of
    tensors: such code then goes on as with any object that has none.
    """


class PackedWeight(nn.Module):  # a module, so that buffers move, copy and export with the one that holds it
    """An encoded matrix of a pack, held as its packed bytes.

    It takes the place of a module's ``weight`` and answers what models ask a weight without computing with it: shape,
    dtype, device. ``F.linear(x, weight)`` and ``F.embedding(ids, weight)`` work. Every other torch function, operator
    and method of tensors raises `PackedWeightError`, a TypeError, because it would have to decode the whole weight;
    `decoded` does that if it is asked to.

    The bytes are copied from the pack, which may be closed afterwards. A state dict does not hold them, and would look
    like a whole model without them, so ``state_dict()`` raises ValueError. Two modules with the same `PackedWeight` are
    tied, as two with one Parameter are.

    Parameters
    ----------
    pack : HhtldPack
    name : str
        An encoded tensor of two axes.
    dtype : torch.dtype or str, optional
        The type of what it gives, by default that of the source; ``.to(dtype)`` changes it, and leaves the packed bytes
        as they are.

    Attributes
    ----------
    exact : bool
        Whether few rows of input are taken as two planes of int8 and not as one; see `HhtlLinear`.

    Raises
    ------
    KeyError
        If the pack has no tensor of this name.
    ValueError
        If the tensor is kept as it came, or is not a matrix.
    FormatError
        If its bytes are damaged.
    """

    requires_grad = False
    exact = False
    like: torch.Tensor

    def __init__(self, pack: HhtldPack, name: str, dtype: torch.dtype | str | None = None) -> None:
        super().__init__()
        record = pack.info(name)
        if not record.is_encoded or len(record.info.shape) != 2:
            state = "encoded" if record.is_encoded else "kept as it came"
            raise ValueError(
                f"tensor {shown(name)}, {list(record.info.shape)}, is {state}; packed weights are "
                f"encoded matrices (n_rows, n_cols)"
            )
        self.name = record.name
        self.shape = torch.Size(record.info.shape)
        self.table, sections = one_tensor_table(pack.table, record)
        self._kinds = [kind for kind, _ in sections]
        for kind, number in sections:
            self.register_buffer(kind, _section(pack, number), persistent=False)
        # `.to(dtype)` and `.half()` change this empty tensor and nothing else.
        like = torch.empty(0, dtype=checked_dtype(dtype) or torch_dtype(record.info.dtype, name), device="cpu")
        self.register_buffer("like", like, persistent=False)

    # ---- what is asked of a weight ----

    @property
    def dtype(self) -> torch.dtype:
        """The type of the rows and products that it gives."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return self.like.device

    @property
    def ndim(self) -> int:
        """Two."""
        return 2

    def size(self, axis: int | None = None) -> Any:
        """Return the shape, or the length of an axis."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """Return two."""
        return 2

    def numel(self) -> int:
        """Return the number of weights."""
        return int(self.shape.numel())

    @property
    def nbytes(self) -> int:
        """The packed bytes that it holds, with those that its group shares."""
        return sum(part.nbytes for part in self.parts())

    def parts(self) -> list[torch.Tensor]:
        """Return the sections as uint8 tensors, the tensor's own first."""
        return [getattr(self, kind) for kind in self._kinds]

    # ---- what it computes ----

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids of any shape, int64 or int32, as (*ids.shape, n_cols)."""
        rows: torch.Tensor = torch.ops.hhtld.embedding(ids, self.parts(), self.table, self.dtype)
        return rows

    def product(
        self, x: torch.Tensor, bias: torch.Tensor | None = None, scored_rows: int = SCORED_ROWS
    ) -> torch.Tensor:
        """Return ``x @ weight.T + bias``, (..., n_rows), for floats (..., n_cols); see `HhtlLinear`."""
        if runs_plainly(x, bias):
            return product(x, self._unfolded(), self.dtype, bias, scored_rows, self.exact)

        def seen(x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            out: torch.Tensor = torch.ops.hhtld.linear(
                x, self.parts(), self.table, self.dtype, bias, scored_rows, self.exact
            )
            return out

        if not torch.compiler.is_compiling() and may_carry_tangents():
            return with_tangent(seen, x, bias)
        return seen(x, bias)

    def _unfolded(self) -> Unfolded:
        """Return what the op makes of the sections, which copies of this weight do not take along."""
        held: Unfolded | None = self.__dict__.get("_held")
        if held is None:
            held = self.__dict__["_held"] = unfolded(self.parts(), self.table)
        return held

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_held"}

    def decoded(self) -> torch.Tensor:
        """Return the dense weight (n_rows, n_cols), ``numel() * dtype.itemsize`` bytes that every call makes anew."""
        return self.rows(torch.arange(self.shape[0], device="cpu"))

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function is nn.functional.linear:
            return _packed_linear(*args, **options)
        if function is nn.functional.embedding:
            return _packed_embedding(*args, **options)
        packed = [value for value in (*args, *options.values()) if isinstance(value, PackedWeight)]
        raise _refusal(str(getattr(function, "__name__", function)), packed[0].name if packed else None)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if not name.startswith("_") and hasattr(torch.Tensor, name) and "name" in self.__dict__:
                raise _refusal(name, self.name) from None
            raise

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if keep_vars and torch.compiler.is_compiling():  # torch.export takes buffers by themselves
            return
        raise ValueError(
            f"{shown(prefix.removesuffix('.') or self.name)} is packed, and a state dict would be without it: "
            f"keep the pack, or {HOW_TO_DECODE}; torch.save(model), pickle and copy.deepcopy take packed weights along"
        )

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # Only `like` is changed: `to_empty` would overwrite the bytes, and no other device decodes them.
        like = fn(self.like)
        if like.device.type != "cpu":
            raise ValueError(
                f"packed weights decode on the CPU and cannot move to {like.device}; load tensor {shown(self.name)} "
                f"decoded for it (load_state_dict(..., device={str(like.device)!r}))"
            )
        self.like = like
        return self

    def __bool__(self) -> bool:  # there is a weight; without this method Python would ask for its length
        return True

    def extra_repr(self) -> str:
        """Return name, shape, type and size."""
        return f"{self.name!r}, {tuple(self.shape)}, {self.dtype}, {self.nbytes} bytes"


def _refusal(what: str, name: str | None) -> PackedWeightError:
    module = "..." if name is None else name.removesuffix(".weight").rpartition(".")[2]
    of = "" if name is None else f", {shown(name)},"
    return PackedWeightError(
        f"{what} needs the numbers of a packed weight{of} which holds none: load the module that it belongs to "
        f"decoded, from_pretrained(..., modules_to_not_convert=[{module!r}]) or replace_modules(..., names=...), or "
        f"{HOW_TO_DECODE}; weight.decoded() gives the numbers"
    )


def _operator(name: str) -> Callable[..., Any]:
    def refuse(self: PackedWeight, *_: Any) -> Any:
        raise _refusal(name.strip("_"), self.name)

    refuse.__name__ = name
    return refuse


# Python looks for operators on the type and does not call __getattr__. What every object has (==, hash) stays.
for _name in ("matmul", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    for _form in (f"__{_name}__", f"__r{_name}__", f"__i{_name}__"):
        setattr(PackedWeight, _form, _operator(_form))
for _name in (
    "neg",
    "pos",
    "abs",
    "invert",
    "getitem",
    "setitem",
    "len",
    "iter",
    "float",
    "int",
    "lt",
    "le",
    "gt",
    "ge",
):
    setattr(PackedWeight, f"__{_name}__", _operator(f"__{_name}__"))


def _packed_linear(input: Any, weight: Any, bias: Any = None) -> torch.Tensor:
    if not isinstance(weight, PackedWeight) or isinstance(input, PackedWeight) or isinstance(bias, PackedWeight):
        raise TypeError("linear takes a packed weight as its weight only")
    return weight.product(input, bias)


def _packed_embedding(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> torch.Tensor:
    if not isinstance(weight, PackedWeight) or isinstance(input, PackedWeight):
        raise TypeError("embedding takes a packed weight as its weight only")
    if max_norm is not None:
        raise TypeError("embedding with max_norm changes its weight, and a packed weight cannot change")
    return weight.rows(input)
