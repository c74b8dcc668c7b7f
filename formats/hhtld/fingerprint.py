"""What the bytes of a pack depend on, as facts that an unfinished conversion keeps in its journal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from hhtld.plan import Plan
from hhtld.source import TensorSource

__all__ = ["JOURNAL_VERSION", "plan_facts", "source_facts"]

JOURNAL_VERSION = 1


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
        "tensors": _digest([[n, t.profile.text, t.alias_of] for n, t in plan.tensors.items()]),
        "column_scales": _digest(
            [
                [name, hashlib.sha256(np.asarray(scale, "<f4").tobytes()).hexdigest()]
                for name, scale in sorted(plan.column_scales.items())
            ]
        ),
    }


def source_facts(source: TensorSource, path: Path | None = None) -> dict[str, Any]:
    """Return what tells a source from another: its header, and sizes and times of its files.

    The files are the one at `path`, or those of the folder that `path` or an index names; other files beside
    them do not count.
    """
    infos = source.infos()
    header = [[n, i.dtype.name, list(i.shape), i.shard] for n, i in infos.items()]
    facts: dict[str, Any] = {
        "header": _digest([header, source.metadata, source.description, dict(source.aliases())]),
    }
    if path is None or not path.exists():
        return facts
    folder = path if path.is_dir() else path.parent
    files = set() if path.is_dir() else {path}
    if path.is_dir() or path.suffix == ".json":
        shards = {folder / info.shard for info in infos.values() if info.shard is not None}
        files |= shards or set(folder.glob("*.safetensors"))
    stats = {file.name: file.stat() for file in sorted(files) if file.is_file()}
    return facts | {"files": {name: [found.st_size, found.st_mtime_ns] for name, found in stats.items()}}
