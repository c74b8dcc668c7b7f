import numpy as np
from numpy.typing import NDArray

# rates are sixteenths of a bit a weight
MIN_RATE: int
MAX_RATE: int
# weights
FEEDBACK_BLOCK: int
WHOLE_COLS: int

def row_nbytes(n_cols: int, rate: int, n_bits: int) -> int: ...
def ring_nbytes(n_cols: int, rate: int, n_bits: int) -> int: ...

# rings (n_rows, ring_nbytes), codes (n_rows, row_nbytes)
def open_rings(rings: NDArray[np.uint8], n_cols: int, rate: int, n_bits: int, codes: NDArray[np.uint8]) -> None: ...

# weights that are searched at once
def search_cols(n_cols: int) -> int: ...

# rows (n_rows, n_cols), table (2**n_bits,), codes (n_rows, row_nbytes), gains (n_rows,), feedback (n_cols, n_cols)
def encode(
    rows: NDArray[np.float32],
    table: NDArray[np.int8],
    step: int,
    rate: int,
    codes: NDArray[np.uint8],
    gains: NDArray[np.float32],
    feedback: NDArray[np.float32] | None = ...,
    *,
    whole: int = ...,
    is_ring: bool = ...,
    isa: str | None = ...,
) -> None: ...

# codes (n_rows, row_nbytes), table (2**n_bits,), gains (n_rows,), out (n_rows, n_cols)
def decode(
    codes: NDArray[np.uint8],
    table: NDArray[np.int8],
    rate: int,
    gains: NDArray[np.float32],
    out: NDArray[np.float32],
    *,
    crossed: NDArray[np.uint8] | None = ...,
    isa: str | None = ...,
) -> None: ...

class RowDecoder:
    # table, rate and crossed as in decode; signs (2, n_cols)
    def __init__(
        self,
        table: NDArray[np.int8],
        rate: int,
        crossed: NDArray[np.uint8] | None,
        signs: NDArray[np.float32],
        gain_unit: float,
        centroids: NDArray[np.float32] | None = ...,
    ) -> None: ...
    # codes (n_rows, row_nbytes), gains (n_rows,), out (n_rows, n_cols), twigs (n_rows,)
    def decode(
        self,
        codes: NDArray[np.uint8],
        gains: NDArray[np.uint16],
        out: NDArray[np.float32],
        twigs: NDArray[np.uint8] | None = ...,
        *,
        isa: str | None = ...,
    ) -> None: ...

# crossed codebook (72,), levels (4096,)
def crossed_levels(crossed: NDArray[np.uint8], levels: NDArray[np.int8]) -> None: ...
