"""Which tensors and rows an export shows, so that its file stays below a size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hhtld.identity import CODEBOOK_BITS
from hhtld.pack.pack import HhtldPack
from hhtld.pack.table import TensorRecord
from hhtld.slots.palette import MAX_PALETTE_K
from hhtld.slots.slot_l import SLOT_L_LANES
from hhtld.sources.name_patterns import matching

__all__ = ["DEFAULT_MAX_NBYTES", "IMAGE_ASPECT", "IMAGE_ROWS", "MAX_POINTS", "MOST_DRAWN", "Selection", "select"]

DEFAULT_MAX_NBYTES = 256_000_000
MAX_POINTS = 65_536  # of a kept vector
IMAGE_ROWS, IMAGE_ASPECT = 1024, 16  # of a picture of slots
MOST_DRAWN = 1000  # tensors: a viewer shows one at a time, and the tables and plots of one take milliseconds
_SAMPLE_ROWS = 8
# What HDF5 itself takes for headers, chunk indices and attributes: 3 kB a dataset, measured on MiniLM.
_FILE_NBYTES, _KEPT_NBYTES, _ENCODED_NBYTES, _TRIPLE_NBYTES = 64_000, 11_000, 40_000, 16_000
_GROUP_NBYTES, _LOOKUP_GROUP_NBYTES = 16_000, 96_000


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
        1 if every row asked for is exported.
    notes : list of str
        One sentence for everything that was left out.
    drawn : frozenset of str
        Tensors that have plots and a table of their rows; of the others there are their numbers.
    """

    rows: dict[str, range]
    samples: dict[str, list[int]]
    stride: int
    notes: list[str]
    drawn: frozenset[str]

    @property
    def longest(self) -> int:
        """Rows of the tensor that shows the most."""
        return max((len(span) for span in self.rows.values()), default=0)


def select(
    pack: HhtldPack,
    tensors: Sequence[str] = (),
    rows: slice | None = None,
    max_nbytes: int = DEFAULT_MAX_NBYTES,
    *,
    codes: bool = False,
    triple: bool = False,
    least_stride: int = 1,
) -> Selection:
    """Choose what to export, by what it is reckoned to take.

    Parameters
    ----------
    pack : HhtldPack
    tensors : sequence of glob
        Names to export; all if there is none. What an alias stands for comes with it.
    rows : slice, optional
        Of every tensor.
    max_nbytes : int
        Of the file; rows are taken evenly until they are reckoned to fit.
    codes : bool
        Whether Slot T's codes are exported too.
    triple : bool
        Whether sampled rows come with the original and the error.
    least_stride : int
        Take no more than one row in so many.

    Raises
    ------
    ValueError
        If a glob matches nothing.
    """
    names = _chosen(pack, tensors)
    asked = slice(None) if rows is None else rows
    ranges = {name: range(pack.table.tensors[name].info.n_rows)[asked] for name in names}
    records = {name: pack.info(name) for name in names if pack.table.tensors[name].alias_of is None}
    drawn = sorted(records, key=lambda name: (-records[name].info.nbytes, name))[:MOST_DRAWN]
    n_undrawn = len(records) - len(drawn)
    records = {name: record for name, record in records.items() if name in set(drawn)}
    fixed = _FILE_NBYTES + _KEPT_NBYTES * len(names)
    fixed += sum(_fixed_nbytes(pack, record, codes, triple) for record in records.values())
    fixed += sum(_group_nbytes(pack, number) for number in {record.group for record in records.values()} - {None})
    # Whole rows cost the most and say the same after a few: they get at most half of the room, in equal parts.
    widths = {name: _sample_nbytes(record, triple) for name, record in records.items() if record.info.has_rows}
    share = max(0, max_nbytes - fixed) // 2 // max(1, len(widths))
    counts = {name: min(_SAMPLE_ROWS, share // max(1, width)) for name, width in widths.items()}
    fixed += sum(counts[name] * widths[name] for name in widths)
    per_row = {name: _row_nbytes(pack, record, codes, triple) for name, record in records.items()}
    stride = _stride(ranges, per_row, max_nbytes - fixed, least_stride)
    samples = {name: _sample(record, ranges[name], counts.get(name, 0)) for name, record in records.items()}
    fewer = sum(len(samples[name]) < min(_SAMPLE_ROWS, len(ranges[name])) for name in widths)
    notes = _left_out(len(names), len(pack), n_undrawn, stride, max_nbytes, fewer)
    if codes and not any("slot_t" in record.sections for record in records.values()):
        notes.append("no exported tensor has codes of Slot T")
    rows_shown = {name: span[::stride] for name, span in ranges.items()}
    return Selection(rows_shown, samples, stride, notes, frozenset(records))


def _left_out(n_names: int, n_tensors: int, n_undrawn: int, stride: int, max_nbytes: int, n_fewer: int) -> list[str]:
    """Return a sentence for everything that an export leaves out."""
    notes = []
    if n_names < n_tensors:
        notes.append(f"{n_names} of {n_tensors} tensors are exported; tensors (--tensor) chose them")
    if n_undrawn:
        notes.append(
            f"the smallest {n_undrawn:,} tensors have only their numbers, without rows and plots; "
            f"tensors (--tensor) exports fewer"
        )
    if stride > 1:
        notes.append(
            f"one row in {stride} is exported, so that the file stays below max_nbytes (--max-size), "
            f"{max_nbytes:,} bytes"
        )
    if n_fewer:
        notes.append(f"{n_fewer} tensors show fewer than {_SAMPLE_ROWS} rows decoded, so that the file stays small")
    return notes


def _stride(ranges: dict[str, range], row_nbytes: dict[str, int], room: int, least: int) -> int:
    """Return the smallest stride, `least` or more, whose rows are reckoned to take no more than `room` bytes."""

    def fits(stride: int) -> bool:
        return sum(len(ranges[name][::stride]) * nbytes for name, nbytes in row_nbytes.items()) <= room

    longest = max(1, max((len(span) for span in ranges.values()), default=0))
    low, high = min(least, longest), longest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low


def _chosen(pack: HhtldPack, globs: Sequence[str]) -> list[str]:
    """Names that globs choose, and those of the tensors whose bytes they share."""
    if isinstance(globs, str):
        raise TypeError(f"tensors must be a sequence of globs, got the string {globs!r}")
    chosen = set(matching(pack, globs))
    chosen |= {pack.info(name).name for name in chosen}
    return [name for name in pack if name in chosen]


def _fixed_nbytes(pack: HhtldPack, record: TensorRecord, codes: bool, triple: bool) -> int:
    if not record.is_encoded:
        points = min(record.info.n_cols, MAX_POINTS)
        return 0 if record.info.has_rows else points * (4 + max(4, record.info.dtype.nbits // 8))
    nbytes = _ENCODED_NBYTES + 8 * MAX_PALETTE_K + (_TRIPLE_NBYTES if triple else 0)
    nbytes += 4 * MAX_PALETTE_K * record.info.n_cols if "palette_f32" in record.sections else 0
    nbytes += 4 * record.info.n_cols if "column_scale" in record.sections else 0
    if codes:
        nbytes += sum(min(IMAGE_ROWS, IMAGE_ASPECT * width) * width for width in _code_nbytes(pack, record))
    return nbytes


def _group_nbytes(pack: HhtldPack, number: int | None) -> int:
    assert number is not None
    group = pack.table.groups[number]
    nbytes, levels = 4 * group.key.shape[1], 5 << CODEBOOK_BITS
    nbytes += _LOOKUP_GROUP_NBYTES if "palette" in group.sections else _GROUP_NBYTES
    for kind, index in group.sections.items():
        section_nbytes = pack.sections.nbytes(index)
        nbytes += {"palette": 10 * MAX_PALETTE_K**2, "codebook": levels, "codebook_2": levels}.get(
            kind, 2 * section_nbytes
        )
    return nbytes


def _code_nbytes(pack: HhtldPack, record: TensorRecord) -> list[int]:
    """Bytes a row of every level's codes; of classes, those of the widest."""
    if record.class_rows is not None:
        classes = pack.get_encoded(record.name, []).view().trellises.values()
        return [max(trellis.row_nbytes(record.info.n_cols) for trellis in classes)]
    kinds = [kind for kind in ("slot_t", "slot_t_2") if kind in record.sections and record.info.n_rows]
    return [pack.sections.nbytes(record.sections[kind]) // record.info.n_rows for kind in kinds]


def _sample_nbytes(record: TensorRecord, triple: bool) -> int:
    return 4 * record.info.n_cols * (3 if triple and record.is_encoded else 1)


def _row_nbytes(pack: HhtldPack, record: TensorRecord, codes: bool, triple: bool) -> int:
    if not record.is_encoded:
        return 0
    sections = record.sections
    nbytes = 8 + 24 + (4 if triple else 0)  # its number, its entry, its cosine
    nbytes += SLOT_L_LANES if "slot_l" in sections else 0
    nbytes += 4 * sum(kind in sections for kind in ("slot_v", "slot_v_2"))
    return nbytes + (sum(_code_nbytes(pack, record)) if codes else 0)


def _sample(record: TensorRecord, span: range, count: int) -> list[int]:
    """Rows to decode: evenly spaced ones, and the worst if it was asked for."""
    if not record.info.has_rows or not span or not count:
        return []
    picks = sorted({span[int(i)] for i in np.linspace(0, len(span) - 1, min(count, len(span))).round()})
    worst = None if record.gates is None else record.gates.worst_row
    if worst is not None and worst in span and worst not in picks:
        picks = [*picks[: count - 1], worst]
    return sorted(picks)
