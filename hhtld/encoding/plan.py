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
from hhtld.encoding.options import Encoding
from hhtld.errors import NonFiniteError, QuantizedError, shown
from hhtld.gates import THRESHOLDS, Threshold, checked_thresholds
from hhtld.identity import INDEX_ROLES, PaletteGroupKey, classify_role, group_key
from hhtld.matrix import TensorInfo
from hhtld.slots.feedback import MAX_FEEDBACK_COLS
from hhtld.slots.moments import Moments
from hhtld.slots.row_rates import mean_rate, row_rates
from hhtld.sources.contract import ADDS, SourceRows, TensorSource
from hhtld.sources.integers import holds_integers
from hhtld.sources.name_patterns import some_of
from hhtld.sources.quantized import likely_scales, quantized_tensors, refusal
from hhtld.sources.regimes import RegimeChoice, choose_regimes
from hhtld.sources.rows import row_ranges

__all__ = [
    "Plan",
    "TensorPlan",
    "check_quantized",
    "make_plan",
    "thresholds_of",
]

_KEEP = Profile(KEEP.word, KEEP)


def thresholds_of(profile: str) -> Mapping[str, Threshold]:
    """Return what a pack's profile asks of each regime unless something else was asked for; any text is a profile."""
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
    moments : dict of name to float32 array (n_cols, n_cols), or Moments
        Mean products of the inputs of a tensor's columns, for `hhtld.slots.feedback`.
    row_rates : dict of name to int32 array (n_rows,)
        What the rows of a tensor ask for, if they have rates of their own; see `hhtld.slots.row_rates`.
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
    moments: Mapping[str, NDArray[np.float32] | Moments] = field(default_factory=dict)
    row_rates: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
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


def make_plan(source: TensorSource, encoding: Encoding) -> Plan:
    """Plan what a source becomes.

    Raises
    ------
    ValueError
        If a profile, regime or other option is unknown, a rule or role matches no tensor, or a scale fits no tensor.
    QuantizedError
        If the model's weights are quantized already, unless `encoding.quantized` is "keep".
    """
    warn_if_unusual()  # before anything is encoded, whichever door it came through
    encoding.check_values()
    profile, rules, infos = parse_profile(encoding.profile_text), _parsed(encoding.rules), source.infos()
    _check_globs(rules, infos)
    ruled = {name: _ruled(name, rules) for name in infos} if rules else {}
    companions, notes = _quantized(source, ruled, encoding.quantized == "keep")
    companions.update(name for name, used in source.uses().items() if used == {ADDS})
    tied = _tied(source, infos.values()) | dict(source.aliases())
    choices = choose_regimes(source, tied, encoding.roles)
    seed = 0 if encoding.seed is None else int(encoding.seed)
    plan = Plan(profile, asked=checked_thresholds(encoding.gates), seed=seed, files=tuple(sorted(source.files())))
    plan.column_scales = {name: _scale(infos, name, scale) for name, scale in (encoding.column_scales or {}).items()}
    plan.moments = {name: _moments(infos, name, products) for name, products in (encoding.moments or {}).items()}
    rates = _rates(infos, encoding.rates or {})
    plan.row_rates = {name: rate for name, rate in rates.items() if not isinstance(rate, int)}
    decisions = _Decisions(source, tied, companions, choices, encoding.roles, encoding.nonfinite == "keep")
    families = _families(tied)
    for name in sorted(infos):
        family = [name, *families.get(name, ())]
        by_rule = next((rule for each in family if (rule := ruled.get(each)) is not None), None)
        by_rate = _at_rate(profile, rates.get(name))
        plan.tensors[name] = decisions.tensor(infos[name], by_rule or by_rate, family)
    plan.notes = notes + decisions.notes()
    return plan


def _check_globs(rules: Sequence[tuple[str, Profile]], names: Iterable[str]) -> None:
    names = sorted(names)
    for glob, _ in rules:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            raise ValueError(f"rule {glob!r} matches no tensor; the source has {some_of(names)}")


@dataclass
class _Decisions:
    """Decides what each tensor becomes, and collects what a user should know of it.

    Attributes
    ----------
    source : TensorSource
    tied : mapping of name to the name whose bytes it shares
    companions : set of str
        Tensors that are kept because of what they belong to.
    choices : mapping of name to RegimeChoice
    roles : sequence of (glob, regime)
    keeps_nonfinite : bool
    integers : list of str
        Tensors that are kept because they hold only whole numbers.
    beyond_float32 : list of str
        Rows that float32 does not hold, one for each tensor that is kept for it.
    """

    source: TensorSource
    tied: Mapping[str, str]
    companions: set[str]
    choices: Mapping[str, RegimeChoice]
    roles: Sequence[tuple[str, str]]
    keeps_nonfinite: bool
    integers: list[str] = field(default_factory=list)
    beyond_float32: list[str] = field(default_factory=list)

    def tensor(self, info: TensorInfo, profile: Profile, family: Sequence[str]) -> TensorPlan:
        """Return what a tensor becomes under a profile; `family` is its name and those that share its bytes."""
        if info.name in self.tied:
            return TensorPlan(info, _KEEP, alias_of=self.tied[info.name])
        if info.name in self.companions or not _takes(profile, info) or self._is_kept(info, profile):
            return TensorPlan(info, _KEEP)
        if profile.codec.is_specified:
            _refuse_roles(profile, family, self.roles)
        return _grouped(info, profile, family, self.choices[info.name])

    def _is_kept(self, info: TensorInfo, profile: Profile) -> bool:
        """Whether a tensor is kept for the values that it holds, which must be read to know it."""
        row = _beyond_float32(self.source, info)
        if row is not None:
            self.beyond_float32.append(f"row {row} of {shown(info.name)}")
            return True
        if self.keeps_nonfinite and not _finite(self.source, info.name):
            return True
        if profile.codec.is_specified or not holds_integers(self.source, info.name):
            return False
        self.integers.append(info.name)
        return True

    def notes(self) -> tuple[str, ...]:
        """Return what a user should know, one sentence each."""
        notes = []
        if self.integers:
            names = ", ".join(shown(name, 60) for name in self.integers[:3]) + (
                ", ..." if len(self.integers) > 3 else ""
            )
            hold = "1 tensor holds whole numbers only, as masks do, and is"
            if len(self.integers) > 1:
                hold = f"{len(self.integers)} tensors hold whole numbers only, as masks do, and are"
            notes.append(f"{hold} kept byte for byte: {names}")
        beyond = self.beyond_float32
        if beyond:
            notes.append(
                f"float32, which codecs compute in, does not hold all values of {len(beyond)} of the float64 tensors; "
                f"they are kept byte for byte: {', '.join(beyond[:3])}{', ...' if len(beyond) > 3 else ''}"
            )
        return tuple(notes)


def _parsed(rules: Any) -> list[tuple[str, Profile]]:
    """Return rules with their profiles parsed."""
    if isinstance(rules, str) or not all(isinstance(rule, tuple | list) and len(rule) == 2 for rule in rules):
        raise TypeError(f"rules are pairs of a glob and a profile, got {rules!r:.80}")
    return [(glob, parse_profile(text, keep=True)) for glob, text in rules]


def _families(tied: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names that share the bytes of each tensor, if there are any."""
    families: dict[str, list[str]] = defaultdict(list)
    for name, holder in tied.items():
        families[holder].append(name)
    return families


def _grouped(info: TensorInfo, profile: Profile, family: Sequence[str], choice: RegimeChoice) -> TensorPlan:
    """Return a tensor in its group: that of its own name, or of a tied one whose role keeps the identity of rows.

    Its regime is the chosen one, but that of the role if the codec is specified.
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
    """Return the profile of the first rule that matches a name."""
    return next((profile for glob, profile in rules if fnmatch.fnmatchcase(name, glob)), None)


def check_quantized(source: TensorSource, rules: Sequence[tuple[str, str]] = ()) -> None:
    """Raise `QuantizedError` for a model that `make_plan` refuses as quantized already, before anything is read."""
    parsed = _parsed(rules)
    _quantized(source, {name: _ruled(name, parsed) for name in source.infos()}, False)


def _quantized(
    source: TensorSource, ruled: Mapping[str, Profile | None], keep: bool
) -> tuple[set[str], tuple[str, ...]]:
    """Return the names that belong to quantized weights, which no profile encodes, and notes about them.

    What may belong to such weights is encoded if a rule says so.
    """
    infos, declared, in_graph = source.infos(), source.declared_quantization, source.quantized()
    used = in_graph or {}
    schemes = quantized_tensors(infos, declared) if in_graph is None else {}
    weights = [name for name in schemes if infos[name].dtype.is_weight and infos[name].has_rows]
    if schemes and not keep and not all(_keeps(ruled.get(name)) for name in weights or schemes):
        raise QuantizedError(refusal(schemes, infos, declared))
    notes = list(source.notes)
    if decoded := source.decoded():
        notes.append(
            f"{len(decoded)} of {len(infos)} tensors are encoded in the source, which is a pack: its rows are coded a "
            "second time, and cosines compare with the rows that it gives back; only the model that it was made from "
            "tells all that was lost, and gives a better pack"
        )
    if schemes or used:
        how = ", ".join(sorted({scheme.name for scheme in schemes.values()} | set(used.values())))
        notes.append(f"{len(schemes) + len(used)} tensors of quantized weights ({how}) are kept byte for byte")
    elif declared is not None:
        notes.append(
            f"the model is said to be quantized ({declared}), but no tensor here is: the floats are coded as they are"
        )
    unknown = {} if in_graph is not None else likely_scales(infos)
    unknown = {name: codes for name, codes in unknown.items() if name not in schemes and ruled.get(name) is None}
    if unknown:
        name, codes = min(unknown.items())
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        notes.append(
            f"{shown(name, 60)} beside the integers {shown(codes, 60)}{more} may be scales of a quantization that "
            "hhtld does not know, and are kept byte for byte; --rule 'GLOB=parity' encodes what is a weight"
        )
    return {*schemes, *used, *unknown}, tuple(notes)


def _keeps(profile: Profile | None) -> bool:
    return profile is not None and profile.codec is KEEP


def _scale(infos: Mapping[str, TensorInfo], name: str, scale: ArrayLike) -> NDArray[np.float32]:
    values = np.asarray(scale, np.float32)
    if name not in infos or values.shape != (infos[name].n_cols,):
        raise ValueError(f"column scale {name!r} of shape {values.shape} fits no tensor of the source")
    bad = ~((values > 1e-30) & (values < 1e30))  # NaN too
    if bad.any():
        column = int(bad.argmax())
        raise ValueError(
            f"column scale {shown(name)} must hold numbers between 1e-30 and 1e30, "
            f"and holds {values[column]} at column {column}"
        )
    return values


def _rates(infos: Mapping[str, TensorInfo], rates: Mapping[str, ArrayLike]) -> dict[str, int | NDArray[np.int32]]:
    """Return rates in sixteenths of a bit, or what rows ask for, by name."""
    rate_of: dict[str, int | NDArray[np.int32]] = {}
    for name, bits in rates.items():
        if name not in infos or not infos[name].has_rows:
            raise ValueError(f"rates name {shown(name)}, which is no tensor with rows of the source")
        is_one = np.ndim(bits) == 0
        try:
            asked = row_rates(np.atleast_1d(np.asarray(bits)), 1 if is_one else infos[name].n_rows)
        except ValueError as error:
            raise ValueError(f"tensor {shown(name)}: {error}") from None
        rate_of[name] = mean_rate([asked]) if is_one else asked
    return rate_of


def _at_rate(profile: Profile, rate: int | NDArray[np.int32] | None) -> Profile:
    if rate is None:
        return profile
    return profile.at_rate(rate) if isinstance(rate, int) else profile.at_row_rates()


def _moments(infos: Mapping[str, TensorInfo], name: str, moments: ArrayLike | Moments) -> NDArray[np.float32] | Moments:
    values = moments if isinstance(moments, Moments) else np.ascontiguousarray(moments, np.float32)
    if name not in infos or values.shape != (infos[name].n_cols, infos[name].n_cols):
        raise ValueError(f"moments {name!r} of shape {values.shape} fit no tensor of the source")
    if values.shape[0] > MAX_FEEDBACK_COLS:
        raise ValueError(
            f"moments {name!r}: feedback is for at most {MAX_FEEDBACK_COLS} columns, got {values.shape[0]}"
        )
    if isinstance(values, Moments):
        return values
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
    """Return the first row of a float64 tensor that float32 does not hold, or None."""
    if info.dtype.name != "F64":
        return None
    for start, stop in row_ranges(info.n_rows, info.row_nbytes):
        block = view(source.read_rows(info.name, start, stop), info.dtype, (stop - start, info.n_cols))
        if (row := first_beyond_float32(block)) is not None:
            return start + row
    return None


def _tied(source: TensorSource, infos: Iterable[TensorInfo]) -> dict[str, str]:
    """Return the matrices that are equal, byte for byte, to one of an earlier name: tied weights that were saved twice.

    Only tensors of one type and shape are compared, and the first and last row before the rest, so that only a few rows
    are read of a model without tied weights.
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
