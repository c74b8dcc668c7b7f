"""What an ONNX graph uses as quantized weights, scales and zero points: tensors that no codec may touch.

Names in ONNX files say little, and the graph says all: whatever reaches an operator of quantized weights as a constant
belongs to them, whether it is packed integers, their scales of one or two axes, their zero points or a bias. Constants
may pass through operators that only move or retype elements on the way there.

Operators: those of https://github.com/onnx/onnx (docs/Operators.md), and of the domain com.microsoft in
https://github.com/microsoft/onnxruntime (docs/ContribOperators.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Scope", "origin", "passed_on", "quantized_by_graph"]

_OPERATORS = re.compile(
    "DequantizeLinear|QuantizeLinear|ConvInteger|MatMulInteger|MatMulIntegerToFloat|MatMulNBits|MatMulBnb4|MatMulFpQ4"
    "|DynamicQuantizeMatMul|DynamicQuantizeLSTM|GatherBlockQuantized|QLinear[A-Za-z]+|QOrdered[A-Za-z]+"
    "|QAttention|QGemm|QMoE|QEmbedLayerNormalization"
)
_DOMAINS = ("", "ai.onnx", "com.microsoft")
_PASSING = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Cast"})


class Scope(NamedTuple):
    """The nodes of a graph, a body or a function, and the names that tensors go by whose local names they use."""

    tensors: Mapping[str, str]
    nodes: Iterable[Any]


def quantized_by_graph(scopes: Iterable[Scope]) -> dict[str, str]:
    """Return the name of every tensor that belongs to quantized weights, and the operator that uses it so."""
    users: dict[str, str] = {}
    for tensors, nodes in scopes:
        passed = passed_on(nodes)
        for node in nodes:
            for value in _of_weights(node):
                name = tensors.get(origin(value, passed))
                if name is not None:
                    users.setdefault(name, node.op_type)
    return users


def passed_on(nodes: Iterable[Any]) -> dict[str, str]:
    """Return what goes into operators that only move or retype elements, by what comes out."""
    return {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type in _PASSING and node.domain in _DOMAINS and node.input and node.output
    }


def _of_weights(node: Any) -> Iterator[str]:
    """The inputs of a node that belong to quantized weights if they are constants."""
    if node.domain in _DOMAINS and isinstance(node.op_type, str) and _OPERATORS.fullmatch(node.op_type):  # or bytes
        yield from node.input[1:] if node.op_type == "QuantizeLinear" else node.input  # its first is a plain float


def origin(value: str, passed: Mapping[str, str]) -> str:
    """Return the value that comes out as `value` of operators that only pass elements on."""
    seen: set[str] = set()
    while value in passed and value not in seen:  # a damaged graph may run in circles
        seen.add(value)
        value = passed[value]
    return value
