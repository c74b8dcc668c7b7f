"""The trellis codec: what centroid and Slot L leave over, rotated and trellis-coded.

``w = centroid[twig] + L.B + (gain * R^T level)``, divided by the column scale if there is one. Every part
but gain and codes is optional and decided for the group by the energy that it was measured to take out
(`hhtld.codecs.trellis_rate`).

Layout
------
Of a tensor: slot_v, u16 a row, bfloat16 gain; slot_t, `Trellis.row_nbytes(n_cols)` bytes of codes a row; twigs, u8 a
row into the group's centroids; slot_l, 8 int8 a row on the group's basis; column_scale, n_cols bfloat16; slot_v_2 and
slot_t_2, a second level, which codes what the first leaves of the rotated row: a reader may stop before it. Of a
group: codebooks, centroids (k * n_cols bfloat16), basis, and in its record rates and the rotation's seed.

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
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hhtld._kernels import _cast, _l2, _leaf, _score
from hhtld.codecs.base import (
    Codec,
    Coder,
    EncodedTensor,
    GroupCode,
    GroupRequest,
    Layout,
    Profile,
    ReadPart,
    RecordCheck,
    SearchTerms,
    TrellisLevel,
)
from hhtld.codecs.leaf import read_basis, read_leaf
from hhtld.codecs.rows import RowIndex, check_budget, selected_rows
from hhtld.codecs.section_kinds import TRELLIS
from hhtld.codecs.view import TensorView
from hhtld.dtypes import bf16_values
from hhtld.errors import HeaderError, RangeError
from hhtld.gates import THRESHOLDS, Threshold
from hhtld.identity import (
    MAX_RATE,
    MIN_RATE,
    SLOT_L_LANES,
    STATE_BITS,
    PaletteGroupKey,
)
from hhtld.matrix import is_vector
from hhtld.slots.basis import SvdBasis
from hhtld.slots.entries import leaf_coefficients, leaf_scale, quantized_leaf
from hhtld.slots.feedback import feedback_matrix
from hhtld.slots.rotation import Rotation
from hhtld.slots.trellis import Trellis, gain_bits, gain_values, search_cols
from hhtld.sources.rows import Rows, map_rows

__all__ = [
    "PARITY_STATE_BITS",
    "PARITY_THRESHOLD",
    "ColumnCode",
    "HhtlTTensor",
    "ScaledRows",
    "TrellisCodec",
    "TrellisGroup",
    "TrellisShared",
    "leaf_peak",
    "scaled_rows",
]

# What profile parity asks of every group if no model was run. It promises nothing about the model's answers; see
# docs/decisions/gates-and-answers.md.
PARITY_THRESHOLD = Threshold(0.9997, 0.999)
# More states lose less and take longer to encode: docs/decisions/trellis-states.md.
PARITY_STATE_BITS = 12
_LANES = 32  # rows that the trellis search takes at once


class TrellisCodec(Codec):
    """Slot T at a rate of 1 to 6 bits a weight, with centroids, Slot L and a second level where they pay."""

    id: ClassVar[str] = TRELLIS
    word: ClassVar[str] = "trellis"
    summary: ClassVar[str] = "gain and trellis codes (Slots V and T)"
    profiles: ClassVar[tuple[str, ...]] = ("gates", "parity", "bits")
    required: ClassVar[frozenset[str]] = frozenset({"slot_v", "slot_t"})
    optional: ClassVar[frozenset[str]] = frozenset({"slot_l", "twigs", "column_scale", "slot_v_2", "slot_t_2"})
    chooses_rates: ClassVar[bool] = True

    def profile(self, text: str) -> Profile | None:
        kind, colon, bits = text.partition(":")
        if (kind == "bits") != bool(colon):
            return None
        if kind == "parity":
            return Profile(text, self, state_bits=PARITY_STATE_BITS, judged=True)
        if kind == "gates":
            return Profile(text, self, judged=True)
        first, _, second = bits.partition("+")
        rate, rate_2 = _sixteenths(first), _sixteenths(second)
        if rate is None or (rate_2 is None and "+" in bits):
            raise ValueError(f"bits:B and bits:B+C need 1 to 6 bits in steps of 1/16, got {bits!r}")
        return Profile(text, self, rate, rate_2)

    def thresholds(self, profile: Profile) -> Mapping[str, Threshold]:
        return dict.fromkeys(THRESHOLDS, PARITY_THRESHOLD) if profile.text == "parity" else THRESHOLDS

    # ---- records in a file ----

    def check_group(self, record: RecordCheck) -> dict[str, int]:
        if "codebook" not in record.nbytes:
            if {"centroids", "codebook_2"} & set(record.nbytes):
                raise HeaderError(f"{record.where}: centroids or codebook_2 without a codebook")
            if {"rate", "seed", "rate_2"} & set(record.numbers):
                raise HeaderError(f"{record.where}: rate, seed or rate_2 without a codebook")
            return {}
        seed = record.numbers.get("seed")
        numbers = {"rate": _checked_rate(record, "rate", "codebook")}
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
        if "rate" not in group.numbers:
            raise HeaderError(f"{where}: its group has no codebook")
        if record.n_rows == 0:
            raise HeaderError(f"{where}: a tensor without rows cannot have been encoded")
        for suffix in ("", "_2"):
            if f"rate{suffix}" not in group.numbers:
                if {"slot_t_2", "slot_v_2"} & set(kinds):
                    raise HeaderError(f"{where}: a second level without the group's codebook_2")
                continue
            if not {f"slot_t{suffix}", f"slot_v{suffix}"} <= set(kinds):
                raise HeaderError(f"{where}: its group has codebook_2, so it needs slot_v_2 and slot_t_2")
            n_bits = group.nbytes[f"codebook{suffix}"].bit_length() - 1
            rate = int(str(group.numbers[f"rate{suffix}"]))
            record.size(f"slot_t{suffix}", record.n_rows * (((record.n_cols - 1) * rate // 16 + n_bits + 7) // 8))
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

    def read_group(self, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, int]) -> TrellisGroup:
        return TrellisGroup.read(key, sections, numbers)

    # ---- memory ----

    def block_rows(self, n_cols: int) -> int:
        rows = super().block_rows(n_cols)
        if search_cols(n_cols) < n_cols:
            return rows
        # The trellis search takes 32 rows side by side, and as long for fewer; of wide rows, as many pieces of one.
        return max(1, rows // _LANES) * _LANES

    def row_result_nbytes(self, n_cols: int) -> int:
        return 3 * n_cols // 2 + 64  # two levels of 6 bits

    def scratch_nbytes(self, profile: Profile, n_cols: int) -> int:
        # 2 KiB a column are the way back of 32 rows through 1024 states, 128 bytes a state what their costs take.
        return ((2200 * search_cols(n_cols)) << (profile.state_bits - 10)) + (128 << profile.state_bits) + n_cols

    def finding_nbytes(self, key: PaletteGroupKey, n_tensors: int) -> int:
        from hhtld.codecs.trellis_rate import decide_nbytes

        return decide_nbytes(key.shape[0] * n_tensors, key.shape[1])


def _sixteenths(text: str) -> int | None:
    """Bits as sixteenths, or None if they are no rate."""
    try:
        rate = float(text) * 16
    except ValueError:
        return None
    return int(rate) if MIN_RATE <= rate <= MAX_RATE and rate == int(rate) else None


def _checked_rate(record: RecordCheck, number: str, codebook: str) -> int:
    rate, levels = record.numbers.get(number), record.nbytes[codebook]
    if type(rate) is not int or not MIN_RATE <= rate <= MAX_RATE:
        raise HeaderError(f"{record.where}: {number} must be {MIN_RATE}..{MAX_RATE} sixteenths of a bit, got {rate!r}")
    if levels not in {1 << n_bits for n_bits in STATE_BITS}:
        raise HeaderError(f"{record.where}: a codebook has 256, 1024 or 4096 levels, got {levels}")
    return rate


def _decided(request: GroupRequest) -> TrellisGroup | None:
    """Return a group's code at the predicted rate, or None if no rate passes on its sample."""
    from hhtld.codecs.trellis_rate import decide_group

    profile = request.profile
    scaled = [
        rows if scale is None else ScaledRows(rows, scale)
        for rows, scale in zip(request.rows, request.column_scales, strict=True)
    ]
    shared, prediction = decide_group(
        scaled, profile.rate, request.threshold, request.seed, profile.state_bits, request.dtype
    )
    if prediction is None:
        return None
    second = None if profile.rate_2 is None else Trellis.trained(profile.rate_2, profile.state_bits)
    trellis = Trellis.trained(prediction.rate, profile.state_bits)
    return TrellisGroup(request.key, replace(shared, trellis=trellis, second=second))


class ColumnCode(NamedTuple):
    """What a tensor of Slot T has of its own: what is known of its columns.

    Attributes
    ----------
    scale : ndarray of uint16, shape (n_cols,), or None
        bfloat16 bits.
    feedback : ndarray of float32, shape (n_cols, n_cols), or None
        See `hhtld.slots.feedback`; the decoder needs nothing of it.
    """

    scale: NDArray[np.uint16] | None = None
    feedback: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class _TrellisCoder(Coder):
    role: str
    shared: TrellisShared
    columns: ColumnCode

    @property
    def has_leaf(self) -> bool:
        return self.shared.basis is not None

    def layout(self) -> Layout:
        shared = self.shared
        layout: Layout = {"slot_v": 2, "slot_t": shared.trellis.row_nbytes(shared.n_cols)}
        if shared.centroid_bits is not None:
            layout["twigs"] = 1
        if shared.basis is not None:
            layout["slot_l"] = SLOT_L_LANES
        if self.columns.scale is not None:
            layout["column_scale"] = self.columns.scale
        if shared.second is not None:
            layout |= {"slot_v_2": 2, "slot_t_2": shared.second.row_nbytes(shared.n_cols)}
        return layout

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        return leaf_peak(block, self.shared, self.columns.scale)

    def encode(self, block: NDArray[np.float32], start: int, leaf_scale: float | None) -> HhtlTTensor:
        return HhtlTTensor.encode_block(
            self.role, block, self.shared, self.columns.scale, leaf_scale, start, self.columns.feedback
        )


@dataclass(frozen=True, eq=False)
class TrellisGroup(GroupCode):
    """Slot T: a code, and centroids and a basis where they pay."""

    shared: TrellisShared

    @classmethod
    def read(cls, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, int]) -> Self:
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
            second = Trellis(numbers["rate_2"], np.frombuffer(sections["codebook_2"], np.int8))
        code = Trellis(numbers["rate"], np.frombuffer(sections["codebook"], np.int8))
        return cls(key, TrellisShared(code, Rotation(n_cols, numbers["seed"]), bits, basis, second))

    def ready(self, profile: Profile) -> Self:
        trained = Trellis.trained(self.rate, profile.state_bits)
        second = None if profile.rate_2 is None else Trellis.trained(profile.rate_2, profile.state_bits)
        return replace(self, shared=replace(self.shared, trellis=trained, second=second))

    @property
    def rate(self) -> int:
        """Sixteenths of a bit a weight."""
        return self.shared.trellis.rate

    @property
    def numbers(self) -> dict[str, int]:
        numbers = {"rate": self.rate, "seed": self.shared.rotation.seed}
        return numbers if self.shared.second is None else numbers | {"rate_2": self.shared.second.rate}

    def richer(self) -> Self | None:
        """Return the code one rate up, or None at the top."""
        if self.rate == MAX_RATE:
            return None
        trellis = Trellis.trained(self.rate + 1, self.shared.trellis.n_bits)
        return replace(self, shared=replace(self.shared, trellis=trellis))

    def nbytes(self, n_tensors: int) -> int:
        return self.shared.shared_nbytes() + n_tensors * self.shared.tensor_nbytes(self.key.shape[0])

    def structure(self) -> dict[str, bytes]:
        return {kind: data for kind, data in self.sections().items() if not kind.startswith("codebook")}

    def sections(self) -> dict[str, bytes]:
        shared = self.shared
        sections = {"codebook": shared.trellis.levels.tobytes()}
        if shared.centroid_bits is not None:
            sections["centroids"] = shared.centroid_bits.tobytes()
        if shared.second is not None:
            sections["codebook_2"] = shared.second.levels.tobytes()
        return sections if shared.basis is None else sections | {"basis": shared.basis.to_bytes()}

    def coder(self, tensor_code: ColumnCode | None) -> Coder:
        return _TrellisCoder(self.role, self.shared, tensor_code or ColumnCode())

    def tensor_code(
        self,
        rows: Rows,
        column_scale: NDArray[np.uint16] | None,
        moments: NDArray[np.float32] | None,
        run: Callable[..., Any],
    ) -> ColumnCode:
        if moments is None:
            return ColumnCode(column_scale)
        scale = np.ones(len(moments), np.float32) if column_scale is None else bf16_values(column_scale)
        return ColumnCode(column_scale, run(feedback_matrix, moments, self.shared.rotation, scale))

    def is_large(self, tensor_code: ColumnCode) -> bool:
        return tensor_code.feedback is not None

    def tensor(
        self, part: ReadPart, leaf_scale: float | None, kinds: Mapping[str, int], budget: int | None, levels: int = 2
    ) -> HhtlTTensor:
        n_cols = self.key.shape[1]
        shared = self.shared if levels == 2 or self.shared.second is None else replace(self.shared, second=None)

        def level(trellis: Trellis, suffix: str) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
            gains = part(f"slot_v{suffix}", 2).view("<u2")
            gains = gains if gains.flags.aligned else gains.copy()
            width = trellis.row_nbytes(n_cols)
            return gains, part(f"slot_t{suffix}", width).reshape(len(gains), width)

        slot_v, slot_t = level(shared.trellis, "")
        slot_v_2, slot_t_2 = (None, None) if shared.second is None else level(shared.second, "_2")
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
        )


@dataclass(frozen=True, eq=False)
class TrellisShared:
    """What the tensors of a group share.

    Attributes
    ----------
    trellis : Trellis
    rotation : Rotation
    centroid_bits : ndarray of uint16, shape (k, n_cols), or None
        bfloat16, 1 <= k <= 256.
    basis : SvdBasis or None
    second : Trellis or None
        Of the second level.
    """

    trellis: Trellis
    rotation: Rotation
    centroid_bits: NDArray[np.uint16] | None = None
    basis: SvdBasis | None = None
    second: Trellis | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # not what is computed from them

    @property
    def n_cols(self) -> int:
        """Width of the rows."""
        return self.rotation.n_cols

    @cached_property
    def centroids(self) -> NDArray[np.float32]:
        """The centroids, float32 (k, n_cols); one row of zeros where there are none."""
        if self.centroid_bits is None:
            return np.zeros((1, self.n_cols), np.float32)
        return bf16_values(self.centroid_bits)

    def tensor_nbytes(self, n_rows: int) -> int:
        """Return the bytes of the own sections of a tensor of `n_rows` rows."""
        twig, leaf = self.centroid_bits is not None, 0 if self.basis is None else SLOT_L_LANES
        second = 0 if self.second is None else 2 + self.second.row_nbytes(self.n_cols)
        return n_rows * (2 + self.trellis.row_nbytes(self.n_cols) + twig + leaf + second)

    def shared_nbytes(self) -> int:
        """Return the bytes of what the group shares."""
        centroids = 0 if self.centroid_bits is None else self.centroid_bits.nbytes
        second = 0 if self.second is None else self.second.levels.nbytes
        return self.trellis.levels.nbytes + second + centroids + (0 if self.basis is None else self.basis.byte_size())

    def assign(self, block: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the nearest centroid of every row."""
        twigs = np.zeros(len(block), np.int32)
        if self.centroid_bits is not None:
            _l2.nearest_l2(block, self.centroids, twigs)
        return twigs.astype(np.uint8)


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

    def __post_init__(self) -> None:
        n_rows, n_cols = self.original_shape
        nbytes = self.shared.trellis.row_nbytes(n_cols)
        if self.slot_t.shape != (n_rows, nbytes) or self.slot_v.shape != (n_rows,):
            raise ValueError(f"slot_t must be ({n_rows}, {nbytes}) and slot_v ({n_rows},), got {self.slot_t.shape}")
        if n_cols != self.shared.n_cols:
            raise ValueError(f"the group's rows have {self.shared.n_cols} columns, the tensor's {n_cols}")
        if (self.twigs is None) != (self.shared.centroid_bits is None):
            raise ValueError("twigs and centroids come together or not at all")
        if self.twigs is not None:
            k = len(self.shared.centroids)
            if self.twigs.shape != (n_rows,) or (n_rows and int(self.twigs.max()) >= k):
                raise ValueError(f"twigs must be {n_rows} numbers below {k}")
        if len({self.slot_l is None, self.slot_l_scale is None, self.shared.basis is None}) != 1:
            raise ValueError("slot_l, slot_l_scale and the group's basis come together or not at all")
        if self.slot_l is not None and self.slot_l.shape != (n_rows, SLOT_L_LANES):
            raise ValueError(f"slot_l must have shape ({n_rows}, {SLOT_L_LANES}), got {self.slot_l.shape}")
        if len({self.slot_v_2 is None, self.slot_t_2 is None, self.shared.second is None}) != 1:
            raise ValueError("slot_v_2, slot_t_2 and the group's second code come together or not at all")
        if self.slot_v_2 is not None and self.slot_t_2 is not None and self.shared.second is not None:
            nbytes = self.shared.second.row_nbytes(n_cols)
            if self.slot_t_2.shape != (n_rows, nbytes) or self.slot_v_2.shape != (n_rows,):
                raise ValueError(f"slot_t_2 must be ({n_rows}, {nbytes}), got {self.slot_t_2.shape}")
        for gains in (self.slot_v, self.slot_v_2):
            if gains is not None and (gains & 0x7F80 == 0x7F80).any():
                raise ValueError("a gain must be finite")
        if self.column_scale is not None:
            scale = self._scale
            if scale.shape != (n_cols,) or not (np.isfinite(scale) & (scale > 0)).all():
                raise ValueError(f"column_scale must be {n_cols} positive finite numbers")

    def __repr__(self) -> str:
        leaf = "" if self.slot_l is None else ", Slot L"
        return f"<HhtlTTensor {list(self.original_shape)}, {self.shared.trellis.rate / 16:g} bits{leaf}>"

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
    ) -> Self:
        """Encode finite rows (n_rows, n_cols) with what their group shares.

        Raises
        ------
        RangeError
            When a row passes float32's range on its way: weights near 1e38.
        """
        scale: float | None = None
        if shared.basis is not None:
            found = [peak for _, _, peak in map_rows(_peak, rows, executor, shared, column_scale)]
            scale = leaf_scale(float(np.max(found, initial=0)))
        own = (role, shared, column_scale, scale)
        coded = {start: block for start, _, block in map_rows(_coded, rows, executor, cls, *own)}
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
    ) -> Self:
        """Encode a block of a tensor's rows, whose Slot L scale is known; `first` is its first row, for errors.

        `feedback`: see `hhtld.slots.feedback`; of the first level only.
        """
        n_rows, n_cols = block.shape
        scaled = scaled_rows(block, column_scale)
        twigs, slot_l = shared.assign(scaled), None
        if shared.basis is not None and slot_l_scale is not None:
            slot_l = quantized_leaf(leaf_coefficients(scaled, shared.centroids, twigs, shared.basis), slot_l_scale)
        residual = scaled - _base(shared, twigs, slot_l, slot_l_scale)
        shared.rotation.rotate(residual)
        bad = _cast.first_nonfinite_f32(residual.reshape(-1))
        if bad >= 0:
            raise RangeError(f"row {first + bad // n_cols} passes float32's range when it is rotated")
        slot_t, gains = shared.trellis.encode(residual, feedback)
        slot_v = gain_bits(gains)
        slot_v_2, slot_t_2 = None, None
        if shared.second is not None:
            residual -= shared.trellis.decode(slot_t, gain_values(slot_v), n_cols)
            slot_t_2, gains = shared.second.encode(residual)
            slot_v_2 = gain_bits(gains)
        held = twigs if shared.centroid_bits is not None else None
        return cls(
            role,
            shared,
            slot_v,
            slot_t,
            (n_rows, n_cols),
            held,
            slot_l,
            slot_l_scale,
            column_scale,
            slot_v_2,
            slot_t_2,
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
        shape = (sum(block.original_shape[0] for block in blocks), first.original_shape[1])
        return replace(first, original_shape=shape, **parts)

    def reconstruct_rows(self, rows: RowIndex = None, levels: int = 2) -> NDArray[np.float32]:
        """Decode the given rows, or all, to float32 (n, n_cols); `levels` of 1 leaves a second level out."""
        if levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {levels}")
        picked = selected_rows(self.original_shape[0], rows)
        check_budget(self.original_shape[0], picked, 4 * self.original_shape[1], 0, self.budget)
        codes, gains = np.ascontiguousarray(self.slot_t[picked]), gain_values(self.slot_v[picked])
        out = self.shared.trellis.decode(codes, gains, self.original_shape[1])
        second = self.shared.second
        with np.errstate(over="ignore", invalid="ignore"):
            if levels == 2 and second is not None and self.slot_t_2 is not None and self.slot_v_2 is not None:
                codes_2, gains_2 = np.ascontiguousarray(self.slot_t_2[picked]), gain_values(self.slot_v_2[picked])
                out += second.decode(codes_2, gains_2, self.original_shape[1])
            self.shared.rotation.unrotate(out)
            if self.twigs is not None or self.slot_l is not None:
                twigs = np.zeros(len(codes), np.uint8) if self.twigs is None else self.twigs[picked]
                leaf = None if self.slot_l is None else self.slot_l[picked]
                out += _base(self.shared, twigs, leaf, self.slot_l_scale)
            if self.column_scale is not None:
                out /= self._scale
        return out

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
        }
        return {kind: array for kind, array in named.items() if array is not None}

    def view(self) -> TensorView:
        shared, parts = self.shared, self.parts()
        parts["codebook"] = shared.trellis.levels
        if shared.centroid_bits is not None:
            parts["centroids"] = shared.centroid_bits
        if shared.second is not None:
            parts["codebook_2"] = shared.second.levels
        if self.slot_l is not None and shared.basis is not None:
            parts["basis"] = shared.basis.bits
        trellises = {"": shared.trellis} if shared.second is None else {"": shared.trellis, "_2": shared.second}
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
        )

    def search_terms(self, levels: int = 2) -> SearchTerms | None:
        """Return what a search needs; None for rows that are too wide for sums of integers."""
        if self.original_shape[1] > _score.MAX_COLS:
            return None
        shared, second = self.shared, None
        if shared.second is not None and self.slot_v_2 is not None and self.slot_t_2 is not None:
            second = TrellisLevel(shared.second, self.slot_v_2, self.slot_t_2)
        coded = [TrellisLevel(shared.trellis, self.slot_v, self.slot_t)]
        return SearchTerms(
            None if self.twigs is None else shared.centroids,
            self.twigs,
            shared.basis,
            self.slot_l,
            self.slot_l_scale,
            None if self.column_scale is None else self._scale,
            [*coded, second] if second is not None and levels == 2 else coded,
            shared.rotation.rotate,
            second if levels == 1 else None,
        )

    def total_byte_size(self) -> int:
        """Bytes of the tensor's own arrays; what the group shares is the group's."""
        return sum(array.nbytes for array in self.parts().values())

    def compression_ratio(self) -> float:
        """Bytes as bfloat16 over `total_byte_size()`."""
        size = self.total_byte_size()
        return 2 * self.original_shape[0] * self.original_shape[1] / size if size else 0.0


def scaled_rows(block: NDArray[np.float32], column_scale: NDArray[np.uint16] | None) -> NDArray[np.float32]:
    """Return rows (n, n_cols) times a column scale's bfloat16 bits (n_cols,); the rows themselves without one."""
    if column_scale is None:
        return block
    with np.errstate(over="ignore"):
        return block * bf16_values(column_scale)


class ScaledRows:
    """Rows times a column scale, bfloat16 bits (n_cols,)."""

    def __init__(self, rows: Rows, column_scale: NDArray[np.uint16]) -> None:
        self._rows, self._column_scale = rows, column_scale
        self.n_rows, self.n_cols = rows.n_rows, rows.n_cols

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop), scaled."""
        return scaled_rows(self._rows.read(start, stop), self._column_scale)


def leaf_peak(
    block: NDArray[np.float32], shared: TrellisShared, column_scale: NDArray[np.uint16] | None = None
) -> float:
    """Return the largest magnitude that Slot L must hold for a block of rows."""
    assert shared.basis is not None
    scaled = scaled_rows(block, column_scale)
    found = leaf_coefficients(scaled, shared.centroids, shared.assign(scaled), shared.basis)
    return float(np.abs(found).max(initial=np.float32(0)))


def _peak(
    block: NDArray[np.float32], start: int, stop: int, shared: TrellisShared, column_scale: NDArray[np.uint16] | None
) -> float:
    return leaf_peak(block, shared, column_scale)


def _coded(
    block: NDArray[np.float32],
    start: int,
    stop: int,
    cls: type[HhtlTTensor],
    role: str,
    shared: TrellisShared,
    column_scale: NDArray[np.uint16] | None,
    scale: float | None,
) -> Any:
    return cls.encode_block(role, block, shared, column_scale, scale, start)


def _base(
    shared: TrellisShared,
    twigs: NDArray[np.uint8],
    slot_l: NDArray[np.int8] | None,
    scale: float | None,
) -> NDArray[np.float32]:
    """What centroid and Slot L say of rows, exactly as the decoder computes it."""
    out = np.empty((len(twigs), shared.n_cols), np.float32)
    if slot_l is None or scale is None or shared.basis is None:
        _leaf.reconstruct(shared.centroids, np.ascontiguousarray(twigs), None, 0.0, None, out)
    else:
        codes = np.ascontiguousarray(slot_l)
        _leaf.reconstruct(shared.centroids, np.ascontiguousarray(twigs), codes, scale, shared.basis.vectors, out)
    return out
