"""Converting: from any readable source to any writable format, with a report of every number."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hhtld.base17 import BASE17_NBYTES
from hhtld.encoder import Progress
from hhtld.formats import format_for_output, open_source
from hhtld.formats.demo import DEMO, demo_model
from hhtld.formats.hhtld import open_pack, write_pack
from hhtld.gates import CosineSummary, GateReport
from hhtld.palette import MAX_PALETTE_K
from hhtld.plan import Plan, TensorPlan, make_plan
from hhtld.roles import regime, should_use_leaf
from hhtld.slots import ENTRY_DTYPE, SLOT_L_LANES
from hhtld.source import TensorInfo, TensorSource

__all__ = ["ConversionReport", "TensorOutcome", "convert", "default_jobs", "resolve_source"]


def default_jobs() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers(jobs: int) -> Iterator[Executor | None]:
    """Give an executor of `jobs` threads, or None for one: the caller's own."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if jobs == 1:
        yield None
        return
    executor = ThreadPoolExecutor(jobs)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def resolve_source(src: str | os.PathLike[str]) -> Path:
    """Return the path a source argument means; "demo:" is the demo model."""
    return demo_model() if os.fspath(src) == DEMO else Path(src)


def as_bf16_nbytes(info: TensorInfo) -> int:
    """Return a tensor's bytes with floats as bfloat16, what models are shipped in."""
    return 2 * info.n_rows * info.n_cols if info.dtype.is_weight else info.nbytes


@dataclass(frozen=True)
class TensorOutcome:
    """What became of one tensor."""

    info: TensorInfo
    codec: str
    nbytes: int
    regime: str | None = None
    alias_of: str | None = None
    cosines: CosineSummary | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits of its own sections over its elements."""
        elements = self.info.n_rows * self.info.n_cols
        return 8 * self.nbytes / elements if elements else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        record: dict[str, Any] = {
            "name": self.info.name,
            "dtype": self.info.dtype.name,
            "shape": list(self.info.shape),
            "codec": self.codec,
            "source_nbytes": self.info.nbytes,
            "nbytes": self.nbytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
        }
        if self.alias_of is not None:
            record["alias_of"] = self.alias_of
        if self.regime is not None:
            record["regime"] = self.regime
        if self.cosines is not None:
            record["cosine"] = self.cosines.to_json() | {
                "median": self.cosines.median,
                "p5": self.cosines.p5,
                "min": self.cosines.minimum,
            }
        return record


@dataclass
class ConversionReport:
    """Everything a conversion did; truthy when every enforced gate passed.

    Attributes
    ----------
    source, target : str
    profile : str or None
        None where nothing was encoded.
    source_nbytes, bf16_nbytes, target_nbytes : int
        Tensor bytes of the source, the same with floats as bfloat16, and the file (predicted ones
        in a dry run, where `gates.tensors` is empty).
    tensors : list of TensorOutcome
    gates : GateReport
    seconds : float
    dry_run : bool
    """

    source: str
    target: str
    profile: str | None
    gates: GateReport
    source_nbytes: int = 0
    bf16_nbytes: int = 0
    target_nbytes: int = 0
    tensors: list[TensorOutcome] = field(default_factory=list)
    seconds: float = 0.0
    dry_run: bool = False

    @property
    def ratio(self) -> float:
        """Source as bfloat16 over the target."""
        return self.bf16_nbytes / self.target_nbytes if self.target_nbytes else 0.0

    def __bool__(self) -> bool:
        return self.dry_run or bool(self.gates)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": "hhtld.convert/1",
            "source": self.source,
            "target": self.target,
            "profile": self.profile,
            "dry_run": self.dry_run,
            "source_nbytes": self.source_nbytes,
            "bf16_nbytes": self.bf16_nbytes,
            "target_nbytes": self.target_nbytes,
            "ratio": round(self.ratio, 4),
            "seconds": round(self.seconds, 3),
            "gates": self.gates.to_json(),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }

    def to_text(self) -> str:
        """Return `to_json()` as indented text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False)


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    profile: str = "f32",
    to: str | None = None,
    jobs: int | None = None,
    nonfinite: str = "refuse",
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Convert a source to a file.

    Parameters
    ----------
    src : path
        A .safetensors file, a sharded snapshot folder or its index, a .hhtld file, or "demo:".
    dst : path
        Its suffix chooses the format unless `to` names one. An existing file is replaced once the
        new one is complete and verified.
    profile : {"lookup", "f32"}
        What encoded rows hold; only used when writing .hhtld.
    jobs : int, optional
        Threads; all processors by default. The bytes are the same for any number.
    nonfinite : {"refuse", "keep"}
        What becomes of weight tensors that hold an infinity or NaN.
    dry_run : bool
        Predict sizes, write nothing.
    progress : callable, optional
        Called with a stage, a tensor's name and its bytes when that stage is done with it.

    Returns
    -------
    ConversionReport

    Raises
    ------
    FormatError, NonFiniteError
        When the source cannot be converted.
    OutputError
        When the target cannot be written; what stood there before is untouched.
    """
    started = time.perf_counter()
    source_path, target = resolve_source(src), Path(dst)
    output = format_for_output(target, to)
    with open_source(source_path) as source, workers(jobs or default_jobs()) as executor:
        if target.exists() and source_path.exists() and target.samefile(source_path):
            raise ValueError(f"{target} is the source itself; give the result another name")
        if output.name != "hhtld":
            report = ConversionReport(os.fspath(src), str(target), None, GateReport(enforced=False), dry_run=dry_run)
            if not dry_run:
                output.write_source(source, target)
            _count(report, source, target)
        else:
            plan = make_plan(source, profile, nonfinite=nonfinite)
            gates = GateReport(enforced=False)
            report = ConversionReport(os.fspath(src), str(target), profile, gates, dry_run=dry_run)
            if not dry_run:
                write_pack(source, plan, target, gates, executor, progress or (lambda *_: None))
            _count_pack(report, source, plan, target)
    report.gates.ratio = report.ratio
    report.seconds = time.perf_counter() - started
    return report


def _count(report: ConversionReport, source: TensorSource, target: Path) -> None:
    for info in source.infos().values():
        report.tensors.append(TensorOutcome(info, "keep", info.nbytes))
        report.source_nbytes += info.nbytes
        report.bf16_nbytes += as_bf16_nbytes(info)
    report.target_nbytes = report.source_nbytes if report.dry_run else target.stat().st_size


def _count_pack(report: ConversionReport, source: TensorSource, plan: Plan, target: Path) -> None:
    sizes: dict[str, int] = {}
    if not report.dry_run:
        with open_pack(target) as pack:
            sizes = {name: pack.nbytes(name) for name in pack}
        report.target_nbytes = target.stat().st_size
    for name, tensor in plan.tensors.items():
        nbytes = sizes.get(name, predicted_nbytes(tensor))
        kind = None if tensor.group is None else regime(tensor.group.role)
        cosines = report.gates.tensors.get(name)
        report.tensors.append(TensorOutcome(tensor.info, tensor.codec, nbytes, kind, tensor.alias_of, cosines))
        report.source_nbytes += tensor.info.nbytes
        if tensor.alias_of is None:
            report.bf16_nbytes += as_bf16_nbytes(tensor.info)
    if report.dry_run:
        shared = sum(predicted_shared_nbytes(plan, names[0]) for names in plan.groups().values())
        report.target_nbytes = sum(tensor.nbytes for tensor in report.tensors) + shared


def predicted_nbytes(tensor: TensorPlan) -> int:
    """Return the bytes a planned tensor's own sections will take."""
    if tensor.alias_of is not None:
        return 0
    if tensor.group is None:
        return tensor.info.nbytes
    n_rows, n_cols = tensor.group.shape
    leaf = SLOT_L_LANES if should_use_leaf(tensor.group.role) else 0
    if tensor.codec == "hhtl_d":
        return n_rows * (ENTRY_DTYPE.itemsize + leaf)
    return n_rows * (1 + leaf) + 2 * min(MAX_PALETTE_K, n_rows) * n_cols


def predicted_shared_nbytes(plan: Plan, name: str) -> int:
    """Return the bytes that the sections shared by a tensor's group will take."""
    tensor = plan.tensors[name]
    assert tensor.group is not None
    n_rows, n_cols = tensor.group.shape
    k, vectors = min(MAX_PALETTE_K, n_rows), min(SLOT_L_LANES, n_rows, n_cols)
    palette = BASE17_NBYTES * k + 8 + k * k if tensor.codec == "hhtl_d" else 0
    return palette + (8 + vectors * (4 + 2 * n_cols) if should_use_leaf(tensor.group.role) else 0)
