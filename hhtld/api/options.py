"""The options of a conversion as two frozen objects: what is encoded, and how the work is done."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike

from hhtld.codecs import parse_profile
from hhtld.encoding.calibration import Calibration
from hhtld.encoding.plan import DEFAULT_PROFILE
from hhtld.encoding.work import DEFAULT_MEMORY
from hhtld.gates import Threshold, checked_thresholds
from hhtld.progress import Progress, silent
from hhtld.sources.schedule import default_jobs

__all__ = ["Encoding", "Run"]


@dataclass(frozen=True)
class Encoding:
    """What is encoded, and how well; all of it reaches the bytes or the verdict.

    Attributes
    ----------
    profile, rules, roles, gates, min_ratio, allow_keep, nonfinite, quantized, seed, column_scales
        See `hhtld.convert`, whose keywords these are.
    calibrate, target_top1
        The same; `calibration` of `hhtld.convert` is given as `calibrate`.
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
    calibrate: Calibration | str | os.PathLike[str] | None = None
    target_top1: float | None = None

    @property
    def profile_text(self) -> str:
        """The profile, or the default one."""
        return self.profile or DEFAULT_PROFILE

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
            "calibrate": self.calibrate,
            "target_top1": self.target_top1,
        }
        return {key: value for key, value in options.items() if value is not None}

    def check_values(self) -> None:
        """Raise `ValueError` for a value that is none of its option, before anything is opened."""
        if self.profile is not None:
            parse_profile(self.profile)
        if self.min_ratio is not None and not 0 <= self.min_ratio < math.inf:
            raise ValueError(f"min_ratio (--min-ratio) must be a finite number, 0 or more, got {self.min_ratio!r}")
        checked_thresholds(self.gates)

    def check_calibration(self) -> None:
        """Raise `ValueError` if a calibration does not fit the other options."""
        if self.profile_text != "parity" and (self.calibrate is not None or self.target_top1 is not None):
            raise ValueError("calibrate and target_top1 (--calibrate, --target-top1) are for profile 'parity'")
        if self.calibrate is None and self.target_top1 is not None:
            raise ValueError(
                "target_top1 (--target-top1) needs calibrate (--calibrate): 'builtin', a text, or a calibration"
            )
        if self.calibrate is not None and self.column_scales is not None:
            raise ValueError("a calibration brings its own column_scales")


@dataclass(frozen=True)
class Run:
    """How the work is done; nothing of it reaches the bytes of encoded tensors.

    Attributes
    ----------
    jobs, executor, memory, budget, resume, files, dry_run, progress
        See `hhtld.convert`, whose keywords these are.
    """

    jobs: int = field(default_factory=default_jobs)
    executor: str | Executor | None = None
    memory: int | None = None
    budget: int | None = None
    resume: bool = False
    files: bool = True
    dry_run: bool = False
    progress: Progress = silent

    @property
    def memory_limit(self) -> int:
        """Bytes to stay below, beyond what the interpreter and its modules take."""
        return DEFAULT_MEMORY if self.memory is None else self.memory

    def given(self) -> dict[str, Any]:
        """Return the options that only a format that encodes takes, by keyword, if they were given."""
        options = {"executor": self.executor, "memory": self.memory, "resume": self.resume or None}
        return {key: value for key, value in options.items() if value is not None}
