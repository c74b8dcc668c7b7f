import numpy as np
from numpy.typing import NDArray

# twigs (n_rows,), tables (n_queries, k), slot_l (n_rows, 8), lanes (n_queries, 8), out (n_queries, n_rows)
def estimate(
    twigs: NDArray[np.uint8] | None,
    tables: NDArray[np.float32] | None,
    slot_l: NDArray[np.int8] | None,
    lanes: NDArray[np.float32] | None,
    out: NDArray[np.float32],
    *,
    isa: str | None = ...,
) -> None: ...

# dots and out (n_queries, n_rows), gains (n_rows,), scales (n_queries,)
def add_dots(
    dots: NDArray[np.int32],
    gains: NDArray[np.float32],
    scales: NDArray[np.float32],
    out: NDArray[np.float32],
    *,
    isa: str | None = ...,
) -> None: ...

# estimates (n_queries, n_rows), spreads (n_rows,), factors, slacks and floors (n_queries,), queries and rows (room,)
def collect(
    estimates: NDArray[np.float32],
    spreads: NDArray[np.float32],
    factors: NDArray[np.float32],
    slacks: NDArray[np.float32],
    floors: NDArray[np.float32],
    queries: NDArray[np.int32],
    rows: NDArray[np.int32],
    *,
    isa: str | None = ...,
) -> int: ...
