"""The trellis codec: what centroid and Slot L leave over, rotated and trellis-coded.

``w = centroid[twig] + L.B + (gain * R^T level)``, divided by the column scale if there is one. Every part
but gain and codes is optional and decided for the group by the energy that it was measured to take out
(`hhtld.codecs.rate_control`).

Layout
------
Of a tensor: slot_v, u16 a row, bfloat16 gain; slot_t, `Trellis.row_nbytes(n_cols)` bytes of codes a row; twigs, u8 a
row into the group's centroids; slot_l, 8 int8 a row on the group's basis; column_scale, n_cols bfloat16; slot_v_2 and
slot_t_2, a second level, which codes what the first leaves of the rotated row: a reader may stop before it. Of a
group: codebooks, centroids (k * n_cols bfloat16), basis, and in its record rates and the rotation's seed.
If rows have rates of their own, row_class, u8 a row, is their class; codes then lie by class, each class at its own
width (`hhtld.slots.class_layout`), and the group holds a codebook for every class.

Rounding
--------
Encoding: y = row * scale (float32); residual = y - entry - leaf, the entry and leaf exactly as decoding gives them;
rotated, coded. Decoding: level * gain (float32, one rounding), rotated back, plus entry-and-leaf (one addition),
divided by scale. What passes float32's range on its way is inf or nan, as IEEE 754 has it; no row that was
encoded does, but a file may be made to.

Edge cases
----------
Any width from one column on; rows of zeros decode to zeros: groups that hold some have a centroid
of zeros if they have centroids.

Source
------
Slot T of this project; the slots upon the HHTL-D design published in AdaWorldAPI/lance-graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hhtld import _kernels, slots
from hhtld.codecs.base import (
    BLOCKS_BY_ROW,
    Codec,
    Coder,
    EncodedTensor,
    GroupCode,
    GroupEstimate,
    GroupRequest,
    Layout,
    Profile,
    ReadPart,
    RecordCheck,
    RowIndex,
    SearchTerms,
    check_budget,
    read_basis,
    read_leaf,
    selected_rows,
)
from hhtld.codecs.section_kinds import TRELLIS
from hhtld.dtypes import bf16_values
from hhtld.errors import HeaderError, RangeError
from hhtld.gates import PARITY_THRESHOLD, THRESHOLDS, Threshold
from hhtld.identity import (
    CODEBOOK_BITS,
    MAX_RATE,
    MIN_RATE,
    SLOT_L_LANES,
    PaletteGroupKey,
    state_bits,
)
from hhtld.matrix import is_vector
from hhtld.registry import later

if TYPE_CHECKING:
    from hhtld.codecs.tensor_view import TensorView
    from hhtld.slots.moments import Moments
    from hhtld.slots.shared_parts import TrellisShared
    from hhtld.sources.rows import Rows
else:
    TensorView = later("hhtld.codecs.tensor_view:TensorView")
    TrellisShared = later("hhtld.slots.shared_parts:TrellisShared")
    Rows = later("hhtld.sources.rows:Rows")

__all__ = [
    "HhtlTTensor",
    "TensorCode",
    "TrellisCodec",
    "TrellisGroup",
]

_U16 = np.dtype("<u2")
_LANES = 32  # rows that the trellis search takes at once


class TrellisCodec(Codec):
    """Slot T at a rate of 1 to 6 bits a weight, with centroids, Slot L and a second level if they pay."""

    id: ClassVar[str] = TRELLIS
    word: ClassVar[str] = "trellis"
    summary: ClassVar[str] = "gain and trellis codes (Slots V and T)"
    profiles: ClassVar[tuple[str, ...]] = ("gates", "parity", "bits")
    required: ClassVar[frozenset[str]] = frozenset({"slot_v", "slot_t"})
    optional: ClassVar[frozenset[str]] = frozenset(
        {"slot_l", "twigs", "column_scale", "slot_v_2", "slot_t_2", "row_class"}
    )
    chooses_rates: ClassVar[bool] = True

    def profile(self, text: str) -> Profile | None:
        kind, colon, bits = text.partition(":")
        if (kind == "bits") != bool(colon):
            return None
        if kind in ("gates", "parity"):
            return Profile(text, self, judged=True)
        first, _, second = bits.partition("+")
        rate, rate_2 = _sixteenths(first), _sixteenths(second)
        if rate is None or (rate_2 is None and "+" in bits):
            raise ValueError(f"bits:B and bits:B+C need 1 to 6 bits in steps of 1/16, got {bits!r}")
        return Profile(text, self, rate, rate_2)

    def thresholds(self, profile: Profile) -> Mapping[str, Threshold]:
        return dict.fromkeys(THRESHOLDS, PARITY_THRESHOLD) if profile.text == "parity" else THRESHOLDS

    # ---- records in a file ----

    def check_group(self, record: RecordCheck) -> dict[str, Any]:
        return _group_numbers(record)

    def check_tensor(self, record: RecordCheck, group: RecordCheck) -> None:
        where, kinds = record.where, record.nbytes
        if not {"rate", "rates"} & set(group.numbers):
            raise HeaderError(f"{where}: its group has no codebook")
        if record.n_rows == 0:
            raise HeaderError(f"{where}: a tensor without rows cannot have been encoded")
        _check_codes(record, group)
        if ("twigs" in kinds) != ("centroids" in group.nbytes):
            raise HeaderError(f"{where}: twigs and the group's centroids come together")
        if ("slot_l" in kinds) != ("basis" in group.nbytes):
            raise HeaderError(f"{where}: slot_l and the group's basis come together")
        if "twigs" in kinds:
            record.size("twigs", record.n_rows)
        if "column_scale" in kinds:
            record.size("column_scale", 2 * record.n_cols)

    # ---- what is encoded ----

    def takes(self, shape: Sequence[int], nbytes: int) -> bool:
        return not is_vector(shape)

    def find(self, request: GroupRequest) -> tuple[Callable[..., GroupCode | None], tuple[Any, ...]]:
        return _decided, (request,)

    def read_group(self, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, Any]) -> TrellisGroup:
        return TrellisGroup.read(key, sections, numbers)

    # ---- memory ----

    def block_rows(self, n_cols: int) -> int:
        rows = super().block_rows(n_cols)
        if slots.search_cols(n_cols) < n_cols:
            return rows
        # The trellis search takes 32 rows side by side, and as long for fewer; of wide rows, as many pieces of one.
        return max(1, rows // _LANES) * _LANES

    def row_result_nbytes(self, n_cols: int) -> int:
        return 3 * n_cols // 2 + 64  # two levels of 6 bits

    def scratch_nbytes(self, profile: Profile, n_cols: int) -> int:
        # 8 KiB a column are the way back of 32 rows through 4096 states, 128 bytes a state what their costs take.
        return 8800 * slots.search_cols(n_cols) + (128 << CODEBOOK_BITS) + n_cols

    def finding_nbytes(self, key: PaletteGroupKey, n_tensors: int) -> int:
        from hhtld.codecs.rate_control import decide_nbytes  # which decoding does not need

        return decide_nbytes(key.shape[0] * n_tensors, key.shape[1])

    def estimate(self, request: GroupRequest, n_weights: int) -> GroupEstimate | None:
        from hhtld.codecs.rate_control import estimate_group

        return estimate_group(request, n_weights, partial(HhtlTTensor.encode, ""))


def _sixteenths(text: str) -> int | None:
    """Bits as sixteenths, or None if they are no rate."""
    try:
        rate = float(text) * 16
    except ValueError:
        return None
    return int(rate) if MIN_RATE <= rate <= MAX_RATE and rate == int(rate) else None


def _group_numbers(record: RecordCheck) -> dict[str, Any]:
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


def _check_codes(record: RecordCheck, group: RecordCheck) -> None:
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


def _decided(request: GroupRequest) -> TrellisGroup | None:
    """Return a group's code at the predicted rate, or None if no rate passes on its sample."""
    from hhtld.codecs.rate_control import closes_rows, decide_group

    profile, classes = request.profile, []
    rate = profile.rate
    if profile.by_row:
        classes = slots.class_rates(request.row_rates)
        rate = classes[0] if len(classes) == 1 else slots.mean_rate(request.row_rates)
    scaled = [
        rows if scale is None else slots.ScaledRows(rows, scale)
        for rows, scale in zip(request.rows, request.column_scales, strict=True)
    ]
    encode = partial(HhtlTTensor.encode, "")
    shared, prediction = decide_group(
        scaled, rate, request.threshold, request.seed, encode, request.dtype, closes_rows(request)
    )
    if prediction is None:
        return None
    second = None if profile.rate_2 is None else slots.Trellis.trained(profile.rate_2)
    trellis = slots.Trellis.trained(prediction.rate, shared.trellis.is_ring)
    if len(classes) > 1:
        trellises = tuple(map(slots.Trellis.trained, classes))
        n_of_class = sum(
            np.bincount(slots.classes_of_rows(rates, classes), minlength=len(classes)) for rates in request.row_rates
        )
        shared = replace(shared, trellis=trellises[0], classes=trellises)
        return TrellisGroup(request.key, shared, tuple(np.asarray(n_of_class).tolist()))
    return TrellisGroup(request.key, replace(shared, trellis=trellis, second=second))


class TensorCode(NamedTuple):
    """What a tensor of Slot T has of its own: what is known of its columns, and the classes of its rows.

    Attributes
    ----------
    scale : ndarray of uint16, shape (n_cols,), or None
        bfloat16 bits.
    feedback : ndarray of float32, shape (n_cols, n_cols), or None
        See `hhtld.slots.feedback`; the decoder needs nothing of it.
    codes : slots.ByClass or None
        Where the codes of its rows lie if they have classes.
    """

    scale: NDArray[np.uint16] | None = None
    feedback: NDArray[np.float32] | None = None
    codes: slots.ByClass | None = None


@dataclass(eq=False)
class HhtlTTensor(EncodedTensor):
    """A trellis-coded tensor.

    Attributes
    ----------
    role : str
    shared : TrellisShared
    slot_v : ndarray of uint16, shape (n_rows,)
        Gains as bfloat16 bits.
    slot_t : ndarray of uint8, shape (n_rows, row_nbytes)
        Flat, class after class, if rows have classes.
    original_shape : (n_rows, n_cols)
    twigs : ndarray of uint8, shape (n_rows,), or None
    slot_l : ndarray of int8, shape (n_rows, 8), or None
    slot_l_scale : float or None
    column_scale : ndarray of uint16, shape (n_cols,), or None
        bfloat16 bits; what is coded is the weights times it.
    slot_v_2, slot_t_2 : as slot_v and slot_t, or None
        The second level.
    budget : int or None
        Bytes that decoding rows may take; a pack gives its own.
    row_class : ndarray of uint8, shape (n_rows,), or None
        The class of every row.
    """

    role: str
    shared: TrellisShared
    slot_v: NDArray[np.uint16]
    slot_t: NDArray[np.uint8]
    original_shape: tuple[int, int]
    twigs: NDArray[np.uint8] | None = None
    slot_l: NDArray[np.int8] | None = None
    slot_l_scale: float | None = None
    column_scale: NDArray[np.uint16] | None = None
    slot_v_2: NDArray[np.uint16] | None = None
    slot_t_2: NDArray[np.uint8] | None = None
    budget: int | None = None
    row_class: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        trellises = self.shared.classes or (self.shared.trellis,)
        self._codes = slots.LevelCodes(trellises, self.original_shape[1], self.slot_t, self.row_class)  # of level 1
        _check_first_level(self)
        _check_optional(self)
        _check_numbers(self)

    def __repr__(self) -> str:
        leaf = "" if self.slot_l is None else ", Slot L"
        rates = [trellis.rate / 16 for trellis in self.shared.classes] or [self.shared.trellis.rate / 16]
        bits = f"{rates[0]:g}" if len(rates) == 1 else f"{min(rates):g} to {max(rates):g}"
        return f"<HhtlTTensor {list(self.original_shape)}, {bits} bits{leaf}>"

    @cached_property
    def _scale(self) -> NDArray[np.float32]:
        assert self.column_scale is not None
        return bf16_values(self.column_scale)

    @classmethod
    def encode(
        cls,
        role: str,
        rows: Rows,
        shared: TrellisShared,
        column_scale: NDArray[np.uint16] | None = None,
        executor: Executor | None = None,
        row_class: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Encode finite rows (n_rows, n_cols) with what their group shares.

        Raises
        ------
        RangeError
            If a row passes float32's range on its way: weights near 1e38.
        """
        from hhtld.sources.rows import map_rows  # decoding reads no source

        scale: float | None = None
        if shared.basis is not None:
            peaks = [peak for _, _, peak in map_rows(_peak, rows, executor, shared, column_scale)]
            scale = slots.leaf_scale(float(np.max(peaks, initial=0)))
        arguments = (role, shared, column_scale, scale, row_class)
        coded = {start: block for start, _, block in map_rows(_coded, rows, executor, cls, *arguments)}
        blocks = [coded[start] for start in sorted(coded)]
        return cls.joined(blocks) if blocks else cls.encode_block(role, rows.read(0, 0), shared, column_scale, scale)

    @classmethod
    def encode_block(
        cls,
        role: str,
        block: NDArray[np.float32],
        shared: TrellisShared,
        column_scale: NDArray[np.uint16] | None = None,
        slot_l_scale: float | None = None,
        first: int = 0,
        feedback: NDArray[np.float32] | None = None,
        row_class: NDArray[np.uint8] | None = None,
    ) -> Self:
        """Encode a block of a tensor's rows, whose Slot L scale is known; `first` is its first row, for errors.

        `feedback`: see `hhtld.slots.feedback`; of the first level only. `row_class` is the class of each of these rows.
        """
        n_rows, n_cols = block.shape
        scaled = slots.scaled_rows(block, column_scale, first)
        twigs, slot_l = shared.assign(scaled), None
        if shared.basis is not None and slot_l_scale is not None:
            slot_l = slots.quantized_leaf(
                slots.leaf_coefficients(scaled, shared.centroids, twigs, shared.basis), slot_l_scale
            )
        residual = scaled - slots.shared_rows(shared, twigs, slot_l, slot_l_scale)
        shared.rotation.rotate(residual)
        bad = _kernels._cast.first_nonfinite_f32(residual.reshape(-1))
        if bad >= 0:
            raise RangeError(f"row {first + bad // n_cols} passes float32's range when it is rotated")
        slot_t, gains = slots.encode_level(shared.classes or (shared.trellis,), residual, feedback, row_class)
        slot_v = slots.gain_bits(gains)
        slot_v_2, slot_t_2 = None, None
        if shared.second is not None:
            residual -= shared.trellis.decode(slot_t, slots.gain_values(slot_v), n_cols)
            slot_t_2, gains = shared.second.encode(residual)
            slot_v_2 = slots.gain_bits(gains)
        stored_twigs = twigs if shared.centroid_bits is not None else None
        return cls(
            role,
            shared,
            slot_v,
            slot_t,
            (n_rows, n_cols),
            stored_twigs,
            slot_l,
            slot_l_scale,
            column_scale,
            slot_v_2,
            slot_t_2,
            row_class=row_class,
        )

    @classmethod
    def joined(cls, blocks: Sequence[Self]) -> Self:
        """Return blocks of one tensor, in the order of their rows, as one."""
        if len(blocks) == 1:
            return blocks[0]
        first = blocks[0]
        parts: dict[str, Any] = {
            kind: array if kind == "column_scale" else np.concatenate([block.parts()[kind] for block in blocks])
            for kind, array in first.parts().items()
        }
        if first.row_class is not None:
            ends = np.cumsum([len(block.slot_v) for block in blocks]).tolist()
            coded = [(end - len(block.slot_v), end, block.slot_t) for end, block in zip(ends, blocks, strict=True)]
            parts["slot_t"] = slots.ByClass(parts["row_class"], first.shared.class_widths).joined(coded)
        shape = (sum(block.original_shape[0] for block in blocks), first.original_shape[1])
        return replace(first, original_shape=shape, **parts)

    def reconstruct_rows(
        self, rows: RowIndex = None, levels: int = 2, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Decode the given rows, or all, to float32 (n, n_cols); `levels` of 1 leaves a second level out."""
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}")
        picked = selected_rows(self.original_shape[0], rows)
        check_budget(self.original_shape[0], picked, 4 * self.original_shape[1], 0, self.budget)
        second, rotation = self.shared.second if levels == 2 else None, self.shared.rotation
        slot_v = self.slot_v if rows is None else self.slot_v[picked]
        if second is None and self.slot_l is None and self.column_scale is None:
            coded = self._codes.of_one_code(picked)
            if coded is not None:  # what most packs hold
                number, codes = coded
                twigs = self.twigs if self.twigs is None or rows is None else self.twigs[picked]
                return self.shared.decoders[number].decode(codes, slot_v, twigs, out)
        out = self._codes.decode(picked, slots.gain_values(slot_v), out)
        with np.errstate(over="ignore", invalid="ignore"):
            if second is not None and self.slot_t_2 is not None and self.slot_v_2 is not None:
                codes_2, gains_2 = np.ascontiguousarray(self.slot_t_2[picked]), slots.gain_values(self.slot_v_2[picked])
                out += second.decode(codes_2, gains_2, self.original_shape[1])
            rotation.unrotate(out)
            if self.twigs is not None or self.slot_l is not None:
                twigs = np.zeros(len(out), np.uint8) if self.twigs is None else self.twigs[picked]
                leaf = None if self.slot_l is None else self.slot_l[picked]
                out += slots.shared_rows(self.shared, twigs, leaf, self.slot_l_scale)
            if self.column_scale is not None:
                out /= self._scale
        return out

    def reconstruct_into(self, out: NDArray[np.float32], rows: RowIndex = None) -> None:
        self.reconstruct_rows(rows, out=out)

    def first_level_rows(self, rows: RowIndex = None) -> NDArray[np.float32]:
        return self.reconstruct_rows(rows, 1)

    def reconstruct_row(self, row: int) -> NDArray[np.float32]:
        """Decode one row to float32 (n_cols,)."""
        decoded: NDArray[np.float32] = self.reconstruct_rows([row])[0]
        return decoded

    def parts(self) -> dict[str, NDArray[Any]]:
        """Return the tensor's own arrays by section kind."""
        named: dict[str, NDArray[Any] | None] = {
            "slot_v": self.slot_v,
            "slot_t": self.slot_t,
            "twigs": self.twigs,
            "slot_l": self.slot_l,
            "column_scale": self.column_scale,
            "slot_v_2": self.slot_v_2,
            "slot_t_2": self.slot_t_2,
            "row_class": self.row_class,
        }
        return {kind: array for kind, array in named.items() if array is not None}

    def view(self) -> TensorView:
        from hhtld.codecs.tensor_view import TensorView

        shared, parts = self.shared, self.parts()
        parts["codebook"] = shared.codebook()
        if shared.centroid_bits is not None:
            parts["centroids"] = shared.centroid_bits
        if shared.second is not None:
            parts["codebook_2"] = shared.second.codebook
        if self.slot_l is not None and shared.basis is not None:
            parts["basis"] = shared.basis.bits
        trellises = {"": shared.trellis} if shared.second is None else {"": shared.trellis, "_2": shared.second}
        if shared.classes:
            trellises = {f"_class_{number}": trellis for number, trellis in enumerate(shared.classes)}
        return TensorView.of_parts(
            parts,
            gains={kind: parts[kind] for kind in ("slot_v", "slot_v_2") if kind in parts},
            codes={kind: parts[kind] for kind in ("slot_t", "slot_t_2") if kind in parts},
            trellises=trellises,
            twigs=self.twigs,
            n_entries=None if self.twigs is None else len(shared.centroids),
            centroids=None if shared.centroid_bits is None else shared.centroids,
            column_scale=self.column_scale,
            slot_l=self.slot_l,
            slot_l_scale=self.slot_l_scale,
            basis=shared.basis,
            seed=shared.rotation.seed,
            row_class=self.row_class,
            n_cols=shared.n_cols,
        )

    def search_terms(self, levels: int = 2) -> SearchTerms | None:
        """Return what a search needs; None for rows that are too wide for sums of integers."""
        if self.original_shape[1] > _kernels._score.MAX_COLS:
            return None
        shared, second = self.shared, None
        if shared.second is not None and self.slot_v_2 is not None and self.slot_t_2 is not None:
            second = slots.TrellisLevel(self.slot_v_2, [slots.CodeMatrix(shared.second, self.slot_t_2)])
        coded = [slots.TrellisLevel(self.slot_v, self._codes.matrices)]
        return SearchTerms(
            None if self.twigs is None else shared.centroids,
            self.twigs,
            shared.basis,
            self.slot_l,
            self.slot_l_scale,
            None if self.column_scale is None else self._scale,
            [*coded, second] if second is not None and levels == 2 else coded,
            shared.rotation,
            second if levels == 1 else None,
        )

    def total_byte_size(self) -> int:
        """Bytes of the tensor's own arrays; what the group shares is the group's."""
        return sum(array.nbytes for array in self.parts().values())

    def compression_ratio(self) -> float:
        """Bytes as bfloat16 over `total_byte_size()`."""
        size = self.total_byte_size()
        return 2 * self.original_shape[0] * self.original_shape[1] / size if size else 0.0


def _largest(twigs: NDArray[np.uint8]) -> int:
    return int(twigs[0] if len(twigs) == 1 else twigs.max())  # of one row without numpy's reduction


def _gains(slot_v: NDArray[np.uint8]) -> NDArray[np.uint16]:
    gains = slot_v.view(_U16)
    return gains if gains.flags.aligned else gains.copy()


def _check_first_level(tensor: HhtlTTensor) -> None:
    """Raise ValueError unless the first level's sections have the shapes that rows and classes give them."""
    n_rows = tensor.original_shape[0]
    if (tensor.row_class is None) == bool(tensor.shared.classes):
        raise ValueError("row_class and the group's classes come together or not at all")
    shape: tuple[int, ...] = (n_rows, tensor.shared.row_nbytes)
    if tensor.row_class is not None:
        if tensor.row_class.shape != (n_rows,) or tensor.row_class.max(initial=0) >= len(tensor.shared.classes):
            raise ValueError(f"row_class must be {n_rows} numbers below {len(tensor.shared.classes)}")
        widths = tensor.shared.class_widths
        class_rows = np.bincount(tensor.row_class, minlength=len(widths)).tolist()
        shape = (slots.class_starts(class_rows, widths)[-1],)
    if tensor.slot_t.shape != shape or tensor.slot_v.shape != (n_rows,):
        raise ValueError(f"slot_t must be {shape} and slot_v ({n_rows},), got {tensor.slot_t.shape}")


def _check_optional(tensor: HhtlTTensor) -> None:
    """Raise ValueError unless the sections that groups may have or not are those of this group, in their shapes."""
    n_rows, n_cols = tensor.original_shape
    if n_cols != tensor.shared.n_cols:
        raise ValueError(f"the group's rows have {tensor.shared.n_cols} columns, the tensor's {n_cols}")
    if (tensor.twigs is None) != (tensor.shared.centroid_bits is None):
        raise ValueError("twigs and centroids come together or not at all")
    if tensor.twigs is not None:
        k = len(tensor.shared.centroids)
        if tensor.twigs.shape != (n_rows,) or (n_rows and _largest(tensor.twigs) >= k):
            raise ValueError(f"twigs must be {n_rows} numbers below {k}")
    if not (tensor.slot_l is None) == (tensor.slot_l_scale is None) == (tensor.shared.basis is None):
        raise ValueError("slot_l, slot_l_scale and the group's basis come together or not at all")
    if tensor.slot_l is not None and tensor.slot_l.shape != (n_rows, SLOT_L_LANES):
        raise ValueError(f"slot_l must have shape ({n_rows}, {SLOT_L_LANES}), got {tensor.slot_l.shape}")
    if not (tensor.slot_v_2 is None) == (tensor.slot_t_2 is None) == (tensor.shared.second is None):
        raise ValueError("slot_v_2, slot_t_2 and the group's second code come together or not at all")
    if tensor.slot_v_2 is not None and tensor.slot_t_2 is not None and tensor.shared.second is not None:
        nbytes = tensor.shared.second.row_nbytes(n_cols)
        if tensor.slot_t_2.shape != (n_rows, nbytes) or tensor.slot_v_2.shape != (n_rows,):
            raise ValueError(f"slot_t_2 must be ({n_rows}, {nbytes}), got {tensor.slot_t_2.shape}")


def _check_numbers(tensor: HhtlTTensor) -> None:
    """Raise ValueError unless gains are finite, and column scales too and positive."""
    for gains in (tensor.slot_v, tensor.slot_v_2):
        if gains is not None and _kernels._cast.first_nonfinite_bf16(np.ascontiguousarray(gains)) >= 0:
            raise ValueError("a gain must be finite")
    if tensor.column_scale is not None:
        scale = tensor._scale
        if scale.shape != (tensor.original_shape[1],) or not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"column_scale must be {tensor.original_shape[1]} positive finite numbers")


def _peak(
    block: NDArray[np.float32], start: int, stop: int, shared: TrellisShared, column_scale: NDArray[np.uint16] | None
) -> float:
    return slots.leaf_peak(block, shared, column_scale)


def _coded(
    block: NDArray[np.float32],
    start: int,
    stop: int,
    cls: type[HhtlTTensor],
    role: str,
    shared: TrellisShared,
    column_scale: NDArray[np.uint16] | None,
    scale: float | None,
    row_class: NDArray[np.uint8] | None,
) -> Any:
    classes = None if row_class is None else row_class[start:stop]
    return cls.encode_block(role, block, shared, column_scale, scale, start, row_class=classes)


@dataclass(frozen=True, eq=False)
class _TrellisCoder(Coder):
    role: str
    shared: TrellisShared
    own: TensorCode

    @property
    def n_blocks(self) -> int:  # type: ignore[override]  # a class attribute of those that need one block
        return BLOCKS_BY_ROW if self.shared.classes else 1

    @property
    def has_leaf(self) -> bool:
        return self.shared.basis is not None

    def layout(self) -> Layout:
        shared = self.shared
        codes = self.own.codes
        layout: Layout = {"slot_v": 2, "slot_t": codes or shared.trellis.row_nbytes(shared.n_cols)}
        if shared.centroid_bits is not None:
            layout["twigs"] = 1
        if shared.basis is not None:
            layout["slot_l"] = SLOT_L_LANES
        if self.own.scale is not None:
            layout["column_scale"] = self.own.scale
        if shared.second is not None:
            layout |= {"slot_v_2": 2, "slot_t_2": shared.second.row_nbytes(shared.n_cols)}
        if codes is not None:
            layout["row_class"] = codes.row_class
        return layout

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        return slots.leaf_peak(block, self.shared, self.own.scale)

    def encode(self, block: NDArray[np.float32], start: int, leaf_scale: float | None) -> HhtlTTensor:
        scale, feedback, codes = self.own
        classes = None if codes is None else codes.row_class[start : start + len(block)]
        return HhtlTTensor.encode_block(
            self.role, block, self.shared, scale, leaf_scale, start, feedback, row_class=classes
        )


@dataclass(frozen=True, eq=False)
class TrellisGroup(GroupCode):
    """Slot T: a code, and centroids and a basis if they pay.

    Attributes
    ----------
    shared : TrellisShared
    class_rows : tuple of int
        How many rows of all tensors are of each class, while a group of classes is encoded; else empty.
    """

    shared: TrellisShared
    class_rows: tuple[int, ...] = ()

    @classmethod
    def read(cls, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, Any]) -> Self:
        """Return the code whose sections are given, or raise `ValueError`; it decodes and does not encode."""
        basis, n_cols = read_basis(key, sections), key.shape[1]
        bits = None
        if "centroids" in sections:
            bits = np.require(np.frombuffer(sections["centroids"], "<u2"), requirements="A")
            if (bits & 0x7F80 == 0x7F80).any():
                raise HeaderError(f"group {key}: centroids must be finite")
            bits = bits.reshape(-1, n_cols)
        second = None
        if "rate_2" in numbers:
            second = slots.Trellis.of_codebook(numbers["rate_2"], sections["codebook_2"])
        rates: tuple[int, ...] = tuple(numbers.get("rates", ()))
        codebooks = np.frombuffer(sections["codebook"], np.uint8).reshape(max(1, len(rates)), -1)
        classes = tuple(slots.Trellis.of_codebook(rate, codebooks[c].data) for c, rate in enumerate(rates))
        is_ring = "ring" in numbers
        code = classes[0] if classes else slots.Trellis.of_codebook(numbers["rate"], sections["codebook"], is_ring)
        return cls(
            key, slots.TrellisShared(code, slots.Rotation(n_cols, numbers["seed"]), bits, basis, second, classes)
        )

    def ready(self, profile: Profile) -> Self:
        if self.shared.classes:
            classes = tuple(slots.Trellis.trained(code.rate) for code in self.shared.classes)
            return replace(self, shared=replace(self.shared, trellis=classes[0], classes=classes))
        trained = slots.Trellis.trained(self.rate, self.shared.trellis.is_ring)
        second = None if profile.rate_2 is None else slots.Trellis.trained(profile.rate_2)
        return replace(self, shared=replace(self.shared, trellis=trained, second=second))

    @property
    def rate(self) -> int:
        """Sixteenths of a bit a weight."""
        return self.shared.trellis.rate

    @property
    def numbers(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"rate": self.rate, "seed": self.shared.rotation.seed}
        if self.shared.classes:
            return {"rates": tuple(code.rate for code in self.shared.classes), "seed": numbers["seed"]}
        if self.shared.trellis.is_ring:
            return numbers | {"ring": True}
        return numbers if self.shared.second is None else numbers | {"rate_2": self.shared.second.rate}

    def richer(self) -> Self | None:
        """Return the code one rate up, or None at the top."""
        if self.rate == MAX_RATE:
            return None
        trellis = slots.Trellis.trained(self.rate + 1)
        return replace(self, shared=replace(self.shared, trellis=trellis))

    def nbytes(self, n_tensors: int) -> int:
        own = self.shared.tensor_nbytes(n_tensors * self.key.shape[0], self.class_rows)
        return self.shared.shared_nbytes() + own

    def structure(self) -> dict[str, bytes]:
        return {kind: data for kind, data in self.sections().items() if not kind.startswith("codebook")}

    def sections(self) -> dict[str, bytes]:
        shared = self.shared
        sections = {"codebook": shared.codebook().tobytes()}
        if shared.centroid_bits is not None:
            sections["centroids"] = shared.centroid_bits.tobytes()
        if shared.second is not None:
            sections["codebook_2"] = shared.second.codebook.tobytes()
        return sections if shared.basis is None else sections | {"basis": shared.basis.to_bytes()}

    def coder(self, tensor_code: TensorCode | None) -> Coder:
        return _TrellisCoder(self.role, self.shared, tensor_code or TensorCode())

    def tensor_code(
        self,
        rows: Rows,
        column_scale: NDArray[np.uint16] | None,
        moments: NDArray[np.float32] | Moments | None,
        row_rates: NDArray[np.int32] | None,
        run: Callable[..., Any],
    ) -> TensorCode:
        codes = None
        if self.shared.classes and row_rates is not None:
            rates = [code.rate for code in self.shared.classes]
            codes = slots.ByClass(slots.classes_of_rows(row_rates, rates), self.shared.class_widths)
        if moments is None:
            return TensorCode(column_scale, None, codes)
        scale = np.ones(self.key.shape[1], np.float32) if column_scale is None else bf16_values(column_scale)
        is_head = self.key.regime == "index"
        feedback = run(slots.feedback_matrix, moments, self.shared.rotation, scale, is_head)
        return TensorCode(column_scale, feedback, codes)

    def is_large(self, tensor_code: TensorCode) -> bool:
        return tensor_code.feedback is not None or tensor_code.codes is not None

    def tensor(
        self, part: ReadPart, leaf_scale: float | None, kinds: Mapping[str, int], budget: int | None, levels: int = 2
    ) -> HhtlTTensor:
        n_cols = self.key.shape[1]
        shared = self.shared if levels == 2 or self.shared.second is None else replace(self.shared, second=None)

        row_class, codes = part.by_class("slot_t", shared.class_widths) if shared.classes else (None, None)

        slot_v, second = _gains(part("slot_v", 2)), shared.second
        slot_t = part("slot_t", shared.row_nbytes).reshape(len(slot_v), shared.row_nbytes) if codes is None else codes
        slot_v_2 = slot_t_2 = None
        if second is not None:
            slot_v_2 = _gains(part("slot_v_2", 2))
            width_2 = second.row_nbytes(n_cols)
            slot_t_2 = part("slot_t_2", width_2).reshape(len(slot_v), width_2)
        twigs = part("twigs", 1) if "twigs" in kinds else None
        column_scale = None
        if "column_scale" in kinds:
            column_scale = np.require(part("column_scale", 0).view("<u2"), requirements="A")
        leaf = read_leaf(part, leaf_scale, None)
        return HhtlTTensor(
            self.role,
            shared,
            slot_v,
            slot_t,
            (len(slot_v), n_cols),
            twigs,
            leaf.get("slot_l"),
            leaf.get("slot_l_scale"),
            column_scale,
            slot_v_2,
            slot_t_2,
            budget,
            row_class,
        )
