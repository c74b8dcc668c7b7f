"""What each tensor becomes, decided from names, types and shapes before anything is encoded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from hhtld.errors import NonFiniteError
from hhtld.group import PaletteGroupKey
from hhtld.roles import group_key, is_encodable
from hhtld.rows import row_ranges
from hhtld.source import SourceRows, TensorInfo, TensorSource

__all__ = ["CODECS", "PROFILES", "Plan", "TensorPlan", "make_plan"]

# Codec ids are permanent: they stand in files. A profile is what a user asks for.
CODECS = ("keep", "hhtl_d", "hhtl_f32")
PROFILES = {"lookup": "hhtl_d", "f32": "hhtl_f32"}


@dataclass(frozen=True)
class TensorPlan:
    """What one tensor becomes: a codec and its group, or another tensor's alias."""

    info: TensorInfo
    codec: str
    group: PaletteGroupKey | None = None
    alias_of: str | None = None


@dataclass
class Plan:
    """What every tensor of a source becomes.

    Attributes
    ----------
    profile : str
    tensors : dict of name to TensorPlan, in ascending order of names
    """

    profile: str
    tensors: dict[str, TensorPlan] = field(default_factory=dict)

    def groups(self) -> dict[PaletteGroupKey, list[str]]:
        """Return the encoded names by group, both in ascending order."""
        members: dict[PaletteGroupKey, list[str]] = defaultdict(list)
        for name, plan in self.tensors.items():
            if plan.group is not None:
                members[plan.group].append(name)
        return dict(sorted(members.items()))

    def kept(self) -> list[str]:
        """Return the names stored as they came."""
        return [name for name, plan in self.tensors.items() if plan.codec == "keep" and plan.alias_of is None]


def make_plan(source: TensorSource, profile: str, *, nonfinite: str = "refuse") -> Plan:
    """Plan a source under a profile.

    Parameters
    ----------
    source : TensorSource
    profile : {"lookup", "f32"}
    nonfinite : {"refuse", "keep"}
        What becomes of a weight tensor that holds an infinity or NaN; "keep" reads every candidate
        once more to find them.
    """
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile!r}; available: {', '.join(PROFILES)}")
    if nonfinite not in ("refuse", "keep"):
        raise ValueError(f"nonfinite must be 'refuse' or 'keep', got {nonfinite!r}")
    infos = source.infos()
    tied = _tied(source, infos.values()) | dict(source.aliases())
    plan = Plan(profile)
    for name in sorted(infos):
        info = infos[name]
        if name in tied:
            plan.tensors[name] = TensorPlan(info, "keep", alias_of=tied[name])
        elif (
            info.dtype.is_weight
            and is_encodable(info.shape, info.nbytes)
            and info.n_cols > 0
            and (nonfinite == "refuse" or _finite(source, name))
        ):
            plan.tensors[name] = TensorPlan(info, PROFILES[profile], group_key(name, info.shape))
        else:
            plan.tensors[name] = TensorPlan(info, "keep")
    return plan


def _finite(source: TensorSource, name: str) -> bool:
    rows = SourceRows(source, name)
    try:
        for start, stop in row_ranges(rows.n_rows, 4 * rows.n_cols):
            rows.read(start, stop)
    except NonFiniteError:
        return False
    return True


def _tied(source: TensorSource, infos: Iterable[TensorInfo]) -> dict[str, str]:
    """Matrices equal byte for byte to one of an earlier name: tied weights that were saved twice.

    Only tensors of one type and shape are compared, first and last row before the rest, so that a
    model without tied weights pays for a few rows.
    """
    alike: dict[tuple[str, tuple[int, ...]], list[TensorInfo]] = defaultdict(list)
    for info in sorted(infos, key=lambda info: info.name):
        if len(info.shape) > 1 and info.nbytes:
            alike[info.dtype.name, info.shape].append(info)
    tied: dict[str, str] = {}
    for candidates in alike.values():
        firsts: dict[bytes, list[str]] = defaultdict(list)
        for info in candidates if len(candidates) > 1 else ():
            ends = b"".join(source.read_rows(info.name, row, row + 1).tobytes() for row in (0, info.n_rows - 1))
            same = next((name for name in firsts[ends] if _equal(source, name, info)), None)
            if same is None:
                firsts[ends].append(info.name)
            else:
                tied[info.name] = same
    return tied


def _equal(source: TensorSource, name: str, info: TensorInfo) -> bool:
    return all(
        np.array_equal(source.read_rows(name, start, stop), source.read_rows(info.name, start, stop))
        for start, stop in row_ranges(info.n_rows, info.row_nbytes)
    )
