import numpy as np
from numpy.typing import NDArray

# x (n_rows, n_cols), out (n_cols, n_cols)
def gram(x: NDArray[np.float32], out: NDArray[np.float64], *, isa: str | None = ...) -> None: ...

# x and y (n_rows, n_cols), out (n_rows, 3)
def row_dots(
    x: NDArray[np.float32], y: NDArray[np.float32], out: NDArray[np.float64], *, isa: str | None = ...
) -> None: ...
