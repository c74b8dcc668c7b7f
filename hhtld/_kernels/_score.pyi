import numpy as np
from numpy.typing import NDArray

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
