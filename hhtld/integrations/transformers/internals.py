"""Everything that hhtld uses of transformers beyond its documented interface, and the releases it was tried with.

Quantization methods outside of transformers need some of its inner workings: how names of a checkpoint become those
of a model, what a model remembers of that for saving, and which of its weights are tied. They change without notice,
so they are named here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers
from transformers.quantizers import HfQuantizer

from hhtld.errors import MissingExtraError

__all__ = [
    "RELEASES",
    "ConversionOps",
    "HfQuantizer",
    "QuantizationConfigMixin",
    "WeightConverter",
    "conversions_kept",
    "conversions_of",
    "register_quantization_config",
    "register_quantizer",
    "should_convert_module",
    "tied_places",
    "ties_of",
    "with_operations",
]

RELEASES = ">=5.23,<6"  # as in pyproject.toml; the oldest and the newest of these were tried: 5.23.0 and 5.24.0
_HOOKS = (
    *("update_weight_conversions", "update_attn_implementation", "update_device_map", "update_dtype", "get_new_dtype"),
    *("_process_model_before_weight_loading", "_process_model_after_weight_loading", "_dequantize"),
    *("remove_quantization_config", "is_serializable", "is_trainable"),
)


def _unfit(what: str) -> MissingExtraError:
    return MissingExtraError(
        f"hhtld.integrations.transformers needs transformers {RELEASES}, and this one, {transformers.__version__}, "
        f"has no {what}: pip install 'hhtld[transformers]'"
    )


try:
    from transformers.core_model_loading import ConversionOps, WeightConverter
    from transformers.quantizers import register_quantization_config, register_quantizer
    from transformers.quantizers.quantizers_utils import should_convert_module
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise _unfit(str(error)) from error
for _hook in _HOOKS:
    if not hasattr(HfQuantizer, _hook):
        raise _unfit(f"HfQuantizer.{_hook}")


def with_operations(conversion: Any, first: Any) -> Any:
    """Return a `WeightConverter` like another, with an operation before its own."""
    patterns = conversion._original_source_patterns, conversion._original_target_patterns
    return conversion.copy(*map(list, patterns), operations=[first, *conversion.operations])


def conversions_of(model: Any) -> list[Any] | None:
    """Return the conversions that a model was loaded with and that saving turns back; None if it holds none."""
    conversions = getattr(model, "_weight_conversions", None)
    return None if conversions is None else list(conversions)


def conversions_kept(model: Any, conversions: Sequence[Any] | None) -> None:
    """Let a model hold conversions, which saving needs: 5.24 takes them away together with the quantization."""
    if conversions is not None:
        model._weight_conversions = list(conversions)


def ties_of(model: Any) -> dict[str, str]:
    """Return the names of the parameters that are tied to others, each with the name of the other."""
    return dict(getattr(model, "all_tied_weights_keys", {}))


def tied_places(model: Any, place: str) -> set[str]:
    """Return the name of a parameter and the names of all that are tied to it."""
    ties = ties_of(model)
    source = ties.get(place, place)
    return {place, source} | {target for target, tied_to in ties.items() if tied_to == source}
