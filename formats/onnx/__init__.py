"""ONNX models: their weights, and the graph that uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from hhtld.formats.base import Format
from hhtld.formats.onnx.reading import OnnxFile, TensorWalk
from hhtld.formats.onnx.writing import checked_graph, write_onnx
from hhtld.progress import Progress, silent
from hhtld.sources.contract import TensorSource

__all__ = ["OnnxFile", "OnnxFormat", "TensorWalk"]


class OnnxFormat(Format):
    """ONNX models."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    description: ClassVar[str] = (
        "weights of an ONNX model, with external data; only what came from one is written (extra: onnx)"
    )
    options: ClassVar[frozenset[str]] = frozenset({"progress"})

    def open_source(self, path: Path) -> TensorSource:
        """Open a model.

        Raises
        ------
        FormatError
            For every malformation, naming the path and the tensor.
        MissingExtraError
            If the package `onnx` is not installed.
        """
        return OnnxFile(path)

    def check_source(self, source: TensorSource, **options: Any) -> None:
        """Raise what `write_source` would raise before it writes anything."""
        checked_graph(source)

    def write_source(
        self, source: TensorSource, path: Path, *, progress: Progress = silent, **options: Any
    ) -> list[str]:
        """Write what came from an ONNX model as one again; see `hhtld.formats.onnx.writing`."""
        return write_onnx(source, path, progress)
