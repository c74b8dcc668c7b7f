"""The `.hhtld` format: packs in files."""

from __future__ import annotations

import json
from concurrent.futures import Executor
from pathlib import Path

from hhtld.atomic import replacing
from hhtld.encoder import encode_source, measure
from hhtld.errors import HeaderError
from hhtld.formats.base import Format, TensorSource
from hhtld.formats.hhtld.container import MAGIC, ContainerReader, ContainerWriter
from hhtld.gates import GateReport
from hhtld.pack import DEFAULT_BUDGET, HhtldPack, PackSource
from hhtld.plan import Plan
from hhtld.progress import Progress, silent
from hhtld.sections import SECTION_KINDS
from hhtld.table import PackTable

__all__ = ["PACK_NAME", "HhtldFormat", "is_packed_folder", "open_pack", "save_pack", "write_pack"]

PACK_NAME = "model.hhtld"  # in a packed folder
_CONFIG_LIMIT = 10 << 20


def is_packed_folder(path: Path) -> bool:
    """Whether a folder is one that `hhtld convert --to hf` wrote: its config.json says that its weights are packed.

    A pack may also lie in the folder of the model it was made from, which stays that model's.
    """
    try:
        if not (path / PACK_NAME).is_file() or (path / "config.json").stat().st_size > _CONFIG_LIMIT:
            return False
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    quantized = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(quantized, dict) and quantized.get("quant_method") == "hhtld"


def open_pack(path: Path, *, mmap: bool = True, budget: int = DEFAULT_BUDGET) -> HhtldPack:
    """Open a `.hhtld` file, its structure checked.

    Parameters
    ----------
    path : Path
        A packed folder stands for its pack.
    mmap : bool
        Map the file; False reads it positionally, which network mounts and files that others may
        cut short want.
    budget : int
        Bytes that decoding one tensor may take.

    Raises
    ------
    FormatError
        For every malformation.
    """
    if is_packed_folder(path):
        path = path / PACK_NAME
    reader = ContainerReader.open(path, mapped=mmap)
    try:
        table = PackTable.from_json(reader.table, reader)
    except HeaderError as error:
        reader.close()
        raise HeaderError(f"{path}: {error}") from None
    except BaseException:
        reader.close()
        raise
    return HhtldPack(table, reader, budget)


def _verified(path: Path) -> None:
    with open_pack(path, mmap=False) as pack:
        assert isinstance(pack.sections, ContainerReader)
        pack.sections.verify()


def write_pack(
    source: TensorSource,
    plan: Plan,
    path: Path,
    report: GateReport,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> None:
    """Encode a source into a file, measure every row as the file gives it back, and record that.

    Sections stream to a sibling of `path`; the cosines are those of rows read back from it. The
    sibling's checksums are verified before it takes the name.
    """
    with replacing(path, check=_verified) as file:
        writer = ContainerWriter(file)
        table = encode_source(source, plan, writer, executor, progress)
        with HhtldPack(table, writer.reader()) as pack:
            measure(pack, source, report, executor, progress)
        writer.finish(table.with_gates(report.tensors).to_json())


def save_pack(pack: HhtldPack, path: Path) -> None:
    """Write a pack to a file: the same bytes that converting its source would have written.

    Sections of a kind that this release does not know stay behind: their checksum cannot be computed.
    """
    with replacing(path, check=_verified) as file:
        writer = ContainerWriter(file)
        numbers = {
            index: writer.add(kind, pack.sections.nbytes(index), [pack.sections.whole(index)])
            for index, kind in enumerate(pack.sections.kinds())
            if kind in SECTION_KINDS
        }
        writer.finish(pack.table.renumbered(numbers).to_json())


class HhtldFormat(Format):
    """Packs; read as a source, rows are decoded and rounded back to the types they had."""

    name = "hhtld"
    suffixes = (".hhtld",)
    description = "rows as tree address, magnitude and leaves; random access; gates recorded"
    encodes = True

    def sniff(self, path: Path, head: bytes) -> bool:
        """Whether the magic bytes, whole or damaged, or the suffix say so."""
        return head.startswith(MAGIC[:6]) or super().sniff(path, head)

    def open_source(self, path: Path) -> TensorSource:
        """Open a pack as a source of decoded tensors."""
        return PackSource(open_pack(path))

    def write_plan(
        self,
        source: TensorSource,
        plan: Plan,
        path: Path,
        report: GateReport,
        executor: Executor | None = None,
        progress: Progress = silent,
    ) -> None:
        """Encode a source into a file; see `write_pack`."""
        write_pack(source, plan, path, report, executor, progress)
