"""Looking at a file: every fact that `hhtld inspect` prints, as a table or as JSON, computed once."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from hhtld.api.conversion_report import as_bf16_nbytes
from hhtld.commands.arguments import add_all, add_json, every, row_range
from hhtld.commands.exit_codes import DONE
from hhtld.commands.inspect.file_tables import print_listing
from hhtld.commands.inspect.statistics import slot_statistics, value_statistics, weight_blocks
from hhtld.commands.inspect.tensor_card import print_tensor
from hhtld.display.numbers import counted
from hhtld.display.streams import emit
from hhtld.dtypes import exact_values, view
from hhtld.errors import no_such_tensor
from hhtld.gates import rounded_down
from hhtld.identity import state_bits
from hhtld.matrix import TensorInfo
from hhtld.pack.container import ContainerReader
from hhtld.pack.pack import HhtldPack
from hhtld.pack.source import PackSource
from hhtld.pack.table import GroupRecord, TensorRecord
from hhtld.slots.base17 import BASE17_NBYTES
from hhtld.sources.contract import TensorSource
from hhtld.sources.quantized import quantized_tensors
from hhtld.sources.rows import row_ranges
from hhtld.storage.locations import spelled

__all__ = ["DESCRIPTION", "EXAMPLES", "add_arguments", "describe", "print_description", "print_rows", "run"]


def describe(source: TensorSource, path: str | os.PathLike[str], name: str | None = None) -> dict[str, Any]:
    """Return everything `inspect --json` prints of a source; with `name`, of that tensor and what it holds."""
    facts: dict[str, Any] = {"schema": "hhtld.inspect/1", "path": spelled(path)}
    facts |= _pack_facts(source.pack) if isinstance(source, PackSource) else _source_facts(source)
    if name is None:
        return facts
    described = [tensor for tensor in facts["tensors"] if tensor["name"] == name]
    if not described:
        source.read_tensor(name)  # raises the error that names the nearest tensors
    for tensor in described:
        if isinstance(source, PackSource):
            tensor |= _content(source.pack, facts, name)
        elif source.infos()[name].dtype.is_weight:
            tensor["values"] = _source_values(source, source.infos()[name])
    return facts | {"tensor": name, "tensors": described}


def print_description(facts: Mapping[str, Any], out: Console, every: bool = True) -> None:
    """Print `describe()`: a card of one tensor, or the tables of the whole, on request with a line for every tensor."""
    if "tensor" in facts:
        print_tensor(facts, out)
    else:
        print_listing(facts, out, every)


def _source_facts(source: TensorSource) -> dict[str, Any]:
    infos = list(source.infos().values())
    tensors: list[dict[str, Any]] = []
    stored = {info.name: source.stored(info.name) for info in infos}
    for info in infos:
        kind, nbytes = stored[info.name]
        tensor = {"name": info.name, "dtype": info.dtype.name, "shape": list(info.shape), "nbytes": nbytes}
        tensor |= {"stored_as": kind} if kind != info.dtype.name else {}
        tensors.append(tensor if info.shard is None else tensor | {"shard": info.shard})
    return {
        "metadata": dict(source.metadata),
        "source": dict(source.description),
        "files": [{"name": name, "nbytes": nbytes} for name, nbytes in source.files().items()],
        "tensors": tensors,
        "totals": {
            "n_tensors": len(infos),
            "n_elements": sum(map(_n_elements, infos)),
            "nbytes": sum(nbytes for _, nbytes in stored.values()),
            "bf16_nbytes": sum(map(as_bf16_nbytes, infos)),
        },
        "dtypes": _tallied(stored.values()),
        **_quantized_facts(source),
    }


def _quantized_facts(source: TensorSource) -> dict[str, Any]:
    """How many tensors belong to quantized weights, by scheme or by what uses them; nothing if none does."""
    used = source.quantized()
    if used is None:
        used = {n: s.name for n, s in quantized_tensors(source.infos(), source.declared_quantization).items()}
    return {"quantized": dict(Counter(used.values()).most_common())} if used else {}


def _pack_facts(pack: HhtldPack) -> dict[str, Any]:
    facts: dict[str, Any] = {"profile": pack.table.profile}
    if isinstance(pack.sections, ContainerReader):
        reader = pack.sections
        facts |= {
            "version": f"{reader.major}.{reader.minor}",
            "nbytes": reader.file_nbytes,
            "sections": [
                {"kind": r.kind, "offset": r.offset, "nbytes": r.nbytes, "crc32": f"{r.crc32:08x}"}
                for r in reader.records
            ],
        }
    facts |= pack.table.to_json()
    members: dict[int | None, list[TensorRecord]] = defaultdict(list)
    for record in pack.table.tensors.values():
        members[record.group].append(record)
    facts["files"] = [file | {"nbytes": pack.files()[file["name"]]} for file in facts.get("files", ())]
    for tensor, record in zip(facts["tensors"], pack.table.tensors.values(), strict=True):
        nbytes, elements = pack.nbytes(record.name), _n_elements(record.info)
        tensor |= {"nbytes": nbytes, "bits_per_weight": round(_bits(nbytes, elements), 4)}
        tensor["source_nbytes"] = record.info.nbytes
        if pack.table.regime(record.name) is not None:
            tensor["regime"] = pack.table.regime(record.name)
            tensor["regime_reason"] = pack.table.regime_reason(record.name)
    for number, (group, shared) in enumerate(zip(facts["groups"], pack.table.groups, strict=True)):
        group |= _group_facts(pack, members[number], shared)
    facts["section_kinds"] = _tallied((k, pack.sections.nbytes(i)) for i, k in enumerate(pack.sections.kinds()))
    facts["totals"] = _totals(pack, facts)
    for kind in facts["section_kinds"].values():
        kind["share"] = _share(kind["nbytes"], facts["totals"]["nbytes"])
    facts["regimes"] = _regimes(facts["tensors"])
    return facts


def _n_elements(info: TensorInfo) -> int:
    return math.prod(info.shape)


def _bits(nbytes: int, elements: int) -> float:
    return 8 * nbytes / elements if elements else 0.0


def _share(nbytes: int, whole: int) -> float:
    return round(nbytes / whole, 6) if whole else 0.0


def _tallied(sized: Iterable[tuple[str, int]]) -> dict[str, dict[str, Any]]:
    """Count and bytes by kind, the most bytes first."""
    nbytes_by_kind: dict[str, list[int]] = defaultdict(list)
    for kind, nbytes in sized:
        nbytes_by_kind[kind].append(nbytes)
    ranked = sorted(nbytes_by_kind.items(), key=lambda item: (-sum(item[1]), item[0]))
    return {kind: {"count": len(sizes), "nbytes": sum(sizes)} for kind, sizes in ranked}


def _group_facts(pack: HhtldPack, members: list[TensorRecord], group: GroupRecord) -> dict[str, Any]:
    """What a group's sections say without being read, and what it comes to with its tensors."""
    sizes = {kind: pack.sections.nbytes(index) for kind, index in group.sections.items()}
    tensor_nbytes, shared = sum(pack.nbytes(record.name) for record in members), sum(sizes.values())
    facts = {
        "regime": group.key.regime,
        "n_tensors": len(members),
        "nbytes": tensor_nbytes,
        "shared_nbytes": shared,
        "bits_per_weight": round(_bits(tensor_nbytes + shared, sum(_n_elements(record.info) for record in members)), 4),
    }
    rates = [group.numbers[key] for key in ("rate", "rate_2") if key in group.numbers]
    if rates:
        facts["bits"] = [rate / 16 for rate in rates]
        n_bits = [state_bits(sizes[kind]) for kind in ("codebook", "codebook_2") if kind in sizes]
        facts["states"] = [1 << bits for bits in n_bits if bits is not None]
    elif "rates" in group.numbers:
        classes = [rate / 16 for rate in group.numbers["rates"]]
        bits = state_bits(sizes["codebook"] // len(classes))
        facts |= {"classes": classes, "states": [] if bits is None else [1 << bits]}
    for kind, width in (("palette", BASE17_NBYTES), ("centroids", 2 * group.key.shape[1])):
        if kind in sizes:
            facts["entries"] = sizes[kind] // max(1, width)
    return facts


def _totals(pack: HhtldPack, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the whole; tied tensors count once, as in what `convert` reports."""
    records = [record for record in pack.table.tensors.values() if record.alias_of is None]
    encoded = [record for record in records if record.is_encoded]
    elements, n_encoded = (sum(_n_elements(r.info) for r in some) for some in (records, encoded))
    shared = sum(group["shared_nbytes"] for group in facts["groups"])
    own_nbytes = sum(pack.nbytes(record.name) for record in encoded)
    section_nbytes = sum(kind["nbytes"] for kind in facts["section_kinds"].values())
    nbytes = facts.get("nbytes", section_nbytes)
    files = sum(pack.files().values())
    bf16 = sum(as_bf16_nbytes(record.info) for record in records) + files
    stored = pack.table.source.get("stored_nbytes")
    if type(stored) is not int or stored < 0:  # a file may say anything
        stored = sum(record.info.nbytes for record in pack.table.tensors.values())
    return {
        "n_tensors": len(pack),
        "encoded": len(encoded),
        "kept": len(records) - len(encoded),
        "tied": len(pack) - len(records),
        "codecs": dict(sorted(Counter(record.codec for record in records).items())),
        "n_sections": len(pack.sections.kinds()),
        "n_elements": elements,
        "source_nbytes": stored + files,
        "bf16_nbytes": bf16,
        "nbytes": nbytes,
        "encoded_nbytes": own_nbytes,
        "shared_nbytes": shared,
        "kept_nbytes": sum(pack.nbytes(record.name) for record in records if not record.is_encoded),
        "files_nbytes": files,
        "table_nbytes": nbytes - section_nbytes,
        "table_share": _share(nbytes - section_nbytes, nbytes),
        "ratio": rounded_down(bf16 / nbytes) if nbytes else None,
        "bits_per_weight": round(_bits(nbytes, elements), 4),
        "encoded_bits_per_weight": round(_bits(own_nbytes + shared, n_encoded), 4),
    }


def _regimes(tensors: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the recorded medians and p5 of tensors reach, and the worst row; quantiles do not add up."""
    members: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for tensor in tensors:
        if "gates" in tensor and tensor["gates"]["n_rows"]:
            members[tensor["regime"]].append(tensor)
    regimes: dict[str, Any] = {}
    for kind, recorded in sorted(members.items()):
        counts = {
            key: sum(t["gates"].get(key, 0) for t in recorded) for key in ("n_rows", "n_zero_rows", "n_zero_rows_lost")
        }
        regimes[kind] = {"n_tensors": len(recorded)} | {key: n for key, n in counts.items() if n or key == "n_rows"}
        recorded = [t for t in recorded if t["gates"]["n_rows"] > t["gates"].get("n_zero_rows", 0)]
        if not recorded:
            continue
        medians, p5s = ([t["gates"]["quantiles"][i] for t in recorded] for i in (10, 1))
        worst = min(recorded, key=lambda t: (t["gates"]["quantiles"][0], t["name"]))
        regimes[kind] |= {
            "median": {"min": min(medians), "max": max(medians)},
            "p5": {"min": min(p5s), "max": max(p5s)},
            "min": worst["gates"]["quantiles"][0],
            "worst": {"tensor": worst["name"], "row": worst["gates"]["worst_row"]},
        }
    return regimes


def _content(pack: HhtldPack, facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What one tensor of a pack holds; of an alias, the tensor whose bytes it shares."""
    record = pack.table.tensors[name]
    if record.alias_of is not None:
        target = next(tensor for tensor in facts["tensors"] if tensor["name"] == record.alias_of)
        return {"target": target | _content(pack, facts, record.alias_of)}
    content: dict[str, Any] = {"stored": _stored(pack, facts, record)}
    if record.is_encoded:
        content["slots"] = slot_statistics(pack.get_encoded(name))
    elif record.info.dtype.is_weight:
        raw = pack.sections.whole(record.sections["raw"])
        content["values"] = value_statistics(weight_blocks([raw], record.info.dtype))
    return content


def _stored(pack: HhtldPack, facts: Mapping[str, Any], record: TensorRecord) -> list[dict[str, Any]]:
    """The sections a tensor is read from: its own, then those of its group."""
    elements = _n_elements(record.info)
    shared = {} if record.group is None else pack.table.groups[record.group].sections
    found = []
    for of, sections in (("tensor", record.sections), ("group", shared)):
        for kind, index in sorted(sections.items(), key=lambda item: item[1]):
            section: dict[str, Any] = {"kind": kind, "of": of, "index": index, "nbytes": pack.sections.nbytes(index)}
            if of == "tensor":
                section["bits_per_weight"] = round(_bits(section["nbytes"], elements), 4)
            if "sections" in facts:
                section |= {key: facts["sections"][index][key] for key in ("offset", "crc32")}
            found.append(section)
    return found


def _source_values(source: TensorSource, info: TensorInfo) -> dict[str, Any]:
    spans = row_ranges(info.n_rows, info.row_nbytes)
    return value_statistics(weight_blocks((source.read_rows(info.name, *span) for span in spans), info.dtype))


def print_rows(source: TensorSource, name: str, span: slice, as_json: bool, out: Console) -> None:
    """Print decoded rows of one tensor."""
    info = source.pack.info(name).info if isinstance(source, PackSource) else source.infos()[name]
    if len(info.shape) < 2:
        raise ValueError(f"tensor {name!r} has shape {list(info.shape)}, so it has no rows")
    start, stop, step = span.indices(info.n_rows)
    chosen = range(start, stop, step)
    if not chosen:
        asked = ":".join("" if part is None else str(part) for part in (span.start, span.stop))
        raise ValueError(f"no row in {asked!r}: tensor {name!r} has {counted(info.n_rows, 'row')}, numbered from 0")
    if isinstance(source, PackSource):
        dtype = "source" if info.dtype.name == "F64" else "float32"
        block = source.pack.get_rows(name, np.asarray(chosen, np.intp), dtype=dtype)
    else:
        raw = [source.read_rows(name, row, row + 1) for row in chosen]
        data = np.concatenate(raw) if raw else np.empty((0, info.row_nbytes), np.uint8)
        block = exact_values(data, info.dtype) if info.dtype.is_weight else view(data, info.dtype, (-1,))
        block = block.reshape(len(chosen), -1)
    if as_json:
        rows = {str(row): _json_values(values) for row, values in zip(chosen, block, strict=True)}
        emit(json.dumps({"schema": "hhtld.rows/1", "tensor": name, "rows": rows}, allow_nan=False))
        return
    with np.printoptions(threshold=24, edgeitems=6, linewidth=max(60, out.width - 16), precision=5, suppress=True):
        for row, values in zip(chosen, block, strict=True):
            out.print(f"row {row}: {values}", highlight=False, markup=False)


def _json_values(values: NDArray[Any]) -> list[Any]:
    """Numbers as JSON knows them: null for what is not finite, complex ones as [real, imaginary]."""
    if values.dtype.kind == "c":
        return [_json_values(np.array([value.real, value.imag])) for value in values]
    if values.dtype.kind in "biu":
        plain: list[Any] = values.tolist()
        return plain
    return [value if math.isfinite(value) else None for value in values.astype(np.float64).tolist()]


# ---- the command ----


DESCRIPTION = "Show what is in FILE: its tensors and what they became, or with --tensor what one tensor's slots hold."
EXAMPLES = """\
  hhtld inspect model.hhtld
  hhtld inspect model.hhtld --tensor embeddings.word_embeddings.weight
  hhtld inspect model.hhtld --tensor embeddings.word_embeddings.weight --rows 0:4
  hhtld inspect model.safetensors --json
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    command.add_argument(
        "file", metavar="FILE", help="a .hhtld file, or whatever else convert reads: .safetensors, .gguf, a folder, ..."
    )
    command.add_argument("--tensor", metavar="NAME", help="only this tensor (a whole name), and what its slots hold")
    command.add_argument("--rows", type=row_range, metavar="A:B", help="print these rows of --tensor, decoded")
    add_all(command)
    add_json(command)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from hhtld.display.terminal import console
    from hhtld.formats import open_source

    if arguments.rows is not None and arguments.tensor is None:
        raise ValueError("--rows needs --tensor")
    with open_source(arguments.file) as source:
        if arguments.tensor is not None and arguments.tensor not in source:
            said = no_such_tensor(arguments.tensor, source.infos())
            raise ValueError(f"{said}; `hhtld inspect FILE` lists all of them")
        if arguments.rows is not None:
            print_rows(source, arguments.tensor, arguments.rows, arguments.json, console())
            return DONE
        facts = describe(source, arguments.file, arguments.tensor)
    if arguments.json:
        emit(json.dumps(facts, indent=2, allow_nan=False))
    else:
        print_description(facts, console(), every(arguments))
    return DONE
