"""Every bad file that the tests of the readers know by name, and what reading one costs."""

from __future__ import annotations

import gc
import time
import tracemalloc
import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from hhtld.errors import FormatError
from hhtld.formats import open_source
from hhtld.pack.container import ContainerReader
from hhtld.pack.source import PackSource
from tests.formats import test_hhtld, test_hhtld_slot_t, test_safetensors


@dataclass(frozen=True)
class BadFile:
    """A file that must be refused.

    Attributes
    ----------
    format : str
        Whose suffix it wears.
    case : str
        The rule it breaks.
    data : bytes
    """

    format: str
    case: str
    data: bytes

    def written(self, folder: Path) -> Path:
        """Return the file, written in a folder of its own, with what it may speak of beside it."""
        folder.mkdir(exist_ok=True)
        path = folder / f"bad.{self.format}"
        path.write_bytes(self.data)
        if self.format == "onnx":
            (folder / "w.bin").write_bytes(bytes(64))
            (folder / "folder").mkdir(exist_ok=True)
        return path


@dataclass(frozen=True)
class Refusal:
    """How a file was refused.

    Attributes
    ----------
    error : FormatError
    seconds : float
    peak_nbytes : int
        The most that was allocated at once, beyond what was held before.
    """

    error: FormatError
    seconds: float
    peak_nbytes: int


@cache
def bad_files() -> list[BadFile]:
    """Return every bad file; those of formats whose package is not installed are left out."""
    found = [BadFile("safetensors", case, data) for case, (data, _, _) in test_safetensors.MALFORMED.items()]
    for case, (change, _, _) in test_hhtld.MALFORMED.items():
        draft = test_hhtld.Draft()
        change(draft)
        found.append(BadFile("hhtld", case, draft.build()))
    for case, (change, _, _) in test_hhtld_slot_t.MALFORMED.items():
        draft = test_hhtld.Draft()
        test_hhtld_slot_t.slot_t(draft)
        change(draft)
        found.append(BadFile("hhtld", f"Slot T: {case}", draft.build()))
    if find_spec("onnx") is not None:
        from tests.formats import test_onnx

        found += [BadFile("onnx", case, data) for case, (data, _, _) in test_onnx.MALFORMED.items()]
    if find_spec("gguf") is None:  # what begins as a GGUF file would ask for the package
        return [bad for bad in found if not bad.data.startswith(b"GGUF")]
    from tests.formats import test_gguf

    return found + [BadFile("gguf", case, data) for case, (data, _, _) in test_gguf.MALFORMED.items()]


def consumed(path: Path) -> None:
    """Read everything that a file holds, through the door for any format."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*unknown kind")
        with open_source(path) as source:
            if isinstance(source, PackSource) and isinstance(source.pack.sections, ContainerReader):
                source.pack.sections.verify()
            for name in source.infos():
                source.read_tensor(name)


def refusal(path: Path) -> Refusal | None:
    """Return how a file was refused, or None if everything in it could be read."""
    gc.collect(0)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        consumed(path)
    except FormatError as error:
        return Refusal(error, time.perf_counter() - started, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    return None
