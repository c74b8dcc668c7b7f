"""One tensor: its rows' slots as a table and plots, how they are used, and a few rows in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hhtld.codecs.tensor_view import TensorView
from hhtld.cosines import is_live
from hhtld.dtypes import bf16_values, exact_values, widen
from hhtld.formats.hdf5.nexus import Field, empty, group, index_axis, plot, put
from hhtld.formats.hdf5.selection import IMAGE_ASPECT, IMAGE_ROWS, MAX_POINTS
from hhtld.formats.hdf5.shared import column_axis, entry_axis
from hhtld.gates import CosineSummary
from hhtld.pack.pack import HhtldPack
from hhtld.pack.table import TensorRecord
from hhtld.slots.slot_d_v import HeelBasin, heel_basin, hip_family, polarity, residual, twig
from hhtld.slots.slot_l import SLOT_L_LANES
from hhtld.slots.slot_t import gain_values
from hhtld.sources.contract import TensorSource

__all__ = ["TensorWriter"]

_MOST_ROWS, _BLOCK_NBYTES = 16_384, 8 << 20  # whose slots are held at a time
_N_BINS = 64
_BASIN = h5py.enum_dtype({basin.name: basin.value for basin in HeelBasin}, np.uint8)


class TensorWriter:
    """Writes one tensor into its group.

    Parameters
    ----------
    made : h5py.Group
    pack : HhtldPack
    record : TensorRecord
    rows : range
        Rows whose slots are written.
    sample : list of int
        Rows that are written decoded.
    original : TensorSource or None
    check : callable
        Called now and then; raises when the export is to stop.
    """

    def __init__(
        self,
        made: h5py.Group,
        pack: HhtldPack,
        record: TensorRecord,
        rows: range,
        sample: list[int],
        original: TensorSource | None,
        check: Callable[[], None],
    ) -> None:
        self._check = check
        self.made, self.pack, self.record = made, pack, record
        self.rows, self.sample, self.original = rows, sample, original
        tensor_nbytes = sum(pack.sections.nbytes(index) for index in record.sections.values())
        self._step = max(1, min(_MOST_ROWS, _BLOCK_NBYTES * max(1, record.info.n_rows) // max(1, tensor_nbytes)))

    # ---- kept ----

    def write_kept(self) -> None:
        """Write a kept tensor's values, or a few rows of them."""
        info = self.record.info
        if info.dtype.numpy is None or info.dtype.numpy.kind == "c" or info.n_rows * info.n_cols == 0:
            self.made.attrs["values"] = f"{info.dtype.name} {list(info.shape)} is not shown"
            return
        if info.has_rows:
            if self.sample:
                raw = self.pack.get_rows(self.record.name, self.sample, dtype="source")
                self._plot_rows("values", "Rows as they were kept", self._widened(raw))
            return
        step = -(-info.n_cols // MAX_POINTS)
        values = self._widened(self.pack.get_tensor(self.record.name, "source").reshape(-1)[::step])
        index = np.arange(0, info.n_cols, step, dtype=np.int64).astype(_index_dtype(info.n_cols))
        shown = Field("value", values, "the kept values" if step == 1 else f"one of {step} kept values")
        plot(self.made, "values", self.record.name, shown, [Field("index", index, "place in the tensor")])
        self.made.attrs["default"] = "values"
        if values.dtype.kind == "f":
            self.made.attrs["n_nonfinite"] = int((~np.isfinite(values)).sum())

    def _widened(self, raw: NDArray[Any]) -> NDArray[Any]:
        """Values of a kept tensor in a type that viewers show, which float16 and bfloat16 are not."""
        dtype = self.record.info.dtype
        if dtype.is_weight:
            return exact_values(np.ascontiguousarray(raw).reshape(-1).view(np.uint8), dtype).reshape(raw.shape)
        if raw.dtype.kind not in "iu":
            return raw.astype(np.uint8) if raw.dtype == np.bool_ else raw.astype(np.float32)
        return np.ascontiguousarray(raw)

    # ---- encoded ----

    def write_encoded(self, cosines: NDArray[np.float64] | None, found: CosineSummary | None, codes: bool) -> None:
        """Write an encoded tensor; `cosines` of all its rows if they were measured."""
        if self.rows:
            self._write_slots(codes)
        shared = self.pack.get_encoded(self.record.name, []).view()  # no row of it, all that is shared
        self._write_shared(shared)
        self._write_twig_usage(shared.n_entries)
        if self.sample:
            self._write_sample()
        if found is not None and found.n_live_rows:
            quantiles = Field("cosine", np.array(found.quantiles, np.float32), "quantiles of the row cosines")
            share = np.linspace(0, 1, len(found.quantiles), dtype=np.float32)
            axis = Field("fraction", share, "share of the rows that are no better")
            plot(self.made, "cosine_quantiles", "Quantiles of the row cosines", quantiles, [axis])
            self.made.attrs["default"] = "cosine_quantiles"
        if cosines is not None and len(cosines):
            self._write_cosines(cosines)

    def _blocks(self, rows: range) -> Iterator[tuple[int, TensorView]]:
        """Slots of the rows, block by block, with the place of the first."""
        for start in range(0, len(rows), self._step):
            self._check()
            picked = rows[start : start + self._step]
            index: Any = slice(picked.start, picked.stop, picked.step) if picked.step > 0 else np.asarray(picked)
            yield start, self.pack.get_encoded(self.record.name, index).view()

    def _write_slots(self, codes: bool) -> None:
        numbers = np.asarray(self.rows, np.int64).astype(_index_dtype(self.record.info.n_rows))
        slot_group = group(self.made, "rows", "NXcollection", "slots of the exported rows, one dataset a slot")
        row = Field("row", put(slot_group, Field("row", numbers, "number of the row in the tensor")))
        slots: dict[str, h5py.Dataset] = {}
        for start, view in self._blocks(self.rows):
            block = numbers[start : start + self._step]
            entries = Field("entries", _entries(view, block), "one line a row: its slots, taken apart")
            for field in [entries, *_slots(view, codes)]:
                if field.name not in slots:
                    slots[field.name] = empty(self.made if field is entries else slot_group, field, len(self.rows))
                slots[field.name][start : start + len(block)] = field.values
        if "slot_l" in slots:
            lane = index_axis("lane", SLOT_L_LANES, "lane of Slot L")
            leaf = self._plot_slots("slot_l", "Slot L: 8 int8 a row", slots["slot_l"], numbers, lane)
            leaf.attrs["scale"] = self.record.slot_l_scale
        if "gain" in slots:
            second = [Field("gain_2", slots["gain_2"])] if "gain_2" in slots else []
            plot(self.made, "gains", "Gain of every row", Field("gain", slots["gain"]), [row], second)
        for name in ("slot_t", "slot_t_2"):
            if name in slots:
                axis = index_axis("byte", slots[name].shape[1], "byte of the row's code")
                self._plot_slots(name, f"{name}: the codes, byte by byte", slots[name], numbers, axis)

    def _plot_slots(self, name: str, title: str, slot: h5py.Dataset, numbers: NDArray[Any], axis: Field) -> h5py.Group:
        """An image of rows by lane or byte; rows are evenly taken if they would be a line too thin to be seen."""
        step = -(-len(numbers) // min(IMAGE_ROWS, IMAGE_ASPECT * slot.shape[1]))
        shown = Field(name, slot)
        if step > 1:
            shown = Field(name, slot[::step], f"one in {step} of the exported rows; all are in rows/{name}")
        # No axis of row numbers: viewers draw its units square, so 30,000 rows beside 8 lanes would be a hair.
        picture = plot(self.made, name, title, shown, [None, axis], interpretation="image")
        put(picture, Field("row", numbers[::step], "number of the row in the tensor"))
        return picture

    def _write_shared(self, view: TensorView) -> None:
        n_cols = self.record.info.n_cols
        if view.palette is not None:
            palette = Field("palette", view.palette, "the tensor's palette of real rows, decoded from bfloat16")
            axes = [entry_axis(len(view.palette)), column_axis(n_cols)]
            plot(self.made, "palette", "Palette of real rows", palette, axes, interpretation="image")
        for suffix, trellis in view.trellises.items():
            self.made.attrs[f"rate{suffix}_bits"] = trellis.rate / 16
            self.made.attrs[f"row{suffix}_nbytes"] = trellis.row_nbytes(n_cols)
        if view.column_scale is not None:
            scale = Field("scale", bf16_values(view.column_scale), "what a column was multiplied with")
            plot(self.made, "column_scale", "Column scale", scale, [column_axis(n_cols)])

    def _write_twig_usage(self, n_entries: int | None) -> None:
        if n_entries is None or not self.record.info.n_rows:
            return
        counts = np.zeros(n_entries, np.int64)
        for _, view in self._blocks(range(self.record.info.n_rows)):
            assert view.twigs is not None
            counts += np.bincount(view.twigs, minlength=n_entries)
        rows = Field("count", counts.astype(np.uint32), "rows on the entry, of all rows", "row")
        plot(self.made, "twig_usage", "Rows on every palette entry", rows, [entry_axis(n_entries, "twig")])

    def _write_sample(self) -> None:
        decoded = self.pack.get_rows(self.record.name, self.sample)
        if self.original is None:
            self._plot_rows("sample", "Rows as the file gives them back", decoded)
            return
        info = self.record.info
        width = info.n_cols
        raw = [self.original.read_elements(info.name, row * width, (row + 1) * width) for row in self.sample]
        original = widen(np.concatenate(raw).reshape(-1), info.dtype).reshape(decoded.shape)
        curves = [
            Field("decoded", decoded, "the row as the file gives it back"),
            Field("error", decoded - original, "decoded less original"),
        ]
        title = "Rows: original, decoded and their difference"
        signal = Field("original", original, "the row as the source has it", "1", "weight")
        self._plot_rows("sample", title, signal, curves)

    def _plot_rows(
        self, name: str, title: str, signal: Field | NDArray[Any], curves: list[Field] | None = None
    ) -> None:
        if not isinstance(signal, Field):
            signal = Field("row_values", signal, title, "1", "weight")
        row = Field("row", np.array(self.sample, _index_dtype(self.record.info.n_rows)), "number of the row")
        axes = [row, column_axis(self.record.info.n_cols)]
        plot(self.made, name, title, signal, axes, curves or (), interpretation="spectrum")
        self.made.attrs.setdefault("default", name)

    def _write_cosines(self, cosines: NDArray[np.float64]) -> None:
        cosines = np.where(is_live(cosines), cosines, np.nan)  # a row of zeros has none
        if self.rows:
            title = "Cosine of every row with what the file gives back"
            shown = Field("cosine", cosines[np.asarray(self.rows)].astype(np.float32), f"{title}; NaN for zeros")
            plot(self.made, "row_cosine", title, shown, [Field("row", self.made["rows/row"])])
        cosines = cosines[~np.isnan(cosines)]
        if not len(cosines):
            return
        low = min(float(cosines.min()), 1 - 1e-6)
        counts, edges = np.histogram(cosines, _N_BINS, (low, 1.0))
        rows = Field("count", counts.astype(np.uint32), "rows with such a cosine, of all rows", "row")
        center = Field(
            "center", ((edges[1:] + edges[:-1]) / 2).astype(np.float32), "centers of the bins", "1", "cosine"
        )
        plotted = plot(self.made, "cosine_histogram", "Row cosines", rows, [center])
        put(plotted, Field("edges", edges.astype(np.float32), "edges of the bins"))
        self.made.attrs["default"] = "cosine_histogram"


def _index_dtype(n: int) -> Any:
    return np.int32 if n < 2**31 else np.int64


def _slots(view: TensorView, codes: bool) -> list[Field]:
    """The slots that are plotted, as arrays of one line a row."""
    fields = []
    if view.slot_l is not None:
        fields.append(Field("slot_l", view.slot_l, "8 int8 on the group's basis; times scale is a coefficient"))
    for kind, gains in view.gains.items():
        second = kind.endswith("_2")
        what = "the same of the second level" if second else "what a level is multiplied with"
        fields.append(Field("gain_2" if second else "gain", gain_values(gains), what))
    if codes:
        what = "the row's code, a little-endian bit stream"
        if view.row_class is not None:
            what += ", filled up with zeros to the longest"
        fields += [Field(kind, view.code_rows(kind), what, "byte") for kind in view.codes]
    return fields


def _entries(view: TensorView, numbers: NDArray[Any]) -> NDArray[Any]:
    columns: list[tuple[str, Any, NDArray[Any]]] = [("row", numbers.dtype, numbers)]
    if view.slot_d is not None and view.magnitudes is not None:
        columns += [
            ("basin", _BASIN, heel_basin(view.slot_d)),
            ("family", np.uint8, hip_family(view.slot_d)),
            ("twig", np.uint8, twig(view.slot_d)),
            ("polarity", np.bool_, polarity(view.slot_d)),
            ("residual", np.float32, residual(np.ascontiguousarray(view.magnitudes))),
            ("slot_d", np.uint16, view.slot_d),
            ("slot_v", np.uint16, view.magnitudes),
        ]
    elif view.twigs is not None:
        columns.append(("twig", np.uint8, view.twigs))
    if view.row_class is not None:
        rates = np.array([trellis.rate / 16 for trellis in view.trellises.values()], np.float32)
        columns += [("row_class", np.uint8, view.row_class), ("bits", np.float32, rates[view.row_class])]
    for kind, bits in view.gains.items():
        suffix = kind.removeprefix("slot_v")
        columns += [(f"gain{suffix}", np.float32, gain_values(bits)), (kind, np.uint16, bits)]
    table = np.empty(len(numbers), np.dtype([(name, dtype) for name, dtype, _ in columns]))
    for name, _, values in columns:
        table[name] = values
    return table
