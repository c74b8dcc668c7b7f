"""Slot T in the container: every malformation of its sections and of the table's words about them, by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hhtld
from hhtld.errors import ChecksumError, FormatError, HeaderError
from tests.formats.test_hhtld import (
    ABSENT,
    Change,
    Draft,
    bf16,
    both,
    drafted,
    group,
    header,
    read_all,
    record,
    section,
    tensor,
)

N_ROWS, N_COLS, RATE = 3, 20, 16
ROW = 4  # bytes of a row's codes at 1 bit: (19 + 8 + 7) // 8
OWN = {"slot_v": 5, "slot_t": 6, "twigs": 7, "slot_l": 8, "column_scale": 9, "slot_v_2": 10, "slot_t_2": 11}
SHARED = {"codebook": 0, "codebook_2": 1, "centroids": 2, "basis": 3}


def slot_t(draft: Draft) -> None:
    """A pack with one tensor that has every part there is, beside a kept one (section 4)."""
    levels = np.arange(-128, 128).astype(np.int8).tobytes()
    codes = (np.arange(N_ROWS * ROW) * 37 % 256).astype(np.uint8).tobytes()
    draft.sections = [
        ("codebook", levels),
        ("codebook_2", levels[::-1]),
        ("centroids", bf16(*np.linspace(-1, 1, 2 * N_COLS))),
        ("basis", struct.pack("<IIf", 1, N_COLS, 3.0) + bf16(*np.linspace(-1, 1, N_COLS))),
        ("raw", bf16(1, 2)),
        ("slot_v", bf16(1, 0, -2)),
        ("slot_t", codes),
        ("twigs", b"\0\1\1"),
        ("slot_l", bytes(range(8 * N_ROWS))),
        ("column_scale", bf16(*np.linspace(0.5, 2, N_COLS))),
        ("slot_v_2", bf16(0.5, 0.25, 0)),
        ("slot_t_2", codes[::-1]),
    ]
    shared = {"component": "other", "role": "up", "shape": [N_ROWS, N_COLS], "sections": dict(SHARED)}
    own = {"name": "t", "dtype": "F32", "shape": [N_ROWS, N_COLS], "codec": "hhtl_t", "group": 0, "slot_l_scale": 0.5}
    kept = {"name": "a.kept", "dtype": "BF16", "shape": [2], "codec": "keep", "sections": {"raw": 4}}
    draft.table["groups"] = [shared | {"rate": RATE, "seed": 7, "rate_2": RATE}]
    draft.table["tensors"] = [kept, own | {"sections": dict(OWN)}]


def sections(**changes: Any) -> Change:
    return tensor("t", sections={kind: n for kind, n in (OWN | changes).items() if n is not ABSENT})


def shared(**changes: Any) -> Change:
    return group(0, sections={kind: n for kind, n in (SHARED | changes).items() if n is not ABSENT})


def first_word(word: int) -> Any:
    return lambda data: struct.pack("<H", word) + data[2:]


MALFORMED: dict[str, tuple[Change, type[FormatError], str]] = {
    "feature bit 0 not set": (header(required=0), HeaderError, "needs feature bit 0"),
    **{
        f"{key} {value!r}": (group(0, **{key: value}), HeaderError, key)
        for key in ("rate", "rate_2")
        for value in (0, 15, 97, -16, 16.0, "16", True, None, 2**70, ABSENT)
    },
    **{
        f"seed {value!r}": (group(0, seed=value), HeaderError, "seed")
        for value in (-1, 2**64, 0.0, "0", True, None, ABSENT)
    },
    **{
        f"{kind} of {size} levels": (
            section(SHARED[kind], bytes(size)),
            HeaderError,
            "codebook has 72 bytes, or 256, 1024 or 4096",
        )
        for kind in ("codebook", "codebook_2")
        for size in (0, 1, 71, 73, 255, 257, 512, 8192)
    },
    "levels of a codebook that pass int8": (
        section(0, bytes(24) + bytes([43, *[0] * 15]) * 3),
        HeaderError,
        r"levels must sum up to -127\.\.127",
    ),
    "no codebook": (shared(codebook=ABSENT), HeaderError, "without a codebook"),
    "centroids empty": (section(2, b""), HeaderError, "centroids must hold"),
    "centroids cut": (section(2, lambda b: b[:-1]), HeaderError, "centroids must hold"),
    "257 centroids": (section(2, bytes(257 * 2 * N_COLS)), HeaderError, "centroids must hold"),
    "centroid NaN": (section(2, first_word(0x7FC0)), HeaderError, "centroids must be finite"),
    "centroid infinite": (section(2, first_word(0xFF80)), HeaderError, "centroids must be finite"),
    "twig beyond the centroids": (section(7, b"\0\2\1"), HeaderError, "twig"),
    "twigs too short": (section(7, b"\0\1"), HeaderError, "twigs is 2 bytes long, expected 3"),
    "twigs without centroids": (
        both(shared(centroids=ABSENT), section(2, b"x", "moss")),
        HeaderError,
        "twigs and the group's centroids",
    ),
    "centroids without twigs": (
        both(sections(twigs=ABSENT), section(7, b"x", "moss")),
        HeaderError,
        "twigs and the group's centroids",
    ),
    "Slot L without a basis": (
        both(shared(basis=ABSENT), section(3, b"x", "moss")),
        HeaderError,
        "slot_l and the group's basis",
    ),
    "a basis without Slot L": (
        both(sections(slot_l=ABSENT), tensor("t", slot_l_scale=ABSENT), section(8, b"x", "moss")),
        HeaderError,
        "slot_l and the group's basis",
    ),
    "slot_v too short": (section(5, lambda b: b[:-2]), HeaderError, "slot_v is 4 bytes long, expected 6"),
    "slot_v NaN": (section(5, first_word(0x7FC0)), HeaderError, "finite"),
    "slot_v infinite": (section(5, first_word(0x7F80)), HeaderError, "finite"),
    "slot_v_2 infinite": (section(10, first_word(0xFF80)), HeaderError, "finite"),
    "slot_t too long": (section(6, lambda b: b + b"\0"), HeaderError, "slot_t is 13 bytes long, expected 12"),
    "slot_t empty": (section(6, b""), HeaderError, "slot_t is 0 bytes long"),
    "slot_t_2 cut": (section(11, lambda b: b[:-1]), HeaderError, "slot_t_2 is 11 bytes long"),
    "column_scale too short": (section(9, lambda b: b[:-2]), HeaderError, "column_scale is 38 bytes long"),
    **{
        f"column scale {name}": (section(9, first_word(word)), HeaderError, "column")
        for name, word in {"0": 0, "-0": 0x8000, "-1": 0xBF80, "NaN": 0x7FC0, "infinite": 0x7F80}.items()
    },
    "first level without the second": (
        both(
            sections(slot_v_2=ABSENT, slot_t_2=ABSENT),
            section(10, b"x", "moss"),
            section(11, b"x", "moss"),
        ),
        HeaderError,
        "needs slot_v_2 and slot_t_2",
    ),
    "second level without codebook_2": (
        both(shared(codebook_2=ABSENT), group(0, rate_2=ABSENT), section(1, b"x", "moss")),
        HeaderError,
        "without the group's codebook_2",
    ),
    "rate_2 without codebook_2": (
        both(shared(codebook_2=ABSENT), section(1, b"x", "moss")),
        HeaderError,
        "rate_2 without codebook_2",
    ),
    **{
        f"{key} without a codebook": (
            lambda d, key=key: d.table["groups"].append(  # type: ignore[misc]  # defaults bind the loop
                {"component": "o", "role": "r", "shape": [1, 1], "sections": {}, key: 16}
            ),
            HeaderError,
            "group 1: rate, rates, seed, rate_2 or ring without a codebook",
        )
        for key in ("rate", "rates", "seed", "rate_2", "ring")
    },
    **{
        f"ring {value!r}": (
            group(0, ring=value),
            HeaderError,
            "ring must be true, of a group of one rate and one level",
        )
        for value in (False, 1, None, "true", True)  # the last because there are two levels
    },
    "centroids of no columns": (
        lambda d: (
            d.sections.extend([("codebook", bytes(256)), ("centroids", b"\0")]),
            d.table["groups"].append(
                {
                    "component": "o",
                    "role": "r",
                    "shape": [1, 0],
                    "sections": {"codebook": 12, "centroids": 13},
                    "rate": 16,
                    "seed": 0,
                }
            ),
        ),
        HeaderError,
        "group 1: centroids must hold",
    ),
    "no slot_v": (both(sections(slot_v=ABSENT), section(5, b"x", "moss")), HeaderError, "needs sections"),
    "no rows": (
        both(
            tensor("t", shape=[0, N_COLS]),
            group(0, shape=[0, N_COLS]),
            *(section(number, b"") for number in (5, 6, 7, 8, 10, 11)),
        ),
        HeaderError,
        "without rows cannot",
    ),
    "integers": (tensor("t", dtype="I32"), HeaderError, "I32 cannot have been encoded"),
    "a group without a codebook": (
        lambda d: d.table.update(
            groups=[{"component": "o", "role": "r", "shape": [N_ROWS, N_COLS], "sections": {}}, *d.table["groups"]]
        ),
        HeaderError,
        "has no codebook",
    ),
    "checksum of the codes": (record(6, crc32=0), ChecksumError, "section 6"),
}


def slot_t_file(path: Path, *changes: Change) -> Path:
    return drafted(path, slot_t, *changes)


def test_the_draft_is_sound(tmp_path: Path) -> None:
    found = read_all(slot_t_file(tmp_path / "t.hhtld"))
    assert found["t"].shape == (N_ROWS, N_COLS)
    assert np.isfinite(found["t"]).all()
    with hhtld.open(tmp_path / "t.hhtld") as pack:
        hhtld.save(pack, tmp_path / "again.hhtld")
    assert (tmp_path / "again.hhtld").read_bytes() == (tmp_path / "t.hhtld").read_bytes()


@pytest.mark.filterwarnings("ignore:.*unknown kind 'moss'")
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case: str, mmap: bool, tmp_path: Path) -> None:
    change, error, message = MALFORMED[case]
    path = slot_t_file(tmp_path / "bad.hhtld", change)
    with pytest.raises(error, match=message) as caught:
        read_all(path, mmap=mmap)
    assert type(caught.value) is error


@pytest.mark.parametrize("part", ["slot_v", "twigs", "slot_t", "slot_l"])
def test_rows_read_one_by_one_are_checked_where_they_could_harm(part: str, tmp_path: Path) -> None:
    """What is not verified by its checksum is still never an index or a gain out of range."""
    path = slot_t_file(tmp_path / "t.hhtld", section(OWN[part], lambda data: b"\xff" * len(data)))
    with hhtld.open(path) as pack:
        if part in ("slot_v", "twigs"):
            with pytest.raises(FormatError):
                pack.get_rows("t", [1])
        else:
            assert np.isfinite(pack.get_rows("t", [1])).all()
