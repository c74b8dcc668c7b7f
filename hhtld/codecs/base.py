"""What a codec answers; everyone else asks it and never its name.

A codec turns rows of weights into sections of a file and back. `Codec` is what it is before any row is read: its
names, what its records in a file must satisfy, which tensors it takes, how much memory its tasks need. `GroupCode` is
what the tensors of one group share. `Coder` is a group's code for one tensor: it turns any block of rows into
the bytes of the tensor's sections. `EncodedTensor` is those bytes as arrays, which decode, are searched and are shown.

Group codes and coders can be pickled, so that rows are coded in other processes and on other machines.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hhtld import slots
from hhtld.codecs.section_kinds import SectionKind
from hhtld.errors import HeaderError
from hhtld.gates import THRESHOLDS, Threshold
from hhtld.identity import MAX_PALETTE_K, SLOT_L_LANES, PaletteGroupKey, is_encodable, should_use_leaf
from hhtld.sizes import BLOCK_NBYTES

if TYPE_CHECKING:
    from hhtld.codecs.tensor_view import TensorView
    from hhtld.dtypes import DType
    from hhtld.slots.levels import TrellisLevel
    from hhtld.slots.moments import Moments
    from hhtld.slots.palette import HhtlCache
    from hhtld.slots.rotation import Rotation
    from hhtld.slots.slot_l import SvdBasis
    from hhtld.sources.rows import Rows

__all__ = [
    "Codec",
    "Coder",
    "EncodedTensor",
    "GroupCode",
    "GroupEstimate",
    "GroupRequest",
    "Layout",
    "Profile",
    "ReadPart",
    "RecordCheck",
    "RowIndex",
    "SearchTerms",
    "SpecifiedCodec",
    "check_basis",
    "check_budget",
    "read_basis",
    "read_leaf",
    "sample_basis",
    "selected_rows",
]

RowIndex = Sequence[int] | NDArray[Any] | slice | None
Layout = dict[str, "int | slots.ByClass | NDArray[Any]"]
BLOCKS_BY_ROW = 4  # coded at once if rows have classes: few rows of a class would leave lanes of the search empty
SPAN_NBYTES = 8 << 20  # of float32 rows a task: 0.2 s of Slot T, and what a task lost with its machine costs


# ---- sections of a tensor ----


class ReadPart(Protocol):
    """Reads the sections of a tensor: of the rows that are asked for, or of all."""

    def __call__(self, kind: str, width: int) -> NDArray[np.uint8]:
        """Return bytes of a section of `width` bytes a row, uint8 (n * width,); a width of 0 asks for all of it."""

    def by_class(self, kind: str, widths: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the rows' classes, uint8 (n,), and bytes of a section whose rows lie by class, in that order."""


# ---- records in a file ----


@dataclass(frozen=True)
class RecordCheck:
    """The record of a group or a tensor while a file's table is checked.

    Attributes
    ----------
    where : str
        What messages begin with, such as ``group 3``.
    nbytes : mapping of kind to int
        The sizes of the record's sections.
    numbers : mapping of str to object
        What else the record says; nothing of it can be trusted.
    n_rows, n_cols : int
        Of the tensor, or of the group's tensors.
    """

    where: str
    nbytes: Mapping[str, int]
    numbers: Mapping[str, object]
    n_rows: int
    n_cols: int

    def size(self, kind: str, expected: int) -> None:
        """Raise `HeaderError` unless a section is `expected` bytes long."""
        if self.nbytes[kind] != expected:
            raise HeaderError(f"{self.where}: {kind} is {self.nbytes[kind]} bytes long, expected {expected}")

    def palette_size(self, kind: str, row_nbytes: int, what: str) -> int:
        """Return how many rows of `row_nbytes` a section holds, 1 to 256, or raise `HeaderError`."""
        k, rest = divmod(self.nbytes[kind], max(1, row_nbytes))
        if row_nbytes == 0 or rest or not 1 <= k <= MAX_PALETTE_K:
            raise HeaderError(f"{self.where}: {kind} must hold 1..{MAX_PALETTE_K} {what}")
        return k


# ---- what a searcher is told ----


@dataclass(frozen=True)
class SearchTerms:
    """The parts whose sum a row is, for a search that decodes no row.

    ``row = (centroids[twig] + scale * slot_l @ basis + unrotated sum of the levels) / column_scale``. A tensor
    without terms is searched as it decodes.

    Attributes
    ----------
    centroids : ndarray of float32, shape (k, n_cols), or None
    twigs : ndarray of uint8, shape (n_rows,), or None
    basis, slot_l, slot_l_scale : or None
    column_scale : ndarray of float32, shape (n_cols,), or None
    levels : sequence of TrellisLevel
    rotation : Rotation or None
        Of the levels.
    omitted : TrellisLevel or None
        A level that the rows have and the search was asked to leave out.
    routes : HhtlCache or None
        The palette whose entries say which rows need not be looked at.
    """

    centroids: NDArray[np.float32] | None = None
    twigs: NDArray[np.uint8] | None = None
    basis: SvdBasis | None = None
    slot_l: NDArray[np.int8] | None = None
    slot_l_scale: float | None = None
    column_scale: NDArray[np.float32] | None = None
    levels: Sequence[TrellisLevel] = ()
    rotation: Rotation | None = None
    omitted: TrellisLevel | None = None
    routes: HhtlCache | None = None


# ---- rows ----


def selected_rows(n_rows: int, rows: RowIndex) -> NDArray[np.intp] | slice:
    """Return row numbers as an index, negative ones counted from the end, or raise."""
    if rows is None:
        return slice(None)
    if isinstance(rows, slice):
        return rows
    if type(rows) is list and len(rows) == 1 and type(rows[0]) is int and 0 <= rows[0] < n_rows:
        return slice(rows[0], rows[0] + 1)  # what most lookups are, without an array
    if (
        type(rows) is not np.ndarray
        and (masked := sys.modules.get("numpy.ma"))
        and isinstance(rows, masked.MaskedArray)
    ):
        raise TypeError("row numbers are a masked array; fill it first")
    index = np.asarray(rows)
    if index.size == 0:
        return np.zeros(0, np.intp)
    if index.ndim != 1 or index.dtype.kind not in "iu":
        raise TypeError(f"rows must be a flat sequence of integers, got {index.dtype} of shape {index.shape}")
    is_one = index.size == 1
    least, most = (int(index[0]),) * 2 if is_one else (index.min(), index.max())
    if least < -n_rows or most >= n_rows:
        raise IndexError(f"rows must lie in 0..{n_rows - 1}, got {least}..{most}")
    if is_one:  # a slice reads without a copy: one row is what lookups ask for
        row = int(least) % n_rows
        return slice(row, row + 1)
    return index.astype(np.intp) % n_rows


def check_budget(
    n_rows: int, index: NDArray[np.intp] | slice, row_nbytes: int, shared: int, budget: int | None
) -> None:
    """Refuse to decode rows that take more than a budget, `shared` bytes of it for what they have in common.

    Raises
    ------
    HeaderError
        Naming both numbers.
    """
    if budget is None:
        return
    if isinstance(index, slice) and n_rows * row_nbytes + shared <= budget:
        return  # any slice is of these rows
    count = len(range(*index.indices(n_rows))) if isinstance(index, slice) else len(index)
    needed = count * row_nbytes + shared
    if needed > budget:
        raise HeaderError(f"{count} rows take {needed} bytes to decode, the budget is {budget}")


class EncodedTensor(ABC):
    """A tensor, or some of its rows, as the arrays of its sections."""

    original_shape: tuple[int, int]

    @abstractmethod
    def reconstruct_rows(self, rows: RowIndex = None) -> NDArray[np.float32]:
        """Decode the given rows, or all, to float32 (n, n_cols)."""

    def reconstruct_into(self, out: NDArray[np.float32], rows: RowIndex = None) -> None:
        """Decode the given rows, or all, into a C-contiguous array (n, n_cols)."""
        out[:] = self.reconstruct_rows(rows)

    def first_level_rows(self, rows: RowIndex = None) -> NDArray[np.float32]:
        """Decode the same without a second level, if there is one."""
        return self.reconstruct_rows(rows)

    @abstractmethod
    def parts(self) -> dict[str, NDArray[Any]]:
        """Return the tensor's own arrays by section kind."""

    def view(self) -> TensorView:
        """Return the slots taken apart, for people to look at."""
        from hhtld.codecs.tensor_view import TensorView

        return TensorView.of_parts(self.parts())

    def search_terms(self, levels: int = 2) -> SearchTerms | None:
        """Return what a search needs, or None if rows are to be scored as they decode."""
        return None


class Coder(ABC):
    """What codes the rows of one tensor.

    Attributes
    ----------
    n_blocks : int
        How many blocks of rows (`Codec.block_rows`) it is given at once.
    """

    n_blocks = 1

    @property
    def has_leaf(self) -> bool:
        """Whether a first pass over the rows must find Slot L's scale."""
        return False

    @abstractmethod
    def layout(self) -> Layout:
        """Return the tensor's own sections in order: bytes a row, codes that lie by class, or a whole section."""

    def peak(self, block: NDArray[np.float32], start: int) -> float:
        """Return the largest magnitude that Slot L must hold for rows from `start` on."""
        # Only coders that say `has_leaf` are asked.
        raise NotImplementedError(f"{type(self).__name__} has no Slot L")

    @abstractmethod
    def encode(self, block: NDArray[np.float32], start: int, leaf_scale: float | None) -> EncodedTensor:
        """Encode rows (n, n_cols) from number `start` on."""


@dataclass(frozen=True, eq=False)
class GroupCode(ABC):
    """What the tensors of a group share."""

    key: PaletteGroupKey

    @property
    def role(self) -> str:
        """The role of the group's tensors, with their component."""
        return f"{self.key.component}_{self.key.role}"

    @property
    def numbers(self) -> dict[str, Any]:
        """What stands in the group's record beside its sections."""
        return {}

    @abstractmethod
    def sections(self) -> dict[str, bytes]:
        """Return the shared sections in order."""

    def structure(self) -> dict[str, bytes]:
        """Return the shared sections that Slot L's scale depends on."""
        return self.sections()

    @abstractmethod
    def coder(self, tensor_code: Any) -> Coder:
        """Return the coder of a tensor, given what it has of its own (see `tensor_code`)."""

    def tensor_code(
        self,
        rows: Rows,
        column_scale: NDArray[np.uint16] | None,
        moments: NDArray[np.float32] | Moments | None,
        row_rates: NDArray[np.int32] | None,
        run: Callable[..., Any],
    ) -> Any:
        """Return what a tensor has of its own beside the group's code; None for nothing.

        Parameters
        ----------
        rows : Rows
        column_scale : ndarray of uint16, shape (n_cols,), or None
            bfloat16 bits.
        moments : ndarray of float32, shape (n_cols, n_cols), or Moments, or None
            Mean products of the inputs of the tensor's columns.
        row_rates : ndarray of int32, shape (n_rows,), or None
            What its rows ask for; see `hhtld.slots.row_rates`.
        run : callable
            ``run(function, *arguments)`` calls it where there is memory and a processor for it.
        """
        return None

    def recalled_tensor_code(self, whole: Mapping[str, NDArray[np.uint8]]) -> Any:
        """Return the same from the bytes of the sections that a coder's layout gives whole."""
        return None

    def is_large(self, tensor_code: Any) -> bool:
        """Whether what a tensor has of its own is as large as a task's rows, so that tasks should share it."""
        return False

    @abstractmethod
    def tensor(
        self, part: ReadPart, leaf_scale: float | None, kinds: Mapping[str, int], budget: int | None, levels: int = 2
    ) -> EncodedTensor:
        """Return rows of a tensor from its sections.

        Parameters
        ----------
        part : ReadPart
        leaf_scale : float or None
            Slot L's scale, as the tensor's record gives it.
        kinds : mapping of kind to section number
            The sections that the tensor has.
        budget : int or None
            Bytes that decoding may take.
        levels : {2, 1}
            1 leaves out a second level.
        """

    # ---- while a group is encoded ----

    def nbytes(self, n_tensors: int) -> int | None:
        """Return the bytes of all sections of a group of tensors, or None if it is coded whatever they are."""
        return None

    def richer(self) -> GroupCode | None:
        """Return a code that loses less, or None if there is none."""
        return None

    def ready(self, profile: Profile) -> GroupCode:
        """Return this code, as it was read back from sections, ready to encode."""
        return self

    # ---- while a pack is open ----

    @property
    def decoding_nbytes(self) -> int:
        """Bytes that decoding any row takes once for the group."""
        return 0

    @property
    def held_nbytes(self) -> int:
        """Bytes that are kept between calls and can be had again."""
        return 0

    def forget(self) -> None:
        """Let go of what can be had again."""


# ---- the codec ----


@dataclass(frozen=True)
class Profile:
    """What a user asks for: a codec and its settings.

    Attributes
    ----------
    text : str
        "lookup", "f32", "gates", "parity", "keep", "bits:B", or "bits:B+C" for two levels.
    codec : Codec
    rate : int or None
        Sixteenths of a bit, for "bits:B".
    rate_2 : int or None
        Of the second level, for "bits:B+C".
    by_row : bool
        Whether every row asks for a rate of its own.
    judged : bool
        Whether rates are chosen so that rows reach cosines, which a conversion must then reach.
    """

    text: str
    codec: Codec
    rate: int | None = None
    rate_2: int | None = None
    by_row: bool = False
    judged: bool = False

    @property
    def thresholds(self) -> Mapping[str, Threshold]:
        """The cosines that rows of each regime must reach unless others are asked for."""
        return self.codec.thresholds(self)

    def at_rate(self, rate: int) -> Profile:
        """Return this profile at a rate that is given, in sixteenths of a bit."""
        return replace(self, text=f"bits:{rate / 16:g}", rate=rate, judged=False)

    def at_row_rates(self) -> Profile:
        """Return this profile at rates that are given for every row."""
        return replace(self, text="bits by row", by_row=True, judged=False)


@dataclass(frozen=True)
class GroupRequest:
    """What a codec is asked to find for a group.

    Attributes
    ----------
    key : PaletteGroupKey
    rows : sequence of Rows
        Of every tensor of the group, by name.
    profile : Profile
    threshold : Threshold or None
        Cosines that rows must reach, for a codec that chooses rates.
    seed : int
    column_scales : sequence of (ndarray of uint16 (n_cols,) or None)
        bfloat16 bits, a tensor each.
    dtype : DType
        Of the group's first tensor.
    row_rates : sequence of ndarray of int32 (n_rows,)
        What the rows of every tensor ask for, of a profile by row; else empty. See `hhtld.slots.row_rates`.
    is_fed_back : bool
        Whether a tensor's columns have moments, by which errors are fed back.
    """

    key: PaletteGroupKey
    rows: Sequence[Rows]
    profile: Profile
    threshold: Threshold | None
    seed: int
    column_scales: Sequence[NDArray[np.uint16] | None]
    dtype: DType
    row_rates: Sequence[NDArray[np.int32]] = ()
    is_fed_back: bool = False


class GroupEstimate(ABC):
    """What a sample of a group's rows tells of encoding all of them.

    Attributes
    ----------
    median : float
        Of the cosines of the sample's rows.
    """

    median: float

    @abstractmethod
    def nbytes(self, key: PaletteGroupKey, profile: Profile) -> tuple[int, int]:
        """Return about the bytes of a tensor's own sections and of the group's shared ones."""

    @abstractmethod
    def seconds(self, key: PaletteGroupKey, profile: Profile, n_tensors: int) -> float:
        """Return how long one thread takes for the group, about."""

    @abstractmethod
    def like(self, key: PaletteGroupKey, seed: int) -> GroupEstimate:
        """Return the estimate of another group whose rows need the same rate."""


class Codec(ABC):
    """One way to hold the rows of a tensor.

    Attributes
    ----------
    id : str
        What stands in files; permanent.
    word : str
        What people read.
    summary : str
        What a tensor's rows become, in a line.
    profiles : tuple of str
        Words before the colon of the profiles that ask for it.
    required, optional : frozenset of str
        Kinds of a tensor's own sections.
    section_kinds : tuple of SectionKind
        Kinds that this codec brings, beside the built-in ones.
    group_numbers : tuple of str
        Numbers of a group's record that it answers for, beside the built-in ones.
    is_specified : bool
        Whether the bytes are specified: regimes go by names, and what cannot be coded is an error.
    chooses_rates : bool
        Whether rates are chosen so that rows reach cosines.
    reads_whole_tensors : bool
        Whether `tensor_code` reads all rows of a tensor at once.
    """

    id: ClassVar[str]
    word: ClassVar[str]
    summary: ClassVar[str]
    profiles: ClassVar[tuple[str, ...]] = ()
    required: ClassVar[frozenset[str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    section_kinds: ClassVar[tuple[SectionKind, ...]] = ()
    group_numbers: ClassVar[tuple[str, ...]] = ()
    is_specified: ClassVar[bool] = False
    chooses_rates: ClassVar[bool] = False
    reads_whole_tensors: ClassVar[bool] = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codec) and other.id == self.id  # as one that came from another process

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<codec {self.word}>"

    def profile(self, text: str) -> Profile | None:
        """Return the profile that a text of this codec's words means, or None if it means none."""
        return None if ":" in text else Profile(text, self)

    def thresholds(self, profile: Profile) -> Mapping[str, Threshold]:
        """Return the cosines that rows of each regime must reach under a profile unless others are asked for."""
        return THRESHOLDS

    # ---- records in a file ----

    def check_group(self, record: RecordCheck) -> dict[str, Any]:
        """Check what a group's record says of this codec and return its numbers, or raise `HeaderError`."""
        return {}

    @abstractmethod
    def check_tensor(self, record: RecordCheck, group: RecordCheck) -> None:
        """Check a tensor's record against its group's, or raise `HeaderError`."""

    def row_axes(self, rank: int) -> range:
        """Return how many leading axes may count the rows of a tensor of a file."""
        return range(1, rank)

    # ---- what is encoded ----

    def takes(self, shape: Sequence[int], nbytes: int) -> bool:
        """Whether a tensor of weights with rows is encoded."""
        return len(shape) > 1

    def find(self, request: GroupRequest) -> tuple[Callable[..., GroupCode | None], tuple[Any, ...]]:
        """Return the call that finds what a group shares; its result of None means that no rate suffices."""
        # Only codecs that take tensors are asked; the keep codec takes none.
        raise NotImplementedError(f"codec {self.word!r} does not encode")

    @abstractmethod
    def read_group(self, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, Any]) -> GroupCode:
        """Return what a group shares from its sections (buffers by kind) and numbers, or raise `ValueError`."""

    # ---- memory and sizes ----

    def block_rows(self, n_cols: int) -> int:
        """Return how many rows are read and coded together."""
        return max(1, BLOCK_NBYTES // (4 * n_cols))

    def span_rows(self, n_cols: int) -> int:
        """Return how many rows a task codes."""
        block = self.block_rows(n_cols)
        return max(1, SPAN_NBYTES // (4 * n_cols * block)) * block

    def row_result_nbytes(self, n_cols: int) -> int:
        """Return the bytes that coding a row gives at most: slots, cosine, checksum."""
        return 64

    def result_nbytes(self, n_rows: int, n_cols: int) -> int:
        """Return the bytes of what a task of a tensor of `n_rows` rows gives at most."""
        return min(n_rows, self.span_rows(n_cols)) * self.row_result_nbytes(n_cols)

    def scratch_nbytes(self, profile: Profile, n_cols: int) -> int:
        """Return the bytes that coding a block takes beside the block."""
        return 8 * MAX_PALETTE_K * n_cols

    def task_nbytes(self, profile: Profile, n_rows: int, n_cols: int, source_row_nbytes: int) -> int:
        """Return the bytes that a task takes at most, its result included."""
        # A block as it is read and as float32, scaled, less its entry, decoded, and what these turn through.
        n_block = self.block_rows(n_cols) * (BLOCKS_BY_ROW if profile.by_row else 1)
        block = min(n_rows, n_block) * (source_row_nbytes + 8 * 4 * n_cols)
        return block + self.scratch_nbytes(profile, n_cols) + 2 * self.result_nbytes(n_rows, n_cols)

    def finding_nbytes(self, key: PaletteGroupKey, n_tensors: int) -> int:
        """Return the bytes that finding what a group shares takes at most, and a tensor's own code."""
        return key.shape[0] * 64 + 8 * MAX_PALETTE_K * key.shape[1]

    def predicted_nbytes(self, key: PaletteGroupKey) -> tuple[int, int]:
        """Return about the bytes of a tensor's own sections and of a group's shared ones, known without its rows.

        A codec that chooses rates is asked for an `estimate` instead.
        """
        return key.shape[0] * key.shape[1], 0

    def estimate(self, request: GroupRequest, n_weights: int) -> GroupEstimate | None:
        """Return what about `n_weights` weights tell of a group, or None if no rate suffices."""
        # Only codecs that say `chooses_rates` are asked.
        raise NotImplementedError(f"codec {self.word!r} does not choose rates")

    def decoding_nbytes(self, group_nbytes: Mapping[str, int], n_cols: int) -> int:
        """Return the bytes that decoding any row of a tensor takes once, from the sizes of its group's sections."""
        return 0


class SpecifiedCodec(Codec):
    """A codec whose bytes are specified: it takes large matrices, rows along their first axis."""

    is_specified: ClassVar[bool] = True

    def row_axes(self, rank: int) -> range:
        return range(1, 2)

    def takes(self, shape: Sequence[int], nbytes: int) -> bool:
        return is_encodable(shape, nbytes)

    def basis_nbytes(self, key: PaletteGroupKey) -> int:
        """Return the bytes that finding the basis of a group with Slot L takes; 0 for a group without it."""
        n_rows, n_cols = key.shape
        return slots.basis_nbytes(min(n_rows, slots.SAMPLE_ROWS), n_cols) if should_use_leaf(key.role) else 0


def check_basis(record: RecordCheck) -> None:
    """Check the size of a group's basis, which several codecs share, or raise `HeaderError`."""
    nbytes, n_cols = record.nbytes["basis"], record.n_cols
    if nbytes not in {8 + c * (4 + 2 * n_cols) for c in range(1, SLOT_L_LANES + 1)}:
        raise HeaderError(f"{record.where}: basis of {nbytes} bytes does not hold vectors of {n_cols} columns")


def sample_basis(rows: Rows) -> slots.SvdBasis:
    """Build the basis of a group from its first tensor."""
    return slots.SvdBasis.build(rows.read(0, min(rows.n_rows, slots.SAMPLE_ROWS)))


def read_basis(key: PaletteGroupKey, sections: Mapping[str, Any]) -> slots.SvdBasis | None:
    """Return a group's basis from its sections, None if it has none, or raise `ValueError`."""
    if "basis" not in sections:
        return None
    basis = slots.SvdBasis.from_bytes(sections["basis"])
    if basis.n_cols != key.shape[1]:
        raise HeaderError(f"group {key}: the basis has {basis.n_cols} columns")
    return basis


def read_leaf(part: ReadPart, leaf_scale: float | None, basis: slots.SvdBasis | None) -> dict[str, Any]:
    """Return the arguments of a tensor that say its Slot L; none without a scale."""
    if leaf_scale is None:
        return {}
    codes = part("slot_l", SLOT_L_LANES).view(np.int8).reshape(-1, SLOT_L_LANES)
    return {"slot_l": codes, "slot_l_scale": leaf_scale, "svd_basis": basis}
