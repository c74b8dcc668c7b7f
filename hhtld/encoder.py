"""From a source to sections: the one encoder, for arrays in memory and for files.

Sections are written in the order groups (shared, then each tensor by name), then what is kept, by
name, then side files, by name. Rows come in blocks from the source; blocks are spread over the executor's
threads and placed by row, so the bytes are the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hhtld.basis import SvdBasis
from hhtld.errors import RangeError
from hhtld.gates import GateReport, Threshold, row_cosines, summarize
from hhtld.group import PaletteGroupKey, SharedPaletteGroup, sample_basis
from hhtld.pack import HhtldPack
from hhtld.plan import Plan, Profile, make_plan
from hhtld.progress import Progress, silent
from hhtld.rate import DEFAULT_STATE_BITS, decide_group
from hhtld.roles import regime, should_use_leaf
from hhtld.rows import Rows, for_each_block, row_ranges
from hhtld.sections import MemorySections, SectionSink
from hhtld.source import ArraySource, SourceRows, TensorSource
from hhtld.table import GroupRecord, PackTable, TensorRecord
from hhtld.tensor import HhtlF32Tensor
from hhtld.trellis import MAX_RATE, Trellis
from hhtld.trellis_tensor import HhtlTTensor, ScaledRows, bf16_bits, bf16_values

__all__ = ["compared_rows", "encode", "encode_source", "measure"]


@dataclass
class _Encoder:
    source: TensorSource
    sink: SectionSink
    executor: Executor | None
    progress: Progress
    groups: list[GroupRecord] = field(default_factory=list)
    records: dict[str, TensorRecord] = field(default_factory=dict)

    def add_lookup_group(self, key: PaletteGroupKey, names: list[str], plan: Plan) -> None:
        rows = SourceRows(self.source, names[0])
        group = SharedPaletteGroup.found(key, rows, should_use_leaf(key.role), self.executor)
        shared = {"palette": group.cache.palette.entries.to_bytes(), "fisher_z": group.fisher_z.to_bytes()}
        self._add_group(key, shared, group.svd_basis)
        for name in names:
            tensor = group.encode(SourceRows(self.source, name), self.executor)
            parts: dict[str, NDArray[Any]] = {"entries": tensor.entries}
            parts |= {} if tensor.slot_l is None else {"slot_l": tensor.slot_l}
            self._add_tensor(name, plan, parts, tensor.slot_l_scale)

    def add_f32_group(self, key: PaletteGroupKey, names: list[str], plan: Plan) -> None:
        basis = sample_basis(SourceRows(self.source, names[0])) if should_use_leaf(key.role) else None
        self._add_group(key, {}, basis)
        role = f"{key.component}_{key.role}"
        for name in names:
            rows = SourceRows(self.source, name)
            if basis is None:
                tensor = HhtlF32Tensor.encode(role, rows, executor=self.executor)
            else:
                tensor = HhtlF32Tensor.encode_with_leaf(role, rows, basis, executor=self.executor)
            parts: dict[str, NDArray[Any]] = {"palette_f32": tensor.palette_bits, "twigs": tensor.twigs}
            parts |= {} if tensor.slot_l is None else {"slot_l": tensor.slot_l}
            self._add_tensor(name, plan, parts, tensor.slot_l_scale)

    def add_trellis_group(self, key: PaletteGroupKey, names: list[str], plan: Plan, profile: Profile) -> None:
        rows = [SourceRows(self.source, name) for name in names]
        scales = [bf16_bits(plan.column_scales[name]) if name in plan.column_scales else None for name in names]
        coded = _TrellisGroup(key, rows, scales, plan, profile, self.executor)
        if not coded.worthwhile([plan.tensors[name].info.nbytes for name in names]):
            for name in names:
                self.keep(name, plan)
            return
        shared = coded.shared
        sections = {"codebook": shared.trellis.levels.tobytes()}
        if shared.centroid_bits is not None:
            sections["centroids"] = shared.centroid_bits.tobytes()
        if shared.second is not None:
            sections["codebook_2"] = shared.second.levels.tobytes()
        rate_2 = None if shared.second is None else shared.second.rate
        self._add_group(key, sections, shared.basis, (shared.trellis.rate, shared.rotation.seed, rate_2))
        for name, tensor in zip(names, coded.tensors, strict=True):
            self._add_tensor(name, plan, tensor.parts(), tensor.slot_l_scale)

    def _add_group(
        self,
        key: PaletteGroupKey,
        shared: Mapping[str, bytes],
        basis: SvdBasis | None,
        code: tuple[int | None, int | None, int | None] = (None, None, None),
    ) -> None:
        sections = {kind: self.sink.add(kind, len(data), [data]) for kind, data in shared.items()}
        if basis is not None:
            sections["basis"] = self.sink.add("basis", basis.byte_size(), [basis.to_bytes()])
        self.groups.append(GroupRecord(key, sections, *code))

    def _add_tensor(self, name: str, plan: Plan, parts: Mapping[str, NDArray[Any]], scale: float | None) -> None:
        sections = {kind: self.sink.add(kind, array.nbytes, [array.tobytes()]) for kind, array in parts.items()}
        info, codec = plan.tensors[name].info, plan.tensors[name].codec
        self.records[name] = TensorRecord(info, codec, sections, len(self.groups) - 1, scale)
        self.progress("encode", name, info.nbytes)

    def keep(self, name: str, plan: Plan) -> None:
        info = plan.tensors[name].info
        index = self.sink.add("raw", info.nbytes, self._raw_blocks(name))
        self.records[name] = TensorRecord(info, "keep", {"raw": index})
        self.progress("encode", name, info.nbytes)

    def add_file(self, name: str) -> int:
        data = self.source.read_file(name)
        return self.sink.add("file", len(data), [data])

    def _raw_blocks(self, name: str) -> Iterator[NDArray[np.uint8]]:
        info = self.source.infos()[name]
        for start, stop in row_ranges(info.n_rows, info.row_nbytes):
            yield self.source.read_rows(name, start, stop)


class _TrellisGroup:
    """A group's tensors at the smallest rate that passes on all of their rows, or at a fixed one.

    Attributes
    ----------
    shared : TrellisShared
    tensors : list of HhtlTTensor
        Empty where no rate passes.
    """

    def __init__(
        self,
        key: PaletteGroupKey,
        rows: list[SourceRows],
        scales: list[NDArray[np.uint16] | None],
        plan: Plan,
        profile: Profile,
        executor: Executor | None,
    ) -> None:
        self._scales = scales
        threshold = None if profile.rate is not None else plan.thresholds[regime(key.role)]
        self.tensors: list[HhtlTTensor] = []
        try:
            self._search(key, rows, plan, profile, threshold, executor)
        except RangeError:  # weights near the end of float32's range are kept as they came
            self.tensors = []

    def _search(
        self,
        key: PaletteGroupKey,
        rows: list[SourceRows],
        plan: Plan,
        profile: Profile,
        threshold: Threshold | None,
        executor: Executor | None,
    ) -> None:
        coded = [
            own if scale is None else ScaledRows(own, bf16_values(scale))
            for own, scale in zip(rows, self._scales, strict=True)
        ]
        self.shared, prediction = decide_group(coded, profile.rate, threshold, plan.seed)
        if prediction is None:
            return
        for rate in range(prediction.rate, MAX_RATE + 1):
            code = Trellis.trained(rate, DEFAULT_STATE_BITS)
            second = None if profile.rate_2 is None else Trellis.trained(profile.rate_2, DEFAULT_STATE_BITS)
            self.shared = replace(self.shared, trellis=code, second=second)
            self.tensors = self._encoded(f"{key.component}_{key.role}", rows, executor)
            if threshold is None or self._passes(rows, threshold, executor):
                return
        self.tensors = []

    def _encoded(self, role: str, rows: list[SourceRows], executor: Executor | None) -> list[HhtlTTensor]:
        if executor is None or len(rows) == 1:
            pairs = zip(rows, self._scales, strict=True)
            return [HhtlTTensor.encode(role, own, self.shared, scale, executor) for own, scale in pairs]
        # Whole tensors side by side: many are a single block. A task never waits for another.
        futures = [
            executor.submit(HhtlTTensor.encode, role, own, self.shared, scale)
            for own, scale in zip(rows, self._scales, strict=True)
        ]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _passes(self, rows: list[SourceRows], threshold: Threshold, executor: Executor | None) -> bool:
        cosines = [
            compared_rows(own, tensor.reconstruct_rows, executor)
            for own, tensor in zip(rows, self.tensors, strict=True)
        ]
        return summarize(np.concatenate(cosines)).passes(threshold)

    def worthwhile(self, source_nbytes: list[int]) -> bool:
        """Whether a rate passed and the group takes fewer bytes than it came with."""
        if not self.tensors:
            return False
        nbytes = self.shared.shared_nbytes() + sum(tensor.total_byte_size() for tensor in self.tensors)
        return nbytes < sum(source_nbytes)


def encode_source(
    source: TensorSource, plan: Plan, sink: SectionSink, executor: Executor | None = None, progress: Progress = silent
) -> PackTable:
    """Write a source's sections to a sink and return the table that names them.

    Raises
    ------
    NonFiniteError
        When a tensor that is to be encoded holds an infinity or NaN.
    """
    encoder = _Encoder(source, sink, executor, progress)
    for (key, profile), names in plan.groups().items():
        if profile.codec == "hhtl_d":
            encoder.add_lookup_group(key, names, plan)
        elif profile.codec == "hhtl_f32":
            encoder.add_f32_group(key, names, plan)
        else:
            encoder.add_trellis_group(key, names, plan, profile)
    for name in plan.kept():
        encoder.keep(name, plan)
    for name, tensor in plan.tensors.items():
        if tensor.alias_of is not None:
            encoder.records[name] = TensorRecord(tensor.info, "keep", alias_of=tensor.alias_of)
    return PackTable(
        plan.profile.text,
        tuple(encoder.groups),
        dict(sorted(encoder.records.items())),
        source.metadata,
        source.description,
        {name: encoder.add_file(name) for name in plan.files},
    )


def compared_rows(
    rows: Rows, decoded: Callable[[slice], NDArray[Any]], executor: Executor | None
) -> NDArray[np.float64]:
    """Return the cosine of every row with what `decoded` gives for a slice of rows, float64 (n_rows,)."""
    cosines = np.empty(rows.n_rows)

    def compare(start: int, stop: int, block: NDArray[np.float32]) -> None:
        cosines[start:stop] = row_cosines(block, decoded(slice(start, stop)))

    for_each_block(rows, compare, executor)
    return cosines


def measure(
    pack: HhtldPack,
    source: TensorSource,
    report: GateReport,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> None:
    """Compare every row of every encoded tensor of a pack with its source and add it to a report."""
    for name, record in pack.table.tensors.items():
        if record.codec == "keep" or record.group is None:
            continue
        rows = SourceRows(source, name)
        cosines = compared_rows(rows, partial(pack.get_rows, name), executor)
        key = pack.table.groups[record.group].key
        report.add(name, regime(key.role), cosines, str(key))
        progress("measure", name, record.info.nbytes)


def encode(
    tensors: TensorSource | Mapping[str, Any],
    profile: str = "gates",
    *,
    metadata: Mapping[str, str] | None = None,
    nonfinite: str = "refuse",
    column_scales: Mapping[str, ArrayLike] | None = None,
    executor: Executor | None = None,
) -> HhtldPack:
    """Encode arrays, or any source, into a pack in memory.

    Parameters
    ----------
    tensors : mapping of str to array, or TensorSource
    profile : str
        "gates", "bits:B", "lookup" or "f32".
    metadata : mapping of str to str, optional
        Travels with the pack; a source brings its own.
    nonfinite : {"refuse", "keep"}
    column_scales : mapping of str to array, optional
        See `hhtld.plan.make_plan`.
    executor : concurrent.futures.Executor, optional
        Threads to spread blocks of rows over.
    """
    source = tensors if isinstance(tensors, TensorSource) else ArraySource(tensors, metadata)
    plan = make_plan(source, profile, nonfinite=nonfinite, column_scales=column_scales)
    sections = MemorySections()
    table = encode_source(source, plan, sections, executor)
    report = GateReport(enforced=False)
    measure(HhtldPack(table, sections), source, report, executor)
    return HhtldPack(table.with_gates(report.tensors), sections)
