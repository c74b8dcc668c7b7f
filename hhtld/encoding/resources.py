"""What an encoding works with; nothing of it reaches the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hhtld.progress import Progress, silent
from hhtld.sources.crew import Crew
from hhtld.storage.journal import Journal

__all__ = ["DEFAULT_MEMORY", "Work"]

DEFAULT_MEMORY = 1 << 30


@dataclass(frozen=True)
class Work:
    """How a source is encoded.

    Attributes
    ----------
    crew : Crew
    memory : int
        Bytes to stay below, beside what the interpreter and its modules take.
    progress : Progress
        Called with "encode" for rows that were coded, "resume" for rows that an earlier run had coded, and
        "again" for rows that must be coded at a higher rate.
    journal : Journal
        What an earlier run finished, and where this one writes what it finished. A format that writes packs opens it.
    source_facts : mapping
        What tells the source from another, see `hhtld.encoding.fingerprint`; the journal of a file keeps it.
    resume : bool
        Whether to continue what an earlier run left.
    """

    crew: Crew = field(default_factory=Crew)
    memory: int = DEFAULT_MEMORY
    progress: Progress = silent
    journal: Journal = field(default_factory=Journal)
    source_facts: Mapping[str, Any] = field(default_factory=dict)
    resume: bool = False
