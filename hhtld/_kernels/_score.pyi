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

# gains (n_rows,), signs (2, n_cols), inputs (n_inputs, n_cols), out (n_inputs, n_rows), column_scale (n_cols,)
def trellis_products(
    codes: NDArray[np.uint8],
    levels: NDArray[np.int8],
    rate: int,
    gains: NDArray[np.float32],
    signs: NDArray[np.float32],
    inputs: NDArray[np.float32],
    n_planes: int,
    out: NDArray[np.float32],
    *,
    column_scale: NDArray[np.float32] | None = ...,
    crossed: NDArray[np.uint8] | None = ...,
    isa: str | None = ...,
) -> bool: ...
