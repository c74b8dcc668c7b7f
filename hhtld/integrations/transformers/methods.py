"""Methods of a model with packed weights for which transformers' own would miscount, fail or leave a part out.

They are set on the model alone, so that its class stays the one that config.json names, and are taken away again when
the model becomes an ordinary one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from hhtld.errors import shown
from hhtld.integrations.torch.modules import HhtlEmbedding
from hhtld.integrations.torch.packed import HOW_TO_DECODE, PackedWeight
from hhtld.integrations.transformers.internals import ties_of

__all__ = ["set_methods", "unset_methods"]


def set_methods(model: Any) -> None:
    """Let a model with packed weights answer for them."""
    for name, method in _METHODS.items():
        setattr(model, name, functools.partial(method, model))  # which pickles and copies with the model


def unset_methods(model: Any) -> None:
    """Let an ordinary model answer as its class does."""
    for name in _METHODS:
        vars(model).pop(name, None)


def _num_parameters(model: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Return what transformers counts, with the numbers that packed weights stand for; none of those is trainable."""
    counted = int(type(model).num_parameters(model, only_trainable, exclude_embeddings))
    if only_trainable:
        return counted
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, HhtlEmbedding)}
    weights = [module for module in model.modules() if isinstance(module, PackedWeight)]  # each once, even if tied
    return counted + sum(weight.numel() for weight in weights if not (exclude_embeddings and id(weight) in embeddings))


def _tie_weights(model: Any, *_: Any, **__: Any) -> None:
    """Leave ties as they are: loading made them, and tied modules share a packed weight."""
    for target, source in ties_of(model).items():
        if _at(model, target) is not _at(model, source):
            raise ValueError(
                f"{shown(target)} and {shown(source)} are not tied any more, and packed weights can be tied only while "
                f"a model loads: {HOW_TO_DECODE}"
            )


def _resize_token_embeddings(
    model: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, *args: Any, **options: Any
) -> Any:
    """Resize embeddings that are ordinary ones, and refuse packed ones."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    asks = new_num_tokens is not None or pad_to_multiple_of is not None
    if asks and any(isinstance(getattr(end, "weight", None), PackedWeight) for end in ends):
        raise ValueError(f"packed embeddings and heads cannot be resized: {HOW_TO_DECODE}, and resize that")
    return type(model).resize_token_embeddings(model, new_num_tokens, pad_to_multiple_of, *args, **options)


def _at(model: Any, place: str) -> Any:
    owner, _, key = place.rpartition(".")
    return getattr(model.get_submodule(owner), key)


_METHODS: dict[str, Callable[..., Any]] = {
    "num_parameters": _num_parameters,
    "tie_weights": _tie_weights,
    "resize_token_embeddings": _resize_token_embeddings,
}
