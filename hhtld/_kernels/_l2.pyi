import numpy as np
from numpy.typing import NDArray

# rows (n_rows, n_cols), centroids (k, n_cols), nearest (n_rows,)
def nearest_l2(
    rows: NDArray[np.float32],
    centroids: NDArray[np.float32],
    nearest: NDArray[np.int32],
    *,
    isa: str | None = ...,
) -> None: ...

# rows (n_rows, n_cols), picks (1..n_rows,), nearest_distance and nearest (n_rows,);
# returns the number of picks
def furthest_l2(
    rows: NDArray[np.float32],
    picks: NDArray[np.int64],
    nearest_distance: NDArray[np.float64],
    nearest: NDArray[np.int32],
    *,
    isa: str | None = ...,
) -> int: ...
