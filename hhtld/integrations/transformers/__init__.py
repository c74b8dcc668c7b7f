"""Models of transformers from packs and packed folders.

    import hhtld.integrations.transformers as packed

    model, tokenizer = packed.from_pretrained("model.hhtld"), packed.load_tokenizer("model.hhtld")

Importing it also lets transformers itself load packed folders (`hhtld convert SRC DIR --to hf`):
``AutoModelForCausalLM.from_pretrained("DIR")``, ``pipeline(model="DIR")`` and the rest. Needs the extra
``transformers``; weights stay packed, on the CPU and for inference, unless ``packed=False`` decodes them.
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
    **options: Any,
) -> Any:
    """Return the model of a pack, or of a packed folder, in evaluation mode.

    Its class is the one that config.json names under ``architectures``.

    Parameters
    ----------
    pack_or_folder : path or HhtldPack
        A `.hhtld` that was made from a model's folder, so that config.json travels in it, or a packed folder.
    packed : bool
        Embeddings and linears read the pack's bytes as they compute; False decodes them, which gives an ordinary
        model.
    dtype : torch.dtype or str, optional
        As transformers takes it: "auto" or None for the type of config.json.
    modules_to_not_convert : iterable of str
        Modules to hold decoded, named in part or whole: those whose code computes with the weight itself, as Mamba's
        does with that of "dt_proj", which raises TypeError on a packed one.
    **options
        Of transformers' ``from_pretrained``, for example ``attn_implementation`` or ``trust_remote_code``.

    Returns
    -------
    transformers.PreTrainedModel
        ``model.dequantize()`` decodes what is packed; ``save_pretrained`` raises ValueError until then.

    Raises
    ------
    FormatError
        For a bad file, a pack without config.json, and a model that this transformers does not know.
    """
    with _folder(pack_or_folder) as (folder, name):
        options = {"local_files_only": True} | options
        if dtype is not None:
            options["dtype"] = dtype
        remote = {key: options[key] for key in ("trust_remote_code",) if key in options}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **remote)
        except Exception as error:  # whatever a config that is not one makes transformers raise
            raise FormatError(f"{name}: transformers cannot read its config.json: {error}") from error
        config.quantization_config |= {
            "dequantize": not packed,
            "modules_to_not_convert": list(modules_to_not_convert) or None,
        }
        model = _model_class(config, name).from_pretrained(folder, config=config, **options)
        model.config._name_or_path = model.name_or_path = name
        return model


def load_tokenizer(pack_or_folder: PackOrFolder, **options: Any) -> Any:
    """Return the tokenizer of a pack, or of a packed folder; options are those of ``AutoTokenizer``.

    Raises
    ------
    FormatError
        For a bad file, a pack without config.json, and one whose tokenizer transformers cannot read.
    """
    with _folder(pack_or_folder) as (folder, name):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **({"local_files_only": True} | options))
        except Exception as error:  # as above
            raise FormatError(f"{name}: transformers cannot read its tokenizer: {error}") from error
        tokenizer.name_or_path = name
        return tokenizer


def _model_class(config: Any, name: str) -> Any:
    """The class that a config names, of transformers or, for code that came with the model, an Auto class."""
    architectures = list(getattr(config, "architectures", None) or ())
    autos = getattr(config, "auto_map", None) or {}
    for architecture in architectures:
        for auto, target in autos.items():
            if auto.startswith("AutoModel") and str(target).endswith(f".{architecture}"):
                return getattr(transformers, auto)
        found = getattr(transformers, architecture, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if not architectures:
        return transformers.AutoModel
    raise FormatError(
        f"{name}: transformers {transformers.__version__} has no class {shown(', '.join(map(str, architectures)))}, "
        f"which config.json names under architectures"
    )


@contextlib.contextmanager
def _folder(pack_or_folder: PackOrFolder) -> Iterator[tuple[Path, str]]:
    """Give a packed folder, a temporary one of links for a pack, and the name that it goes by."""
    if isinstance(pack_or_folder, HhtldPack):
        with tempfile.TemporaryDirectory(prefix="hhtld-") as made:
            name = getattr(pack_or_folder.sections, "path", "a pack in memory")
            _lay_out(PackSource(pack_or_folder), Path(made), str(name))
            yield Path(made), str(name)
        return
    path = local_source(pack_or_folder, "what transformers loads")
    if path.is_dir():
        if not is_packed_folder(path):
            raise FormatError(
                f"{path}: no packed folder, which holds {PACK_NAME} and a config.json that says so; make one with "
                f"hhtld convert {path} OUT --to hf, or a pack with hhtld convert {path} model.hhtld"
            )
        yield path, str(path)
        return
    if path.name == PACK_NAME and is_packed_folder(path.parent):  # its side files lie beside it
        yield path.parent, str(path)
        return
    with open_pack(path) as pack, tempfile.TemporaryDirectory(prefix="hhtld-") as made:
        _lay_out(PackSource(pack), Path(made), str(path))
        yield Path(made), str(path)


def _lay_out(source: PackSource, folder: Path, name: str) -> None:
    if CONFIG not in source.files():
        raise FormatError(
            f"{name}: no config.json in it, so there is no telling what model it is: convert the model's folder, not "
            f"a file of it (and without --no-files), and its config.json and tokenizer come along"
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
