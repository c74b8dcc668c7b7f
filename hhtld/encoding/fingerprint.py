"""What the bytes of a pack depend on, as facts that an unfinished conversion keeps in its journal."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hhtld.encoding.plan import Plan, TensorPlan
from hhtld.pack.sections import as_bytes
from hhtld.pack.source import PackSource
from hhtld.sources.contract import TensorSource
from hhtld.storage.urls import Location

__all__ = ["JOURNAL_VERSION", "content_digest", "plan_facts", "source_facts"]

JOURNAL_VERSION = 2
_SAMPLED = 16  # tensors: fine-tuned models differ in nearly all of them
_MOST_ROW_NBYTES = 1 << 20


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def plan_facts(plan: Plan) -> dict[str, Any]:
    """Return the settings that a pack is made with."""
    from importlib.metadata import version

    return {
        "hhtld": version("hhtld"),
        "profile": plan.profile.text,
        "seed": plan.seed,
        "thresholds": {regime: [asked.median, asked.p5] for regime, asked in sorted(plan.thresholds.items())},
        "tensors": _digest([_planned(name, tensor) for name, tensor in plan.tensors.items()]),
        "column_scales": _arrays_digest(plan.column_scales),
        "moments": _arrays_digest(plan.moments),
    }


def _planned(name: str, tensor: TensorPlan) -> list[Any]:
    own = [name, tensor.profile.text, tensor.profile.state_bits, tensor.alias_of]
    return own if tensor.group is None else [*own, tensor.group.role, tensor.group.regime, tensor.regime_reason]


def _arrays_digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    found = sorted(
        (name, hashlib.sha256(np.asarray(array, "<f4").tobytes()).hexdigest()) for name, array in arrays.items()
    )
    return _digest(found)


def source_facts(source: TensorSource, place: Location | None = None) -> dict[str, Any]:
    """Return what tells a source from another: its content, sampled, and what the system or store tells of its files.

    The files are the one at `place`, or those of the folder that `place` or an index names; other files beside
    them do not count.
    """
    facts: dict[str, Any] = {"content": content_digest(source)}
    if place is None or not place.exists():
        return facts
    return facts | {"files": {file.name: _identity(file) for file in _files(source, place) if file.is_file()}}


def content_digest(source: TensorSource) -> str:
    """Return what tells a source from another wherever it lies: its header, and a row of some of its tensors."""
    infos = source.infos().items()
    small = [name for name, info in infos if info.has_rows and info.n_rows and info.row_nbytes <= _MOST_ROW_NBYTES]
    sampled = small[:: -(-len(small) // _SAMPLED) or 1]
    return _digest([_header(source), [zlib.crc32(as_bytes(source.read_rows(name, 0, 1))) for name in sampled]])


def _header(source: TensorSource) -> list[Any]:
    infos = [[n, i.dtype.name, list(i.shape), i.shard] for n, i in source.infos().items()]
    return [infos, source.metadata, source.description, dict(source.aliases())]


def _files(source: TensorSource, place: Location) -> list[Location]:
    """The files that hold a source's tensors."""
    if isinstance(source, PackSource):
        path = getattr(source.pack.sections, "path", None)  # of a packed folder, too
        return [] if path is None else [path]
    if place.is_file() and place.suffix != ".json":
        return [place]
    folder = place if place.is_dir() else place.parent
    shards = source.description.get("shards")
    if shards is not None:
        return [folder / shard for shard in sorted(shards)]
    entries: Iterable[Location] = folder.iterdir()
    return sorted((entry for entry in entries if entry.suffix == ".safetensors"), key=lambda entry: entry.name)


def _identity(file: Location) -> list[Any]:
    if isinstance(file, Path):
        found = file.stat()
        # The last is none that a program can set: it tells of other content under an old size and time.
        return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    nbytes, *told = file.identity()
    return [nbytes, _digest(told)]
