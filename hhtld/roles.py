"""Who a tensor is, from its name and shape, as the codec's specification has it: role, component, regime, group.

A tensor whose rows are looked up by index (an embedding, an lm_head) is in the index regime and must
keep row identity; everything else ends in an argmax somewhere and is in the argmax regime. What a role implies is
what profiles "lookup" and "f32" go by; the others ask `hhtld.regimes`, which looks at more than a part of a name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hhtld.codecs.group import INDEX_ROLES, PaletteGroupKey
from hhtld.matrix import row_axes

__all__ = [
    "INDEX_ROLES",
    "classify_component",
    "classify_role",
    "effective_shape",
    "group_key",
    "is_encodable",
    "regime",
    "should_use_leaf",
]

# The second spelling of each is llama.cpp's, in GGUF files; its head is called just "output.weight".
_ROLES = (
    ("qko", ("q_proj", "k_proj", "o_proj", "attn_q.", "attn_k.", "attn_output.")),
    ("v", ("v_proj", "attn_v.")),
    ("gate", ("gate_proj", "ffn_gate.")),
    ("up", ("up_proj", "ffn_up.")),
    ("down", ("down_proj", "ffn_down.")),
    ("embed", ("embed", "token_embd")),
    ("lm_head", ("lm_head",)),
    ("projection", ("projection", "codec_head")),
)
_COMPONENTS = ("code_predictor", "talker", "speaker_encoder")
MIN_ROWS = 512
MIN_NBYTES = 100_000


def classify_role(name: str) -> str:
    """Return the role of a tensor's name: the first listed substring decides."""
    text = name.lower()
    if text == "output.weight":
        return "lm_head"
    return next((role for role, parts in _ROLES if any(part in text for part in parts)), "other")


def classify_component(name: str) -> str:
    """Return the part of a composite model a name belongs to, or "other"."""
    text = name.lower()
    return next((part for part in _COMPONENTS if part in text), "other")


def regime(role: str) -> str:
    """Return the regime that a role implies: "index" or "argmax"."""
    return "index" if role in INDEX_ROLES else "argmax"


def should_use_leaf(role: str) -> bool:
    """Whether rows of this role carry Slot L: the index regime does."""
    return role in INDEX_ROLES


def _is_matrix(shape: Sequence[int]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)


def is_encodable(shape: Sequence[int], nbytes: int) -> bool:
    """Whether the lookup grades encode a tensor: a matrix of 512 rows and more than 100,000 bytes."""
    return _is_matrix(shape) and shape[0] >= MIN_ROWS and nbytes > MIN_NBYTES


def effective_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return (rows, columns) of the lookup grades: the first axis and the product of the rest.

    The other profiles code the rows that `hhtld.matrix` finds; of what the lookup grades encode these are the same.
    """
    if not shape:
        raise ValueError("a scalar has no rows")
    return shape[0], math.prod(shape[1:])


def group_key(name: str, shape: Sequence[int]) -> PaletteGroupKey:
    """Return the group that shares palettes and bases with tensor `name`."""
    n_row_axes = row_axes(shape)
    matrix = math.prod(shape[:n_row_axes]), math.prod(shape[n_row_axes:])
    return PaletteGroupKey(classify_component(name), classify_role(name), matrix)
