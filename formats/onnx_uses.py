"""What an ONNX graph does with its weights: where names say little, operators say whether rows are looked up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hhtld.formats.onnx_quantized import Scope, origin, passed_on

__all__ = ["uses_by_graph"]


def uses_by_graph(scopes: Iterable[Scope]) -> dict[str, frozenset[str]]:
    """Return the operators that take each tensor; those that only pass elements on count as what takes these.

    Of an operator that gathers, what it gathers from is taken; its indices are not.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for tensors, nodes in scopes:
        passed = passed_on(nodes)
        inner = set(passed)
        for node in nodes:
            if not isinstance(node.op_type, str) or (node.output and node.output[0] in inner):
                continue
            for value in node.input[:1] if node.op_type.startswith("Gather") else node.input:
                name = tensors.get(origin(value, passed))
                if name is not None:
                    found[name].add(node.op_type)
    return {name: frozenset(operators) for name, operators in found.items()}
