"""The `.hhtld` format: packs in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hhtld.atomic import replacing
from hhtld.encoder import Work, check_memory, encode_source
from hhtld.errors import FormatError, HeaderError, OutputError
from hhtld.formats.base import Format, TensorSource
from hhtld.formats.hhtld.container import MAGIC, ContainerReader, ContainerWriter
from hhtld.formats.hhtld.fingerprint import JOURNAL_VERSION, plan_facts
from hhtld.gates import GateReport
from hhtld.journal import resumable
from hhtld.pack import DEFAULT_BUDGET, HhtldPack, PackSource
from hhtld.plan import Plan
from hhtld.sections import SECTION_KINDS
from hhtld.table import PackTable

__all__ = ["HhtldFormat", "open_pack", "save_pack", "write_pack"]


def open_pack(path: Path, *, mmap: bool = True, budget: int = DEFAULT_BUDGET) -> HhtldPack:
    """Open a `.hhtld` file, its structure checked.

    Parameters
    ----------
    path : Path
    mmap : bool
        Map the file; False reads it positionally, which network mounts and files that others may
        cut short want.
    budget : int
        Bytes that decoding one tensor may take.

    Raises
    ------
    FormatError
        For every malformation.
    """
    reader = ContainerReader.open(path, mapped=mmap)
    try:
        table = PackTable.from_json(reader.table, reader)
    except HeaderError as error:
        reader.close()
        raise HeaderError(f"{path}: {error}") from None
    except BaseException:
        reader.close()
        raise
    return HhtldPack(table, reader, budget)


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
    work: Work | None = None,
    *,
    source_facts: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> list[str]:
    """Encode a source into a file, measure every row with what its bytes decode to, and record that.

    Sections go to a partial file beside `path`, and what is finished to a journal (`hhtld.journal`). The checksums
    taken beside the measuring are verified in the file before it takes its name.

    Parameters
    ----------
    source, plan, path, report
    work : Work, optional
        Its journal is not used.
    source_facts : mapping, optional
        What tells this source from another, see `hhtld.formats.hhtld.fingerprint`; for resuming.
    resume : bool
        Continue what an earlier call left.

    Returns
    -------
    list of str
        What a user should know of an earlier run.
    """
    work = work or Work()
    check_memory(source, plan, work)
    begin = {"journal": JOURNAL_VERSION, "settings": plan_facts(plan), "source": source_facts or {}}
    with resumable(path, begin, resume=resume, check=lambda partial: _verified_again(partial, path)) as (file, journal):
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
    description = "rows as tree address, magnitude and leaves; random access; gates recorded"

    def sniff(self, path: Path, head: bytes) -> bool:
        """Whether the magic bytes, whole or damaged, or the suffix say so."""
        return head.startswith(MAGIC[:6]) or super().sniff(path, head)

    def open_source(self, path: Path) -> TensorSource:
        """Open a pack as a source of decoded tensors."""
        return PackSource(open_pack(path, mmap=False))  # the pages of a mapped file count as this process's memory
