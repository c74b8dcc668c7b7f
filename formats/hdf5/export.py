"""Writing the export: what a file holds, its groups' tables, and every tensor's slots. SPEC.md is the layout."""

from __future__ import annotations

import io
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

import hhtld
from hhtld.encoding.gate_measurement import compared_rows
from hhtld.encoding.gate_report import GateReport
from hhtld.formats.hdf5.nexus import Field, describe, escaped, group, note, put, storable
from hhtld.formats.hdf5.overview import Overview, zero_counts
from hhtld.formats.hdf5.selection import DEFAULT_MAX_NBYTES, Selection, select
from hhtld.formats.hdf5.shared import group_name, write_group
from hhtld.formats.hdf5.tensors import TensorWriter
from hhtld.pack.container import ContainerReader
from hhtld.pack.made_from import differences_of_tensors
from hhtld.pack.pack import HhtldPack
from hhtld.pack.table import TensorRecord
from hhtld.progress import Progress, silent
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.storage.atomic import replacing

__all__ = ["SCHEMA", "export_pack"]

SCHEMA = "hhtld.hdf5/1"
_MOST_JSON_NBYTES = 1 << 18


def export_pack(
    pack: HhtldPack,
    path: str | os.PathLike[str],
    *,
    original: TensorSource | None = None,
    tensors: Sequence[str] = (),
    rows: slice | None = None,
    max_nbytes: int | None = None,
    codes: bool = False,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Write the inside of a pack to an HDF5 file that opens with a plot.

    Parameters
    ----------
    pack : HhtldPack
    path : path
        Replaced only by a complete file.
    original : TensorSource, optional
        What the pack was made from: adds the cosine of every row, and original and error of sampled ones.
    tensors : sequence of glob
        Names to export; all by default.
    rows : slice, optional
        Rows of every tensor to export; all by default.
    max_nbytes : int, optional
        Size to stay below, 256 MB by default; rows are taken evenly until they fit.
    codes : bool
        Export Slot T's codes too.
    executor : concurrent.futures.Executor, optional
        Threads that decode rows to compare them with the original.
    progress : callable, optional
        Called with "export", a tensor's name and its source bytes when it is done.

    Returns
    -------
    list of str
        One sentence for everything that was left out.

    Raises
    ------
    ValueError
        If a glob matches nothing, not even one row of every tensor fits, or `original` holds other tensors.
    FormatError
        If a section's checksum is wrong.
    OutputError
        If the file cannot be written.
    """
    limit = DEFAULT_MAX_NBYTES if max_nbytes is None else max_nbytes
    stride = 1
    while True:
        chosen = select(pack, tensors, rows, limit, codes=codes, triple=original is not None, least_stride=stride)
        if original is not None:
            _check_original(pack, original, chosen)
        image = _image(_Export(pack, original, chosen, codes, executor, progress))
        if len(image) <= limit:
            break
        if chosen.longest <= 1:
            raise ValueError(
                f"an export of {len(chosen.rows)} tensors takes {len(image):,} bytes with one row of each, "
                f"and {limit:,} are allowed; raise max_nbytes (--max-size), or choose with tensors (--tensor GLOB)"
            )
        stride = 2 * chosen.stride  # it took more than was reckoned
    with replacing(path) as file:
        file.write(image)
    return chosen.notes


def _image(export: _Export) -> bytes:
    """The file, built in memory: HDF5 2.0 crashes the process when a write to a full disk fails.

    It is built by a thread of its own: Ctrl-C reaches the main one only, and inside h5py it would be lost.
    """
    image = io.BytesIO()

    def build() -> None:
        with h5py.File(image, "w", libver=("earliest", "v110")) as root:  # superblock 0, which every viewer reads
            export.write(root)

    with ThreadPoolExecutor(1, "hdf5") as thread:
        built = thread.submit(build)
        try:
            built.result()
        except KeyboardInterrupt:
            export.stop = True
            raise
    return image.getvalue()  # no copy; a view that a traceback holds crashes Python 3.12.1 at its end


class _StoppedError(Exception):
    """The main thread was interrupted."""


def _check_original(pack: HhtldPack, original: TensorSource, chosen: Selection) -> None:
    for difference in differences_of_tensors(pack, original, chosen.rows):
        raise ValueError(f"the original is not what the pack was made from: {difference}")


class _Export:
    def __init__(
        self,
        pack: HhtldPack,
        original: TensorSource | None,
        chosen: Selection,
        codes: bool,
        executor: Executor | None,
        progress: Progress,
    ) -> None:
        self.pack, self.original, self.chosen = pack, original, chosen
        self.codes, self.executor, self.progress = codes, executor, progress
        self.measured = GateReport(enforced=False)
        self.overview = Overview(pack, chosen, self.measured, original is not None)
        self.stop = False  # set by another thread

    def check(self) -> None:
        """Raise when the export is to stop."""
        if self.stop:
            raise _StoppedError

    def write(self, root: h5py.File) -> None:
        pack = self.pack
        creator, what = f"hhtld {hhtld.__version__}", "debug export of a .hhtld file"
        describe(root, NX_class="NXroot", default="entry", description=what, schema=SCHEMA, creator=creator)
        entry = group(root, "entry", "NXentry", "one pack, seen from inside", profile=pack.table.profile)
        sampling = "; ".join(self.chosen.notes) or "every row asked for is exported"
        describe(entry, n_tensors=len(pack), row_stride=self.chosen.stride, sampling=sampling)
        self._write_container(entry)
        groups = group(entry, "groups", "NXcollection", "what the tensors of one role and shape share")
        tensors = group(entry, "tensors", "NXcollection", "tensors by escaped name; attribute tensor_name is the name")
        members: dict[int, list[str]] = defaultdict(list)
        for name, record in pack.table.tensors.items():
            if record.group is not None:
                members[record.group].append(name)
        numbers = {pack.info(name).group for name in self.chosen.rows}
        for number in sorted(number for number in numbers if number is not None):
            self.check()
            write_group(groups, pack, number, members[number])
        for name, rows in self.chosen.rows.items():
            self.check()
            record = pack.table.tensors[name]
            if record.alias_of is not None:
                self._write_alias(tensors, record)
            else:
                self._write_tensor(tensors, record, rows)
            self.progress("export", name, record.info.nbytes)
        self.overview.write_overview(entry)
        self.overview.write_gates(entry)

    # ---- the file ----

    def _write_container(self, entry: h5py.Group) -> None:
        pack = self.pack
        container = group(entry, "container", "NXcollection", "the .hhtld file: header, sections, what the source said")
        facts: dict[str, Any] = {"metadata": pack.metadata(), "source": dict(pack.table.source)}
        if pack.files():
            facts["files"] = pack.files()  # names and bytes; what they hold is no picture of weights
        nbytes = len(json.dumps(facts))
        if nbytes > _MOST_JSON_NBYTES:  # text is stored as it is: a tokenizer may be larger than all the rest
            facts = {"left out": f"{nbytes:,} bytes; hhtld inspect --json prints them"}
        note(container, "source", facts, "metadata and description that came with the tensors")
        reader = pack.sections
        if not isinstance(reader, ContainerReader):
            return
        describe(
            container,
            file=reader.path.name,
            nbytes=reader.file_nbytes,
            version_major=reader.major,
            version_minor=reader.minor,
            n_sections=len(reader.records),
        )
        layout = [("kind", h5py.string_dtype()), ("offset", "<u8"), ("nbytes", "<u8"), ("crc32", "<u4")]
        table = np.array([(storable(r.kind), r.offset, r.nbytes, r.crc32) for r in reader.records], np.dtype(layout))
        put(container, Field("sections", table, "kind, place, length and checksum of every section, in file order"))

    # ---- its tensors ----

    def _write_alias(self, parent: h5py.Group, record: TensorRecord) -> None:
        assert record.alias_of is not None
        made = self._tensor_group(parent, record, f"the same bytes as {record.alias_of!r}")
        describe(made, alias_of=record.alias_of, default="same_as")
        made["same_as"] = h5py.SoftLink(f"/entry/tensors/{escaped(record.alias_of)}")

    def _tensor_group(self, parent: h5py.Group, record: TensorRecord, description: str) -> h5py.Group:
        info, resolved = record.info, self.pack.info(record.name)
        made = group(parent, escaped(record.name), "NXcollection", description)
        elements, nbytes = info.n_rows * info.n_cols, self.pack.nbytes(resolved.name)
        describe(
            made,
            tensor_name=record.name,
            source_dtype=info.dtype.name,
            shape=np.array(info.shape, np.int64) if info.shape else "scalar",
            n_rows=info.n_rows,
            n_cols=info.n_cols,
            codec=resolved.codec,
            regime=self.pack.table.regime(record.name),
            regime_reason=self.pack.table.regime_reason(record.name),
            nbytes=nbytes,
            bits_per_weight=8 * nbytes / elements if elements else None,
        )
        if resolved.group is not None:
            made.attrs["group"] = f"/entry/groups/{group_name(self.pack, resolved.group)}"
        return made

    def _write_tensor(self, parent: h5py.Group, record: TensorRecord, rows: range) -> None:
        kept = not record.is_encoded
        made = self._tensor_group(parent, record, "kept byte for byte" if kept else "one encoded tensor")
        describe(made, row_stride=rows.step, n_rows_exported=len(rows))
        for index in record.sections.values():
            self.pack.sections.whole(index)  # rows read one by one are not checked, and this is where people look
        cosines = None
        if not kept and self.original is not None and record.group is not None:
            source = SourceRows(self.original, record.name, record.info.n_cols)

            def decoded(rows: slice) -> NDArray[Any]:
                self.check()
                return self.pack.get_rows(record.name, rows)

            cosines = compared_rows(source, decoded, self.executor, record.info.dtype)
            self.measured.add(record.name, self.pack.table.regime(record.name) or "argmax", cosines)
        recorded = self.overview.cosines(record)
        if recorded is not None:
            for key, value in (("median", recorded.median), ("p5", recorded.p5), ("min", recorded.minimum)):
                made.attrs[f"cosine_{key}"] = value
            made.attrs["cosine_worst_row"] = recorded.worst_row
            describe(made, **zero_counts(recorded))
        if record.name not in self.chosen.drawn:
            return
        sample = self.chosen.samples[record.name]
        writer = TensorWriter(made, self.pack, record, rows, sample, self.original, self.check)
        if kept:
            writer.write_kept()
        else:
            writer.write_encoded(cosines, recorded, self.codes)
