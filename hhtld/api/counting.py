"""Counting what a conversion wrote, or would write, into its report."""

from __future__ import annotations

from pathlib import Path

from hhtld.api.conversion_report import ConversionReport, TensorOutcome, as_bf16_nbytes, tied_too
from hhtld.codecs import KEEP
from hhtld.encoding.dry_run import predict_pack
from hhtld.encoding.plan import Plan, TensorPlan
from hhtld.encoding.resources import Work
from hhtld.gates import Unreached
from hhtld.pack.opening import PACK_NAME, open_pack
from hhtld.sources.contract import TensorSource

__all__ = ["count_files", "count_pack", "count_predicted", "count_source", "stored_bits"]


def count_source(report: ConversionReport, source: TensorSource, target: Path) -> None:
    for info in source.infos().values():
        report.tensors.append(TensorOutcome(info, KEEP.id, info.nbytes))
        report.source_nbytes += info.nbytes
        report.bf16_nbytes += as_bf16_nbytes(info)
    report.target_nbytes = report.source_nbytes if report.dry_run else _written_nbytes(target)


def count_pack(report: ConversionReport, plan: Plan, target: Path) -> None:
    with open_pack(target) as pack:
        records = {name: (pack.table.tensors[name], pack.nbytes(name)) for name in pack}
    report.target_nbytes = _written_nbytes(target)
    for name, tensor in plan.tensors.items():
        record, nbytes = records[name]
        regime_and_reason = _regime(tensor) if record.is_encoded else (None, None)
        cosines = report.gates.tensors.get(name)
        unreached = report.gates.unreached.get(name)
        outcome = TensorOutcome(
            tensor.info, record.codec, nbytes, *regime_and_reason, tensor.alias_of, cosines, unreached=unreached
        )
        report.tensors.append(outcome)
        _add_source(report, tensor)
    report.tensors = tied_too(report.tensors)


def count_predicted(report: ConversionReport, source: TensorSource, plan: Plan, work: Work) -> None:
    """Fill a report with what a conversion would give, from samples of rows."""
    predicted = predict_pack(source, plan, work)
    report.target_nbytes += predicted.shared_nbytes
    for name, tensor in plan.tensors.items():
        prediction = predicted.tensors.get(name)
        if prediction is None:
            nbytes = 0 if tensor.alias_of else tensor.info.nbytes
            if name in predicted.unreached and tensor.group is not None:
                missed = tensor.group.regime
                report.gates.unreached[name] = Unreached(missed, plan.threshold(tensor.profile, missed))
            unreached = report.gates.unreached.get(name)
            outcome = TensorOutcome(tensor.info, KEEP.id, nbytes, alias_of=tensor.alias_of, unreached=unreached)
        else:
            regime_and_reason = _regime(tensor)
            outcome = TensorOutcome(
                tensor.info,
                prediction.codec,
                prediction.nbytes,
                *regime_and_reason,
                predicted_median=prediction.median,
            )
        report.tensors.append(outcome)
        report.target_nbytes += outcome.nbytes
        _add_source(report, tensor)
    report.tensors = tied_too(report.tensors)
    report.expected = predicted.expected


def count_files(report: ConversionReport, source: TensorSource | None) -> None:
    """Side files are as large on both sides; what was written has counted them already."""
    nbytes = sum(source.files().values()) if source is not None else 0
    report.files_nbytes = nbytes
    report.source_nbytes += nbytes
    report.bf16_nbytes += nbytes
    report.target_nbytes += nbytes if report.dry_run else 0


def stored_bits(report: ConversionReport, target: Path) -> float:
    """Return the bits a weight of a pack, all of it counted but side files: sixteenths of the model as bfloat16.

    The tensors must hold at least one value.
    """
    nbytes = (target / PACK_NAME).stat().st_size if target.is_dir() else target.stat().st_size - report.files_nbytes
    return 16 * nbytes / (report.bf16_nbytes - report.files_nbytes)


def _add_source(report: ConversionReport, tensor: TensorPlan) -> None:
    report.source_nbytes += tensor.info.nbytes
    if tensor.alias_of is None:
        report.bf16_nbytes += as_bf16_nbytes(tensor.info)


def _regime(tensor: TensorPlan) -> tuple[str | None, str | None]:
    """The regime of what is encoded, and what decided for it."""
    return (None, None) if tensor.group is None else (tensor.group.regime, tensor.regime_reason)


def _written_nbytes(target: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if not target.is_dir():
        return target.stat().st_size
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
