"""What is encoded, and how well: the options of an encoding as one frozen object, from the user's door to the plan."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, SupportsIndex

from numpy.typing import ArrayLike

from hhtld.codecs import parse_profile
from hhtld.encoding.calibrated_rates import Calibration
from hhtld.gates import Threshold, checked_thresholds
from hhtld.slots.moments import Moments

__all__ = ["DEFAULT_PROFILE", "Encoding"]

DEFAULT_PROFILE = "parity"


@dataclass(frozen=True)
class Encoding:
    """What is encoded, and how well; all of it reaches the bytes or the verdict.

    Attributes
    ----------
    profile : str, optional
        "lookup", "f32", "gates", "parity" or "bits:B"; `DEFAULT_PROFILE` if it is None.
    rules : sequence of (glob, profile)
        The first whose glob matches a name decides for it, and for names that share its bytes and have no rule. "keep"
        keeps the tensor as it is.
    roles : sequence of (glob, "index" or "argmax")
        The first whose glob matches a name decides for the regime of its rows, see `hhtld.sources.regimes`. The
        profiles "lookup" and "f32" take none, because their specification goes by names.
    gates : mapping of regime to Threshold, optional
        Cosines that rows under "gates" and "parity" must reach instead of `THRESHOLDS` and `PARITY_THRESHOLD`.
    min_ratio : float, optional
        Bytes as bfloat16 over the file that must be reached; see `hhtld.convert`.
    allow_keep : bool
        Whether tensors that are kept because no rate reaches what `gates` ask pass; see `hhtld.convert`.
    nonfinite : {"refuse", "keep"}
        What becomes of a weight tensor that holds an infinity or NaN. "keep" reads every candidate once more to find
        them.
    quantized : {"refuse", "keep"}
        What becomes of a model whose weights are quantized already (`hhtld.sources.quantized`). "keep" keeps every
        tensor that belongs to quantized weights as it is and encodes the rest. Tensors that rules keep need no refusal.
        What an ONNX model's graph uses as quantized weights, scales and zero points is kept either way.
    seed : int, optional
        Seed of the rotations, 0 if it is None.
    column_scales : mapping of str to array (n_cols,), optional
        Positive numbers by which Slot T multiplies a tensor's columns before it codes them, for example the fourth root
        of what the columns' activations measure. Decoding divides by them. They are rounded to bfloat16.
    rates : mapping of str to number or array (n_rows,), optional
        Bits a weight, 1 to 6, for tensors of profile "parity", or for each of their rows. One number is rounded down to
        sixteenths of a bit. Numbers of rows become at most 16 classes in all tensors of a group together, and the mean
        of a tensor stays what it was, less at most one step of one row (`hhtld.slots.row_rates`). The other tensors
        take the rate at which their rows pass `PARITY_THRESHOLD`. A tensor that a rule decides for, or that is kept,
        takes no rate.
    moments : mapping of str to array (n_cols, n_cols) or `hhtld.slots.moments.Moments`, optional
        Mean products of the inputs of tensors' columns. Slot T then spreads errors to where they cost products least
        (`hhtld.slots.feedback`).
    calibrate : Calibration, path or "builtin", optional
        From what a run of the model `column_scales`, `rates` and `moments` are taken; see `hhtld.convert`.
    calibrate_tokens : int, optional
        About how many tokens of a text that `calibrate` names the model reads.
    target_top1 : float, optional
        Share of next tokens that shall stay the same, with `calibrate`; 0.9 if neither this nor `target_bits` is given.
    target_bits : float, optional
        Bits a weight that a pack may take, side files aside, with `calibrate`, instead of `target_top1`.
    """

    profile: str | None = None
    rules: Sequence[tuple[str, str]] = ()
    roles: Sequence[tuple[str, str]] = ()
    gates: Mapping[str, Threshold] | None = None
    min_ratio: float | None = None
    allow_keep: bool = False
    nonfinite: str = "refuse"
    quantized: str = "refuse"
    seed: int | None = None
    column_scales: Mapping[str, ArrayLike] | None = None
    rates: Mapping[str, ArrayLike] | None = None
    moments: Mapping[str, ArrayLike | Moments] | None = None
    calibrate: Calibration | str | os.PathLike[str] | None = None
    calibrate_tokens: int | None = None
    target_top1: float | None = None
    target_bits: float | None = None

    @property
    def profile_text(self) -> str:
        """The profile, or the default one."""
        return DEFAULT_PROFILE if self.profile is None else self.profile

    def given(self) -> dict[str, Any]:
        """Return the options that only a format that encodes takes, by keyword, if they were given."""
        options = {
            "profile": self.profile,
            "rules": tuple(self.rules) or None,
            "roles": tuple(self.roles) or None,
            "gates": self.gates or None,
            "min_ratio": self.min_ratio,
            "allow_keep": self.allow_keep or None,
            "seed": self.seed,
            "column_scales": self.column_scales,
            "rates": self.rates,
            "calibrate": self.calibrate,
            "calibrate_tokens": self.calibrate_tokens,
            "target_top1": self.target_top1,
            "target_bits": self.target_bits,
        }
        return {key: value for key, value in options.items() if value is not None}

    def check_values(self) -> None:
        """Raise `TypeError` or `ValueError` for a value that is none of its option, before anything is opened."""
        self._check_types()
        parse_profile(self.profile_text)
        checked_thresholds(self.gates)
        if self.min_ratio is not None and not 0 <= self.min_ratio < math.inf:
            raise ValueError(f"min_ratio (--min-ratio) must be a finite number, 0 or more, got {self.min_ratio!r}")
        for name, value in (("nonfinite", self.nonfinite), ("quantized", self.quantized)):
            if value not in ("refuse", "keep"):
                raise ValueError(f"{name} must be 'refuse' or 'keep', got {value!r}")
        if self.rates and self.profile_text != "parity":
            raise ValueError(f"rates are for profile 'parity', got {self.profile_text!r}")
        seed: object = 0 if self.seed is None else self.seed
        if type(seed) is bool or not isinstance(seed, SupportsIndex) or not 0 <= operator.index(seed) < 2**64:
            raise ValueError(f"seed (--seed) must be an integer from 0 to 2^64 - 1, got {self.seed!r}")

    def _check_types(self) -> None:
        given: list[tuple[str, object, type | tuple[type, ...], str]] = [
            ("min_ratio (--min-ratio)", self.min_ratio, Real, "a number"),
            ("target_top1 (--target-top1)", self.target_top1, Real, "a number"),
            ("target_bits (--target-bits)", self.target_bits, Real, "a number"),
            # What is gone through once, as an iterator, would be empty the second time.
            ("rules (--rule)", self.rules, Collection, "a sequence of pairs"),
            ("roles (--role)", self.roles, Collection, "a sequence of pairs"),
            ("column_scales", self.column_scales, Mapping, "a mapping from names of tensors"),
            ("rates", self.rates, Mapping, "a mapping from names of tensors"),
            ("moments", self.moments, Mapping, "a mapping from names of tensors"),
            ("allow_keep (--allow-keep)", self.allow_keep, bool, "True or False"),
            (
                "calibrate (--calibrate)",
                self.calibrate,
                (Calibration, str, os.PathLike),
                "'builtin', a path or a Calibration",
            ),
        ]
        for option, value, kinds, wanted in given:
            is_flag = isinstance(value, bool) and kinds is Real  # which Python takes for 0 or 1
            if value is not None and (is_flag or not isinstance(value, kinds)):
                raise TypeError(f"{option} must be {wanted}, got {value!r:.80}")

    def check_calibration(self) -> None:
        """Raise `ValueError` if a calibration does not fit the other options."""
        targets = {"target_top1 (--target-top1)": self.target_top1, "target_bits (--target-bits)": self.target_bits}
        targets = {name: value for name, value in targets.items() if value is not None}
        if self.profile_text != "parity" and (self.calibrate is not None or targets):
            raise ValueError(
                "calibrate (--calibrate), target_top1 (--target-top1) and target_bits (--target-bits) are for profile "
                "'parity' only"
            )
        if self.calibrate_tokens is not None:
            self._check_tokens()
        if self.calibrate is None and targets:
            raise ValueError(
                f"{' and '.join(targets)} needs calibrate (--calibrate): 'builtin', a text, or a calibration"
            )
        if len(targets) > 1:
            raise ValueError(f"give one of {' and '.join(targets)}: each of them decides for the rates")
        if self.calibrate is not None and self.column_scales is not None:
            raise ValueError("a calibration brings its own column_scales; give one of the two")
        if self.calibrate is not None and self.rates is not None:
            raise ValueError("a calibration brings its own rates; give one of the two")

    def _check_tokens(self) -> None:
        tokens, text = self.calibrate_tokens, self.calibrate
        if type(tokens) is bool or not isinstance(tokens, SupportsIndex) or operator.index(tokens) < 1:
            raise ValueError(f"calibrate_tokens (--calibrate-tokens) must be a positive integer, got {tokens!r}")
        if text is None or isinstance(text, Calibration) or os.fspath(text).lower().endswith(".safetensors"):
            raise ValueError(
                "calibrate_tokens (--calibrate-tokens) says how much of a text is read; give calibrate (--calibrate) "
                "'builtin' or a text"
            )
