"""Some tensors of a source, chosen by name: a table alone, or the rest of a model without it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from hhtld.matrix import TensorInfo
from hhtld.sources.contract import TensorSource
from hhtld.sources.name_patterns import matching
from hhtld.sources.wrapped import WrappedSource

__all__ = ["select_tensors"]

_OF_WHOLE_MODELS = "onnx.graph"  # the side file that names every tensor: a graph lacks what was left out

_Fact = TypeVar("_Fact")


def select_tensors(source: TensorSource, only: Sequence[str], skip: Sequence[str]) -> TensorSource:
    """Return a source with some of the tensors of another, or the other itself if no glob is given.

    Parameters
    ----------
    source : TensorSource
        Who opened it closes it.
    only : sequence of glob
        Tensors that match one of them are taken; all if there is none.
    skip : sequence of glob
        Tensors that match one of them are left out.

    Raises
    ------
    TypeError
        If globs are one text instead of a sequence.
    ValueError
        If a glob matches no tensor, or no tensor is left.
    """
    given: list[tuple[str, object]] = [("only", only), ("skip", skip)]
    for option, globs in given:
        # An iterator would be empty the second time.
        if isinstance(globs, str) or not isinstance(globs, Collection) or not all(isinstance(g, str) for g in globs):
            raise TypeError(f"{option} is a sequence of globs, got {globs!r:.80}")
    if not only and not skip:
        return source
    names = matching(source.infos(), only)
    if skip:
        skipped = set(matching(source.infos(), skip))
        names = [name for name in names if name not in skipped]
    if not names:
        raise ValueError("only (--only) and skip (--skip) leave no tensor of the source")
    return _SelectedTensors(source, names)


class _SelectedTensors(WrappedSource):
    def __init__(self, source: TensorSource, names: Sequence[str]) -> None:
        super().__init__(source)
        infos = source.infos()
        self._infos = {name: infos[name] for name in names}

    def _of_these(self, facts: Mapping[str, _Fact]) -> dict[str, _Fact]:
        return {name: fact for name, fact in facts.items() if name in self._infos}

    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    def aliases(self) -> Mapping[str, str]:
        """Return the names that share storage; if what they share was left out, they share the first of them."""
        found: dict[str, str] = {}
        first_of: dict[str, str] = {}
        for name, shared in self._of_these(self._source.aliases()).items():
            first = first_of.setdefault(shared, shared if shared in self._infos else name)
            if first != name:
                found[name] = first
        return found

    def quantized(self) -> Mapping[str, str] | None:
        quantized = self._source.quantized()
        return None if quantized is None else self._of_these(quantized)

    def uses(self) -> Mapping[str, frozenset[str]]:
        return self._of_these(self._source.uses())

    def decoded(self) -> frozenset[str]:
        return self._source.decoded().intersection(self._infos)

    def regimes(self) -> Mapping[str, tuple[str, str]]:
        return self._of_these(self._source.regimes())

    def files(self) -> Mapping[str, int]:
        return {name: nbytes for name, nbytes in self._source.files().items() if name != _OF_WHOLE_MODELS}

    @property
    def file_notes(self) -> list[str]:
        if _OF_WHOLE_MODELS in self._source.files():
            return ["the graph stays behind, because it names what was left out: the pack cannot become an .onnx again"]
        return self._source.file_notes

    @property
    def notes(self) -> list[str]:
        n_left_out = len(self._source.infos()) - len(self._infos)
        if not n_left_out:
            return self._source.notes
        part = f"{n_left_out:,} of {len(self._source.infos()):,} tensors were left out"
        return [*self._source.notes, f"{part}: whoever loads this as a model must get them from elsewhere"]
