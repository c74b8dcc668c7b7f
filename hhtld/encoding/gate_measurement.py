"""Every row of a pack beside its source: how well it comes back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.cosines import judged_cosines
from hhtld.dtypes import FLOAT32, DType, rounded
from hhtld.encoding.gate_report import GateReport, RegimeCosines
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent
from hhtld.sources.checksummed import ChecksummedRows
from hhtld.sources.contract import SourceRows, TensorSource
from hhtld.sources.rows import Rows, map_rows

__all__ = ["compared_rows", "measure"]


def compared_rows(
    rows: Rows, decoded: Callable[[slice], NDArray[Any]], executor: Executor | None, dtype: DType = FLOAT32
) -> NDArray[np.float64]:
    """Return the cosine of every row with what is given back of it.

    Parameters
    ----------
    rows : Rows
    decoded : callable
        Gives a slice of the rows as float32.
    executor : Executor or None
        Threads to spread blocks of rows over.
    dtype : DType
        The type that decoded rows are rounded to before they are compared.

    Returns
    -------
    ndarray of float64, shape (n_rows,)
        See `hhtld.cosines.judged_cosines`.
    """
    cosines = np.empty(rows.n_rows)
    for start, stop, block_cosines in map_rows(_compared, rows, executor, decoded, dtype):
        cosines[start:stop] = block_cosines
    return cosines


def _compared(
    block: NDArray[np.float32], start: int, stop: int, decoded: Callable[[slice], NDArray[Any]], dtype: DType
) -> NDArray[np.float64]:
    return judged_cosines(block, rounded(decoded(slice(start, stop)), dtype))


def measure(
    pack: HhtldPack,
    source: TensorSource,
    report: GateReport,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> dict[str, int | None]:
    """Compare every row of every encoded tensor of a pack with its source and add it to a report.

    Returns
    -------
    dict of name to CRC-32 of the source's rows as float32
    """
    crcs: dict[str, int | None] = {}
    for name, record in pack.table.tensors.items():
        if record.group is None:
            continue
        rows = ChecksummedRows(SourceRows(source, name, record.info.n_cols))
        cosines = RegimeCosines()
        decoded = partial(pack.get_rows, name)
        for start, _, block_cosines in map_rows(_compared, rows, executor, decoded, record.info.dtype):
            cosines.add(name, block_cosines, start)
        key = pack.table.groups[record.group].key
        report.add_counted(name, key.regime, cosines, str(key))
        crcs[name] = rows.crc32
        progress("measure", name, record.info.nbytes)
    return crcs
