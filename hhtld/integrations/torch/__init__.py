"""Packs in torch: state dicts, and modules whose weights stay packed.

    from hhtld.integrations.torch import load_state_dict, replace_modules

    model.load_state_dict(load_state_dict("model.hhtld"))  # decoded, as any checkpoint
    replace_modules(model, "model.hhtld")  # packed: embeddings and linears read the pack's bytes as they compute

The module needs the extra ``torch``; importing it without that raises `MissingExtraError`. Everything here is for
inference: packed weights take no gradients.
"""

from __future__ import annotations

from hhtld.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401  (imported to see whether it is there)
except ImportError as error:
    raise MissingExtraError("hhtld.integrations.torch needs torch: pip install 'hhtld[torch]'") from error

from hhtld.integrations.torch.file_rows import FileRows
from hhtld.integrations.torch.modules import HhtlEmbedding, HhtlLinear
from hhtld.integrations.torch.ops import SCORED_ROWS
from hhtld.integrations.torch.packed import PackedWeight, PackedWeightError
from hhtld.integrations.torch.replace import PackedCounts, dequantize, packed_counts, replace_modules
from hhtld.integrations.torch.tensors import iter_tensors, load_state_dict, torch_dtype

__all__ = [
    "SCORED_ROWS",
    "FileRows",
    "HhtlEmbedding",
    "HhtlLinear",
    "PackedCounts",
    "PackedWeight",
    "PackedWeightError",
    "dequantize",
    "iter_tensors",
    "load_state_dict",
    "packed_counts",
    "replace_modules",
    "torch_dtype",
]
