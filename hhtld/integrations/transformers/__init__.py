"""Models of transformers from packs and packed folders.

    import hhtld.integrations.transformers as packed

    model, tokenizer = packed.from_pretrained("model.hhtld"), packed.load_tokenizer("model.hhtld")

Importing the module also lets transformers itself load packed folders (`hhtld convert SRC DIR --to hf`):
``AutoModelForCausalLM.from_pretrained("DIR")``, ``pipeline(model="DIR")`` and the rest. It needs the extra
``transformers``. Weights stay packed, on the CPU and for inference, unless ``packed=False`` decodes them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hhtld.errors import FormatError, MissingExtraError, shown
from hhtld.formats.folder import write_side_files
from hhtld.formats.hf import NAMES_FILE, packed_config, write_names
from hhtld.formats.hhtld import save_pack
from hhtld.pack.container import ContainerReader
from hhtld.pack.opening import PACK_NAME, is_packed_folder, open_pack
from hhtld.pack.pack import HhtldPack
from hhtld.pack.source import PackSource
from hhtld.sources.model_config import CONFIG
from hhtld.storage.locations import local_source

try:
    import torch as _torch  # noqa: F401  (imported to see whether it is there)
    import transformers
except ImportError as error:
    raise MissingExtraError(
        "hhtld.integrations.transformers needs torch and transformers: pip install 'hhtld[transformers]'"
    ) from error

from hhtld.integrations.torch.packed import PackedWeight
from hhtld.integrations.transformers.quantizer import HhtldConfig, HhtldQuantizer

if TYPE_CHECKING:
    import torch

__all__ = ["HhtldConfig", "HhtldQuantizer", "from_pretrained", "load_tokenizer"]

PackOrFolder = HhtldPack | str | os.PathLike[str]


def from_pretrained(
    pack_or_folder: PackOrFolder,
    *,
    packed: bool = True,
    dtype: torch.dtype | str | None = None,
    modules_to_not_convert: Iterable[str] = (),
    exact: bool = False,
    **options: Any,
) -> Any:
    """Return the model of a pack, or of a packed folder, in evaluation mode.

    Its class is the one that config.json names under ``architectures``.

    Parameters
    ----------
    pack_or_folder : path or HhtldPack
        A packed folder, or a `.hhtld` that was made from a model's folder and therefore holds its config.json.
    packed : bool
        Whether embeddings and linears read the pack's bytes as they compute; False decodes them, which gives an
        ordinary model.
    dtype : torch.dtype or str, optional
        What transformers takes; "auto" or None means the type of config.json.
    modules_to_not_convert : iterable of str
        Modules to hold decoded, named in part or whole. Name those whose code computes with the weight itself, which
        raises TypeError if the weight is packed: Mamba's "dt_proj" is one.
    exact : bool
        Whether packed linears take their inputs as two planes of int8 and not as one: slower, and as good as float32
        (see `hhtld.integrations.torch.HhtlLinear`).
    **options
        Options of transformers' ``from_pretrained``, for example ``attn_implementation`` or ``trust_remote_code``.

    Returns
    -------
    transformers.PreTrainedModel
        ``model.dequantize()`` decodes what is packed; until then ``save_pretrained`` raises ValueError.

    Raises
    ------
    FormatError
        If a file is damaged, the pack has no config.json, or this transformers does not know the model.
    """
    with _folder(pack_or_folder) as (folder, name):
        options = {"local_files_only": True} | options
        if dtype is not None:
            options["dtype"] = dtype
        trust = {key: options[key] for key in ("trust_remote_code",) if key in options}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **trust)
        except Exception as error:  # whatever a config that is not one makes transformers raise
            raise FormatError(f"{name}: transformers cannot read its config.json: {error}") from error
        config.quantization_config |= {
            "dequantize": not packed,
            "modules_to_not_convert": list(modules_to_not_convert) or None,
        }
        model = _model_class(config, name).from_pretrained(folder, config=config, **options)
        model.config.name_or_path = model.name_or_path = name
        if exact:
            for module in model.modules():
                if isinstance(module, PackedWeight):
                    module.exact = True
        return model


def load_tokenizer(pack_or_folder: PackOrFolder, **options: Any) -> Any:
    """Return the tokenizer of a pack, or of a packed folder; options are those of ``AutoTokenizer``.

    Raises
    ------
    FormatError
        If a file is damaged, the pack has no config.json, or transformers cannot read its tokenizer.
    """
    with _folder(pack_or_folder) as (folder, name):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **({"local_files_only": True} | options))
        except Exception as error:  # as above
            raise FormatError(f"{name}: transformers cannot read its tokenizer: {error}") from error
        tokenizer.name_or_path = name
        return tokenizer


def _model_class(config: Any, name: str) -> Any:
    """Return the class that a config names: one of transformers, or an Auto class for code that came with a model."""
    architectures = list(getattr(config, "architectures", None) or ())
    autos = getattr(config, "auto_map", None) or {}
    for architecture in architectures:
        for auto, target in autos.items():
            if auto.startswith("AutoModel") and str(target).endswith(f".{architecture}"):
                return getattr(transformers, auto)
        named = getattr(transformers, architecture, None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
    if not architectures:
        return transformers.AutoModel
    raise FormatError(
        f"{name}: transformers {transformers.__version__} has no class {shown(', '.join(map(str, architectures)))}, "
        f"which config.json names under architectures"
    )


@contextlib.contextmanager
def _folder(pack_or_folder: PackOrFolder) -> Iterator[tuple[Path, str]]:
    """Give a packed folder, for a pack a temporary one of links, and the name that messages call it."""
    if isinstance(pack_or_folder, HhtldPack):
        name = str(getattr(pack_or_folder.sections, "path", "a pack in memory"))
        with _laid_out(pack_or_folder, name) as folder:
            yield folder, name
        return
    path = local_source(pack_or_folder, "what transformers loads")
    if path.is_dir():
        if not is_packed_folder(path):
            raise FormatError(
                f"{path}: not a packed folder, which holds {PACK_NAME} and a config.json that says so; make one with "
                f"hhtld convert {path} OUT --to hf, or a pack with hhtld convert {path} model.hhtld"
            )
        yield path, str(path)
    elif path.name == PACK_NAME and is_packed_folder(path.parent):  # its side files lie beside it
        yield path.parent, str(path)
    else:
        with open_pack(path) as pack, _laid_out(pack, str(path)) as folder:
            yield folder, str(path)


@contextlib.contextmanager
def _laid_out(pack: HhtldPack, name: str) -> Iterator[Path]:
    """Give a temporary packed folder of a pack."""
    with tempfile.TemporaryDirectory(prefix="hhtld-") as folder:
        _lay_out(PackSource(pack), Path(folder), name)
        yield Path(folder)


def _lay_out(source: PackSource, folder: Path, name: str) -> None:
    if CONFIG not in source.files():
        raise FormatError(
            f"{name}: it holds no config.json, which says what model it is: convert the model's folder, not a file of "
            f"it, and without --no-files; then config.json and the tokenizer are in the pack"
        )
    config = packed_config(source, f"{name}: config.json:", source.pack.table.profile)
    write_side_files(source, folder, {CONFIG: config})
    write_names(source.pack, folder / NAMES_FILE)
    reader = source.pack.sections
    if not isinstance(reader, ContainerReader) or not isinstance(reader.path, Path):
        save_pack(source.pack, folder / PACK_NAME)
        return
    try:
        (folder / PACK_NAME).symlink_to(reader.path.absolute())
    except OSError:  # a system without links
        shutil.copyfile(reader.path, folder / PACK_NAME)
