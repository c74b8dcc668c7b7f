"""A pack as a source: what converts, compares and shows files reads packs as it reads any model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.errors import HeaderError
from hhtld.matrix import TensorInfo
from hhtld.pack.pack import DEFAULT_BUDGET, HhtldPack
from hhtld.sources.contract import ADDS, TensorSource

__all__ = ["PackSource"]


class PackSource(TensorSource):
    """A pack as a source: rows decoded and rounded back to the types they had.

    What reads a source reads all of it and hands it on, so a tensor's checksums are verified before its first
    row is given, unlike with `HhtldPack.get_rows`.
    """

    def __init__(self, pack: HhtldPack) -> None:
        self.pack = pack
        self._verified: set[str] = set()
        self._last: tuple[str, int, NDArray[Any]] | None = None
        self._infos = {
            name: TensorInfo(name, record.info.dtype, record.info.shape, record.info.shard)
            for name, record in pack.table.tensors.items()
        }

    def check_budget(self, budget: int | None, how: str) -> None:
        """Refuse to decode everything if that takes more than a budget.

        Parameters
        ----------
        budget : int or None
            Bytes of all tensors together; None is 64 GiB, or 100 times the bytes that hold them if that is more.
        how : str
            How a larger one is given, for the message.

        Raises
        ------
        HeaderError
            Naming both numbers.
        """
        sections = self.pack.sections
        if budget is None:
            budget = max(DEFAULT_BUDGET, 100 * sum(map(sections.nbytes, range(len(sections.kinds())))))
        needed = sum(info.nbytes for info in self._infos.values())
        if needed > budget:
            raise HeaderError(
                f"{self.pack._place}its tensors take {needed:,} bytes decoded, and the budget is {budget:,}; "
                f"open the file and read fewer tensors, or raise the budget with {how}"
            )

    @property
    def metadata(self) -> dict[str, str]:
        return self.pack.metadata()

    @property
    def description(self) -> dict[str, Any]:
        return dict(self.pack.table.source)

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def aliases(self) -> Mapping[str, str]:
        return {n: r.alias_of for n, r in self.pack.table.tensors.items() if r.alias_of is not None}

    def quantized(self) -> Mapping[str, str] | None:
        """Return what the graph of an ONNX model told, which the pack's description carries."""
        facts = self.pack.table.source
        quantized = facts.get("quantized", {} if "onnx" in facts else None)
        return (
            {n: str(use) for n, use in quantized.items() if n in self._infos} if isinstance(quantized, dict) else None
        )

    def uses(self) -> Mapping[str, frozenset[str]]:
        """Return what layers of an ONNX model add, which the pack's description carries; nothing else of its graph."""
        recorded = self.pack.table.source.get("added")
        added = {name for name in recorded if isinstance(name, str)} if isinstance(recorded, list) else set()
        return {name: frozenset({ADDS}) for name in self._infos if name in added}

    def decoded(self) -> frozenset[str]:
        return frozenset(name for name in self._infos if self.pack.table.resolved(name).is_encoded)

    def regimes(self) -> Mapping[str, tuple[str, str]]:
        """Return the regimes that the pack records because roles do not imply them."""
        table, regimes = self.pack.table, {}
        for name in table.tensors:
            group = table.resolved(name).group
            key = None if group is None else table.groups[group].key
            if key is not None and key.regime != key.implied_regime:
                regimes[name] = key.regime, str(table.regime_reason(name))
        return regimes

    def files(self) -> Mapping[str, int]:
        return self.pack.files()

    def read_file(self, name: str) -> bytes:
        return self.pack.read_file(name)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        info = self._infos[name]
        if name not in self._verified:  # two threads may both do it, and find the same
            for index in self.pack.info(name).sections.values():
                self.pack.sections.check(index)
            self._verified.add(name)
        encoded = self.pack.info(name).info
        if info.has_rows and encoded.n_cols == info.n_cols:
            rows = self.pack.get_rows(name, slice(start, stop), dtype="source")
        elif info.has_rows:
            rows = self._of_longer_rows(name, encoded.n_cols, start * info.n_cols, stop * info.n_cols)
        else:
            rows = self.pack.get_tensor(name, "source").reshape(1, -1)[start:stop]
        return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(stop - start, info.row_nbytes)

    def _of_longer_rows(self, name: str, n_cols: int, start: int, stop: int) -> NDArray[Any]:
        """Elements [start, stop) of a tensor whose rows in the file are longer than its shape says, as in older files.

        The row that was decoded last is held: what reads tensors reads them in pieces, one after the other.
        """
        parts = []
        while start < stop:
            row, first = divmod(start, n_cols)
            last = self._last
            if last is None or last[:2] != (name, row):
                last = self._last = (name, row, self.pack.get_rows(name, [row], dtype="source")[0])
            parts.append(last[2][first : first + stop - start])
            start += n_cols - first
        return np.concatenate(parts) if parts else np.empty(0)

    def close(self) -> None:
        self._last = None
        self.pack.close()
