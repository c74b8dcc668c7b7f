import numpy as np
from numpy.typing import NDArray

# rows (n_rows, n_cols), dims (n_rows, 17)

def base17_fold(rows: NDArray[np.float32], dims: NDArray[np.int16], *, isa: str | None = ...) -> None: ...
def base17_unfold(dims: NDArray[np.int16], rows: NDArray[np.float32], *, isa: str | None = ...) -> None: ...
