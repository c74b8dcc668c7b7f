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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hhtld import slots
from hhtld.codecs.base import (
    BLOCKS_BY_ROW,
    ByClass,
    Codec,
    Coder,
    GroupCode,
    GroupEstimate,
    GroupRequest,
    Layout,
    Profile,
    ReadPart,
    RecordCheck,
    read_basis,
    read_leaf,
)
from hhtld.codecs.section_kinds import TRELLIS
from hhtld.codecs.trellis_tensor import HhtlTTensor, ScaledRows, TrellisShared, leaf_peak
from hhtld.dtypes import bf16_values
from hhtld.errors import HeaderError
from hhtld.gates import THRESHOLDS, Threshold
from hhtld.identity import (
    CODEBOOK_BITS,
    MAX_RATE,
    MIN_RATE,
    SLOT_L_LANES,
    PaletteGroupKey,
    state_bits,
)
from hhtld.matrix import is_vector

if TYPE_CHECKING:
    from hhtld.slots.moments import Moments
    from hhtld.sources.rows import Rows

__all__ = [
    "PARITY_THRESHOLD",
    "TensorCode",
    "TrellisCodec",
    "TrellisGroup",
]

# What profile parity asks of every group if no model was run. It promises nothing about the model's answers; see
# docs/decisions/gates-and-answers.md.
PARITY_THRESHOLD = Threshold(0.9997, 0.999)
_U16 = np.dtype("<u2")
_LANES = 32  # rows that the trellis search takes at once


class TrellisCodec(Codec):
    """Slot T at a rate of 1 to 6 bits a weight, with centroids, Slot L and a second level where they pay."""

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

    def check_tensor(self, record: RecordCheck, group: RecordCheck) -> None:
        where, kinds = record.where, record.nbytes
        if not {"rate", "rates"} & set(group.numbers):
            raise HeaderError(f"{where}: its group has no codebook")
        if record.n_rows == 0:
            raise HeaderError(f"{where}: a tensor without rows cannot have been encoded")
        _check_classes(record, group)
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

        return estimate_group(request, n_weights)


def _sixteenths(text: str) -> int | None:
    """Bits as sixteenths, or None if they are no rate."""
    try:
        rate = float(text) * 16
    except ValueError:
        return None
    return int(rate) if MIN_RATE <= rate <= MAX_RATE and rate == int(rate) else None


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
        rows if scale is None else ScaledRows(rows, scale)
        for rows, scale in zip(request.rows, request.column_scales, strict=True)
    ]
    shared, prediction = decide_group(
        scaled, rate, request.threshold, request.seed, request.dtype, closes_rows(request)
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
    codes : ByClass or None
        Where the codes of its rows lie if they have classes.
    """

    scale: NDArray[np.uint16] | None = None
    feedback: NDArray[np.float32] | None = None
    codes: ByClass | None = None


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
        return leaf_peak(block, self.shared, self.own.scale)

    def encode(self, block: NDArray[np.float32], start: int, leaf_scale: float | None) -> HhtlTTensor:
        scale, feedback, codes = self.own
        classes = None if codes is None else codes.row_class[start : start + len(block)]
        return HhtlTTensor.encode_block(
            self.role, block, self.shared, scale, leaf_scale, start, feedback, row_class=classes
        )


@dataclass(frozen=True, eq=False)
class TrellisGroup(GroupCode):
    """Slot T: a code, and centroids and a basis where they pay.

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
        return cls(key, TrellisShared(code, slots.Rotation(n_cols, numbers["seed"]), bits, basis, second, classes))

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
            codes = ByClass(slots.classes_of_rows(row_rates, rates), self.shared.class_widths)
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

        def level(suffix: str, width: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
            gains = part(f"slot_v{suffix}", 2).view(_U16)
            gains = gains if gains.flags.aligned else gains.copy()
            if codes is not None:
                return gains, codes
            return gains, part(f"slot_t{suffix}", width).reshape(len(gains), width)

        slot_v, slot_t = level("", shared.row_nbytes)
        second = shared.second
        slot_v_2, slot_t_2 = (None, None) if second is None else level("_2", second.row_nbytes(n_cols))
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
