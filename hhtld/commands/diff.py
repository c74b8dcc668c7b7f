"""Comparing two readable sources tensor by tensor, every row of both."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from hhtld.commands.arguments import add_all, add_jobs, add_json, every
from hhtld.commands.exit_codes import DONE, FAILED
from hhtld.cosines import judged_cosines, summarize
from hhtld.display.numbers import counted, human_nbytes, shape_text
from hhtld.display.streams import emit
from hhtld.display.tables import alike, tensor_table
from hhtld.display.terminal import safe
from hhtld.dtypes import exact_values
from hhtld.formats import open_source
from hhtld.gates import CosineSummary
from hhtld.matrix import TensorInfo
from hhtld.pack.source import PackSource
from hhtld.progress import Progress
from hhtld.sources.contract import TensorSource
from hhtld.sources.crew import default_jobs, workers
from hhtld.sources.rows import row_ranges

__all__ = ["DESCRIPTION", "EXAMPLES", "DiffReport", "TensorDiff", "add_arguments", "diff", "print_diff", "run"]


@dataclass(frozen=True)
class TensorDiff:
    """One tensor that both sources hold in the same shape.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype_a, dtype_b : str
    nbytes_a, nbytes_b : int
        What each takes where it is stored: its own sections in a pack, its elements elsewhere.
    identical : bool
        The same element type and, as each source gives them, the same bytes.
    cosines : CosineSummary or None
        None if one side is no weight type, which only bytes compare, or if there are no elements.
    max_error : float or None
        Largest absolute difference of two elements, in float64; infinite if one of them is not finite and the other
        is something else.
    """

    name: str
    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    nbytes_a: int
    nbytes_b: int
    identical: bool
    cosines: CosineSummary | None = None
    max_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return every number; a maximum error that is not finite is null."""
        record: dict[str, Any] = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": {"a": self.dtype_a, "b": self.dtype_b},
            "nbytes": {"a": self.nbytes_a, "b": self.nbytes_b},
            "identical": self.identical,
        }
        if self.cosines is not None and self.max_error is not None:
            record["cosine"] = self.cosines.to_json() | {
                "median": self.cosines.median,
                "p5": self.cosines.p5,
                "min": self.cosines.minimum,
            }
            record["max_error"] = self.max_error if math.isfinite(self.max_error) else None
        return record


@dataclass(repr=False)
class DiffReport:
    """What two sources have in common and what not; truthy when they hold the same tensors, byte for byte.

    Attributes
    ----------
    a, b : str
        As they were given.
    tensors : list of TensorDiff
    only_a, only_b : list of str
        Names that the other does not have.
    reshaped : dict of name to the two shapes
    """

    a: str
    b: str
    tensors: list[TensorDiff] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __repr__(self) -> str:
        same = sum(tensor.identical for tensor in self.tensors)
        return f"<DiffReport {self.a} and {self.b}: {same} of {counted(len(self.tensors), 'tensor')} in both the same>"

    def __bool__(self) -> bool:
        same_names = not (self.only_a or self.only_b or self.reshaped)
        return same_names and all(tensor.identical for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": "hhtld.diff/1",
            "a": self.a,
            "b": self.b,
            "identical": bool(self),
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "only_a": self.only_a,
            "only_b": self.only_b,
            "reshaped": {name: {"a": list(a), "b": list(b)} for name, (a, b) in self.reshaped.items()},
        }


def diff(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> DiffReport:
    """Compare every tensor of two sources.

    A pack is compared as what it decodes to in the types its source had, which is what converting it
    back would write and what its gates were measured on.

    Parameters
    ----------
    a, b : path
        Anything that can be read, in any two formats; or "demo:".
    jobs : int, optional
        Threads; all processors by default.
    progress : callable, optional
        Called with "compare", a tensor's name and its bytes in `a` when that tensor is done.

    Raises
    ------
    FormatError, OSError
        If one of them cannot be read. Values that are not finite are differences, not errors.
    """
    report = DiffReport(os.fspath(a), os.fspath(b))
    with (
        open_source(a) as source_a,
        open_source(b) as source_b,
        workers(jobs or default_jobs()) as executor,
    ):
        infos_a, infos_b = source_a.infos(), source_b.infos()
        report.only_a = sorted(set(infos_a) - set(infos_b))
        report.only_b = sorted(set(infos_b) - set(infos_a))
        for name in sorted(set(infos_a) & set(infos_b)):
            info_a, info_b = infos_a[name], infos_b[name]
            if info_a.shape != info_b.shape:
                report.reshaped[name] = (info_a.shape, info_b.shape)
            elif info_a.dtype.is_weight and info_b.dtype.is_weight:
                report.tensors.append(_compare_weights(source_a, source_b, name, executor))
            else:
                same = info_a.dtype == info_b.dtype and _same_bytes(source_a, source_b, name)
                report.tensors.append(_tensor_diff(source_a, source_b, name, same))
            if progress is not None:
                progress("compare", name, info_a.nbytes)
    return report


def _tensor_diff(
    a: TensorSource,
    b: TensorSource,
    name: str,
    identical: bool,
    cosines: CosineSummary | None = None,
    max_error: float | None = None,
) -> TensorDiff:
    info_a, info_b = a.infos()[name], b.infos()[name]
    stored = _stored_nbytes(a, info_a), _stored_nbytes(b, info_b)
    return TensorDiff(name, info_a.shape, info_a.dtype.name, info_b.dtype.name, *stored, identical, cosines, max_error)


def _stored_nbytes(source: TensorSource, info: TensorInfo) -> int:
    return source.pack.nbytes(info.name) if isinstance(source, PackSource) else info.nbytes


def _same_bytes(a: TensorSource, b: TensorSource, name: str) -> bool:
    info = a.infos()[name]
    return all(
        np.array_equal(a.read_rows(name, start, stop), b.read_rows(name, start, stop))
        for start, stop in row_ranges(info.n_rows, info.row_nbytes)
    )


def _compare_weights(a: TensorSource, b: TensorSource, name: str, executor: Executor | None) -> TensorDiff:
    info_a, info_b = a.infos()[name], b.infos()[name]
    same_dtype = info_a.dtype == info_b.dtype
    if info_a.n_cols == 0:  # such a tensor may have 2**48 rows of nothing
        return _tensor_diff(a, b, name, same_dtype)
    cosines = np.empty(info_a.n_rows)

    # SourceRows would refuse what is not finite, and here that is a finding.
    def compare(span: tuple[int, int]) -> tuple[bool, float]:
        raw_a, raw_b = a.read_rows(name, *span), b.read_rows(name, *span)
        shape = (span[1] - span[0], info_a.n_cols)
        rows_a = exact_values(raw_a, info_a.dtype).reshape(shape)
        rows_b = exact_values(raw_b, info_b.dtype).reshape(shape)
        cosines[slice(*span)] = judged_cosines(_in_float32(rows_a), _in_float32(rows_b))
        return same_dtype and np.array_equal(raw_a, raw_b), _max_error(rows_a, rows_b)

    spans = row_ranges(info_a.n_rows, 4 * info_a.n_cols)
    compared: Iterable[tuple[bool, float]] = map(compare, spans) if executor is None else executor.map(compare, spans)
    identical, max_error = same_dtype, 0.0
    for same, error in compared:
        identical, max_error = identical and same, max(max_error, error)
    summary = summarize(cosines) if info_a.n_rows else None
    return _tensor_diff(a, b, name, identical, summary, max_error if info_a.n_rows else None)


def _in_float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows as float32; those of float64 by powers of two nearer to 1, which leaves their cosines as they are."""
    if rows.dtype == np.float32:
        return rows
    largest = np.where(np.isfinite(rows), np.abs(rows), 0).max(axis=1, initial=0)
    return np.asarray(np.ldexp(rows, -np.frexp(largest)[1][:, None]), np.float32)


def _max_error(a: NDArray[Any], b: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(np.subtract(a, b, dtype=np.float64))
    if not np.isfinite(largest := float(errors.max(initial=0.0))):  # but for equal values that are not finite
        errors[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
        largest = float(errors.max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def print_diff(report: DiffReport, out: Console, every: bool = True) -> None:
    """Print what differs as a table, and the rest as one sentence.

    Where not `every` tensor is asked for, those whose names differ in numbers alone share a line.
    """
    tensors = {tensor.name: tensor for tensor in report.tensors}
    if tensors:
        lines, notes = alike(list(tensors), lambda name: _kind(tensors[name]), every)
        rows = [_row(name, [tensors[each] for each in members]) for name, members in lines]
        headings = ("tensor", ">tensors", "type", "shape", ">bytes a", ">bytes b", "")
        cosines = (">median", ">p5", ">min", ">worst row", ">max error")
        spared = ("worst row", "max error", "tensors", "type", "bytes a", "shape", "p5", "bytes b")
        title = "Cosine of every row of a with that of b"
        out.print(tensor_table((*headings, *cosines), rows, title, spared=spared, notes=notes))
    for side, names in ((report.a, report.only_a), (report.b, report.only_b)):
        lines, notes = alike(names, lambda name: None, every)
        for name, members in lines:
            count = f" ({len(members):,} tensors)" if len(members) > 1 else ""
            out.print(Text.assemble("only in ", safe(side), ": ", safe(name), count))
        for note in notes:
            out.print(Text(note))
    for name, (shape_a, shape_b) in report.reshaped.items():
        out.print(Text.assemble(safe(name), f" is {list(shape_a)} in a and {list(shape_b)} in b"))
    same = sum(tensor.identical for tensor in report.tensors)
    out.print(
        f"{same} of {counted(len(report.tensors), 'tensor')} in both are the same byte for byte; "
        f"{len(report.only_a)} only in a, {len(report.only_b)} only in b, {len(report.reshaped)} of another shape",
        highlight=False,
        markup=False,
    )


def _kind(tensor: TensorDiff) -> tuple[Any, ...]:
    """What tensors of one line have in common."""
    return tensor.shape, tensor.dtype_a, tensor.dtype_b, tensor.identical, tensor.cosines is None


def _row(name: str, tensors: Sequence[TensorDiff]) -> tuple[Any, ...]:
    first = tensors[0]
    summaries = [tensor.cosines for tensor in tensors if tensor.cosines is not None and not tensor.identical]
    n_lost = sum(cosines.n_zero_rows_lost for cosines in summaries)
    lost = f", {counted(n_lost, 'row')} of zeros lost" if n_lost else ""
    worst = min(summaries, key=lambda cosines: (not cosines.n_zero_rows_lost, cosines.minimum), default=None)
    errors = [tensor.max_error for tensor in tensors if tensor.max_error is not None]
    lowest = [
        min(values) for values in zip(*((c.median, c.p5, c.minimum) for c in summaries if c.n_live_rows), strict=True)
    ]
    return (
        safe(name),
        f"{len(tensors):,}",
        first.dtype_a if first.dtype_a == first.dtype_b else f"{first.dtype_a} / {first.dtype_b}",
        shape_text(first.shape),
        human_nbytes(sum(tensor.nbytes_a for tensor in tensors)),
        human_nbytes(sum(tensor.nbytes_b for tensor in tensors)),
        "same" if first.identical else f"differs{lost}",
        *([f"{value:.6f}" for value in lowest] or [""] * 3),
        "" if worst is None else worst.worst_row,
        f"{max(errors):.3g}" if errors else "",
    )


# ---- the command ----


DESCRIPTION = "Compare A and B, any two readable sources."
EXAMPLES = """\
  hhtld diff model.safetensors model.hhtld     what encoding changed, tensor by tensor
  hhtld diff old-snapshot/ new-snapshot/
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument("a", metavar="A", help="a file or folder of any format that `hhtld list` says is read")
    command.add_argument("b", metavar="B", help="what A is compared with")
    add_jobs(command)
    add_all(command)
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from hhtld.display.progress_bar import progress_bar
    from hhtld.display.terminal import console
    from hhtld.formats import open_source

    with open_source(arguments.a) as source:
        total = sum(info.nbytes for info in source.infos().values())
    with progress_bar(total, wanted=not arguments.json) as progress:
        report = diff(arguments.a, arguments.b, jobs=arguments.jobs, progress=progress)
    if arguments.json:
        emit(json.dumps(report.to_json(), indent=2, allow_nan=False))
    else:
        print_diff(report, console(), every(arguments))
    return DONE if report else FAILED
