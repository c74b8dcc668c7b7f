"""How the work of a conversion is done, as one frozen object; nothing of it reaches the bytes of encoded tensors."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

from hhtld.encoding.resources import DEFAULT_MEMORY
from hhtld.progress import Progress, silent
from hhtld.sources.crew import default_jobs

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """How the work is done.

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

    def __post_init__(self) -> None:
        for option, what, value in (
            ("jobs (--jobs)", "threads", self.jobs),
            ("memory (--memory)", "bytes", self.memory),
            ("budget (--budget)", "bytes", self.budget),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
                raise TypeError(f"{option} must be a whole number of {what}, got {value!r}")
        for option, flag in (
            ("resume (--resume)", self.resume),
            ("files (--no-files)", self.files),
            ("dry_run (--dry-run)", self.dry_run),
        ):
            if type(flag) is not bool:
                raise TypeError(f"{option} must be True or False, got {flag!r}")
        if not callable(self.progress):
            raise TypeError(f"progress must be a function of a stage, a name and bytes, got {self.progress!r}")

    @property
    def memory_limit(self) -> int:
        """Bytes to stay below, beyond what the interpreter and its modules take."""
        return DEFAULT_MEMORY if self.memory is None else self.memory

    def given(self) -> dict[str, Any]:
        """Return the options that only a format that encodes takes, by keyword, if they were given."""
        options = {"executor": self.executor, "memory": self.memory, "resume": self.resume or None}
        return {key: value for key, value in options.items() if value is not None}
