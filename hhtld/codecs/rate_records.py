"""Rates, classes of rows and rings as a file's records state them: checked, and the sizes that follow from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hhtld import slots
from hhtld.errors import HeaderError
from hhtld.identity import MAX_RATE, MIN_RATE, state_bits

if TYPE_CHECKING:
    from hhtld.codecs.base import RecordCheck

__all__ = ["check_codes", "group_numbers"]


def group_numbers(record: RecordCheck) -> dict[str, Any]:
    """Return the numbers of a checked group: its rate or rates, seed, ring and second rate, or raise `HeaderError`."""
    if "codebook" not in record.nbytes:
        if {"centroids", "codebook_2"} & set(record.nbytes):
            raise HeaderError(f"{record.where}: centroids or codebook_2 without a codebook")
        if {"rate", "rates", "seed", "rate_2", "ring"} & set(record.numbers):
            raise HeaderError(f"{record.where}: rate, rates, seed, rate_2 or ring without a codebook")
        return {}
    seed = record.numbers.get("seed")
    numbers: dict[str, Any] = {}
    if "rates" in record.numbers:
        numbers["rates"] = _checked_rates(record)
    else:
        numbers["rate"] = _checked_rate(record, "rate", "codebook")
    if "ring" in record.numbers:
        numbers["ring"] = _checked_ring(record)
    if "codebook_2" in record.nbytes:
        numbers["rate_2"] = _checked_rate(record, "rate_2", "codebook_2")
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise HeaderError(f"{record.where}: seed must lie in 0..2^64 - 1")
    if "rate_2" in record.numbers and "rate_2" not in numbers:
        raise HeaderError(f"{record.where}: rate_2 without codebook_2")
    if "centroids" in record.nbytes:
        record.palette_size("centroids", 2 * record.n_cols, f"rows of {record.n_cols} columns")
    return numbers | {"seed": seed}


def check_codes(record: RecordCheck, group: RecordCheck) -> None:
    """Check the sizes of a tensor's gains, codes and classes by the rates of its group, or raise `HeaderError`."""
    _check_classes(record, group)
    where, kinds = record.where, record.nbytes
    for suffix in ("", "_2"):
        if suffix == "" and "rates" in group.numbers:
            record.size("slot_v", 2 * record.n_rows)
            continue
        if f"rate{suffix}" not in group.numbers:
            if {"slot_t_2", "slot_v_2"} & set(kinds):
                raise HeaderError(f"{where}: a second level without the group's codebook_2")
            continue
        if not {f"slot_t{suffix}", f"slot_v{suffix}"} <= set(kinds):
            raise HeaderError(f"{where}: its group has codebook_2, so it needs slot_v_2 and slot_t_2")
        n_bits = state_bits(group.nbytes[f"codebook{suffix}"])
        assert n_bits is not None
        rate = int(str(group.numbers[f"rate{suffix}"]))
        is_ring = "ring" in group.numbers
        record.size(f"slot_t{suffix}", record.n_rows * _row_nbytes(record.n_cols, rate, n_bits, is_ring))
        record.size(f"slot_v{suffix}", 2 * record.n_rows)


def _checked_rate(record: RecordCheck, number: str, codebook: str) -> int:
    rate, nbytes = record.numbers.get(number), record.nbytes[codebook]
    if type(rate) is not int or not MIN_RATE <= rate <= MAX_RATE:
        raise HeaderError(f"{record.where}: {number} must be {MIN_RATE}..{MAX_RATE} sixteenths of a bit, got {rate!r}")
    if state_bits(nbytes) is None:
        raise HeaderError(f"{record.where}: a codebook has 72 bytes, or 256, 1024 or 4096 levels, got {nbytes} bytes")
    return rate


def _checked_rates(record: RecordCheck) -> tuple[int, ...]:
    """Return the rates of a group's classes, or raise `HeaderError`."""
    rates, nbytes = record.numbers["rates"], record.nbytes["codebook"]
    if "rate" in record.numbers or "codebook_2" in record.nbytes:
        raise HeaderError(f"{record.where}: rates of classes come with neither one rate nor a second level")
    if not isinstance(rates, list | tuple) or not 2 <= len(rates) <= slots.MAX_CLASSES:
        raise HeaderError(f"{record.where}: rates must be those of 2 to {slots.MAX_CLASSES} classes, got {rates!r:.80}")
    if any(type(rate) is not int or not MIN_RATE <= rate <= MAX_RATE for rate in rates):
        raise HeaderError(
            f"{record.where}: rates must be {MIN_RATE}..{MAX_RATE} sixteenths of a bit, got {rates!r:.80}"
        )
    if nbytes % len(rates) or state_bits(nbytes // len(rates)) is None:
        raise HeaderError(
            f"{record.where}: {len(rates)} codebooks of 72 bytes, or of 256, 1024 or 4096 levels, do not take "
            f"{nbytes} bytes"
        )
    return tuple(rates)


def _check_classes(record: RecordCheck, group: RecordCheck) -> None:
    """Check a tensor's classes of rows against those of its group, or raise `HeaderError`."""
    where, rates, class_rows = record.where, group.numbers.get("rates"), record.numbers.get("class_rows")
    if (rates is not None) != ("row_class" in record.nbytes) or (rates is not None) != (class_rows is not None):
        raise HeaderError(f"{where}: row_class, class_rows and the group's rates come together")
    if rates is None:
        return
    assert isinstance(rates, tuple)
    if not isinstance(class_rows, list) or len(class_rows) != len(rates):
        raise HeaderError(f"{where}: class_rows must count the rows of {len(rates)} classes, got {class_rows!r:.80}")
    if any(type(count) is not int or count < 0 for count in class_rows) or sum(class_rows) != record.n_rows:
        raise HeaderError(f"{where}: class_rows must count {record.n_rows} rows in all, got {class_rows!r:.80}")
    record.size("row_class", record.n_rows)
    n_bits = state_bits(group.nbytes["codebook"] // len(rates))
    assert n_bits is not None
    widths = [_row_nbytes(record.n_cols, rate, n_bits) for rate in rates]
    record.size("slot_t", slots.class_starts(class_rows, widths)[-1])


def _checked_ring(record: RecordCheck) -> bool:
    """Return that rows close to rings, or raise `HeaderError`."""
    rate = record.numbers.get("rate")
    if record.numbers["ring"] is not True or "codebook_2" in record.nbytes or type(rate) is not int:
        raise HeaderError(f"{record.where}: ring must be true, of a group of one rate and one level")
    if record.n_cols * rate % 16 or record.n_cols * rate < 16 * 16:
        raise HeaderError(
            f"{record.where}: rings take whole bits, 16 at least, and {record.n_cols} weights of {rate} sixteenths do "
            f"not"
        )
    return True


def _row_nbytes(n_cols: int, rate: int, n_bits: int, is_ring: bool = False) -> int:
    """Return the bytes of a row's codes, of any numbers that a table may hold."""
    if is_ring:
        return (n_cols * rate // 16 + 7) // 8
    return ((n_cols - 1) * rate // 16 + n_bits + 7) // 8
