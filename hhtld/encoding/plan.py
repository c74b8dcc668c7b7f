"""What each tensor becomes, decided from names, types and shapes before anything is encoded."""

from __future__ import annotations

import fnmatch
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld.codecs import KEEP, parse_profile
from hhtld.codecs.base import Codec, Profile
from hhtld.dtypes import first_beyond_float32, view
from hhtld.encoding.arithmetic import warn_if_unusual
from hhtld.errors import NonFiniteError, QuantizedError, shown
from hhtld.gates import THRESHOLDS, Threshold, checked_thresholds
from hhtld.identity import INDEX_ROLES, PaletteGroupKey, classify_role, group_key
from hhtld.matrix import TensorInfo
from hhtld.slots.feedback import MAX_FEEDBACK_COLS
from hhtld.sources.contract import ADDS, SourceRows, TensorSource
from hhtld.sources.integers import holds_integers
from hhtld.sources.quantized import quantized_tensors, refusal
from hhtld.sources.regimes import RegimeChoice, choose_regimes
from hhtld.sources.rows import row_ranges

__all__ = [
    "DEFAULT_PROFILE",
    "Plan",
    "TensorPlan",
    "check_quantized",
    "make_plan",
    "thresholds_of",
]

DEFAULT_PROFILE = "parity"


def thresholds_of(profile: str) -> Mapping[str, Threshold]:
    """Return what a pack's profile asks of each regime where no one asked for anything else; any text is a profile."""
    try:
        return parse_profile(profile).thresholds
    except ValueError:
        return THRESHOLDS


@dataclass(frozen=True)
class TensorPlan:
    """What one tensor becomes: a profile and its group, or another tensor's alias.

    Attributes
    ----------
    info : TensorInfo
    profile : Profile
    group : PaletteGroupKey or None
    alias_of : str or None
    regime_reason : str
        What decided for the regime of its group.
    """

    info: TensorInfo
    profile: Profile
    group: PaletteGroupKey | None = None
    alias_of: str | None = None
    regime_reason: str = ""

    @property
    def codec(self) -> Codec:
        """The codec it is planned for; the encoder may still keep it as it came."""
        return self.profile.codec


@dataclass
class Plan:
    """What every tensor of a source becomes.

    Attributes
    ----------
    profile : Profile
    tensors : dict of name to TensorPlan, in ascending order of names
    asked : dict of regime to Threshold
        Cosines that the user asked for; see `threshold`.
    seed : int
        Of the rotations.
    column_scales : dict of name to float32 array (n_cols,)
        What Slot T multiplies a tensor's columns by before it codes them.
    moments : dict of name to float32 array (n_cols, n_cols)
        Mean products of the inputs of a tensor's columns, for `hhtld.slots.feedback`.
    files : tuple of str
        Side files of the source that travel along, in ascending order.
    notes : tuple of str
        What a user should know of the plan, one sentence each.
    """

    profile: Profile
    tensors: dict[str, TensorPlan] = field(default_factory=dict)
    asked: Mapping[str, Threshold] = field(default_factory=dict)
    seed: int = 0
    column_scales: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    moments: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """The cosines that rows of each regime must reach under the plan's own profile."""
        return {kind: self.threshold(self.profile, kind) for kind in THRESHOLDS}

    def threshold(self, profile: Profile, kind: str) -> Threshold:
        """Return the cosines that rows of a regime must reach under a profile, which a rule may have chosen."""
        return self.asked.get(kind, profile.thresholds[kind])

    def groups(self) -> dict[tuple[PaletteGroupKey, Profile], list[str]]:
        """Return the encoded names by group and profile, all in ascending order."""
        members: dict[tuple[PaletteGroupKey, Profile], list[str]] = defaultdict(list)
        for name, plan in self.tensors.items():
            if plan.group is not None:
                members[plan.group, plan.profile].append(name)
        return dict(sorted(members.items(), key=lambda item: (item[0][0], item[0][1].text)))

    def kept(self) -> list[str]:
        """Return the names stored as they came."""
        return [name for name, plan in self.tensors.items() if plan.group is None and plan.alias_of is None]


def make_plan(
    source: TensorSource,
    profile: str,
    *,
    rules: Sequence[tuple[str, str]] = (),
    roles: Sequence[tuple[str, str]] = (),
    thresholds: Mapping[str, Threshold] | None = None,
    nonfinite: str = "refuse",
    quantized: str = "refuse",
    seed: int = 0,
    column_scales: Mapping[str, ArrayLike] | None = None,
    rates: Mapping[str, int] | None = None,
    moments: Mapping[str, ArrayLike] | None = None,
) -> Plan:
    """Plan a source under a profile.

    Parameters
    ----------
    source : TensorSource
    profile : str
        "lookup", "f32", "gates", "parity" or "bits:B".
    rules : sequence of (glob, profile)
        The first whose glob matches a name decides for it, and for names that share its bytes and have no rule; "keep"
        keeps the tensor as it is.
    roles : sequence of (glob, "index" or "argmax")
        The first whose glob matches a name decides for the regime of its rows, see `hhtld.sources.regimes`. Not for
        profiles "lookup" and "f32", whose specification goes by names.
    thresholds : mapping of regime to Threshold, optional
        Cosines that rows under "gates" and "parity" must reach instead of `THRESHOLDS` and `PARITY_THRESHOLD`.
    nonfinite : {"refuse", "keep"}
        What becomes of a weight tensor that holds an infinity or NaN; "keep" reads every candidate
        once more to find them.
    quantized : {"refuse", "keep"}
        What becomes of a model whose weights are quantized already (`hhtld.sources.quantized`): "keep" keeps every
        tensor that belongs to quantized weights as it is and encodes the rest. Tensors that rules keep need no refusal.
        What an ONNX model's graph uses as quantized weights, scales and zero points is kept either way.
    seed : int
    column_scales : mapping of str to array (n_cols,), optional
        Positive numbers by which Slot T multiplies a tensor's columns before it codes them, for example
        the fourth root of what the columns' activations measure; decoding divides. Rounded to bfloat16.
    rates : mapping of str to int, optional
        Sixteenths of a bit for tensors of profile "parity", from `hhtld.encoding.calibration`; its other tensors take
        the rate at which their rows pass `PARITY_THRESHOLD`.
    moments : mapping of str to array (n_cols, n_cols), optional
        Mean products of the inputs of tensors' columns: Slot T then spreads errors where they cost products least
        (`hhtld.slots.feedback`).

    Raises
    ------
    ValueError
        For an unknown profile or regime, a rule or role that no tensor matches, and scales that fit no tensor.
    QuantizedError
        For a model whose weights are quantized already, unless `quantized` is "keep".
    """
    warn_if_unusual()  # before anything is encoded, whichever door it came through
    chosen = parse_profile(profile)
    parsed = _parsed(rules)
    if nonfinite not in ("refuse", "keep"):
        raise ValueError(f"nonfinite must be 'refuse' or 'keep', got {nonfinite!r}")
    if quantized not in ("refuse", "keep"):
        raise ValueError(f"quantized must be 'refuse' or 'keep', got {quantized!r}")
    if rates and profile != "parity":
        raise ValueError(f"rates are for profile 'parity', got {profile!r}")
    if type(seed) is bool or not hasattr(seed, "__index__") or not 0 <= int(seed) < 2**64:
        raise ValueError(f"seed must be an integer of 0..2^64 - 1, got {seed!r}")
    asked = checked_thresholds(thresholds)
    infos = source.infos()
    for glob, _ in parsed:
        if not any(fnmatch.fnmatchcase(name, glob) for name in infos):
            raise ValueError(f"rule {glob!r} matches no tensor; the source has {', '.join(sorted(infos)[:5])}, ...")
    ruled = {name: _ruled(name, parsed) for name in infos} if parsed else {}
    companions, notes = _quantized(source, ruled, quantized == "keep")
    companions.update(name for name, used in source.uses().items() if used == {ADDS})
    whole: list[str] = []
    tied = _tied(source, infos.values()) | dict(source.aliases())
    choices = choose_regimes(source, tied, roles)
    families = _families(tied)
    plan = Plan(chosen, asked=asked, seed=int(seed))
    plan.files = tuple(sorted(source.files()))
    plan.notes = notes
    plan.column_scales = {name: _scale(infos, name, scale) for name, scale in (column_scales or {}).items()}
    plan.moments = {name: _moments(infos, name, found) for name, found in (moments or {}).items()}
    keep, beyond = Profile("keep", KEEP), []
    for name in sorted(infos):
        info = infos[name]
        family = [name, *families.get(name, ())]
        own = next((found for each in family if (found := ruled.get(each)) is not None), chosen)
        if own is chosen and rates and name in rates:
            own = chosen.at_rate(rates[name])
        if name in tied:
            plan.tensors[name] = TensorPlan(info, keep, alias_of=tied[name])
        elif name in companions or not _takes(own, info):
            plan.tensors[name] = TensorPlan(info, keep)
        elif (row := _beyond_float32(source, info)) is not None:
            plan.tensors[name] = TensorPlan(info, keep)
            beyond.append(f"row {row} of {shown(name)}")
        elif nonfinite == "keep" and not _finite(source, name):
            plan.tensors[name] = TensorPlan(info, keep)
        elif not own.codec.is_specified and holds_integers(source, name):
            plan.tensors[name] = TensorPlan(info, keep)
            whole.append(name)
        else:
            if own.codec.is_specified:
                _refuse_roles(own, family, roles)
            plan.tensors[name] = _grouped(info, own, family, choices[name])
    if whole:
        names = ", ".join(shown(name, 60) for name in whole[:3]) + (", ..." if len(whole) > 3 else "")
        told = "1 tensor holds whole numbers only, as masks do, and is"
        if len(whole) > 1:
            told = f"{len(whole)} tensors hold whole numbers only, as masks do, and are"
        plan.notes += (f"{told} kept byte for byte: {names}",)
    if beyond:
        plan.notes += (
            f"float32, which codecs compute in, does not hold all values of {len(beyond)} of the float64 tensors; they "
            f"are kept byte for byte: {', '.join(beyond[:3])}{', ...' if len(beyond) > 3 else ''}",
        )
    return plan


def _parsed(rules: Any) -> list[tuple[str, Profile]]:
    """Rules with their profiles parsed."""
    if isinstance(rules, str) or not all(isinstance(rule, tuple | list) and len(rule) == 2 for rule in rules):
        raise TypeError(f"rules are pairs of a glob and a profile, got {rules!r:.80}")
    return [(glob, parse_profile(text, keep=True)) for glob, text in rules]


def _families(tied: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that share the bytes of each tensor that has any."""
    families: dict[str, list[str]] = defaultdict(list)
    for name, holder in tied.items():
        families[holder].append(name)
    return families


def _grouped(info: TensorInfo, profile: Profile, family: Sequence[str], choice: RegimeChoice) -> TensorPlan:
    """A tensor in its group: by its own name, or by that of a tied one whose role keeps row identity.

    Its regime is the chosen one, but the role's under the lookup grades, as specified.
    """
    named = next((name for name in family if classify_role(name) in INDEX_ROLES), family[0])
    key = group_key(named, info.shape)
    if (
        profile.codec.is_specified or choice.regime == key.regime
    ):  # the role tells it, as it does whoever reads the pack
        return TensorPlan(info, profile, key, regime_reason=f"role: {key.role}")
    return TensorPlan(info, profile, replace(key, regime=choice.regime), regime_reason=choice.reason)


def _refuse_roles(profile: Profile, family: Sequence[str], roles: Sequence[tuple[str, str]]) -> None:
    for name in family:
        if any(fnmatch.fnmatchcase(name, glob) for glob, _ in roles):
            raise ValueError(
                f"a role is given for tensor {shown(name)} of profile {profile.text!r}, which goes by names as "
                f"specified; roles are for profiles gates, parity and bits:B"
            )


def _ruled(name: str, rules: Sequence[tuple[str, Profile]]) -> Profile | None:
    """The profile of the first rule that matches a name."""
    return next((profile for glob, profile in rules if fnmatch.fnmatchcase(name, glob)), None)


def check_quantized(source: TensorSource, rules: Sequence[tuple[str, str]] = ()) -> None:
    """Raise `QuantizedError` for a model that `make_plan` refuses as quantized already, before anything is read."""
    parsed = _parsed(rules)
    _quantized(source, {name: _ruled(name, parsed) for name in source.infos()}, False)


def _quantized(
    source: TensorSource, ruled: Mapping[str, Profile | None], keep: bool
) -> tuple[set[str], tuple[str, ...]]:
    """Names that belong to quantized weights, which no profile encodes, and what to tell of them."""
    infos, declared, told = source.infos(), source.declared_quantization, source.quantized()
    used = told or {}
    found = quantized_tensors(infos, declared) if told is None else {}
    coded = [name for name in found if infos[name].dtype.is_weight and infos[name].has_rows]
    if found and not keep and not all(_keeps(ruled.get(name)) for name in coded or found):
        raise QuantizedError(refusal(found, infos, declared))
    notes = list(source.notes)
    if found or used:
        how = ", ".join(sorted({scheme.name for scheme in found.values()} | set(used.values())))
        notes.append(f"{len(found) + len(used)} tensors of quantized weights ({how}) are kept byte for byte")
    elif declared is not None:
        notes.append(
            f"the model is said to be quantized ({declared}), but no tensor here is: the floats are coded as they are"
        )
    return {*found, *used}, tuple(notes)


def _keeps(profile: Profile | None) -> bool:
    return profile is not None and profile.codec is KEEP


def _scale(infos: Mapping[str, TensorInfo], name: str, scale: ArrayLike) -> NDArray[np.float32]:
    values = np.asarray(scale, np.float32)
    if name not in infos or values.shape != (infos[name].n_cols,):
        raise ValueError(f"column scale {name!r} of shape {values.shape} fits no tensor of the source")
    if not (np.isfinite(values) & (values > 1e-30) & (values < 1e30)).all():
        raise ValueError(f"column scale {name!r} must hold positive finite numbers")
    return values


def _moments(infos: Mapping[str, TensorInfo], name: str, moments: ArrayLike) -> NDArray[np.float32]:
    values = np.ascontiguousarray(moments, np.float32)
    if name not in infos or values.shape != (infos[name].n_cols, infos[name].n_cols):
        raise ValueError(f"moments {name!r} of shape {values.shape} fit no tensor of the source")
    if len(values) > MAX_FEEDBACK_COLS:
        raise ValueError(f"moments {name!r}: feedback is for at most {MAX_FEEDBACK_COLS} columns, got {len(values)}")
    if not np.isfinite(values).all() or not np.array_equal(values, values.T) or (values.diagonal() < 0).any():
        raise ValueError(f"moments {name!r} must be finite and symmetric, with no negative mean square")
    return values


def _takes(profile: Profile, info: TensorInfo) -> bool:
    """Whether a profile encodes a tensor: the lookup grades large matrices, Slot T any weight with rows but vectors."""
    if not info.dtype.is_weight or not info.has_rows or info.n_rows * info.n_cols == 0:
        return False
    return profile.codec.takes(info.shape, info.nbytes)


def _finite(source: TensorSource, name: str) -> bool:
    rows = SourceRows(source, name)
    try:
        for start, stop in row_ranges(rows.n_rows, 4 * rows.n_cols):
            rows.read(start, stop)
    except NonFiniteError:
        return False
    return True


def _beyond_float32(source: TensorSource, info: TensorInfo) -> int | None:
    """The first row that float32 does not hold, of a float64 tensor."""
    if info.dtype.name != "F64":
        return None
    for start, stop in row_ranges(info.n_rows, info.row_nbytes):
        block = view(source.read_rows(info.name, start, stop), info.dtype, (stop - start, info.n_cols))
        if (row := first_beyond_float32(block)) is not None:
            return start + row
    return None


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
            ends = hashlib.sha256()  # not the rows themselves: experts come by the thousand
            for row in (0, info.n_rows - 1):
                ends.update(source.read_rows(info.name, row, row + 1).data)
            same = next((name for name in firsts[ends.digest()] if _equal(source, name, info)), None)
            if same is None:
                firsts[ends.digest()].append(info.name)
            else:
                tied[info.name] = same
    return tied


def _equal(source: TensorSource, name: str, info: TensorInfo) -> bool:
    return all(
        np.array_equal(source.read_rows(name, start, stop), source.read_rows(info.name, start, stop))
        for start, stop in row_ranges(info.n_rows, info.row_nbytes)
    )
