"""How far two models agree: counts and divergences of logits and of embeddings, and intervals around shares.

Everything here is numpy in float64 and takes ties by the lower index, so that equal logits give equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import NonFiniteError

__all__ = ["Agreement", "PositionScores", "compare_positions", "first_difference", "nearest_others"]

Floats = NDArray[np.floating[Any]]

TOP = 5
_Z = 1.959963984540054  # of the normal distribution, 95 % two-sided
_RESAMPLES, _SEED = 10_000, 0
_BLOCK_NBYTES = 64 << 20  # of one float64 block of logits or similarities; a handful of them are held


@dataclass(frozen=True)
class Agreement:
    """A share with two intervals of 95 %.

    Attributes
    ----------
    agreed, total : int
    wilson : tuple of float
        Wilson's score interval, which holds if all cases are independent.
    bootstrap : tuple of float or None
        From resampling whole groups (the prompts) with a fixed seed. Positions of one prompt are not independent, so
        this interval is the wider and the more honest one. None for a single group.
    """

    agreed: int
    total: int
    wilson: tuple[float, float]
    bootstrap: tuple[float, float] | None

    @classmethod
    def of(cls, groups: Sequence[tuple[int, int]]) -> Agreement:
        """Return the agreement of groups, each of which is how many agreed and how many there were."""
        agreed, total = (sum(column) for column in zip(*groups, strict=True))
        return cls(agreed, total, _wilson(agreed, total), _bootstrap(groups) if len(groups) > 1 else None)

    @property
    def share(self) -> float:
        """What is judged."""
        return self.agreed / self.total

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return {
            "share": self.share,
            "agreed": self.agreed,
            "total": self.total,
            "wilson_95": list(self.wilson),
            "bootstrap_95": None if self.bootstrap is None else list(self.bootstrap),
        }


def _wilson(agreed: int, total: int) -> tuple[float, float]:
    share, z2 = agreed / total, _Z * _Z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = _Z / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def _bootstrap(groups: Sequence[tuple[int, int]]) -> tuple[float, float]:
    counts = np.array(groups, np.int64)
    rng = np.random.default_rng(_SEED)
    shares = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):  # one by one: a thousand sentences would make a matrix of 80 MB
        agreed, total = counts[rng.integers(0, len(counts), len(counts))].sum(axis=0)
        shares[i] = agreed / total
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


@dataclass(frozen=True)
class PositionScores:
    """Sums over next-token positions, which add up over prompts.

    Attributes
    ----------
    n_positions, top1, top5 : int
        Positions; those where both models choose the same token first; those where the source's first choice is among
        the packed model's first five.
    kl : float
        Sum of KL(source || packed), nats.
    nll_source, nll_packed : float
        Sums of -log p(the text's own next token), nats.
    """

    n_positions: int
    top1: int
    top5: int
    kl: float
    nll_source: float
    nll_packed: float

    @classmethod
    def total(cls, parts: Sequence[PositionScores]) -> PositionScores:
        """Return the sums over parts."""
        return cls(
            sum(p.n_positions for p in parts),
            sum(p.top1 for p in parts),
            sum(p.top5 for p in parts),
            math.fsum(p.kl for p in parts),
            math.fsum(p.nll_source for p in parts),
            math.fsum(p.nll_packed for p in parts),
        )

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the source and of the packed model on the text; capped at the largest exponent of a float."""
        source, packed = (math.exp(min(nll / self.n_positions, 700.0)) for nll in (self.nll_source, self.nll_packed))
        return source, packed

    def to_json(self) -> dict[str, Any]:
        """Return shares and means."""
        source, packed = self.perplexities
        return {
            "n_positions": self.n_positions,
            "top1": self.top1 / self.n_positions,
            "top5": self.top5 / self.n_positions,
            "kl_nats": self.kl / self.n_positions,
            "perplexity_source": source,
            "perplexity_packed": packed,
        }


def compare_positions(source: Floats, packed: Floats, next_ids: Sequence[int]) -> PositionScores:
    """Compare two models' logits (n_positions, n_vocabulary) over one text whose next tokens are `next_ids`.

    Raises
    ------
    NonFiniteError
        If logits are not finite.
    """
    if source.shape != packed.shape or len(source) != len(next_ids):
        raise ValueError(f"logits {source.shape} and {packed.shape} of {len(next_ids)} positions do not fit")
    ids = np.asarray(next_ids, np.int64)
    step = max(1, _BLOCK_NBYTES // (8 * source.shape[1]))
    blocks = (slice(start, start + step) for start in range(0, len(source), step))
    return PositionScores.total([_compared(source[block], packed[block], ids[block]) for block in blocks])


def _compared(source: Floats, packed: Floats, ids: NDArray[np.int64]) -> PositionScores:
    log_p, log_q = _log_softmax(source), _log_softmax(packed)
    rows = np.arange(len(ids))
    best = source.argmax(axis=1)
    packed_logit = packed[rows, best][:, None]
    lower = np.arange(packed.shape[1]) < best[:, None]
    rank = ((packed > packed_logit) | ((packed == packed_logit) & lower)).sum(axis=1)
    return PositionScores(
        len(ids),
        int((rank == 0).sum()),
        int((rank < TOP).sum()),
        float((np.exp(log_p) * (log_p - log_q)).sum()),
        float(-log_p[rows, ids].sum()),
        float(-log_q[rows, ids].sum()),
    )


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise NonFiniteError("a model gives logits that are infinite or not a number")
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def first_difference(a: Sequence[int], b: Sequence[int]) -> int | None:
    """Return the first place where two sequences differ, ends included, or None if they are equal."""
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))


def nearest_others(embeddings: Floats) -> NDArray[np.int64]:
    """Return, for every row of (n, n_dimensions), the number of the other row with the highest cosine."""
    unit = embeddings.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    nearest = np.empty(len(unit), np.int64)
    step = max(1, _BLOCK_NBYTES // (8 * len(unit)))
    for start in range(0, len(unit), step):
        cosines = unit[start : start + step] @ unit.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        nearest[start : start + step] = cosines.argmax(axis=1)
    return nearest
