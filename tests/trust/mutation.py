"""Files that are nearly sound: bytes, words and JSON changed, and half of the time lengths and checksums repaired.

Unrepaired, nearly every change of a `.hhtld` file ends at its first checksum, and of a safetensors file at its header's
length; repaired, it reaches what is checked behind them.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from copy import deepcopy
from typing import Any

from hhtld.codecs.section_kinds import SECTION_KINDS

NUMBERS = [0, 1, 2, 7, 16, 63, 64, 255, 256, 257, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**47, 2**48, 2**48 + 1]
NUMBERS += [2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63)]
VALUES = [
    *NUMBERS,
    None,
    True,
    False,
    0.5,
    -0.0,
    1e308,
    "",
    "F32",
    "BF16",
    "x",
    "\ud83d",
    [],
    {},
    [0],
    [1, 2**48],
    {"": 0},
]


def mutated(reader: str, data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Return `data` changed in a way that its format's reader may not have thought of."""
    if rng.random() < 0.5:
        repaired = {"hhtld": _pack, "safetensors": _safetensors}.get(reader)
        if repaired is not None:
            try:
                return repaired(data, rng)
            except (ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError):
                pass  # what is damaged already cannot be taken apart
    return _bytes(data, rng, others)


def _bytes(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(8)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 127, 128, 255, 10, 34, 91, 123))
        elif kind == 2:
            width = rng.choice((2, 4, 8))
            word = rng.choice(NUMBERS) % 2 ** (8 * width)
            out[at : at + width] = word.to_bytes(width, rng.choice(("little", "little", "big")))
        elif kind == 3:
            del out[at : at + rng.choice((1, 2, 8, 64, 1024))]
        elif kind == 4:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + rng.choice((1, 8, 64, 512))]
        elif kind == 5:
            del out[at:]
        elif kind == 6:
            other = rng.choice(others) if others else b""
            start = rng.randrange(len(other) + 1)
            out[at:at] = other[start : start + rng.choice((1, 8, 64, 512))]
        else:
            out[at:at] = rng.randbytes(rng.choice((1, 4, 16)))
    return bytes(out)


def _json(value: Any, rng: random.Random) -> Any:
    """Return JSON with one value in it changed, doubled, swapped or gone."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict | list):
            keys = list(item) if isinstance(item, dict) else list(range(len(item)))
            places += [(item, key) for key in keys]
            stack += [item[key] for key in keys]
    if not places:
        return rng.choice(VALUES)
    owner, key = rng.choice(places)
    kind = rng.randrange(7)
    if kind == 0:
        del owner[key]
    elif kind == 1:
        other, name = rng.choice(places)
        owner[key] = deepcopy(other[name])
    elif kind == 2 and isinstance(owner[key], int) and not isinstance(owner[key], bool):
        owner[key] += rng.choice((-64, -1, 1, 64))
    elif kind == 3 and isinstance(owner, list):
        owner.insert(key, deepcopy(owner[key]))
    elif kind == 4 and isinstance(owner, dict):
        owner[rng.choice((str(key) + "x", "sections", "alias_of", "__metadata__"))] = owner.pop(key)
    elif kind == 5 and isinstance(owner, list):
        rng.shuffle(owner)
    else:
        owner[key] = deepcopy(rng.choice(VALUES))
    return value


def _safetensors(data: bytes, rng: random.Random) -> bytes:
    nbytes = int.from_bytes(data[:8], "little")
    header, content = data[8 : 8 + nbytes], data[8 + nbytes :]
    if rng.random() < 0.7:
        header = json.dumps(_json(json.loads(header), rng)).encode("utf-8", "replace")
    else:
        header = _bytes(header, rng, [])
    if rng.random() < 0.2:
        content += rng.randbytes(8)
    return len(header).to_bytes(8, "little") + header + content


def _pack(data: bytes, rng: random.Random) -> bytes:
    offset, nbytes = struct.unpack_from("<QQ", data, len(data) - 64)
    table = json.loads(data[offset : offset + nbytes])
    records = table.pop("sections")
    sections = [(r["kind"], data[r["offset"] : r["offset"] + r["nbytes"]]) for r in records]
    head = bytearray(data[:60])
    records_change = None
    for _ in range(rng.choice((1, 1, 2))):
        kind = rng.randrange(6)
        if kind <= 1 and sections:
            index = rng.randrange(len(sections))
            sections[index] = sections[index][0], _bytes(sections[index][1], rng, [])
        elif kind <= 3:
            table = _json(table, rng)
        elif kind == 4:
            struct.pack_into(rng.choice(("<B", "<I")), head, rng.choice((8, 10, 12, 16, 20, 24, 40)), rng.randrange(3))
        else:
            records_change = rng.random()
    out = bytearray(64)
    records = []
    for index, (name, content) in enumerate(sections):
        out += bytes(-len(out) % 64)
        code = SECTION_KINDS[name].code if name in SECTION_KINDS else 0
        crc = zlib.crc32(content, zlib.crc32(struct.pack("<IIQ", code, index, len(content))))
        records.append({"kind": name, "offset": len(out), "nbytes": len(content), "crc32": crc})
        out += content
    out += bytes(-len(out) % 64)
    if records_change is not None:
        records = _json(records, rng)
    whole = table | {"sections": records} if isinstance(table, dict) else table
    text = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    place = struct.pack("<QQ", len(out), len(text))
    out += text + bytes(-len(text) % 64)
    place += struct.pack("<I", zlib.crc32(place + text))
    rest = struct.pack("<Q24x8s", len(out) + 64, b"\x89HHTLE\r\n")
    out += place + struct.pack("<I", zlib.crc32(place + bytes(4) + rest)) + rest
    out[:64] = head + struct.pack("<I", zlib.crc32(head))
    return bytes(out)
