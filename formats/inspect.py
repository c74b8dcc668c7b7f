"""Looking at a file: what is in it, as a table or as JSON."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from hhtld.dtypes import view, widen
from hhtld.formats.hhtld.container import ContainerReader
from hhtld.formats.terminal import human_nbytes, plain_table, safe
from hhtld.pack import HhtldPack, PackSource
from hhtld.source import TensorSource

__all__ = ["describe", "print_description", "print_rows"]


def describe(source: TensorSource, path: Path, name: str | None = None) -> dict[str, Any]:
    """Return everything `inspect --json` prints of a source, or of one of its tensors."""
    facts: dict[str, Any] = {"schema": "hhtld.inspect/1", "path": os.fspath(path)}
    if isinstance(source, PackSource):
        facts |= _pack_facts(source.pack)
    else:
        facts |= {
            "metadata": dict(source.metadata),
            "source": dict(source.description),
            "tensors": [
                {"name": i.name, "dtype": i.dtype.name, "shape": list(i.shape), "nbytes": i.nbytes}
                for i in source.infos().values()
            ],
        }
    if name is not None:
        facts["tensors"] = [tensor for tensor in facts["tensors"] if tensor["name"] == name]
        if not facts["tensors"]:
            source.read_tensor(name)  # raises the error that names the nearest tensors
    return facts


def _pack_facts(pack: HhtldPack) -> dict[str, Any]:
    facts: dict[str, Any] = {"profile": pack.table.profile}
    if isinstance(pack.sections, ContainerReader):
        reader = pack.sections
        facts |= {
            "version": f"{reader.major}.{reader.minor}",
            "nbytes": reader.path.stat().st_size,
            "sections": [
                {"kind": r.kind, "offset": r.offset, "nbytes": r.nbytes, "crc32": f"{r.crc32:08x}"}
                for r in reader.records
            ],
        }
    facts |= pack.table.to_json()
    for tensor in facts["tensors"]:
        nbytes = pack.nbytes(tensor["name"])
        elements = int(np.prod(tensor["shape"], dtype=np.int64))
        tensor |= {"nbytes": nbytes, "bits_per_weight": round(8 * nbytes / elements, 4) if elements else 0.0}
    return facts


def print_description(facts: dict[str, Any], out: Console) -> None:
    """Print `describe()` as tables."""
    if "version" in facts:
        out.print(
            f"{facts['path']}: .hhtld version {facts['version']}, profile {facts['profile']}, "
            f"{human_nbytes(facts['nbytes'])} in {len(facts['sections'])} sections, {len(facts['tensors'])} tensors",
            highlight=False,
            markup=False,
        )
        sizes: dict[str, list[int]] = defaultdict(list)
        for section in facts["sections"]:
            sizes[section["kind"]].append(section["nbytes"])
        rows = ((safe(kind), len(found), human_nbytes(sum(found))) for kind, found in sorted(sizes.items()))
        out.print(plain_table(("section", ">count", ">bytes"), rows))
        if facts["groups"]:
            out.print(
                plain_table(("group", "rows x columns", ">bits", ">states", ">centroids", "slot L"), _group_rows(facts))
            )
    else:
        out.print(f"{facts['path']}: {len(facts['tensors'])} tensors", highlight=False, markup=False)
    out.print(
        plain_table(
            ("tensor", "type", "shape", "codec", ">bytes", ">bits/weight", ">median", ">p5", ">min"), _rows(facts)
        )
    )


def _group_rows(facts: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    sizes = [section["nbytes"] for section in facts["sections"]]
    for group in facts["groups"]:
        held, (n_rows, n_cols) = group["sections"], group["shape"]
        rate = ""
        if "rate" in group:
            rate = " + ".join(f"{group[key] / 16:g}" for key in ("rate", "rate_2") if key in group)
        states = sizes[held["codebook"]] if "codebook" in held else ""
        centroids = sizes[held["centroids"]] // max(1, 2 * n_cols) if "centroids" in held else ""
        name = safe(f"{group['component']}/{group['role']}")
        yield name, f"{n_rows} x {n_cols}", rate, states, centroids, "yes" if "basis" in held else ""


def _rows(facts: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for tensor in facts["tensors"]:
        codec = f"= {tensor['alias_of']}" if "alias_of" in tensor else tensor.get("codec", "")
        quantiles = tensor.get("gates", {}).get("quantiles")
        cosines = (f"{quantiles[10]:.4f}", f"{quantiles[1]:.4f}", f"{quantiles[0]:.4f}") if quantiles else ("", "", "")
        bits = f"{tensor['bits_per_weight']:.3f}" if "bits_per_weight" in tensor else ""
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        yield safe(tensor["name"]), tensor["dtype"], shape, safe(codec), human_nbytes(tensor["nbytes"]), bits, *cosines


def print_rows(source: TensorSource, name: str, span: slice, as_json: bool, out: Console) -> None:
    """Print decoded rows of one tensor."""
    info = source.infos()[name]
    if len(info.shape) < 2:
        raise ValueError(f"tensor {name!r} has shape {list(info.shape)}, so it has no rows")
    start, stop, step = span.indices(info.n_rows)
    chosen = range(start, stop, step)
    if isinstance(source, PackSource):
        block = source.pack.get_rows(name, np.asarray(chosen, np.intp))
    else:
        raw = [source.read_rows(name, row, row + 1) for row in chosen]
        data = np.concatenate(raw) if raw else np.empty((0, info.row_nbytes), np.uint8)
        block = widen(data, info.dtype) if info.dtype.is_weight else view(data, info.dtype, (-1,))
        block = block.reshape(len(chosen), -1)
    if as_json:
        rows = {str(row): values.tolist() for row, values in zip(chosen, block, strict=True)}
        print(json.dumps({"schema": "hhtld.rows/1", "tensor": name, "rows": rows}))
        return
    with np.printoptions(threshold=24, edgeitems=6, linewidth=max(60, out.width - 16), precision=5, suppress=True):
        for row, values in zip(chosen, block, strict=True):
            out.print(f"row {row}: {values}", highlight=False, markup=False)
