"""What an ONNX graph does with its weights: where names say little, operators say whether rows are looked up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hhtld.formats.onnx.quantized import Scope, origin, passed_on
from hhtld.sources.contract import ADDS

__all__ = ["uses_by_graph"]

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def uses_by_graph(scopes: Iterable[Scope]) -> dict[str, frozenset[str]]:
    """Return the operators that take each tensor; those that only pass elements on count as what takes these.

    Of an operator that gathers, what it gathers from is taken; its indices are not. What a recurrent layer adds,
    [directions, 8 hidden] of biases, states at the start and peepholes, counts as taken by `ADDS`.
    """
    uses: dict[str, set[str]] = defaultdict(set)
    for tensors, nodes in scopes:
        passed = passed_on(nodes)
        inner = set(passed)
        for node in nodes:
            if not isinstance(node.op_type, str) or (node.output and node.output[0] in inner):
                continue
            recurrent = node.op_type in _RECURRENT and node.domain in ("", "ai.onnx")
            for i, value in enumerate(node.input[:1] if node.op_type.startswith("Gather") else node.input):
                name = tensors.get(origin(value, passed))
                if name is not None:
                    uses[name].add(ADDS if recurrent and i > 2 else node.op_type)
    return {name: frozenset(operators) for name, operators in uses.items()}
