"""The kinds of sections that stand in files, and which codec answers for a group that holds one.

A table apart from the codecs: a file's sections are known before any codec is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

__all__ = ["GROUP_NUMBERS", "SECTION_KINDS", "SectionKind", "add_kinds", "group_codecs", "remove_kinds"]

LOOKUP, PALETTE, TRELLIS = "hhtl_d", "hhtl_f32", "hhtl_t"  # codec ids are permanent: they stand in files
SLOT_T, ROW_CLASSES = 0, 1  # required-feature bits


@dataclass(frozen=True)
class SectionKind:
    """What a section holds.

    Attributes
    ----------
    name : str
        As in the table of a file.
    code : int
        As in a section's checksum.
    major : int
        The lowest file version that has it.
    feature : int or None
        The required-feature bit that it sets.
    group_codec : str or None
        The id of the codec that checks and reads the groups that hold such a section. None for sections of tensors
        and files, and for a basis, which several codecs share.
    in_group : bool
        Whether a group may hold one.
    """

    name: str
    code: int
    major: int = 1
    feature: int | None = None
    group_codec: str | None = None
    in_group: bool = False


_ADDED: dict[str, list[str]] = {}  # by codec: the kinds that came from outside


def _of_group(name: str, code: int, codec: str | None, major: int = 1, feature: int | None = None) -> SectionKind:
    return SectionKind(name, code, major, feature, codec, in_group=True)


SECTION_KINDS: dict[str, SectionKind] = {
    kind.name: kind
    for kind in (
        SectionKind("raw", 1),
        _of_group("palette", 2, LOOKUP),
        _of_group("fisher_z", 3, LOOKUP),
        SectionKind("entries", 4),
        SectionKind("palette_f32", 5),
        SectionKind("twigs", 6),
        _of_group("basis", 7, None, major=2),
        SectionKind("slot_l", 8, major=2),
        _of_group("codebook", 9, TRELLIS, feature=SLOT_T),
        SectionKind("slot_v", 10, feature=SLOT_T),
        SectionKind("slot_t", 11, feature=SLOT_T),
        _of_group("centroids", 12, TRELLIS, feature=SLOT_T),
        SectionKind("column_scale", 13, feature=SLOT_T),
        _of_group("codebook_2", 14, TRELLIS, feature=SLOT_T),
        SectionKind("slot_v_2", 15, feature=SLOT_T),
        SectionKind("slot_t_2", 16, feature=SLOT_T),
        SectionKind("file", 17),
        SectionKind("row_class", 18, feature=ROW_CLASSES),
    )
}
# Numbers that stand in a group's record, and the codec that answers for them.
GROUP_NUMBERS: dict[str, str] = dict.fromkeys(("rate", "rates", "seed", "rate_2", "ring"), TRELLIS)


def group_codecs(kinds: Collection[str], numbers: Iterable[str]) -> list[str]:
    """Return the ids of the codecs that answer for a group with these sections and numbers."""
    owners = [SECTION_KINDS[kind].group_codec for kind in kinds]
    owners += [GROUP_NUMBERS.get(number) for number in numbers]
    named = sorted({owner for owner in owners if owner is not None})
    return named or ([PALETTE] if "basis" in kinds else [])  # whose groups hold nothing else


def add_kinds(kinds: Iterable[SectionKind], numbers: Iterable[str], codec: str) -> None:
    """Make a codec's own kinds and numbers known.

    Raises
    ------
    ValueError
        If a name or code already means something else.
    """
    kinds, numbers = list(kinds), list(numbers)
    for kind in kinds:
        for known in SECTION_KINDS.values():
            if known.name == kind.name or known.code == kind.code:
                raise ValueError(f"codec {codec!r}: section kind {kind.name!r} ({kind.code}) is {known.name!r} already")
    for number in numbers:
        if number in GROUP_NUMBERS:
            raise ValueError(f"codec {codec!r}: number {number!r} belongs to codec {GROUP_NUMBERS[number]!r} already")
    SECTION_KINDS.update({kind.name: kind for kind in kinds})
    GROUP_NUMBERS.update(dict.fromkeys(numbers, codec))
    _ADDED[codec] = [kind.name for kind in kinds]


def remove_kinds(codec: str) -> None:
    """Forget what `add_kinds` made known for a codec."""
    for name in _ADDED.pop(codec, ()):
        del SECTION_KINDS[name]
    for number in [number for number, owner in GROUP_NUMBERS.items() if owner == codec]:
        del GROUP_NUMBERS[number]
