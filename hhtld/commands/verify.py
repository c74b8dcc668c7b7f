"""Verifying a file: structure, checksums, every row decodable, and with the source its quality anew."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from hhtld.commands.arguments import add_jobs, add_json, add_selection
from hhtld.commands.exit_codes import DONE, FAILED
from hhtld.cosines import is_live, summarize
from hhtld.display.gate_table import gate_table
from hhtld.display.streams import emit
from hhtld.encoding.gate_measurement import compared_rows, measure
from hhtld.encoding.gate_report import GateReport
from hhtld.encoding.plan import thresholds_of
from hhtld.errors import NonFiniteError
from hhtld.formats import open_source
from hhtld.gates import CosineSummary
from hhtld.pack.container import ContainerReader
from hhtld.pack.made_from import differences_of_tensors
from hhtld.pack.opening import open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.sources.crew import default_jobs, workers
from hhtld.sources.rows import row_ranges
from hhtld.sources.selection import select_tensors
from hhtld.storage.locations import spelled

__all__ = ["DESCRIPTION", "EXAMPLES", "VerifyReport", "add_arguments", "run", "verify"]


@dataclass(repr=False)
class VerifyReport:
    """What was checked and what differed; truthy when nothing did.

    Attributes
    ----------
    path : str
    n_sections, n_tensors, nbytes : int
    source : str or None
    gates : GateReport or None
        Measured anew when a source was given.
    is_source : bool or None
        Whether the pack was made from the very rows of this source; None if a tensor has no checksum of them.
    differences : list of str
        One sentence each.
    """

    path: str
    n_sections: int
    n_tensors: int
    nbytes: int
    source: str | None = None
    gates: GateReport | None = None
    is_source: bool | None = None
    differences: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        beside = "" if self.source is None else f" beside {self.source}"
        verdict = "sound" if self else "; ".join(self.differences[:1]) or "not sound"
        return f"<VerifyReport {self.path}{beside}: {verdict}>"

    def __bool__(self) -> bool:
        return not self.differences

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": "hhtld.verify/1",
            "path": self.path,
            "passed": bool(self),
            "n_sections": self.n_sections,
            "n_tensors": self.n_tensors,
            "nbytes": self.nbytes,
            "source": self.source,
            "is_source": self.is_source,
            "gates": None if self.gates is None else self.gates.to_json(),
            "differences": self.differences,
        }


def verify(
    path: str | os.PathLike[str],
    src: str | os.PathLike[str] | None = None,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    jobs: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a `.hhtld` file, and with its source that it still says the truth about it.

    `only` and `skip` choose tensors of the source, as they did when the file was made from it.

    Raises
    ------
    ValueError
        If they are given without a source, or a glob of them matches nothing.
    FormatError
        If the file is damaged; what merely differs from the source is listed in the report.
    """
    if src is None and (only or skip):
        raise ValueError("only (--only) and skip (--skip) choose tensors of SRC; give SRC, too")
    with open_pack(path, mmap=False) as pack, workers(jobs or default_jobs()) as executor:
        assert isinstance(pack.sections, ContainerReader)
        pack.sections.verify()
        pack.check_groups()
        for name, record in pack.table.tensors.items():
            if record.is_encoded:
                pack.get_encoded(name)  # refuses twigs outside their palette, reserved bits, bad bases
        report = VerifyReport(spelled(path), len(pack.sections.records), len(pack), pack.sections.file_nbytes)
        if src is not None:
            report.source = spelled(src)
            with open_source(src) as source:
                _compare(report, pack, select_tensors(source, only, skip), executor, progress or silent)
    return report


def _compare(
    report: VerifyReport, pack: HhtldPack, source: TensorSource, executor: Executor | None, progress: Progress
) -> None:
    infos = source.infos()
    report.differences += differences_of_tensors(pack, source)
    for name in sorted(set(infos) & set(pack)):
        packed, info = pack.table.tensors[name].info, infos[name]
        if (packed.shape, packed.dtype) != (info.shape, info.dtype):
            continue
        if (shared := pack.table.tensors[name].alias_of) is not None and not _equal_in_source(source, shared, name):
            report.differences.append(f"tensor {name!r} shares the bytes of {shared!r}, in the source the two differ")
        elif not pack.info(name).is_encoded and not _same_bytes(pack, source, name):
            report.differences.append(f"tensor {name!r} is kept but its bytes differ from the source's")
    theirs = source.files()  # none if the source is a lone file
    for name in pack.files() if theirs else ():
        if name not in theirs:
            report.differences.append(f"file {name!r} is not in the source")
        elif pack.read_file(name) != source.read_file(name):
            report.differences.append(f"file {name!r} differs from the source's")
    if report.differences:
        return
    report.gates = GateReport(enforced=False)
    try:
        crcs = measure(pack, source, report.gates, executor, progress)
    except NonFiniteError as error:
        report.gates = None
        report.differences.append(f"{error.found} of the source; the file's was encoded from finite weights")
        return
    report.gates.thresholds = thresholds_of(pack.table.profile)
    report.gates.unreached = {
        name: record.unreached for name, record in pack.table.tensors.items() if record.unreached is not None
    }
    report.gates.ratio = (_bf16_nbytes(pack) + sum(pack.files().values())) / report.nbytes
    recorded = {name: pack.info(name).source_crc32 for name in crcs}
    report.is_source = None if None in recorded.values() else recorded == crcs
    for name, summary in report.gates.tensors.items():
        if pack.info(name).gates != summary and pack.info(name).gates != _measured_before(pack, source, name, executor):
            report.differences.append(f"tensor {name!r}: the recorded cosines are not those measured now")
        elif pack.info(name).source_crc32 not in (None, crcs[name]):
            report.differences.append(f"tensor {name!r} was made from other rows than the source holds")


def _measured_before(pack: HhtldPack, source: TensorSource, name: str, executor: Executor | None) -> CosineSummary:
    """Cosines as first files recorded them: of float32 whatever the source's type, a row of zeros 1 or, lost, 0."""
    cosines = compared_rows(
        SourceRows(source, name, pack.info(name).info.n_cols), partial(pack.get_rows, name), executor
    )
    zeros = ~is_live(cosines)
    cosines[zeros] = np.sign(cosines[zeros]).clip(0)
    return summarize(cosines)


def _same_bytes(pack: HhtldPack, source: TensorSource, name: str) -> bool:
    info = source.infos()[name]
    index = pack.info(name).sections["raw"]
    if not info.row_nbytes:
        return True
    for start, stop in row_ranges(info.n_rows, info.row_nbytes):
        kept = pack.sections.rows(index, info.row_nbytes, slice(start, stop))
        pack.sections.check_unchanged()
        if not np.array_equal(source.read_rows(name, start, stop), kept):
            return False
    return True


def _equal_in_source(source: TensorSource, one: str, other: str) -> bool:
    info = source.infos()[other]
    return one in source and all(
        np.array_equal(source.read_rows(one, start, stop), source.read_rows(other, start, stop))
        for start, stop in row_ranges(info.n_rows, info.row_nbytes)
    )


def _bf16_nbytes(pack: HhtldPack) -> int:
    from hhtld.api.conversion_report import as_bf16_nbytes

    return sum(as_bf16_nbytes(record.info) for record in pack.table.tensors.values() if record.alias_of is None)


# ---- the command ----


DESCRIPTION = "Check the structure and every checksum of a .hhtld file, and with SRC every row against its source."
EXAMPLES = """\
  hhtld verify model.hhtld                     structure and every checksum
  hhtld verify model.hhtld model.safetensors   and every row against what it was made from
  hhtld verify table.hhtld model.safetensors --only '*ngram*'   a file of some of its tensors
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("file", metavar="FILE", help="a .hhtld file")
    command.add_argument("src", metavar="SRC", nargs="?", help="what FILE was made from")
    add_selection(command)
    add_jobs(command)
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from hhtld.display.numbers import counted, human_nbytes
    from hhtld.display.progress_bar import progress_bar
    from hhtld.display.terminal import console
    from hhtld.pack.opening import open_pack

    with open_pack(arguments.file) as pack:
        total = sum(pack.info(name).info.nbytes for name in pack)
    with progress_bar(total, wanted=not arguments.json) as progress:
        report = verify(
            arguments.file,
            arguments.src,
            only=arguments.only,
            skip=arguments.skip,
            jobs=arguments.jobs,
            progress=progress,
        )
    if arguments.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
        return DONE if report else FAILED
    out = console()
    out.print(
        f"{report.path}: structure, {counted(report.n_sections, 'checksum')} and "
        f"{counted(report.n_tensors, 'tensor')} sound, {human_nbytes(report.nbytes)}",
        highlight=False,
        markup=False,
    )
    if report.gates is not None:
        if report.gates.tensors or report.gates.unreached:
            out.print(gate_table(report.gates))
        if report and not report.gates.tensors:
            comparison = "no tensor of it is encoded; all are kept and equal the source byte for byte"
            out.print(
                comparison if report.n_tensors else "it holds no tensors, and neither does the source", markup=False
            )
        elif report:
            made = "the encoded ones were made from its rows; " if report.is_source else ""
            out.print(
                f"kept tensors equal the source byte for byte; {made}the recorded cosines are those measured now",
                markup=False,
            )
    for difference in report.differences:
        out.print(difference, highlight=False, markup=False)
    return DONE if report else FAILED
