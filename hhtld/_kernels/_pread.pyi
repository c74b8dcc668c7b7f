import numpy as np
from numpy.typing import NDArray

def is_same(fd: int, nbytes: int, modified_ns: int, changed_ns: int) -> bool: ...

# runs: offsets, nbytes and places (n_runs,); out (nbytes,)
def read_runs(
    fd: int,
    offsets: NDArray[np.int64],
    nbytes: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[np.uint8],
) -> tuple[int, int]: ...

# missed (n_runs,) or more
def read_cached(
    fd: int,
    offsets: NDArray[np.int64],
    nbytes: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[np.uint8],
    missed: NDArray[np.int64],
) -> int: ...
def read_blocks(
    fd: int,
    offsets: NDArray[np.int64],
    nbytes: NDArray[np.int64],
    places: NDArray[np.int64],
    out: NDArray[np.uint8],
    block: int,
    room: int,
    gap: int,
) -> tuple[int, int]: ...
