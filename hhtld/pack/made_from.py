"""Whether a pack was made from a source: names, types, shapes and kept bytes, and a few rows of what is encoded.

`hhtld verify` compares every row and does not need this for values. Whoever compares answers, searches or sounds asks
here first, because numbers about another model would mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np

from hhtld.cosines import is_live, judged_cosines
from hhtld.dtypes import rounded
from hhtld.errors import FormatError
from hhtld.pack.pack import HhtldPack
from hhtld.sources.contract import SourceRows, TensorSource

__all__ = ["check_made_from", "differences_of_tensors", "differences_of_values"]

_CHECKED_ROWS = 16  # of a tensor
_TOLD = 3
_NOISE = 1e-4  # by which a row's cosine may be below the worst on record: it was measured in another type


def differences_of_tensors(pack: HhtldPack, source: TensorSource, names: Iterable[str] | None = None) -> Iterator[str]:
    """Yield a sentence for every tensor that only one side has, or that has another type or shape there.

    With `names`, only tensors of the pack with these names are compared.
    """
    infos, asked = source.infos(), set(pack) if names is None else set(names)
    yield from (f"tensor {name!r} of the source is missing" for name in sorted(set(infos) - set(pack)) if names is None)
    yield from (f"tensor {name!r} is not in the source" for name in sorted(asked - set(infos)))
    for name in sorted(asked & set(infos)):
        packed, info = pack.table.tensors[name].info, infos[name]
        if (packed.shape, packed.dtype) != (info.shape, info.dtype):
            yield f"tensor {name!r} is {packed.dtype.name} {packed.shape}, the source {info.dtype.name} {info.shape}"


def differences_of_values(pack: HhtldPack, source: TensorSource, name: str) -> Iterator[str]:
    """Yield a sentence if a kept tensor has other bytes, or a row is further from its decoded self than was recorded.

    A model that was trained a little further may pass.
    """
    record = pack.info(name)
    if not record.is_encoded:
        if pack.get_tensor(name, "source").tobytes() != source.read_tensor(name).tobytes():
            yield f"tensor {name!r} is kept but its bytes differ from the source's"
        return
    rows = SourceRows(source, name, record.info.n_cols)
    if record.gates is None or not rows.n_rows:
        return
    picks = sorted({number * rows.n_rows // _CHECKED_ROWS for number in range(_CHECKED_ROWS)})
    original = np.concatenate([rows.read(row, row + 1) for row in picks])
    cosines = judged_cosines(original, rounded(pack.get_rows(name, picks), record.info.dtype))
    cosines[~is_live(cosines)] = 1.0
    if cosines.min() < record.gates.minimum - _NOISE:
        yield (
            f"row {picks[int(cosines.argmin())]} of tensor {name!r} has cosine {cosines.min():.4f} with its decoded "
            f"self, and the worst row on record has {record.gates.minimum:.4f}"
        )


def check_made_from(pack: HhtldPack, source: TensorSource, names: Iterable[str] | None = None) -> None:
    """Refuse a source that a pack was not made from.

    Parameters
    ----------
    pack : HhtldPack
    source : TensorSource
    names : iterable of str, optional
        Tensors to compare; without it all of both sides.

    Raises
    ------
    FormatError
        Naming the first differences.
    """
    names = None if names is None else list(names)
    differences = list(differences_of_tensors(pack, source, names))
    if not differences:
        compared = pack if names is None else names
        differences = list(chain.from_iterable(differences_of_values(pack, source, name) for name in compared))
    if differences:
        more = f"; and {len(differences) - _TOLD} more" if len(differences) > _TOLD else ""
        raise FormatError(f"the pack was not made from this source: {'; '.join(differences[:_TOLD])}{more}")
