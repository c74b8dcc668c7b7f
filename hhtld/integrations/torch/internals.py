"""What hhtld uses of torch beyond its documented interface, and the releases that have it.

All of these have stood in torch for years, and none is promised. They are named here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.autograd import forward_ad

from hhtld.errors import MissingExtraError

__all__ = [
    "RELEASES",
    "WeakTensorKeyDictionary",
    "are_tangents_nested",
    "is_batch_innermost",
    "is_batched",
    "may_carry_tangents",
    "persistent_buffers",
    "runs_plainly",
    "without_tangents",
]

RELEASES = ">=2.13,<3"  # as in pyproject.toml
# Methods of nn.Module that classes of hhtld override, and attributes that the functions below read.
_OVERRIDDEN = ("_apply", "_load_from_state_dict", "_save_to_state_dict")
_READ = ("_non_persistent_buffers_set",)


def _unfit(what: str) -> MissingExtraError:
    return MissingExtraError(
        f"hhtld.integrations.torch needs torch {RELEASES}, and this one, {torch.__version__}, has no {what}: "
        "pip install 'hhtld[torch]'"
    )


try:
    from torch._C import _is_fwd_grad_enabled, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._functorch import (
        TransformType,
        get_interpreter_stack,
        is_batchedtensor,
        peek_interpreter_stack,
    )
    from torch.autograd import _profiler_enabled
    from torch.utils.weak import WeakTensorKeyDictionary
except ImportError as error:
    raise _unfit(str(error)) from error
for _name in _OVERRIDDEN + _READ:
    if not hasattr(nn.Module(), _name):
        raise _unfit(f"nn.Module.{_name}")
for _name in ("_current_level", "_set_fwd_grad_enabled"):
    if not hasattr(forward_ad, _name):
        raise _unfit(f"torch.autograd.forward_ad.{_name}")


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buffers of a module that its state dict holds, without those of its children."""
    for key, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
        if key not in module._non_persistent_buffers_set:
            yield key, buffer


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        (type(tensor) is torch.Tensor or type(tensor) is nn.Parameter)
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad and torch.is_grad_enabled())
    )


def may_carry_tangents() -> bool:
    """Whether tensors may have tangents: forward-mode differentiation goes on, and nothing has switched it off."""
    level: int = forward_ad._current_level
    return level >= 0 and bool(_is_fwd_grad_enabled())


def are_tangents_nested() -> bool:
    """Whether a tangent may have a tangent: `torch.func.jvp` inside another one."""
    transforms = get_interpreter_stack() or ()
    return [transform.key() for transform in transforms].count(TransformType.Jvp) > 1


def is_batched(tensor: torch.Tensor) -> bool:
    """Whether a tensor is one of many to the innermost `torch.vmap`."""
    return bool(is_batchedtensor(tensor))


def is_batch_innermost() -> bool:
    """Whether the innermost transform is `torch.vmap`."""
    transforms = get_interpreter_stack() or ()
    return [transform.key() for transform in transforms][-1:] == [TransformType.Vmap]


def without_tangents() -> AbstractContextManager[object]:
    """Switch forward-mode differentiation off."""
    context: AbstractContextManager[object] = forward_ad._set_fwd_grad_enabled(False)
    return context


def runs_plainly(x: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a product is seen by nobody: no compiler, tracer, profiler, mode, transform, other device or derivative.

    Such a call may go past torch's dispatcher, which takes longer than the product of a small layer.
    """
    return (
        _is_plain(x)
        and (bias is None or _is_plain(bias))
        and not torch.compiler.is_compiling()  # which can trace none of the calls below
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and not _len_torch_dispatch_stack()
        and not _len_torch_function_stack()
        and not _profiler_enabled()
        and peek_interpreter_stack() is None
    )
