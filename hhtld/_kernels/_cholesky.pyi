import numpy as np
from numpy.typing import NDArray

# matrix and factor (n, n), rows (count, m) with m <= n

def cholesky(matrix: NDArray[np.float64], *, isa: str | None = ...) -> None: ...
def divide_rows(factor: NDArray[np.float64], rows: NDArray[np.float64], *, isa: str | None = ...) -> None: ...
