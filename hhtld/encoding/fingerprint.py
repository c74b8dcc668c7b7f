"""What tells one source, or one plan, from another: facts for journals and workers, digests for calibrations."""

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
from hhtld.pack.section_interfaces import as_bytes
from hhtld.pack.source import PackSource
from hhtld.slots.moments import Moments
from hhtld.sources.contract import TensorSource
from hhtld.storage.file_reading import Location

__all__ = ["JOURNAL_VERSION", "content_digest", "plan_facts", "source_facts", "weights_digest"]

JOURNAL_VERSION = 3
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
        "row_rates": _arrays_digest(plan.row_rates, "<i4"),
    }


def _planned(name: str, tensor: TensorPlan) -> list[Any]:
    codec = [name, tensor.profile.text, tensor.alias_of]
    return codec if tensor.group is None else [*codec, tensor.group.role, tensor.group.regime, tensor.regime_reason]


def _arrays_digest(arrays: Mapping[str, NDArray[Any] | Moments], dtype: str = "<f4") -> str:
    by_name = sorted((name, hashlib.sha256(_as_bytes(array, dtype)).hexdigest()) for name, array in arrays.items())
    return _digest(by_name)


def _as_bytes(array: NDArray[Any] | Moments, dtype: str) -> bytes:
    return array.tobytes() if isinstance(array, Moments) else np.asarray(array, dtype).tobytes()


def source_facts(source: TensorSource, place: Location | None = None) -> dict[str, Any]:
    """Return what tells a source from another: its content, sampled, and what the system or store tells of its files.

    The files are the one at `place`, or those of the folder that `place` or an index names; other files beside
    them do not count.
    """
    facts: dict[str, Any] = {"content": content_digest(source)}
    if place is None or not place.exists():
        return facts
    files = [file for file in _files(source, place) if file.is_file()]
    in_folders = len({str(file.parent) for file in files}) > 1  # of a pipeline, where two may have one name
    names = [f"{file.parent.name}/{file.name}" if in_folders else file.name for file in files]
    return facts | {"files": {name: _identity(file) for name, file in zip(names, files, strict=True)}}


# Two digests, because they answer two questions. A journal and a worker ask "is this the same file?" before every
# piece of work, of sources behind URLs, too: `content_digest` covers the whole header and samples a few rows. A
# calibration asks "are these the same weights?", whatever file holds them: `weights_digest` leaves out metadata and
# shards, and reads every matrix. Files that users keep record the second, so its bytes stay as they are.


def content_digest(source: TensorSource) -> str:
    """Return what tells a source from another wherever it lies: its header, and a row of some of its tensors."""
    infos = source.infos().items()
    small = [name for name, info in infos if info.has_rows and info.n_rows and info.row_nbytes <= _MOST_ROW_NBYTES]
    sampled = small[:: -(-len(small) // _SAMPLED) or 1]
    return _digest([_header(source), [zlib.crc32(as_bytes(source.read_rows(name, 0, 1))) for name in sampled]])


def weights_digest(source: TensorSource) -> str:
    """Return a digest of a model's weights: names, types, shapes, and the first and last row of every matrix."""
    digest = hashlib.sha256()
    for name, info in sorted(source.infos().items()):
        digest.update(f"{name}\0{info.dtype.name}\0{info.shape}\0".encode())
        if info.has_rows and info.n_rows:
            for row in (0, info.n_rows - 1):
                digest.update(source.read_rows(name, row, row + 1).tobytes())
    return digest.hexdigest()


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
        status = file.stat()
        # No program can set the last one: it changes if other content comes under an old size and time.
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    nbytes, *markers = file.identity()
    return [nbytes, _digest(markers)]
