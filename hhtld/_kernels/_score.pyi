from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels._team import Team

MAX_COLS: int

# codes (n_rows, row_nbytes), levels (2**L,), rate in sixteenths of a bit, queries (n_queries, n_cols),
# out (n_queries, n_rows)
def trellis_dots(
    codes: NDArray[np.uint8],
    levels: NDArray[np.int8],
    rate: int,
    queries: NDArray[np.int8],
    out: NDArray[np.int32],
    *,
    crossed: NDArray[np.uint8] | None = ...,
    isa: str | None = ...,
) -> None: ...

# as trellis_dots; gains (n_rows,), scales (n_queries,)
def trellis_scores(
    codes: NDArray[np.uint8],
    levels: NDArray[np.int8],
    rate: int,
    queries: NDArray[np.int8],
    gains: NDArray[np.float32],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
    *,
    more: bool,
    crossed: NDArray[np.uint8] | None = ...,
    isa: str | None = ...,
) -> None: ...

# out (n_rows,)
def trellis_energies(
    codes: NDArray[np.uint8],
    levels: NDArray[np.int8],
    rate: int,
    n_cols: int,
    out: NDArray[np.int32],
    *,
    crossed: NDArray[np.uint8] | None = ...,
    isa: str | None = ...,
) -> None: ...

# codes, levels, rate, gains, rows, crossed and whether the codes are rings
_Matrix: TypeAlias = tuple[
    NDArray[np.uint8],
    NDArray[np.int8],
    int,
    NDArray[np.float32],
    NDArray[np.intp] | None,
    NDArray[np.uint8] | None,
    bool,
]

class TrellisProducts:
    def __init__(
        self,
        matrices: Iterable[_Matrix],
        n_rows: int,
        signs: NDArray[np.float32],
        column_scale: NDArray[np.float32] | None = ...,
        centroids: NDArray[np.float32] | None = ...,
        twigs: NDArray[np.uint8] | None = ...,
    ) -> None: ...
    # inputs (n_inputs, n_cols), out (n_inputs, n_rows)
    def write(
        self,
        inputs: NDArray[np.float32],
        n_planes: int,
        out: NDArray[np.float32],
        *,
        team: Team | None = ...,
        isa: str | None = ...,
    ) -> bool: ...
    # addresses of contiguous arrays, and "F32", "BF16" or "F16"
    def write_at(
        self,
        inputs: int,
        inputs_type: str,
        n_inputs: int,
        n_planes: int,
        out: int,
        out_type: str,
        *,
        team: Team | None = ...,
        isa: str | None = ...,
    ) -> bool: ...
