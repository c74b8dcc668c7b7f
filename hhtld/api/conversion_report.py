"""What a conversion reports: what became of each tensor, sizes, gates and notes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from hhtld.encoding.gate_report import GateReport
from hhtld.gates import CosineSummary, Unreached
from hhtld.matrix import TensorInfo
from hhtld.pack.notebook import card
from hhtld.sources.contract import TensorSource

__all__ = ["ConversionReport", "TensorOutcome", "as_bf16_nbytes", "tell_as_stored", "tied_too"]


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
    regime_reason: str | None = None
    alias_of: str | None = None
    cosines: CosineSummary | None = None
    predicted_median: float | None = None
    stored: tuple[str, int] | None = None
    unreached: Unreached | None = None

    @property
    def source_nbytes(self) -> int:
        """Bytes in the source, as stored there."""
        return self.info.nbytes if self.stored is None else self.stored[1]

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
            "source_nbytes": self.source_nbytes,
            "nbytes": self.nbytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
        }
        if self.stored is not None and self.stored[0] != self.info.dtype.name:
            record["stored_as"] = self.stored[0]
        if self.alias_of is not None:
            record["alias_of"] = self.alias_of
        if self.regime is not None:
            record |= {"regime": self.regime, "regime_reason": self.regime_reason}
        if self.unreached is not None:
            record["unreached"] = self.unreached.to_json()
        if self.predicted_median is not None:
            record["predicted_median"] = round(self.predicted_median, 6)
        if self.cosines is not None:
            record["cosine"] = self.cosines.to_json() | {
                "median": self.cosines.median,
                "p5": self.cosines.p5,
                "min": self.cosines.minimum,
            }
        return record


@dataclass(repr=False)
class ConversionReport:
    """Everything a conversion did; truthy when every enforced gate passed.

    Attributes
    ----------
    source, target : str
    profile : str or None
        None if nothing was encoded.
    source_nbytes, bf16_nbytes, target_nbytes : int
        Tensor bytes of the source as stored, the same with floats as bfloat16, and the file or folder (predicted
        ones in a dry run, where `gates.tensors` is empty). Side files that came along count in all three.
    files_nbytes : int
        Of those side files.
    tensors : list of TensorOutcome
    gates : GateReport
    seconds : float
    dry_run : bool
    expected : dict or None
        Of a dry run whose encoded tensors all get Slot T: "seconds" with "jobs" threads, from the time that coding
        samples took, "memory_nbytes" at most, beyond what the interpreter takes, and "sampled_share", that of the
        encoded weights that are in groups which were sampled; the others are taken to need the same rate.
    notes : list of str
        What a user should know, one sentence each.
    is_text_model : bool
        Whether a tokenizer and a config stand beside the weights, so that `hhtld gate-parity` can run the model.
    """

    source: str
    target: str
    profile: str | None
    gates: GateReport
    source_nbytes: int = 0
    bf16_nbytes: int = 0
    target_nbytes: int = 0
    files_nbytes: int = 0
    tensors: list[TensorOutcome] = field(default_factory=list)
    seconds: float = 0.0
    dry_run: bool = False
    expected: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    is_text_model: bool = False

    @property
    def ratio(self) -> float:
        """Source as bfloat16 over the target."""
        return self.bf16_nbytes / self.target_nbytes if self.target_nbytes else 0.0

    def __bool__(self) -> bool:
        return self.dry_run or bool(self.gates)

    def __repr__(self) -> str:
        how = "predicted" if self.dry_run else "passed" if self else "a gate was missed"
        profile = "" if self.profile is None else f", profile {self.profile}"
        return (
            f"<ConversionReport {self.target}: {self.target_nbytes:,} bytes, {self.ratio:.2f} times smaller than as "
            f"bfloat16{profile}, {how}>"
        )

    def _repr_html_(self) -> str:
        facts = {
            "source": f"{self.source}, {self.source_nbytes:,} bytes, as bfloat16 {self.bf16_nbytes:,}",
            **{"note" if i == 0 else f"note {i + 1}": note for i, note in enumerate(self.notes)},
        }
        rows = (
            (
                t.info.name,
                list(t.info.shape),
                t.codec,
                f"{t.nbytes:,}",
                *((c.median, c.p5) if (c := t.cosines) else ("", "")),
            )
            for t in self.tensors
        )
        return card(repr(self)[1:-1], facts, ("tensor", "shape", "codec", "bytes", "median cosine", "p5"), rows)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": "hhtld.convert/1",
            "source": self.source,
            "target": self.target,
            "profile": self.profile,
            "dry_run": self.dry_run,
            **({} if self.expected is None else {"expected": self.expected}),
            "source_nbytes": self.source_nbytes,
            "bf16_nbytes": self.bf16_nbytes,
            "target_nbytes": self.target_nbytes,
            "files_nbytes": self.files_nbytes,
            "ratio": round(self.ratio, 4),
            "seconds": round(self.seconds, 3),
            "gates": self.gates.to_json(),
            "notes": self.notes,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }

    def to_text(self) -> str:
        """Return `to_json()` as indented text."""
        return json.dumps(self.to_json(), indent=2, allow_nan=False)


def tell_as_stored(report: ConversionReport, source: TensorSource) -> None:
    """Put the types and bytes into a report that tensors have in the source, where they are given as wider ones."""
    for number, tensor in enumerate(report.tensors):
        outcome = replace(tensor, stored=source.stored(tensor.info.name))
        report.source_nbytes += outcome.source_nbytes - tensor.info.nbytes
        report.tensors[number] = outcome
    kinds = sorted({t.stored[0] for t in report.tensors if t.stored is not None and t.stored[0] != t.info.dtype.name})
    if kinds and report.target_nbytes > report.source_nbytes:
        report.notes.append(
            f"this takes {report.target_nbytes:,} bytes, more than the {report.source_nbytes:,} of the source, whose "
            f"tensors are stored as {', '.join(kinds)}"
        )


def tied_too(outcomes: Iterable[TensorOutcome]) -> list[TensorOutcome]:
    """Return outcomes in which names that share another's bytes tell how well these came back."""
    by_name = {outcome.info.name: outcome for outcome in outcomes}
    return [
        outcome if outcome.alias_of is None else replace(by_name[outcome.alias_of], **_own(outcome))
        for outcome in by_name.values()
    ]


def _own(outcome: TensorOutcome) -> dict[str, Any]:
    return {key: getattr(outcome, key) for key in ("info", "codec", "nbytes", "alias_of", "stored")}
