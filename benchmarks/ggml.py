"""llama.cpp's own quantizers, from the shared library in the llama-cpp-python package."""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TYPES = {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XS": 17, "IQ2_S": 22, "IQ4_XS": 23}
BLOCK = 256  # weights that are coded together


class Ggml:
    """Rows to blocks of a type and back.

    Parameters
    ----------
    folder : path, optional
        Where libggml-base lies; by default the package's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            spec = find_spec("llama_cpp")
            if spec is None or spec.origin is None:
                raise SystemExit("llama-cpp-python is not installed: pip install -e '.[bench]'")
            folder = Path(spec.origin).parent / "lib"
        library = ctypes.CDLL(str(next(p for p in sorted(folder.iterdir()) if "ggml-base." in p.name)))
        pointer, wide = ctypes.c_void_p, ctypes.c_int64
        self._quantize, self._row_nbytes = library.ggml_quantize_chunk, library.ggml_row_size
        self._quantize.restype = self._row_nbytes.restype = ctypes.c_size_t
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
        self._row_nbytes.argtypes = [ctypes.c_int, wide]
        self._dequantize = {}
        for name, kind in TYPES.items():
            library.ggml_quantize_init(kind)  # tables are built here and not on the first row
            routine = getattr(library, f"dequantize_row_{name.lower().replace('_k', '_K')}")
            routine.restype, routine.argtypes = None, [pointer, pointer, wide]
            self._dequantize[name] = routine

    def row_nbytes(self, name: str, n_cols: int) -> int:
        """Return the bytes of a row, `n_cols` a multiple of 256."""
        found: int = self._row_nbytes(TYPES[name], n_cols)
        return found

    def encode(
        self, name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """Return rows (n_rows, n_cols) as blocks (n_rows, row_nbytes); importance is per column."""
        n_rows, n_cols = rows.shape
        blocks = np.empty((n_rows, self.row_nbytes(name, n_cols)), np.uint8)
        told = np.ones(n_cols, np.float32) if importance is None else importance
        self._quantize(TYPES[name], rows.ctypes.data, blocks.ctypes.data, 0, n_rows, n_cols, told.ctypes.data)
        return blocks

    def decode(self, name: str, blocks: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        """Write the rows that blocks hold to float32 (n_rows, n_cols)."""
        self._dequantize[name](blocks.ctypes.data, out.ctypes.data, out.size)
