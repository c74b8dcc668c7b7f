"""What a format is: how it is recognised, and how it is read and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from hhtld.encoding.gate_report import GateReport
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.sources.contract import TensorSource
from hhtld.storage.file_reading import Location
from hhtld.storage.urls import Url

__all__ = [
    "Format",
]


class Format(ABC):
    """A file format; formats are classes used through one instance each.

    Attributes
    ----------
    name : str
        Permanent, lower-case; what `--to` takes.
    suffixes : tuple of str
        Lower-case, with the dot.
    reads, writes : bool
        What it can do; a format that only exports says why in `open_source`.
    encodes : bool
        Whether it writes packs: `write_plan` is asked instead of `write_source`.
    options : frozenset of str
        Keywords that its `write_source` takes.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    description: ClassVar[str]
    reads: ClassVar[bool] = True
    writes: ClassVar[bool] = True
    encodes: ClassVar[bool] = False
    options: ClassVar[frozenset[str]] = frozenset()

    def sniff(self, path: Location, head: bytes) -> bool:
        """Whether a file of these first bytes (at most 64), or a folder (empty head), is this format."""
        return path.suffix.lower() in self.suffixes and not path.is_dir()

    @abstractmethod
    def open_source(self, path: Path) -> TensorSource:
        """Open a file or folder as a source of tensors.

        Raises
        ------
        FormatError
            For every malformation of the file.
        """

    def open_url(self, url: Url) -> TensorSource:
        """Open what lies behind a URL; formats that cannot read by ranges alone say so."""
        raise ValueError(f"{url}: {self.name} is read from local files only; download the file, then give its path")

    def check_source(self, source: TensorSource, **options: Any) -> None:
        """Raise if a source lacks what a file of this format needs; nothing is written. Keywords as `write_source`."""

    def write_source(self, source: TensorSource, path: Path, **options: Any) -> list[str] | None:
        """Write a source's tensors atomically; may return what a user should know, one sentence each.

        Of the keywords of `hhtld.convert` it is given those that `options` names, and if they are named there
        "executor", threads to use or None, and "progress", see `hhtld.progress`.
        """
        raise TypeError(f"format {self.name!r} does not write tensors as they are")

    def write_plan(
        self,
        source: TensorSource,
        plan: Plan,
        path: Path,
        report: GateReport,
        work: Work,
    ) -> list[str]:
        """Encode a source as planned, atomically, put what was measured into `report`, and return notes.

        A format that can continue what an earlier call left goes by `work.resume` and `work.source_facts`, see
        `hhtld.formats.hhtld.write_pack`.
        """
        raise TypeError(f"format {self.name!r} does not encode")
