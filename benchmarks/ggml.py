"""llama.cpp's own quantizers and products, from the shared library in the package xllamacpp."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TYPES = {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ2_XS": 17, "IQ2_S": 22, "IQ4_XS": 23}
TYPES["IQ4_NL"] = 20  # in blocks of 32, so of any row that hhtld and llama.cpp both hold
BLOCK = 256  # weights that the others code together


# A call from Python takes longer than a row's product, so that rows are gone through in C.
LOOP = """
typedef void vec_dot(int n, float *s, unsigned long bs, const void *x, unsigned long bx, const void *y,
                     unsigned long by, int nrc);
void rows(vec_dot *dot, int n, const char *x, unsigned long nbytes, const void *y, long n_rows, float *out) {
    for (long r = 0; r < n_rows; r++) dot(n, out + r, 0, x + r * nbytes, 0, y, 0, 1);
}
"""


def _compiled_loop() -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp())
    (folder / "rows.c").write_text(LOOP)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", folder / "rows.so", folder / "rows.c"], check=True)
    return ctypes.CDLL(str(folder / "rows.so"))


class Ggml:
    """Rows to blocks of a type and back.

    Parameters
    ----------
    library : path, optional
        A shared object with ggml; by default the package's.
    """

    def __init__(self, library: Path | None = None) -> None:
        if library is None:
            spec = find_spec("xllamacpp")
            if spec is None or spec.origin is None:
                raise SystemExit("xllamacpp is not installed: pip install -e '.[bench]'")
            library = next(Path(spec.origin).parent.glob("xllamacpp*.so"))
        self._library = ctypes.CDLL(str(library))
        self._library.ggml_cpu_init()
        pointer, wide = ctypes.c_void_p, ctypes.c_int64
        self._quantize, self._row_nbytes = self._library.ggml_quantize_chunk, self._library.ggml_row_size
        self._quantize.restype = self._row_nbytes.restype = ctypes.c_size_t
        self._quantize.argtypes = [ctypes.c_int, pointer, pointer, wide, wide, wide, pointer]
        self._row_nbytes.argtypes = [ctypes.c_int, wide]
        self._dequantize = {}
        for name, kind in TYPES.items():
            self._library.ggml_quantize_init(kind)  # tables are built here and not on the first row
            routine = getattr(self._library, f"dequantize_row_{name.lower().replace('_k', '_K')}")
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

    def products(self, name: str, blocks: NDArray[np.uint8], vector: NDArray[np.float32]) -> Callable[[], None]:
        """Return what multiplies blocks (n_rows, row_nbytes) of a k-quant with a vector (n_cols,)."""
        codes = np.empty(2 * vector.nbytes, np.uint8)
        self._library.quantize_row_q8_K(
            ctypes.c_void_p(vector.ctypes.data), ctypes.c_void_p(codes.ctypes.data), ctypes.c_int64(len(vector))
        )
        dot = ctypes.cast(getattr(self._library, f"ggml_vec_dot_{name.lower()[:-1]}K_q8_K"), ctypes.c_void_p)
        rows, out = _compiled_loop().rows, np.empty(len(blocks), np.float32)
        pointer, wide = ctypes.c_void_p, ctypes.c_long
        rows.argtypes = [pointer, ctypes.c_int, pointer, ctypes.c_ulong, pointer, wide, pointer]
        return lambda: rows(
            dot, len(vector), blocks.ctypes.data, blocks.shape[1], codes.ctypes.data, len(blocks), out.ctypes.data
        )
