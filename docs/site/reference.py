"""A hook of mkdocs: one page for each public package, whose text mkdocstrings takes from the docstrings."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import hhtld.slots
from hhtld.errors import HhtldError

# What is promised of the package `hhtld`, by what a reader looks for; the rest is sorted below by what it is.
FILES = ["convert", "open", "encode", "save", "load_file", "save_file", "HhtldPack", "ConversionReport", "TensorSource"]
FORMATS = ["hhtld.formats", "hhtld.registry"]
CODECS = ["hhtld.codecs", "hhtld.codecs.base"]
INTEGRATIONS = ["hhtld.integrations.torch", "hhtld.integrations.transformers", "hhtld.integrations.dask"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, text in (
        ("hhtld", public_names()),
        ("formats", modules("hhtld.formats: formats and the contract of a plugin", FORMATS)),
        ("codecs", modules("hhtld.codecs: the contract of a codec", CODECS)),
        ("integrations", modules("hhtld.integrations: packs in other libraries", INTEGRATIONS)),
    ):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def public_names() -> str:
    """Return the page of `hhtld.__all__`, every name of it once."""
    rest = [name for name in hhtld.__all__ if name not in FILES and not name.startswith("__")]
    values = {name: getattr(hhtld, name) for name in rest}
    errors = [name for name in rest if inspect.isclass(values[name]) and issubclass(values[name], HhtldError)]
    classes = [name for name in rest if inspect.isclass(values[name]) and name not in errors]
    functions = [name for name in rest if isinstance(values[name], types.FunctionType)]
    constants = [name for name in rest if name not in {*errors, *classes, *functions}]
    in_slots = [name for name in hhtld.slots.__all__ if name not in hhtld.__all__]
    return "\n".join(
        [
            "# hhtld: what `import hhtld` gives\n",
            section("Files and packs", FILES),
            section("The codec's classes", classes),
            section("Groups, roles and shapes", [*functions, *constants]),
            section("The mathematics of a row", [f"slots.{name}" for name in in_slots]),
            section("Errors", errors),
        ]
    )


def section(title: str, names: Iterable[str]) -> str:
    """Return a heading and what mkdocstrings puts below it."""
    return f"## {title}\n\n" + "\n\n".join(f"::: hhtld.{name}" for name in names) + "\n"


def modules(title: str, names: Iterable[str]) -> str:
    """Return a page of whole modules."""
    return f"# {title}\n\n" + "\n\n".join(f"::: {name}\n    options:\n      heading_level: 2" for name in names) + "\n"
