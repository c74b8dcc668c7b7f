"""The keep codec: a tensor's bytes as they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Never

from hhtld.codecs.base import Codec, RecordCheck
from hhtld.identity import PaletteGroupKey

__all__ = ["KEEP", "KeepCodec"]


class KeepCodec(Codec):
    """Norms, biases, integers, and whatever is not to be touched."""

    id: ClassVar[str] = "keep"
    word: ClassVar[str] = "keep"
    summary: ClassVar[str] = "as it came, byte for byte"
    profiles: ClassVar[tuple[str, ...]] = ("keep",)
    required: ClassVar[frozenset[str]] = frozenset({"raw"})

    def check_tensor(self, record: RecordCheck, group: RecordCheck) -> None:
        """Nothing more than the size of its bytes, which the table knows for every type."""

    def takes(self, shape: Sequence[int], nbytes: int) -> bool:
        return False

    def read_group(self, key: PaletteGroupKey, sections: Mapping[str, Any], numbers: Mapping[str, int]) -> Never:
        raise ValueError("tensors that are kept have no group")


KEEP = KeepCodec()
