"""Arrays, a source or a file, encoded into a pack in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from numpy.typing import ArrayLike

from hhtld.encoding.encoder import encode_source
from hhtld.encoding.options import DEFAULT_PROFILE, Encoding
from hhtld.encoding.plan import make_plan
from hhtld.encoding.resources import Work
from hhtld.formats import open_source
from hhtld.pack.memory_sections import MemorySections
from hhtld.pack.pack import HhtldPack
from hhtld.slots.moments import Moments
from hhtld.sources.contract import ArraySource, TensorSource
from hhtld.sources.crew import Crew

__all__ = ["encode"]

_NO_LIMIT = 1 << 62  # what is encoded in memory stays there


def encode(
    tensors: TensorSource | Mapping[str, Any] | str | os.PathLike[str],
    profile: str = DEFAULT_PROFILE,
    *,
    metadata: Mapping[str, str] | None = None,
    nonfinite: str = "refuse",
    quantized: str = "refuse",
    column_scales: Mapping[str, ArrayLike] | None = None,
    rates: Mapping[str, ArrayLike] | None = None,
    moments: Mapping[str, ArrayLike | Moments] | None = None,
    executor: Executor | None = None,
) -> HhtldPack:
    """Encode arrays, or any source, into a pack in memory.

    Parameters
    ----------
    tensors : mapping of str to array, TensorSource, path or str
        A path or a URL is opened as `hhtld.convert` opens its source.
    profile : str
        "parity" (the default), "gates", "bits:B", "lookup" or "f32".
    metadata : mapping of str to str, optional
        Stored in the pack. For arrays only: a source brings its own.
    nonfinite, quantized : {"refuse", "keep"}
    column_scales, rates, moments : mappings, optional
        See `hhtld.encoding.options.Encoding`.
    executor : concurrent.futures.Executor, optional
        Threads to spread blocks of rows over.

    Raises
    ------
    FormatError, OSError
        If a file cannot be read.
    NonFiniteError, QuantizedError
        For weights that are not finite or quantized already, unless they are to be kept.
    ValueError, TypeError
        For arrays, names or options that cannot be meant.
    """
    if metadata is not None and isinstance(tensors, TensorSource | str | os.PathLike):
        raise ValueError("metadata is for arrays; a source brings its own")
    encoding = Encoding(
        profile=profile,
        nonfinite=nonfinite,
        quantized=quantized,
        column_scales=column_scales,
        rates=rates,
        moments=moments,
    )
    crew = Crew(executor, os.cpu_count() or 1) if executor is not None else Crew()
    sections = MemorySections()
    with _source(tensors, metadata) as source:
        table = encode_source(source, make_plan(source, encoding), sections, work=Work(crew, memory=_NO_LIMIT))
    return HhtldPack(table, sections.reader())


def _source(
    tensors: TensorSource | Mapping[str, Any] | str | os.PathLike[str], metadata: Mapping[str, str] | None
) -> AbstractContextManager[TensorSource]:
    """Return what is encoded; only what is opened here is closed by whoever encodes it."""
    if isinstance(tensors, str | os.PathLike):
        return open_source(tensors)
    return nullcontext(tensors if isinstance(tensors, TensorSource) else ArraySource(tensors, metadata))
