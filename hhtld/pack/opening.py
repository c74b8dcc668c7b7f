"""Opening a `.hhtld` file: where it lies, its structure checked, and again in another process."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from hhtld.errors import FormatError, HeaderError
from hhtld.pack.container import ContainerReader
from hhtld.pack.pack import DEFAULT_BUDGET, HhtldPack
from hhtld.pack.schema import read_table
from hhtld.storage.locations import locate
from hhtld.storage.urls import Location, Url, open_location

__all__ = ["PACK_NAME", "is_packed_folder", "open_pack"]

PACK_NAME = "model.hhtld"  # in a packed folder


_CONFIG_LIMIT = 10 << 20


def is_packed_folder(path: Location) -> bool:
    """Whether a folder is one that `hhtld convert --to hf` wrote: its config.json says that its weights are packed.

    A pack may also lie in the folder of the model it was made from, which stays that model's.
    """
    try:
        if not path.is_dir() or not (path / PACK_NAME).is_file():
            return False
        from hhtld.sources.model_config import CONFIG, config_object  # which a pack that is one file does not need

        with open_location(path / CONFIG) as file:
            if file.size > _CONFIG_LIMIT:
                return False
            config = config_object(file.read(0, file.size), str(path))
    except (OSError, FormatError):
        return False
    quantized = config.get("quantization_config")
    return isinstance(quantized, dict) and quantized.get("quant_method") == "hhtld"


def open_pack(path: str | os.PathLike[str] | Url, *, mmap: bool = True, budget: int = DEFAULT_BUDGET) -> HhtldPack:
    """Open a `.hhtld` file, its structure checked.

    Parameters
    ----------
    path : str, path or Url
        A local file or a URL (str), which is read by ranges; a packed folder stands for its pack.
    mmap : bool
        Map the file; False reads it positionally, which network mounts and files that others may
        cut short want. Behind a URL it is always read positionally.
    budget : int
        Bytes that decoding one tensor may take.

    Raises
    ------
    FormatError
        For every malformation.
    """
    place = locate(path)
    if is_packed_folder(place):
        place = place / PACK_NAME
    reader = ContainerReader.open(place, mapped=mmap)
    try:
        table = read_table(reader.table, reader)
    except HeaderError as error:
        reader.close()
        raise HeaderError(f"{place}: {error}") from None
    except BaseException:
        reader.close()
        raise
    pack = HhtldPack(table, reader, budget)
    place = place.absolute() if isinstance(place, Path) else place
    pack.reopen = partial(_reopened, place, mmap, budget, reader.fingerprint)
    return pack


def _reopened(path: Location, mmap: bool, budget: int, fingerprint: int) -> HhtldPack:
    """Open a pack that was sent from another process, which must still be the file that it was there."""
    pack = open_pack(path, mmap=mmap, budget=budget)
    assert isinstance(pack.sections, ContainerReader)
    if pack.sections.fingerprint != fingerprint:
        pack.close()
        raise HeaderError(f"{path}: is another file than the one whose pack was sent here; open it again")
    return pack
