"""All tensors of an export side by side: plots by tensor, the table behind them, and the gates by regime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hhtld.codecs import codec_ids
from hhtld.encoding.gate_report import GateReport, RegimeCosines
from hhtld.formats.hdf5.nexus import Field, describe, escaped, group, index_axis, plot, put, storable, text
from hhtld.formats.hdf5.selection import Selection
from hhtld.gates import THRESHOLDS, CosineSummary
from hhtld.pack.pack import HhtldPack
from hhtld.pack.table import TensorRecord

__all__ = ["Overview", "zero_counts"]

_REGIMES = {"none": 0, "argmax": 1, "index": 2}


class Overview:
    """What an export says of all its tensors.

    Parameters
    ----------
    pack : HhtldPack
    chosen : Selection
    measured : GateReport
        Cosines that are measured while tensors are exported; empty if there is no original.
    is_measured : bool
        Whether there is an original, so that cosines are measured and not taken from the pack.
    """

    def __init__(self, pack: HhtldPack, chosen: Selection, measured: GateReport, is_measured: bool) -> None:
        self._pack, self._chosen, self._measured, self._is_measured = pack, chosen, measured, is_measured

    def write_overview(self, entry: h5py.Group) -> None:
        """Write the plots by tensor, and the table of all tensors that they are taken from."""
        names = list(self._chosen.rows)
        text(entry, "tensor_names", names, "names of the tensors, by their number in summary")
        summary = self._summary(names)
        put(entry, Field("summary", summary, "one row a tensor: what it was, what it became, how well it came back"))
        encoded = np.flatnonzero([self._pack.table.tensors[name].is_encoded for name in names]).astype(np.int32)
        number = Field("tensor", encoded, "number of the tensor in summary", "1", "tensor number (see summary)")
        shown = summary[encoded]
        if not len(encoded):
            sizes = Field("nbytes", summary["nbytes"].astype(np.float32), "bytes of the tensor's own sections", "byte")
            if len(names):
                number = index_axis("tensor", len(names), number.description, number.long_name)
                plot(entry, "overview", "Bytes by tensor; no tensor is encoded", sizes, [number])
                entry.attrs["default"] = "overview"
            return
        median, p5, least = (
            Field(key, shown[key].astype(np.float32), f"{key} of the cosines of its rows", "1", f"{key} row cosine")
            for key in ("median", "p5", "min")
        )
        title = (
            f"Cosine of every encoded row with what the file gives back, by tensor (profile {self._pack.table.profile})"
        )
        plot(entry, "overview", title, median, [number], [p5, least])
        entry.attrs["default"] = "overview"
        if len(encoded) == 1 and shown["n_rows"][0]:  # one point is no curve
            entry.attrs["default"] = f"tensors/{escaped(names[encoded[0]])}"
        bits = Field(
            "bits_per_weight", shown["bits_per_weight"].astype(np.float32), "own sections over elements", "bit"
        )
        plot(entry, "rates", "Bits a weight by tensor, without what its group shares", bits, [number])

    def _summary(self, names: list[str]) -> NDArray[Any]:
        codecs = {name: number for number, name in enumerate(codec_ids())}
        codec, kind = (h5py.enum_dtype(table, np.uint8) for table in (codecs, _REGIMES))
        layout = [
            ("name", h5py.string_dtype()),
            ("source_dtype", h5py.string_dtype()),
            ("codec", codec),
            ("regime", kind),
            *((key, "<i8") for key in ("n_rows", "n_cols", "nbytes")),
            *((key, "<f4") for key in ("bits_per_weight", "median", "p5", "min")),
            ("worst_row", "<i8"),
        ]
        table = np.zeros(len(names), np.dtype(layout))
        for line, name in zip(table, names, strict=True):
            record, info = self._pack.info(name), self._pack.table.tensors[name].info
            nbytes, elements = self._pack.nbytes(record.name), max(1, info.n_rows * info.n_cols)
            line["name"], line["source_dtype"] = storable(name), info.dtype.name
            line["codec"] = codecs[record.codec]
            line["regime"] = _REGIMES[self._pack.table.regime(name) or "none"]
            line["n_rows"], line["n_cols"], line["nbytes"] = info.n_rows, info.n_cols, nbytes
            line["bits_per_weight"] = 8 * nbytes / elements
            recorded = self.cosines(record)
            cosines = (np.nan, np.nan, np.nan) if recorded is None else (recorded.median, recorded.p5, recorded.minimum)
            line["median"], line["p5"], line["min"] = cosines
            line["worst_row"] = -1 if recorded is None else recorded.worst_row
        return table

    def write_gates(self, entry: h5py.Group) -> None:
        """Write what profile gates asks of each regime, and what was reached."""
        gates = group(entry, "gates", "NXcollection", "row cosines by regime, and what profile gates asks of them")
        gates.attrs["measured"] = "anew, of all rows" if self._is_measured else "when the file was made"
        for kind, asked in THRESHOLDS.items():
            facts = {"median_asked": asked.median, "p5_asked": asked.p5} | self._regime_gates(kind)
            describe(gates, **{f"{kind}_{key}": value for key, value in facts.items()})

    def _regime_gates(self, kind: str) -> dict[str, Any]:
        """Cosines of one regime: of all its rows if they were measured now, ranges over its tensors as recorded."""
        cosines = self._measured.regimes[kind]
        if cosines.n_rows:
            facts: dict[str, Any] = {"n_rows": cosines.n_rows, **zero_counts(cosines)}
            if not cosines.n_live_rows:
                return facts
            worst, name, row = cosines.worst
            facts |= {"median": cosines.median, "p5": cosines.p5}
            return facts | {"min": worst, "worst_tensor": name, "worst_row": row}
        table = self._pack.table
        records = [table.tensors[name] for name in self._chosen.rows if table.regime(name) == kind]
        gated = [(record.name, record.gates) for record in records if record.gates is not None and record.gates.n_rows]
        if self._is_measured or not gated:
            return {}
        counts: Counter[str] = Counter({"n_rows": 0})
        for _, gates in gated:
            counts.update({"n_rows": gates.n_rows, **zero_counts(gates)})
        gated = [(name, gates) for name, gates in gated if gates.n_live_rows]
        if not gated:
            return dict(counts)
        name, lowest = min(gated, key=lambda item: item[1].minimum)
        medians, p5s = [gates.median for _, gates in gated], [gates.p5 for _, gates in gated]
        return {
            **counts,
            "median_from": min(medians),
            "median_to": max(medians),
            "p5_from": min(p5s),
            "p5_to": max(p5s),
            "min": lowest.minimum,
            "worst_tensor": name,
            "worst_row": lowest.worst_row,
        }

    def cosines(self, record: TensorRecord) -> CosineSummary | None:
        """Return the cosines that were measured now, else those that the pack recorded."""
        resolved = self._pack.info(record.name)
        return self._measured.tensors.get(resolved.name, resolved.gates)


def zero_counts(cosines: CosineSummary | RegimeCosines) -> dict[str, int]:
    """Return how many rows are zeros, and how many of them did not come back as such; a count of 0 is left out."""
    counts = {"n_zero_rows": cosines.n_zero_rows, "n_zero_rows_lost": cosines.n_zero_rows_lost}
    return {key: count for key, count in counts.items() if count}
