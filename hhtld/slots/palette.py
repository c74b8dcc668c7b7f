"""The Base17 palette: up to 256 rows of a tensor picked far apart, and the tables over them.

Layout
------
34 bytes an entry (see `hhtld.slots.base17`), in the order they were picked. Everything else here is
computed from the entries and stored nowhere: distances (uint16), routes, composition, HIP families.

Picking
-------
Furthest-point sampling by L1. The first pick is the row nearest to the integer centroid (int64 sum
divided by the row count, truncated toward zero; first row wins); each next pick is the row furthest
from its nearest pick, the LAST such row on a tie, so picks may repeat when all distances are 0.

Source
------
The HHTL-D design published in AdaWorldAPI/lance-graph (crates/bgz-tensor).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _l1
from hhtld.identity import MAX_PALETTE_K
from hhtld.slots.base17 import N_DIMS, Base17

__all__ = ["MAX_PALETTE_K", "HhtlCache", "Palette", "RouteAction", "build_hip_families", "checked_palette_k"]

_HIP_DEPTH = 4


class RouteAction(IntEnum):
    """What a search does with a pair of entries."""

    SKIP = 0
    ATTEND = 1
    COMPOSE = 2
    ESCALATE = 3


def checked_palette_k(k: object) -> int:
    """Return `k` when a u8 twig can address a palette of that size, else raise."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer):
        raise TypeError(f"palette size k must be an integer, got {k!r}")
    if not 1 <= k <= MAX_PALETTE_K:
        raise ValueError(f"palette size k must be 1..{MAX_PALETTE_K}, because a twig is one u8; got {k}")
    return int(k)


@dataclass(frozen=True, eq=False)
class Palette:
    """Picked entries and, while the rows are known, how the rows fall on them.

    Attributes
    ----------
    entries : Base17
        k rows, 1 <= k <= 256.
    radii : ndarray of uint32, shape (k,), or None
        Largest distance of a row assigned to the entry.
    counts : ndarray of int64, shape (k,), or None
        Rows assigned.
    """

    entries: Base17
    radii: NDArray[np.uint32] | None = None
    counts: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        checked_palette_k(len(self.entries))

    def __len__(self) -> int:
        return len(self.entries)

    @classmethod
    def build(cls, rows: Base17, k: int = MAX_PALETTE_K) -> Self:
        """Pick min(k, n) of n >= 1 folded rows."""
        k = checked_palette_k(k)
        n_rows = len(rows)
        if n_rows == 0:
            raise ValueError("a palette needs at least one row")
        dims = rows.dims
        total = dims.sum(axis=0, dtype=np.int64)
        centroid = (np.abs(total) // n_rows * np.sign(total)).astype(np.int16)
        first = np.empty(n_rows, np.uint8), np.empty(n_rows, np.uint32)
        _l1.nearest_l1(dims, centroid.reshape(1, N_DIMS), *first)
        picks = np.zeros(min(k, n_rows), np.int64)
        picks[0] = int(first[1].argmin())
        distances, nearest = np.empty(n_rows, np.uint32), np.empty(n_rows, np.int32)
        _l1.furthest_l1(np.ascontiguousarray(dims.T), picks, distances, nearest)
        radii = np.zeros(len(picks), np.uint32)
        np.maximum.at(radii, nearest, distances)
        return cls(Base17(dims[picks]), radii, np.bincount(nearest, minlength=len(picks)))

    def assign(self, rows: Base17) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """Return each row's nearest entry (lowest index on a tie) and its L1 distance."""
        twigs, distances = np.empty(len(rows), np.uint8), np.empty(len(rows), np.uint32)
        _l1.nearest_l1(rows.dims, self.entries.dims, twigs, distances)
        return twigs, distances


class HhtlCache:
    """A palette with its pairwise tables, each computed when first asked for.

    Attributes
    ----------
    palette : Palette
    """

    def __init__(self, palette: Palette) -> None:
        self.palette = palette
        self._unfolded: dict[int, NDArray[np.float32]] = {}

    @property
    def k(self) -> int:
        """Number of entries."""
        return len(self.palette)

    @cached_property
    def distances(self) -> NDArray[np.uint16]:
        """floor(L1 * 65535 / (17 * 65535)), shape (k, k)."""
        l1 = self.palette.entries.l1(self.palette.entries)
        return (l1 * 65535 // (N_DIMS * 65535)).astype(np.uint16)

    @cached_property
    def routes(self) -> NDArray[np.uint8]:
        """`RouteAction` of every pair, shape (k, k)."""
        apart = self.distances.astype(np.int64)
        between = np.sort(apart[~np.eye(self.k, dtype=bool)])
        near, far = between[[len(between) // 4, 3 * len(between) // 4]] if len(between) else (0, 0)
        weights = _perceptual_weights(self.palette.entries)
        pair = (weights[:, None] + weights) / np.float32(2)
        far_limit = np.minimum(np.float32(far) * pair, 65535).astype(np.int64)
        near_limit = np.minimum(np.float32(near) * pair, 65535).astype(np.int64)
        # A detour through c = a or c = b is never shorter than 9/10 of the way, so none is left out.
        detour = np.stack([(apart[a][:, None] + apart).min(axis=0) for a in range(self.k)])
        routes = np.where(apart <= near_limit, RouteAction.ATTEND, RouteAction.ESCALATE)
        routes = np.where(detour < apart * 9 // 10, RouteAction.COMPOSE, routes)
        routes = np.where(apart > far_limit, RouteAction.SKIP, routes)
        np.fill_diagonal(routes, RouteAction.ATTEND)
        return routes.astype(np.uint8)

    @cached_property
    def composition(self) -> NDArray[np.uint8]:
        """Entry nearest to the binding of every pair, shape (k, k)."""
        dims = self.palette.entries.dims
        bound = Base17((dims[:, None] ^ dims).reshape(-1, N_DIMS))
        return self.palette.assign(bound)[0].reshape(self.k, self.k)

    def unfolded(self, n_cols: int) -> NDArray[np.float32]:
        """Return the entries as rows (k, n_cols), kept for the next call."""
        rows = self._unfolded.get(n_cols)
        if rows is None:
            rows = self._unfolded[n_cols] = self.palette.entries.unfold(n_cols)
        return rows

    @property
    def unfolded_nbytes(self) -> int:
        """Bytes that `unfolded` keeps."""
        return sum(rows.nbytes for rows in self._unfolded.values())

    def forget_unfolded(self) -> None:
        """Let go of what `unfolded` keeps."""
        self._unfolded.clear()

    def nearest(self, rows: Base17) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
        """Return each folded row's nearest entry and its L1 distance."""
        return self.palette.assign(rows)

    def distance(self, a: int, b: int) -> int:
        """Return the scaled distance of two entries."""
        return int(self.distances[a, b])

    def route(self, a: int, b: int) -> RouteAction:
        """Return what a search does with two entries."""
        return RouteAction(int(self.routes[a, b]))


def _perceptual_weights(entries: Base17) -> NDArray[np.float32]:
    """min(0.5 + 3 F / T, 2) in float32, F and T being sums of |dims 5..10| and |dims 0..16|; 1 where T < 1."""
    size = np.abs(entries.dims.astype(np.int64))
    middle, total = size[:, 5:11].sum(axis=1).astype(np.float32), size.sum(axis=1).astype(np.float32)
    weight = np.minimum(np.float32(0.5) + np.float32(3) * middle / np.maximum(total, 1), np.float32(2))
    return np.where(total < 1, np.float32(1), weight)


def build_hip_families(palette: Palette) -> NDArray[np.uint8]:
    """Split the entries into 16 families by four rounds of farthest pairs.

    Returns
    -------
    ndarray of uint8, shape (k,)
        Family 0..15 of every entry: the half nearer to the pair's first pole (or as near) keeps its
        number, the other adds 8, 4, 2, 1 by depth.
    """
    apart = palette.entries.l1(palette.entries)
    families = np.zeros(len(palette), np.uint8)

    def split(members: NDArray[np.int64], depth: int) -> None:
        if depth == _HIP_DEPTH or len(members) <= 1:
            return
        among = np.triu(apart[np.ix_(members, members)], 1)
        pole_a, pole_b = divmod(int(among.argmax()), len(members)) if among.max() > 0 else (0, 0)
        left = apart[members, members[pole_a]] <= apart[members, members[pole_b]]
        families[members[~left]] += 8 >> depth
        split(members[left], depth + 1)
        split(members[~left], depth + 1)

    split(np.arange(len(palette)), 0)
    return families
