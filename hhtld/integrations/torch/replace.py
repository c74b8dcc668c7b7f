"""`replace_modules` packs a model's embeddings and linears and loads the rest; `dequantize` makes it ordinary again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hhtld.errors import shown
from hhtld.integrations.torch.file_rows import FileRows, is_read_from_a_file
from hhtld.integrations.torch.internals import persistent_buffers
from hhtld.integrations.torch.modules import HhtlEmbedding, HhtlLinear
from hhtld.integrations.torch.packed import PackedWeight
from hhtld.integrations.torch.tensors import PackOrPath, fill, opened, selected, torch_shape
from hhtld.pack.opening import open_pack as open_file
from hhtld.pack.pack import HhtldPack
from hhtld.pack.table import TensorRecord

__all__ = ["PackedCounts", "dequantize", "packed_counts", "replace_modules", "replaced"]


@dataclass(frozen=True)
class PackedCounts:
    """How much of a model is packed.

    Attributes
    ----------
    n_embeddings, n_linears : int
        Modules that hold a packed weight.
    n_weights : int
        Packed weights; tied modules share one.
    nbytes : int
        Packed bytes; what weights share is counted once.
    n_values : int
        The numbers that they stand for.
    """

    n_embeddings: int
    n_linears: int
    n_weights: int
    nbytes: int
    n_values: int


def packed_counts(model: nn.Module) -> PackedCounts:
    """Count a model's packed modules, weights and bytes."""
    modules = [m for m in model.modules() if isinstance(getattr(m, "weight", None), PackedWeight)]
    weights = [m for m in model.modules() if isinstance(m, PackedWeight)]  # each once, however many modules hold it
    parts = {id(part): part.nbytes for weight in weights for part in weight.parts()}
    return PackedCounts(
        len([m for m in modules if isinstance(m, HhtlEmbedding)]),
        len([m for m in modules if isinstance(m, HhtlLinear)]),
        len(weights),
        sum(parts.values()),
        sum(weight.numel() for weight in weights),
    )


@dataclass
class _Slot:
    """A parameter or persistent buffer of a model.

    Attributes
    ----------
    tensor : Tensor
    names : list of str
        All its names; tied modules give it several.
    owners : list of (module, attribute)
    record : TensorRecord or None
        The tensor of the pack that it becomes.
    """

    tensor: torch.Tensor
    names: list[str] = field(default_factory=list)
    owners: list[tuple[nn.Module, str]] = field(default_factory=list)
    record: TensorRecord | None = None


def replace_modules(
    model: nn.Module,
    pack: PackOrPath,
    *,
    names: Iterable[str] | str | None = None,
    strict: bool = True,
    resident: bool = True,
    exact: bool = False,
) -> nn.Module:
    """Hold a model's embeddings and linears packed, and load everything else from the pack, in place.

    Every `nn.Embedding` and `nn.Linear` whose weight the pack encodes becomes a `HhtlEmbedding` or `HhtlLinear`, whose
    output type is that of the weight; biases stay and are loaded. All other parameters and persistent buffers are
    loaded as `nn.Module.load_state_dict` loads them, and decoded if the pack encodes them; a `UserWarning` names the
    encoded tensors that are held decoded. Those are the weights of subclasses, which may do more than their base
    (scaled embeddings, the projections of `nn.MultiheadAttention`), of `nn.Embedding` with `max_norm`, of convolutions,
    and of GPT-2's Conv1D, which holds its weights transposed.

    Modules that share a Parameter share a `PackedWeight` afterwards. Names, shapes and ties are checked before anything
    is changed. If the model is on the meta device, what is loaded is made on the CPU. Keep the pack: ``state_dict`` and
    transformers' ``save_pretrained`` raise until `dequantize` has made an ordinary model again.

    Parameters
    ----------
    model : nn.Module
    pack : HhtldPack or path
        It may be closed afterwards, unless `resident` is False.
    names : str or iterable of str, optional
        Names or globs of the encoded tensors to hold packed, by default all; the others are decoded.
    strict : bool
        Whether it is an error if a name is missing on either side, or a buffer stays on the meta device.
    resident : bool
        False leaves the weights of embeddings in the file (see `HhtlEmbedding`), but for those that a linear shares,
        which computes with all of them. The pack then stays open.
    exact : bool
        Whether linears take their inputs as two planes of int8 and not as one (see `HhtlLinear`).

    Returns
    -------
    nn.Module
        `model`, or its replacement if it is an embedding or a linear itself. `packed_counts` counts what is packed.

    Raises
    ------
    KeyError
        If a name is missing on either side and `strict` is set, or if `names` picks nothing.
    ValueError
        If shapes differ, if tied parameters are different tensors in the pack, or if a weight to be packed is on
        another device than the CPU.
    FormatError
        If the file is damaged or is no pack.
    """
    if not resident and not isinstance(pack, HhtldPack):
        pack = open_file(pack)  # which the embeddings keep open
    with opened(pack) as source:
        _tie_on_meta(model)
        slots = _slots(model)
        wanted = {source.info(name).name for name in selected(_encoded(source), names, "encoded tensor of the pack")}
        used = _match(slots, source)
        if strict:
            buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
            _check_complete(slots, source, used, buffers)
            _check_meta(model, slots)
        packed = {id(slot) for slot in slots if _packable(slot, wanted)}
        _warn_of_decoded([slot for slot in slots if id(slot) not in packed and _was_wanted(slot, wanted)])
        replacements: dict[int, nn.Module] = {}
        for slot in slots:
            if id(slot) in packed:
                _pack(slot, source, replacements, resident, exact)
        for slot in slots:
            if id(slot) not in packed and slot.record is not None:
                _load(slot, source, slot.record, replacements)
    for parent, key, child in list(_places(model)):
        if id(child) in replacements:
            setattr(parent, key, replacements[id(child)])
    return replacements.get(id(model), model)


def _tie_on_meta(model: nn.Module) -> None:
    """Tie parameters again: `accelerate.init_empty_weights` makes two parameters of a shared one."""
    tie = getattr(model, "tie_weights", None)
    if callable(tie) and any(parameter.is_meta for parameter in model.parameters()):
        tie()


def _encoded(source: HhtldPack) -> list[str]:
    return [name for name in source if source.info(name).is_encoded]


def _persistent(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the parameters and persistent buffers of a module, without those of its children."""
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from persistent_buffers(module)


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield every module below a model with its owner and its name there; one that is shared, at each of its places."""
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            owner, _, key = path.rpartition(".")
            yield model.get_submodule(owner), key, module


def _slots(model: nn.Module) -> list[_Slot]:
    slots: dict[int, _Slot] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, tensor in _persistent(module):
            slot = slots.setdefault(id(tensor), _Slot(tensor))
            slot.names.append(f"{path}.{key}" if path else key)
            if not any(owner is module and attribute == key for owner, attribute in slot.owners):
                slot.owners.append((module, key))
    return list(slots.values())


def _match(slots: list[_Slot], source: HhtldPack) -> set[str]:
    """Find every slot's tensor in a pack, and return the names of those that were found.

    Raises
    ------
    ValueError
        If tensors do not fit; the message names all of them.
    """
    used: set[str] = set()
    wrong: list[str] = []
    for slot in slots:
        records = {source.info(name).name: source.info(name) for name in slot.names if name in source}
        if len(records) > 1:
            shared = " and ".join(shown(name) for name in slot.names if name in source)
            wrong.append(f"{shared} are one tensor of the model and different ones of the pack")
        slot.record = next(iter(records.values()), None)
        used.update(records)
        if slot.record is not None and torch_shape(slot.record) != tuple(slot.tensor.shape):
            ours, theirs = list(slot.tensor.shape), list(slot.record.info.shape)
            wrong.append(f"{shown(slot.names[0])} is {ours} in the model and {theirs} in the pack")
    if wrong:
        raise ValueError(_listed("the pack is of another model", wrong))
    return used


def _check_complete(slots: list[_Slot], source: HhtldPack, used: set[str], buffers: set[str]) -> None:
    """Raise `KeyError` if a name is missing on either side.

    Old checkpoints hold buffers that models make themselves by now (BERT's position_ids): nobody misses those.
    """
    missing = [f"{shown(slot.names[0])} (not in the pack)" for slot in slots if slot.record is None]
    unused = [name for name in source if source.info(name).name not in used and name not in buffers]
    unknown = [f"{shown(name)} (not in the model)" for name in unused]
    if missing or unknown:
        raise KeyError(_listed("names do not match; strict=False leaves them as they are", missing + unknown))


def _check_meta(model: nn.Module, slots: list[_Slot]) -> None:
    loadable = {id(slot.tensor) for slot in slots}
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta and id(buffer) not in loadable]
    if empty:
        raise ValueError(
            _listed(
                "buffers on the meta device that no checkpoint holds; build the model with them real "
                "(accelerate.init_empty_weights(include_buffers=False))",
                [shown(name) for name in empty],
            )
        )


def _listed(what: str, items: list[str], limit: int = 20) -> str:
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return f"{what}: {', '.join(items[:limit])}{rest}"


def _was_wanted(slot: _Slot, wanted: set[str]) -> bool:
    return slot.record is not None and slot.record.is_encoded and slot.record.name in wanted


def _packable(slot: _Slot, wanted: set[str]) -> bool:
    if not _was_wanted(slot, wanted):
        return False
    for module, key in slot.owners:
        exact = type(module) is nn.Linear or (type(module) is nn.Embedding and module.max_norm is None)
        if not exact or key != "weight":
            return False
    if slot.tensor.device.type not in ("cpu", "meta"):
        raise ValueError(
            f"{shown(slot.names[0])} is on {slot.tensor.device}; packed weights decode on the CPU: move the model, "
            f"or leave the tensor out with names="
        )
    return True


def _warn_of_decoded(slots: list[_Slot]) -> None:
    if slots:
        items = [f"{shown(slot.names[0])} ({type(slot.owners[0][0]).__name__})" for slot in slots]
        warnings.warn(
            _listed(f"{len(items)} encoded tensors are held decoded, because their modules have no packed form", items),
            stacklevel=3,
        )


def _pack(slot: _Slot, source: HhtldPack, replacements: dict[int, nn.Module], resident: bool, exact: bool) -> None:
    assert slot.record is not None
    stays = not resident and is_read_from_a_file(source) and all(isinstance(m, nn.Embedding) for m, _ in slot.owners)
    weight = (FileRows if stays else PackedWeight)(source, slot.record.name, slot.tensor.dtype)
    if exact and isinstance(weight, PackedWeight):
        weight.exact = True
    for module, _ in slot.owners:
        new: nn.Module
        if isinstance(module, nn.Embedding):
            new = HhtlEmbedding.of_weight(weight, module.padding_idx)
        else:
            assert isinstance(module, nn.Linear)
            new = HhtlLinear.of_weight(weight, module.bias)
        replacements[id(module)] = new.train(module.training)


def _load(slot: _Slot, source: HhtldPack, record: TensorRecord, replacements: dict[int, nn.Module]) -> None:
    if not slot.tensor.is_meta:
        fill(slot.tensor.detach(), source, record)
        return
    made = torch.empty(slot.tensor.shape, dtype=slot.tensor.dtype, device="cpu")
    fill(made, source, record)
    if isinstance(slot.tensor, nn.Parameter):
        made = nn.Parameter(made, slot.tensor.requires_grad)
    for module, key in slot.owners:
        setattr(replacements.get(id(module), module), key, made)  # a bias by now belongs to the module's replacement


def replaced(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Put what `replacement` gives for a module, if it gives anything, into the module's place."""
    replacements: dict[int, nn.Module | None] = {}
    for parent, key, child in list(_places(model)):
        if id(child) not in replacements:
            replacements[id(child)] = replacement(child)
        new = replacements[id(child)]
        if new is not None:
            setattr(parent, key, new.train(child.training))
    return model


def dequantize(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Make a model's packed embeddings and linears ordinary ones, in place; tied ones stay tied.

    Parameters
    ----------
    model : nn.Module
    dtype : torch.dtype, optional
        The type of the decoded weights, by default that of the packed ones. In float32 they take ``4 * numel`` bytes.

    Returns
    -------
    nn.Module
        `model`, or its replacement if it is a packed embedding or linear itself.
    """
    weights: dict[PackedWeight, nn.Parameter] = {}

    def unpacked(module: nn.Module) -> nn.Module | None:
        packed = dict(module.named_children()).get("weight")
        if not isinstance(packed, PackedWeight):
            return None
        if packed not in weights:
            weights[packed] = nn.Parameter(packed.decoded().to(dtype or packed.dtype), requires_grad=False)
        n_rows, n_cols = packed.shape
        if isinstance(module, HhtlEmbedding):
            new: Any = nn.Embedding(n_rows, n_cols, padding_idx=module.padding_idx, device="meta")
        else:
            new = nn.Linear(n_cols, n_rows, bias=False, device="meta")
            new.bias = getattr(module, "bias", None)
        new.weight = weights[packed]
        return new

    return unpacked(model) or replaced(model, unpacked)
