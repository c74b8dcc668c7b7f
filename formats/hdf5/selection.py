"""Which tensors and rows an export shows, so that its file stays below a size."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hhtld.errors import shown
from hhtld.pack import HhtldPack
from hhtld.palette import MAX_PALETTE_K
from hhtld.slots import SLOT_L_LANES
from hhtld.table import TensorRecord

__all__ = ["DEFAULT_MAX_NBYTES", "MAX_POINTS", "Selection", "select"]

DEFAULT_MAX_NBYTES = 256_000_000
MAX_POINTS = 65_536  # of a kept vector
_SAMPLE_ROWS = 8
# What HDF5 itself takes for headers, chunk indices and attributes: 3 kB a dataset, measured on MiniLM, rounded up.
_FILE_NBYTES, _GROUP_NBYTES, _ENCODED_NBYTES, _KEPT_NBYTES = 64_000, 96_000, 64_000, 16_000


@dataclass(frozen=True)
class Selection:
    """What is exported.

    Attributes
    ----------
    rows : dict of tensor's name to range
        Evenly spaced rows whose slots are exported; one row for a tensor without rows.
    samples : dict of tensor's name to list of int
        Rows that are exported decoded.
    stride : int
        1 where every row asked for is exported.
    notes : list of str
        One sentence for everything that was left out.
    """

    rows: dict[str, range]
    samples: dict[str, list[int]]
    stride: int
    notes: list[str]


def select(
    pack: HhtldPack,
    tensors: Sequence[str] = (),
    rows: slice | None = None,
    max_nbytes: int = DEFAULT_MAX_NBYTES,
    *,
    codes: bool = False,
    triple: bool = False,
) -> Selection:
    """Choose what to export.

    Parameters
    ----------
    pack : HhtldPack
    tensors : sequence of glob
        Names to export; all where there is none.
    rows : slice, optional
        Of every tensor.
    max_nbytes : int
        Of the file; rows are taken evenly until they fit.
    codes : bool
        Whether Slot T's codes are exported too.
    triple : bool
        Whether sampled rows come with the original and the error.

    Raises
    ------
    ValueError
        When a glob matches nothing, or not even one row of every tensor fits.
    """
    names = _matching(pack, tensors)
    given = slice(None) if rows is None else rows
    ranges = {name: range(pack.table.tensors[name].info.n_rows)[given] for name in names}
    records = {name: pack.info(name) for name in names if pack.table.tensors[name].alias_of is None}
    fixed = _FILE_NBYTES + _KEPT_NBYTES * len(names) + sum(_fixed_nbytes(record) for record in records.values())
    fixed += sum(_group_nbytes(pack, number) for number in {record.group for record in records.values()} - {None})
    widths = sum(4 * record.info.n_cols for record in records.values()) * (3 if triple else 1)
    # Whole rows cost the most and say the same after a few; they get at most half of the room.
    count = next((n for n in (_SAMPLE_ROWS, 4, 2, 1) if fixed + n * widths <= max(fixed, max_nbytes // 2)), 0)
    per_row = {name: _row_nbytes(pack, record, codes, triple) for name, record in records.items()}

    def total(stride: int) -> int:
        return fixed + count * widths + sum(len(ranges[name][::stride]) * per_row[name] for name in records)

    longest = max((len(span) for span in ranges.values()), default=0)
    if total(max(1, longest)) > max_nbytes:
        raise ValueError(
            f"an export of {len(names)} tensors takes at least {total(max(1, longest)):,} bytes, max_nbytes is "
            f"{max_nbytes:,}; allow more (--max-size) or choose tensors (--tensor GLOB)"
        )
    low, high = 1, max(1, longest)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if total(middle) <= max_nbytes else (middle + 1, high)
    notes = []
    if len(names) < len(pack):
        notes.append(f"{len(names)} of {len(pack)} tensors are exported (--tensor)")
    if low > 1:
        notes.append(f"one row in {low} is exported, so that the file stays below {max_nbytes:,} bytes (--max-size)")
    if count < _SAMPLE_ROWS:
        notes.append(f"{count} rows of each tensor are exported decoded, for the same reason")
    samples = {name: _sample(pack, record, ranges[name], count) for name, record in records.items()}
    return Selection({name: span[::low] for name, span in ranges.items()}, samples, low, notes)


def _matching(pack: HhtldPack, globs: Sequence[str]) -> list[str]:
    names = list(pack)
    for glob in globs:
        if not fnmatch.filter(names, glob) and glob not in names:
            close = difflib.get_close_matches(glob, names, 3, 0.4)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise ValueError(f"no tensor matches {shown(glob)}{hint}")
    return [n for n in names if not globs or any(n == glob or fnmatch.fnmatchcase(n, glob) for glob in globs)]


def _fixed_nbytes(record: TensorRecord) -> int:
    if record.codec == "keep":
        return 0 if record.info.has_rows else 8 * min(record.info.n_cols, MAX_POINTS)
    palette = 4 * MAX_PALETTE_K * record.info.n_cols if record.codec == "hhtl_f32" else 0
    scale = 4 * record.info.n_cols if "column_scale" in record.sections else 0
    return _ENCODED_NBYTES + palette + scale + 8 * MAX_PALETTE_K


def _group_nbytes(pack: HhtldPack, number: int | None) -> int:
    assert number is not None
    group = pack.table.groups[number]
    n_cols = group.key.shape[1]
    nbytes = _GROUP_NBYTES
    for kind, index in group.sections.items():
        held = pack.sections.nbytes(index)
        nbytes += {"palette": 10 * MAX_PALETTE_K**2, "codebook": 8 * held, "codebook_2": 8 * held}.get(kind, 2 * held)
    return nbytes + 4 * n_cols


def _row_nbytes(pack: HhtldPack, record: TensorRecord, codes: bool, triple: bool) -> int:
    if record.codec == "keep" or record.info.n_rows == 0:
        return 0
    nbytes = 8 + 24 + (4 if triple else 0)  # its number, its entry, its cosine
    sections = record.sections
    nbytes += SLOT_L_LANES if "slot_l" in sections else 0
    nbytes += 4 * sum(kind in sections for kind in ("slot_v", "slot_v_2"))
    if codes:
        held = sum(pack.sections.nbytes(sections[kind]) for kind in ("slot_t", "slot_t_2") if kind in sections)
        nbytes += held // record.info.n_rows
    return nbytes


def _sample(pack: HhtldPack, record: TensorRecord, span: range, count: int) -> list[int]:
    """Rows to decode: evenly spaced ones, and the worst where it was asked for."""
    if not record.info.has_rows or not span or not count:
        return []
    picks = {span[int(i)] for i in np.linspace(0, len(span) - 1, min(count, len(span))).round()}
    if record.gates is not None and record.gates.worst_row in span:
        picks = {*sorted(picks)[: count - 1], record.gates.worst_row}
    return sorted(picks)
