"""`FileRows`: one tensor of an open pack in the place of an embedding's weight, read row by row from its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hhtld.integrations.torch.ops import check_ids, nearest_finite, refuse_batches, refuse_derivatives
from hhtld.integrations.torch.packed import PackedWeight
from hhtld.integrations.torch.tensors import checked_dtype, torch_dtype
from hhtld.pack.pack import HhtldPack
from hhtld.sources.rows import row_ranges

__all__ = ["FileRows", "is_read_from_a_file"]


def is_read_from_a_file(pack: HhtldPack) -> bool:
    """Whether a pack is open on a file of this machine, not held in memory and not behind a URL."""
    return isinstance(getattr(pack.sections, "path", None), Path)


class FileRows(PackedWeight):
    """A matrix of an open pack that stays in its file: a lookup reads the rows that it is asked for.

    It answers what `PackedWeight` answers and holds no bytes of the tensor: `nbytes` is 0. The pack must stay open. It
    is read with the pack's own options (`hhtld.open(path, io="direct", io_threads=64, row_cache=1 << 30)`), and sent to
    another process the file is opened again there. `torch.compile` runs lookups as they are; `torch.export` needs a
    weight that is held (``resident=True``).

    Parameters
    ----------
    pack : HhtldPack
    name : str
        A tensor of two axes, encoded or kept.
    dtype : as of `PackedWeight`
    """

    def __init__(self, pack: HhtldPack, name: str, dtype: torch.dtype | str | None = None) -> None:
        torch.nn.Module.__init__(self)
        record = pack.info(name)
        self.name, self._pack = record.name, pack
        self.shape = torch.Size(record.info.shape)
        self._native = torch_dtype(record.info.dtype, name)
        self._read_as = "float32" if record.is_encoded else "source"
        like = torch.empty(0, dtype=checked_dtype(dtype) or self._native, device="cpu")
        self.register_buffer("like", like, persistent=False)

    def parts(self) -> list[torch.Tensor]:
        """Return nothing: the sections stay in the file."""
        return []

    @torch.compiler.disable
    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids of any shape, int64 or int32, as (*ids.shape, n_cols)."""
        check_ids(ids)
        refuse_batches(ids)
        flat = ids.detach().reshape(-1).numpy()
        n_rows, n_cols = self.shape
        if flat.size and (flat.min() < 0 or flat.max() >= n_rows):  # as nn.Embedding, which does not count from the end
            raise IndexError(f"ids must lie in 0..{n_rows - 1}, got {flat.min()}..{flat.max()}")
        rows = self._pack.get_rows(self.name, flat, dtype=self._read_as)
        if self._read_as == "float32":
            decoded = torch.from_numpy(rows)
        else:  # numpy's types are not all torch's
            decoded = torch.from_numpy(rows.reshape(-1).view(np.uint8)).view(self._native)
        return nearest_finite(decoded, self.dtype).view(*ids.shape, n_cols)

    def prefetch(self, ids: torch.Tensor) -> None:
        """Begin to read the rows of ids, and return at once; see `HhtldPack.prefetch`."""
        check_ids(ids)
        refuse_batches(ids)
        self._pack.prefetch(self.name, ids.detach().reshape(-1).numpy())

    def product(self, x: torch.Tensor, bias: torch.Tensor | None = None, scored_rows: int = 0) -> torch.Tensor:
        """Return ``x @ weight.T + bias``, (..., n_rows), the weight read a block at a time.

        Raises
        ------
        RuntimeError
            If an input or the bias has a gradient or a tangent to pass on, or is a batch of `torch.vmap`.
        """
        refuse_derivatives(x, bias)
        refuse_batches(x, bias)
        n_rows, n_cols = self.shape
        rows = x.detach().reshape(-1, n_cols).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        out = torch.empty((len(rows), n_rows), dtype=rows.dtype, device="cpu")
        for start, stop in row_ranges(n_rows, 4 * n_cols):
            block = self.rows(torch.arange(start, stop, device="cpu")).to(rows.dtype)
            torch.mm(rows, block.t(), out=out[:, start:stop])
        if bias is not None:
            out += bias.detach()
        return out.to(self.dtype).view(*x.shape[:-1], n_rows)

    def extra_repr(self) -> str:
        """Return name, shape, type and file."""
        return f"{self.name!r}, {tuple(self.shape)}, {self.dtype}, from {self._pack!r}"
