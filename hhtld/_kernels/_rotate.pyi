import numpy as np
from numpy.typing import NDArray

# rows (n_rows, n_cols), signs (2, n_cols)

def rotate(rows: NDArray[np.float32], signs: NDArray[np.float32], *, isa: str | None = ...) -> None: ...
def unrotate(rows: NDArray[np.float32], signs: NDArray[np.float32], *, isa: str | None = ...) -> None: ...
