"""Opening a `.hhtld` file: where it lies, its structure checked, and again in another process."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hhtld.errors import FormatError, HeaderError
from hhtld.pack.container import ContainerReader
from hhtld.pack.pack import DEFAULT_BUDGET, HhtldPack, check_budget_option
from hhtld.pack.table_checks import read_table
from hhtld.registry import later
from hhtld.storage.file_reading import Location, open_location
from hhtld.storage.locations import locate

if TYPE_CHECKING:
    from hhtld.storage.urls import Url
else:
    Url = later("hhtld.storage.urls:Url")

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


def open_pack(
    path: str | os.PathLike[str] | Url,
    *,
    io: str | None = None,
    io_threads: int | None = None,
    row_cache: int = 0,
    mmap: bool = True,
    budget: int = DEFAULT_BUDGET,
) -> HhtldPack:
    """Open a `.hhtld` file, its structure checked.

    Parameters
    ----------
    path : str, path or Url
        A local file or a URL (str), which is read by ranges; a packed folder stands for its pack.
    io : {"mmap", "pread", "direct"}, optional
        "mmap", the default, maps the file: the system reads a page when a row on it is touched, and keeps it as long as
        it has memory. A device that fails, or a file that is cut in the very moment of a read, then ends the process
        (SIGBUS), as with every mapped file. "pread" reads at positions, many rows at once by threads, and fails with an
        error; network mounts, and files that others may cut short, want it. "direct" does so past the page cache
        (O_DIRECT), so that a table leaves the memory of the machine alone; where the system or its file system has
        no such reads, a warning says so and it reads as "pread". Behind a URL all are positional.
    io_threads : int, optional
        Threads that read many rows at once, and that decode them: at most this many, and at most as many as there are
        processors. By default 1 thread reads a mapped file and 32 read otherwise.
    row_cache : int
        Bytes for packed rows that were read and may be asked for again; 0 keeps none. `HhtldPack.cache_info` counts.
    mmap : bool
        False is io="pread", if `io` is not given.
    budget : int
        Bytes that decoding one tensor may take.

    Raises
    ------
    FormatError
        For every malformation.
    TypeError, ValueError
        For options that cannot be meant, before the file is opened.
    """
    check_budget_option(budget)
    place = locate(path)
    if is_packed_folder(place):
        place = place / PACK_NAME
    options: dict[str, Any] = {
        "io": io or ("mmap" if mmap else "pread"),
        "io_threads": io_threads,
        "row_cache": row_cache,
    }
    reader = ContainerReader.open(place, **options)
    try:
        table = read_table(reader.table, reader)
        pack = HhtldPack(table, reader, budget, io_threads)
    except HeaderError as error:
        reader.close()
        raise HeaderError(f"{place}: {error}") from None
    except BaseException:
        reader.close()
        raise
    place = place.absolute() if isinstance(place, Path) else place
    options["budget"] = budget
    pack.reopen = partial(_reopened, place, options, reader.fingerprint, reader.identity)
    return pack


def _reopened(path: Location, options: dict[str, Any], fingerprint: int, identity: Any) -> HhtldPack:
    """Open a pack that was sent from another process, which must still be the file that it was there."""
    pack = open_pack(path, **options)
    assert isinstance(pack.sections, ContainerReader)
    if pack.sections.fingerprint != fingerprint or pack.sections.was_changed_since(identity):
        pack.close()
        raise HeaderError(f"{path}: is another file than the one whose pack was sent here; open it again")
    return pack
