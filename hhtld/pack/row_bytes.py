"""The bytes of some rows of an encoded tensor, or of all of them, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hhtld import slots

if TYPE_CHECKING:
    from hhtld.pack.section_interfaces import SectionReader
    from hhtld.pack.table import TensorRecord
    from hhtld.slots.class_layout import RowPlaces

__all__ = ["RowParts"]


class RowParts:
    """Reads the sections of a tensor for a codec; a `hhtld.codecs.base.ReadPart`.

    Parameters
    ----------
    sections : SectionReader
    record : TensorRecord
    rows : index, slice or None
        The rows that are asked for; None for all, whose checksums are then verified.
    places : dict of name to RowPlaces
        Of tensors whose rows have classes. They are counted when the first of their rows is asked for, and kept here.
    """

    __slots__ = ("_places", "_record", "_rows", "_sections")

    def __init__(
        self,
        sections: SectionReader,
        record: TensorRecord,
        rows: NDArray[np.intp] | slice | None,
        places: dict[str, RowPlaces],
    ) -> None:
        self._sections, self._record, self._rows, self._places = sections, record, rows, places

    def __call__(self, kind: str, width: int) -> NDArray[np.uint8]:
        index = self._record.sections[kind]
        if self._rows is None or width == 0:
            return self._sections.whole(index)
        return self._sections.rows(index, width, self._rows).ravel()  # without gaps, which `reshape` may leave

    def by_class(self, kind: str, widths: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        index, record, rows = self._record.sections[kind], self._record, self._rows
        assert record.class_rows is not None
        places = self._places.get(record.name)
        if places is None:  # two threads may both count; they count the same
            row_class = self._sections.whole(record.sections["row_class"])
            places = self._places[record.name] = slots.RowPlaces(row_class, record.class_rows)
        if rows is None:
            return places.row_class, self._sections.whole(index)
        if isinstance(rows, slice) and rows.step in (None, 1):
            start, stop, _ = rows.indices(record.info.n_rows)
            stop = max(start, stop)
            classes = places.row_class[start:stop]
            if stop - start == 1:
                rank, number = int(places.before(start)[classes[0]]), int(classes[0])
                spans: list[tuple[int, NDArray[np.intp] | slice]] = [(number, slice(rank, rank + 1))]
            else:
                first, last = places.before(start).tolist(), places.before(stop).tolist()
                spans = [(c, slice(first[c], last[c])) for c in range(len(widths)) if last[c] > first[c]]
        else:
            picked = np.arange(record.info.n_rows)[rows] if isinstance(rows, slice) else rows
            classes, ranks = places.of(picked)
            spans = [(int(c), ranks[classes == c]) for c in np.unique(classes)]
        starts = slots.class_starts(record.class_rows, widths)
        codes = [
            self._sections.rows(index, widths[c], span, starts[c], starts[c + 1] - starts[c]).reshape(-1)
            for c, span in spans
        ]
        return classes, codes[0] if len(codes) == 1 else np.concatenate(codes or [np.zeros(0, np.uint8)])
