"""A reader of .hhtld files written from the format's specification alone.

It shares no code with the package: it is the second opinion that the tests hold the package's own reader
against, and it stays short so that a person can check it beside the specification's text.
"""

import json
import math
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

KINDS = {"raw": 1, "palette": 2, "fisher_z": 3, "entries": 4, "palette_f32": 5, "twigs": 6, "basis": 7, "slot_l": 8}
SLOT_T_KINDS = {"codebook": 9, "slot_v": 10, "slot_t": 11, "centroids": 12, "column_scale": 13}
SLOT_T_KINDS |= {"codebook_2": 14, "slot_v_2": 15, "slot_t_2": 16}
KINDS |= SLOT_T_KINDS | {"file": 17, "row_class": 18}
BITS = dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
BITS |= {"I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
NATIVE = {"BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "F16": "<f2", "I32": "<i4"}
NATIVE |= {"U32": "<u4", "F32": "<f4", "I64": "<i8", "U64": "<u8", "F64": "<f8", "C64": "<c8"}
ENCODABLE = {"F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


class SpecError(ValueError):
    """The file breaks a rule of the specification."""


def check(holds: bool, rule: str) -> None:
    """Refuse the file if a rule does not hold."""
    if not holds:
        raise SpecError(rule)


def bfloat16(data: bytes) -> np.ndarray:
    """The float32 values of little-endian bfloat16 elements, which must be finite."""
    values = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    check(bool(np.isfinite(values).all()), "finite values")
    return values


def parse_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, no key of which may be repeated."""
    found = dict(pairs)
    check(len(found) == len(pairs), "no repeated key")
    return found


def refuse_constant(text: str) -> None:
    """Refuse NaN and the infinities."""
    raise SpecError(text)


def parse_number(text: str) -> float:
    """A number within float64; integers stay exact."""
    check(math.isfinite(float(text)), "no number beyond float64")
    return int(text) if text.lstrip("-").isdigit() else float(text)


def read_table(data: bytes) -> tuple[dict[str, Any], int]:
    """Check header and trailer; return the table and its offset."""
    check(len(data) >= 128 and len(data) % 64 == 0, "file length")
    magic, major, _, length, required, _ = struct.unpack_from("<8sHHIQQ", data)
    check(magic == b"\x89HHTLD\r\n" and length == 64 and not any(data[32:60]), "header")
    check(struct.unpack_from("<I", data, 60)[0] == zlib.crc32(data[:60]), "header checksum")
    check(major in (1, 2) and required in (0, 1, 2, 3), "version, feature bits")
    tail = data[-64:]
    offset, nbytes, table_crc, tail_crc, total = struct.unpack_from("<QQIIQ", tail)
    check(tail[56:] == b"\x89HHTLE\r\n" and total == len(data) and not any(tail[32:56]), "trailer")
    check(tail_crc == zlib.crc32(tail[:20] + bytes(4) + tail[24:]), "trailer checksum")
    check(offset % 64 == 0 and nbytes <= 100_000_000, "table place")
    check(offset + nbytes + -nbytes % 64 + 64 == len(data), "trailer follows the table")
    raw = data[offset : offset + nbytes]
    check(table_crc == zlib.crc32(tail[:16] + raw), "table checksum")
    check(not any(data[offset + nbytes : -64]), "padding")
    table = json.loads(
        raw.decode("ascii"),
        object_pairs_hook=parse_object,
        parse_constant=refuse_constant,
        parse_float=parse_number,
        parse_int=parse_number,
    )
    kinds = [s["kind"] for s in table["sections"]]
    check(major == 2 or not {"basis", "slot_l"} & set(kinds), "kinds of version 2 in version 1")
    check(required & 1 == 1 or not SLOT_T_KINDS.keys() & set(kinds), "kinds of Slot T without its bit")
    check(required & 2 == 2 or "row_class" not in kinds, "row_class without its bit")
    return table, offset


def read_sections(data: bytes, table: dict[str, Any], table_offset: int) -> list[bytes]:
    """Every section's bytes, checked."""
    out, end = [], 64
    for number, section in enumerate(table["sections"]):
        kind, offset, nbytes = section["kind"], section["offset"], section["nbytes"]
        check(offset == end + -end % 64 and 0 <= nbytes <= table_offset - offset, "section place")
        check(0 <= section["crc32"] < 1 << 32, "32 bits of checksum")
        check(not any(data[end:offset]), "padding")
        end = offset + nbytes
        out.append(data[offset:end])
        if kind in KINDS:
            head = struct.pack("<IIQ", KINDS[kind], number, nbytes)
            check(section["crc32"] == zlib.crc32(head + out[-1]), "section checksum")
    check(table_offset == end + -end % 64 and not any(data[end:table_offset]), "table follows sections")
    return out


def add_slot_l(rows: np.ndarray, tensor: dict[str, Any], slot_l: bytes, basis: bytes) -> np.ndarray:
    """The rows with their Slot L residual added lane by lane."""
    lanes, n_cols = struct.unpack_from("<II", basis)
    check(1 <= lanes <= 8 and n_cols == rows.shape[1], "basis shape")
    check(len(basis) == 8 + 4 * lanes + 2 * lanes * n_cols and len(slot_l) == 8 * len(rows), "Slot L sizes")
    check(bool(np.isfinite(np.frombuffer(basis, "<f4", lanes, 8)).all()), "finite singular values")
    scale = np.float32(tensor["slot_l_scale"])
    check(float(scale) == tensor["slot_l_scale"] and 0 < scale < np.inf, "slot_l_scale")
    directions = bfloat16(basis[8 + 4 * lanes :]).reshape(lanes, n_cols)
    codes = np.frombuffer(slot_l, np.int8).reshape(-1, 8).astype(np.float32)
    for lane in range(lanes):
        rows = rows + (codes[:, lane] * scale)[:, None] * directions[lane]
    return rows


def signs(seed: int, first: int, count: int) -> np.ndarray:
    """The signs number `first` on."""
    mask, out = (1 << 64) - 1, []
    for k in range(first, first + count):
        z = (seed + (k + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        out.append(-1 if (z ^ z >> 31) >> 63 else 1)
    return np.array(out, np.float32)


def hadamard(rows: np.ndarray) -> np.ndarray:
    """H on every row, in float32."""
    size, half = rows.shape[1], 1
    while half < size:
        pairs = rows.reshape(len(rows), -1, 2, half)
        rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2).reshape(rows.shape)
        half *= 2
    return rows * np.float32(1 / math.sqrt(size))


def crossed_levels(codebook: bytes) -> np.ndarray:
    """The levels of all states of a codebook of 72 bytes."""
    nibbles = [byte >> shift & 15 for byte in codebook[:24] for shift in (0, 4)]
    across, back_a, back_b = nibbles[:16], nibbles[16:32], nibbles[32:]
    level_a, level_b, level_c = np.frombuffer(codebook, np.int8, 48, 24).astype(int).reshape(3, 16)
    levels = np.empty(4096, np.float32)
    for state in range(4096):
        a, b, c = state % 16, state // 16 % 16, state // 256
        c ^= across[a]
        a ^= back_a[c]
        b ^= back_b[c]
        levels[state] = level_a[a] + level_b[b] + level_c[c]
    check(bool((np.abs(levels) <= 127).all()), "levels of a codebook")
    return levels


def trellis_level(
    rate: int, codebook: bytes, slot_v: bytes, slot_t: bytes, n_rows: int, n_cols: int, is_ring: bool = False
) -> np.ndarray:
    """One level's rotated rows."""
    book = crossed_levels(codebook) if len(codebook) == 72 else np.frombuffer(codebook, np.int8).astype(np.float32)
    n_bits = len(book).bit_length() - 1
    check(len(book) in (256, 1024, 4096) and 16 <= rate <= 96, "codebook and rate")
    gains = bfloat16(slot_v) / np.float32(64)
    n_row_bits = n_cols * rate // 16 if is_ring else (n_cols - 1) * rate // 16 + n_bits
    check(not is_ring or (n_cols * rate % 16 == 0 and n_row_bits >= 16), "ring")
    codes = np.frombuffer(slot_t, np.uint8).reshape(n_rows, (n_row_bits + 7) // 8)
    check(len(gains) == n_rows and bool(np.isfinite(gains).all()), "slot_v")
    bits = np.unpackbits(codes, axis=1, bitorder="little")
    windows = ((np.arange(n_cols) * rate // 16)[:, None] + np.arange(n_bits)) % n_row_bits
    states = (bits[:, windows].astype(np.int64) << np.arange(n_bits)).sum(axis=2)
    return gains[:, None] * book[states]


def classed_level(
    tensor: dict[str, Any], rates: list[int], codebooks: bytes, own: dict[str, bytes], n_cols: int
) -> np.ndarray:
    """The rotated rows of a tensor whose rows have rates of their own."""
    row_class, n_classes, book = np.frombuffer(own["row_class"], np.uint8), len(rates), len(codebooks) // len(rates)
    check(2 <= n_classes <= 16 and len(codebooks) % n_classes == 0 and max(row_class) < n_classes, "classes")
    counts = [int((row_class == number).sum()) for number in range(n_classes)]
    check(tensor["class_rows"] == counts, "class_rows")
    out, done = np.empty((len(row_class), n_cols), np.float32), 0
    for number, rate in enumerate(rates):
        n_bits = 12 if book == 72 else book.bit_length() - 1
        width = ((n_cols - 1) * rate // 16 + n_bits + 7) // 8
        codes = own["slot_t"][done : done + width * counts[number]]
        gains = np.frombuffer(own["slot_v"], "<u2")[row_class == number].tobytes()
        levels = codebooks[number * book : (number + 1) * book]
        out[row_class == number] = trellis_level(rate, levels, gains, codes, counts[number], n_cols)
        done += len(codes)
    check(done == len(own["slot_t"]), "slot_t length")
    return out


def decode_trellis(
    tensor: dict[str, Any], group: dict[str, Any], own: dict[str, bytes], sections: list[bytes]
) -> np.ndarray:
    """An hhtl_t tensor's rows."""
    n_rows, n_cols = group["shape"]
    shared = {kind: sections[n] for kind, n in group["sections"].items()}
    check(0 <= group["seed"] < 1 << 64 and ("codebook_2" in shared) == ("slot_t_2" in own), "trellis")
    check(("rates" in group) == ("row_class" in own) and ("rates" in group) != ("rate" in group), "rate or rates")
    if "rates" in group:
        check("ring" not in group and "codebook_2" not in shared and len(own["row_class"]) == n_rows, "classes of rows")
        y = classed_level(tensor, group["rates"], shared["codebook"], own, n_cols)
    else:
        is_ring = "ring" in group
        check(not is_ring or (group["ring"] is True and "codebook_2" not in shared), "ring")
        y = trellis_level(group["rate"], shared["codebook"], own["slot_v"], own["slot_t"], n_rows, n_cols, is_ring)
    if "codebook_2" in shared:
        y += trellis_level(group["rate_2"], shared["codebook_2"], own["slot_v_2"], own["slot_t_2"], n_rows, n_cols)
    block = 1 << n_cols.bit_length() - 1
    if block < n_cols:
        y[:, n_cols - block :] = hadamard(y[:, n_cols - block :])
        y = y * signs(group["seed"], n_cols, n_cols)
    y[:, :block] = hadamard(y[:, :block])
    y = y * signs(group["seed"], 0, n_cols)
    check(("twigs" in own) == ("centroids" in shared) and ("slot_l" in own) == ("basis" in shared), "base")
    base = np.zeros((n_rows, n_cols), np.float32)
    if "twigs" in own:
        base = bfloat16(shared["centroids"]).reshape(-1, n_cols)[np.frombuffer(own["twigs"], np.uint8)]
    if "slot_l" in own:
        base = add_slot_l(base, tensor, own["slot_l"], shared["basis"])
    if "twigs" in own or "slot_l" in own:
        y = y + base
    return y / bfloat16(own["column_scale"]) if "column_scale" in own else y


def decode(tensor: dict[str, Any], group: dict[str, Any], sections: list[bytes]) -> np.ndarray:
    """An encoded tensor as float32."""
    shape, own = tensor["shape"], {kind: sections[n] for kind, n in tensor["sections"].items()}
    n_rows, n_cols = group["shape"]
    splits = range(1, len(shape) if tensor["codec"] == "hhtl_t" else 2)
    fits = any([math.prod(shape[:i]), math.prod(shape[i:])] == [n_rows, n_cols] for i in splits if i < len(shape))
    check(fits and n_cols >= 1 and tensor["dtype"] in ENCODABLE, "shape, dtype")
    if tensor["codec"] == "hhtl_t":
        return decode_trellis(tensor, group, own, sections).reshape(shape)
    if tensor["codec"] == "hhtl_d":
        palette = sections[group["sections"]["palette"]]
        check(len(palette) % 34 == 0 and len(own["entries"]) == 4 * n_rows, "palette, entries")
        dims = np.frombuffer(palette, "<i2").reshape(-1, 17).astype(np.float32) / np.float32(256)
        slot_d = np.frombuffer(own["entries"], "<u2").reshape(-1, 2)[:, 0]
        check(not np.any(slot_d & 1), "Slot D bit 0")
        twigs = slot_d >> 2 & 255
        lane_of = np.empty(17, np.intp)
        lane_of[11 * np.arange(17) % 17] = np.arange(17)
        entries = dims[:, lane_of[np.arange(n_cols) % 17]]
    else:
        check(tensor["codec"] == "hhtl_f32" and len(own["palette_f32"]) % (2 * n_cols) == 0, "palette_f32")
        entries = bfloat16(own["palette_f32"]).reshape(-1, n_cols)
        twigs = np.frombuffer(own["twigs"], np.uint8)
    check(1 <= len(entries) <= 256 and len(twigs) == n_rows and not (twigs >= len(entries)).any(), "palette index")
    rows = entries[twigs]
    if "slot_l" in own:
        rows = add_slot_l(rows, tensor, own["slot_l"], sections[group["sections"]["basis"]])
    return rows.reshape(shape)


def check_groups(table: dict[str, Any], sections: list[bytes]) -> None:
    """What groups hold, and that every known section has one owner of its kind."""
    for group in table["groups"]:
        numbers = group["sections"]
        of_codebook = {"rate", "rates", "seed", "rate_2", "ring"}
        check("codebook" in numbers or not of_codebook & set(group), "a rate without a codebook")
        check("codebook_2" in numbers or "rate_2" not in group, "rate_2 without codebook_2")
        if "centroids" in numbers:
            centroids = bfloat16(sections[numbers["centroids"]]).reshape(-1, group["shape"][1])
            check(1 <= len(centroids) <= 256 and centroids.shape[1] > 0, "centroids")
        if "basis" in numbers:
            add_slot_l(np.zeros((0, group["shape"][1]), "f4"), {"slot_l_scale": 1}, b"", sections[numbers["basis"]])
        check(("palette" in numbers) == ("fisher_z" in numbers), "palette and fisher_z together")
        if "palette" in numbers:
            fisher_z, k = sections[numbers["fisher_z"]], len(sections[numbers["palette"]]) // 34
            z_min, z_range = struct.unpack_from("<ff", fisher_z)
            check(len(fisher_z) == 8 + k * k and math.isfinite(z_min) and 0 < z_range < math.inf, "fisher_z")
        check(group.get("regime", "index") in ("index", "argmax"), "regime")
    check(all(isinstance(t.get("regime_reason", ""), str) for t in table["tensors"]), "regime_reason")
    owners = [*table["groups"], *(t for t in table["tensors"] if "codec" in t)]
    referred = [(n, kind) for owner in owners for kind, n in owner["sections"].items()]
    referred = sorted([*referred, *((file["section"], "file") for file in table.get("files", []))])
    kinds = [section["kind"] for section in table["sections"]]
    check(referred == [(n, kind) for n, kind in enumerate(kinds) if kind in KINDS], "each section referred to once")


def read_files(path: str | Path) -> dict[str, bytes]:
    """Every side file by name."""
    data = Path(path).read_bytes()
    table, offset = read_table(data)
    sections = read_sections(data, table, offset)
    names = [file["name"] for file in table.get("files", [])]
    check(all(a < b for a, b in pairwise(names)), "file names ascend")
    for name in names:
        parts = name.split("/")
        check(1 <= len(parts) <= 4, "parts of a file name")
        for part in parts:
            check(bool(part) and len(part.encode()) <= 255 and part.isprintable(), "file name")
            check(not set(part) & set('<>:"/\\|?*') and part[0] != "." and part[-1] not in " .", "plain file name")
        check(not any(part.lower().endswith(".safetensors") for part in (parts[:-1] or parts)), "name of weights")
    folded = [normalize("NFC", normalize("NFC", name).casefold()) for name in names]
    check(len(set(folded)) == len(folded), "file names differ on every system")
    check(not any(b.startswith(a + "/") for a in folded for b in folded), "no file is a folder of another")
    return {file["name"]: sections[file["section"]] for file in table.get("files", [])}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of a file: encoded ones as float32, kept ones as stored, aliases resolved."""
    data = Path(path).read_bytes()
    table, offset = read_table(data)
    sections = read_sections(data, table, offset)
    check_groups(table, sections)
    names = [tensor["name"] for tensor in table["tensors"]]
    check(all(a < b for a, b in pairwise(names)), "names ascend")
    out: dict[str, np.ndarray] = {}
    for tensor in table["tensors"]:
        dtype, shape = tensor["dtype"], tensor["shape"]
        check(dtype in BITS and len(shape) <= 32 and all(0 <= size <= 1 << 48 for size in shape), "dtype, shape")
        if tensor.get("codec") == "keep":
            raw = sections[tensor["sections"]["raw"]]
            check(len(raw) * 8 == math.prod(shape) * BITS[dtype], "raw length")
            elements = np.frombuffer(raw, NATIVE.get(dtype, "u1"))
            out[tensor["name"]] = elements.reshape(shape) if dtype in NATIVE else elements
        elif "codec" in tensor:
            out[tensor["name"]] = decode(tensor, table["groups"][tensor["group"]], sections)
    by_name = {tensor["name"]: tensor for tensor in table["tensors"]}
    for tensor in (t for t in table["tensors"] if "alias_of" in t):
        source = by_name[tensor["alias_of"]]
        check("alias_of" not in source, "alias of an alias")
        check(all(tensor[key] == source[key] for key in ("dtype", "shape")), "alias of another dtype or shape")
        out[tensor["name"]] = out[source["name"]]
    return out
