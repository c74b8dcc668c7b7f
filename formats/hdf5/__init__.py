"""HDF5 files that show the inside of a pack to any HDF5 viewer. SPEC.md beside this file is the layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hhtld.errors import BadMagicError
from hhtld.formats.base import Format
from hhtld.sources.contract import TensorSource
from hhtld.storage.file_reading import Location

__all__ = ["Hdf5Format"]

MAGIC = b"\x89HDF\r\n\x1a\n"


class Hdf5Format(Format):
    """A debug export: tables, slots and sampled rows of a pack as plots. Export only."""

    name = "hdf5"
    suffixes = (".h5", ".hdf5")
    description = "debug export of a pack for HDF5 viewers; written, never read back"
    reads = False
    options = frozenset({"original", "tensors", "rows", "max_nbytes", "codes", "executor", "progress"})

    def sniff(self, path: Location, head: bytes) -> bool:
        """Whether the magic bytes or the suffix say so."""
        return head.startswith(MAGIC) or super().sniff(path, head)

    def open_source(self, path: Path) -> TensorSource:
        """Refuse, with the reason."""
        raise BadMagicError(
            f"{path}: HDF5 files are not read: hhtld writes them for people to look at, with sampled rows and "
            f"without what decoding needs; use the .hhtld file that this one was exported from"
        )

    def write_source(self, source: TensorSource, path: Path, **options: Any) -> list[str]:
        """Export a pack; see `hhtld.formats.hdf5.export.export_pack` for the options."""
        from hhtld.formats.hdf5.export import export_pack
        from hhtld.pack.source import PackSource

        if not isinstance(source, PackSource):
            raise TypeError("an HDF5 export shows the inside of a .hhtld file; convert the source to .hhtld first")
        return export_pack(source.pack, path, **options)
