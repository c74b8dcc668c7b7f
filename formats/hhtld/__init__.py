"""The `.hhtld` format: packs in files."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from hhtld.codecs.section_kinds import SECTION_KINDS
from hhtld.encoding.encoder import encode_source
from hhtld.encoding.fingerprint import JOURNAL_VERSION, plan_facts
from hhtld.encoding.gate_report import GateReport
from hhtld.encoding.memory import check_memory
from hhtld.encoding.plan import Plan
from hhtld.encoding.resources import Work
from hhtld.errors import FormatError, OutputError
from hhtld.formats.base import Format
from hhtld.pack.container import MAGIC, UNFINISHED, ContainerReader
from hhtld.pack.container_writer import ContainerWriter
from hhtld.pack.opening import open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.pack.source import PackSource
from hhtld.sources.contract import TensorSource
from hhtld.storage.atomic import replacing
from hhtld.storage.file_reading import Location
from hhtld.storage.journal import resumable
from hhtld.storage.urls import Url

__all__ = ["HhtldFormat", "save_pack", "write_pack"]


def _verified(path: Path) -> None:
    with open_pack(path, mmap=False) as pack:
        assert isinstance(pack.sections, ContainerReader)
        pack.sections.verify()


def _verified_again(path: Path, target: Path) -> None:
    """Verify what was just written; a block that the disk did not keep can be written again."""
    try:
        _verified(path)
    except FormatError as error:
        raise OutputError(
            None, f"cannot write {target}: the file does not hold what was written to it: {error}"
        ) from None


def write_pack(
    source: TensorSource,
    plan: Plan,
    path: Path,
    report: GateReport,
    work: Work,
    *,
    beside: Path | None = None,
) -> list[str]:
    """Encode a source into a file, measure every row with what its bytes decode to, and record that.

    Sections go to a partial file beside `path`, and what is finished to a journal (`hhtld.storage.journal`). The
    checksums taken beside the measuring are verified in the file before it takes its name.

    Parameters
    ----------
    source, plan, path, report
    work : Work
        If `work.resume` is set, what an earlier call left is continued. Its journal is not used.
    beside : Path, optional
        The partial file and the journal lie beside this path instead, if `path` is in a folder that a failure removes.

    Returns
    -------
    list of str
        What a user should know of an earlier run.
    """
    check_memory(source, plan, work)
    facts = dict(work.source_facts)
    place = facts.pop("files", None)
    begin = {"journal": JOURNAL_VERSION, "settings": plan_facts(plan), "source": facts}
    target = path if beside is None else beside
    check = partial(_verified_again, target=target)
    heads = (UNFINISHED, MAGIC)
    with resumable(target, begin, resume=work.resume, check=check, heads=heads, place=place, into=path) as opened:
        file, journal = opened
        writer = ContainerWriter(file)
        table = encode_source(source, plan, writer, report, replace(work, journal=journal))
        writer.finish(table.to_json())
    return journal.notes


def save_pack(pack: HhtldPack, path: Path) -> None:
    """Write a pack to a file: the same bytes that converting its source would have written.

    Sections of a kind that this release does not know stay behind: their checksum cannot be computed.
    """
    with replacing(path, check=_verified) as file:
        writer = ContainerWriter(file)
        numbers = {
            index: writer.add(kind, pack.sections.nbytes(index), [pack.sections.whole(index)])
            for index, kind in enumerate(pack.sections.kinds())
            if kind in SECTION_KINDS
        }
        writer.finish(pack.table.renumbered(numbers).to_json())


class HhtldFormat(Format):
    """Packs; read as a source, rows are decoded and rounded back to the types they had."""

    name = "hhtld"
    suffixes = (".hhtld",)
    description = "pack: weights encoded row by row, and any row read alone; what rows lose is recorded"
    encodes = True

    def sniff(self, path: Location, head: bytes) -> bool:
        """Whether the magic bytes, whole or damaged, or the suffix say so."""
        return head.startswith(MAGIC[:6]) or super().sniff(path, head)

    def open_source(self, path: Path) -> TensorSource:
        """Open a pack as a source of decoded tensors."""
        return PackSource(open_pack(path, mmap=False))  # the pages of a mapped file count as this process's memory

    def open_url(self, url: Url) -> TensorSource:
        """Open a pack behind a URL the same way."""
        return PackSource(open_pack(url))

    def write_plan(
        self,
        source: TensorSource,
        plan: Plan,
        path: Path,
        report: GateReport,
        work: Work,
    ) -> list[str]:
        """Encode a source into a file; see `write_pack`."""
        return write_pack(source, plan, path, report, work)
