import numpy as np
from numpy.typing import NDArray

# rows (n_rows, 17), entries (1..256, 17), nearest and distances (n_rows,)
def nearest_l1(
    rows: NDArray[np.int16],
    entries: NDArray[np.int16],
    nearest: NDArray[np.uint8],
    distances: NDArray[np.uint32],
    *,
    isa: str | None = ...,
) -> None: ...

# columns (17, n_rows), picks (1..n_rows,) with picks[0] given, nearest_distance and nearest (n_rows,)
def furthest_l1(
    columns: NDArray[np.int16],
    picks: NDArray[np.int64],
    nearest_distance: NDArray[np.uint32],
    nearest: NDArray[np.int32],
    *,
    isa: str | None = ...,
) -> None: ...
