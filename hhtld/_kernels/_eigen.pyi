import numpy as np
from numpy.typing import NDArray

# matrix (n, n), values (count,), vectors (count, n)

def largest_eigenpairs(
    matrix: NDArray[np.float64], values: NDArray[np.float64], vectors: NDArray[np.float64], *, isa: str | None = ...
) -> None: ...
