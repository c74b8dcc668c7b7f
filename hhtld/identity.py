"""Words and numbers that stand in files, and who a tensor is by its name and shape: role, component, regime, group.

A tensor whose rows are looked up by index (an embedding, an lm_head) is in the index regime and must
keep row identity; everything else ends in an argmax somewhere and is in the argmax regime. What a role implies is
what profiles "lookup" and "f32" go by; the others ask `hhtld.sources.regimes`, which looks at more than a part of a
name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hhtld.matrix import row_axes

__all__ = [
    "BASE17_NBYTES",
    "CODEBOOK_BITS",
    "CODEBOOK_NBYTES",
    "ENTRY_NBYTES",
    "INDEX_ROLES",
    "MAX_PALETTE_K",
    "MAX_RATE",
    "MIN_RATE",
    "REGIMES",
    "SLOT_L_LANES",
    "STATE_BITS",
    "PaletteGroupKey",
    "classify_component",
    "classify_role",
    "effective_shape",
    "group_key",
    "is_encodable",
    "regime",
    "should_use_leaf",
    "state_bits",
]

MAX_PALETTE_K = 256  # a twig is one u8
SLOT_L_LANES = 8
BASE17_NBYTES = 34
ENTRY_NBYTES = 4  # Slot D and Slot V of the lookup codec
MIN_RATE, MAX_RATE = 16, 96  # of Slot T, in sixteenths of a bit
CODEBOOK_NBYTES, CODEBOOK_BITS = 72, 12  # of a crossed codebook; log2 of its states
STATE_BITS = (8, 10, 12)  # log2 of the levels of a codebook that lists them, as early packs have it
REGIMES = ("argmax", "index")
INDEX_ROLES = frozenset({"embed", "lm_head"})  # rows are looked up by index, so that each must keep its identity

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


@dataclass(frozen=True, order=True)
class PaletteGroupKey:
    """What tensors must agree in to share a group.

    Attributes
    ----------
    component, role : str
    shape : (int, int)
        Rows and columns.
    regime : str
        "index" or "argmax"; what the role implies, where none is given.
    """

    component: str
    role: str
    shape: tuple[int, int]
    regime: str = ""

    def __post_init__(self) -> None:
        if not self.regime:
            object.__setattr__(self, "regime", self.implied_regime)

    @property
    def implied_regime(self) -> str:
        """The regime that the role implies."""
        return "index" if self.role in INDEX_ROLES else "argmax"

    def __str__(self) -> str:
        text = f"{self.component}/{self.role} {self.shape[0]} x {self.shape[1]}"
        return text if self.regime == self.implied_regime else f"{text}, {self.regime}"


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


def state_bits(codebook_nbytes: int) -> int | None:
    """Return log2 of the states of a codebook of so many bytes, or None if none has them."""
    if codebook_nbytes == CODEBOOK_NBYTES:
        return CODEBOOK_BITS
    n_bits = codebook_nbytes.bit_length() - 1
    return n_bits if n_bits in STATE_BITS and codebook_nbytes == 1 << n_bits else None
