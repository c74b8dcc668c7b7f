import numpy as np
from numpy.typing import NDArray

# rows (n_rows, n_cols), entries (n_entries, n_cols), twigs (n_rows,), basis (n_cols, 8),
# coefficients (n_rows, 8); without twigs n_entries is n_rows
def project(
    rows: NDArray[np.float32],
    entries: NDArray[np.float32],
    twigs: NDArray[np.uint8] | None,
    basis: NDArray[np.float64],
    coefficients: NDArray[np.float32],
    *,
    isa: str | None = ...,
) -> None: ...

# coefficients and codes (n,)
def quantize_i8(
    coefficients: NDArray[np.float32],
    scale: float | np.float32,
    codes: NDArray[np.int8],
    *,
    isa: str | None = ...,
) -> None: ...

# entries (n_entries, n_cols), twigs (n_rows,), codes (n_rows, 8), basis (8, n_cols), out (n_rows, n_cols);
# codes and basis come together or not at all
def reconstruct(
    entries: NDArray[np.float32],
    twigs: NDArray[np.uint8] | None,
    codes: NDArray[np.int8] | None,
    scale: float | np.float32,
    basis: NDArray[np.float32] | None,
    out: NDArray[np.float32],
    *,
    isa: str | None = ...,
) -> None: ...
