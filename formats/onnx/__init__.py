"""ONNX models: their weights, and the graph that uses them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hhtld.formats.base import Format
from hhtld.formats.onnx.reading import OnnxFile, TensorWalk
from hhtld.sources.contract import TensorSource

__all__ = ["OnnxFile", "OnnxFormat", "TensorWalk"]


class OnnxFormat(Format):
    """ONNX models."""

    name: ClassVar[str] = "onnx"
    suffixes: ClassVar[tuple[str, ...]] = (".onnx",)
    description: ClassVar[str] = "weights of an ONNX model, with external data; the graph is not kept (extra: onnx)"
    writes: ClassVar[bool] = False

    def open_source(self, path: Path) -> TensorSource:
        """Open a model.

        Raises
        ------
        FormatError
            For every malformation, naming the path and the tensor.
        MissingExtraError
            When the package `onnx` is not installed.
        """
        return OnnxFile(path)
