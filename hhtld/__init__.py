"""hhtld: row-addressable compression of neural-network weight matrices.

    import hhtld
    hhtld.convert("model.safetensors", "model.hhtld")
    with hhtld.open("model.hhtld") as pack:
        rows = pack.get_rows("embeddings.word_embeddings.weight", [3, 70, 3])

Importing this module loads numpy and little else; everything below comes on first use.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # `typing` loads thirty modules, before the command line looks after Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    __version__: str
    from hhtld.api.conversion_report import ConversionReport as ConversionReport
    from hhtld.api.convert import convert as convert
    from hhtld.api.encode import encode as encode
    from hhtld.api.files import load_file as load_file
    from hhtld.api.files import save as save
    from hhtld.api.files import save_file as save_file
    from hhtld.codecs.lookup import HhtlDTensor as HhtlDTensor
    from hhtld.codecs.lookup import SharedPaletteGroup as SharedPaletteGroup
    from hhtld.codecs.lookup import build_group_with_fisher_z as build_group_with_fisher_z
    from hhtld.codecs.lookup import build_group_with_leaf as build_group_with_leaf
    from hhtld.codecs.palette import HhtlF32Tensor as HhtlF32Tensor
    from hhtld.codecs.trellis import HhtlTTensor as HhtlTTensor
    from hhtld.errors import BudgetError as BudgetError
    from hhtld.errors import ChecksumError as ChecksumError
    from hhtld.errors import ClosedError as ClosedError
    from hhtld.errors import FormatError as FormatError
    from hhtld.errors import GateError as GateError
    from hhtld.errors import HhtldError as HhtldError
    from hhtld.errors import MissingExtraError as MissingExtraError
    from hhtld.errors import NonFiniteError as NonFiniteError
    from hhtld.errors import OutputError as OutputError
    from hhtld.errors import QuantizedError as QuantizedError
    from hhtld.errors import RangeError as RangeError
    from hhtld.errors import UnknownFormatError as UnknownFormatError
    from hhtld.identity import PaletteGroupKey as PaletteGroupKey
    from hhtld.identity import classify_component as classify_component
    from hhtld.identity import classify_role as classify_role
    from hhtld.identity import effective_shape as effective_shape
    from hhtld.identity import is_encodable as is_encodable
    from hhtld.identity import should_use_leaf as should_use_leaf
    from hhtld.pack.opening import open_pack
    from hhtld.pack.pack import HhtldPack as HhtldPack
    from hhtld.slots.base17 import Base17 as Base17
    from hhtld.slots.fisher_z import FisherZTable as FisherZTable
    from hhtld.slots.palette import MAX_PALETTE_K as MAX_PALETTE_K
    from hhtld.slots.palette import HhtlCache as HhtlCache
    from hhtld.slots.palette import RouteAction as RouteAction
    from hhtld.slots.palette import build_hip_families as build_hip_families
    from hhtld.slots.slot_d_v import HeelBasin as HeelBasin
    from hhtld.slots.slot_d_v import HhtlDEntry as HhtlDEntry
    from hhtld.slots.slot_l import SvdBasis as SvdBasis
    from hhtld.sources.contract import TensorSource as TensorSource

    open = open_pack

_HOMES = {
    "Base17": "slots.base17",
    "BudgetError": "errors",
    "ChecksumError": "errors",
    "ClosedError": "errors",
    "ConversionReport": "api.conversion_report",
    "FisherZTable": "slots.fisher_z",
    "FormatError": "errors",
    "GateError": "errors",
    "HeelBasin": "slots.slot_d_v",
    "HhtlCache": "slots.palette",
    "HhtlDEntry": "slots.slot_d_v",
    "HhtlDTensor": "codecs.lookup",
    "HhtlF32Tensor": "codecs.palette",
    "HhtlTTensor": "codecs.trellis",
    "HhtldError": "errors",
    "HhtldPack": "pack.pack",
    "MAX_PALETTE_K": "slots.palette",
    "MissingExtraError": "errors",
    "NonFiniteError": "errors",
    "OutputError": "errors",
    "PaletteGroupKey": "identity",
    "QuantizedError": "errors",
    "RangeError": "errors",
    "RouteAction": "slots.palette",
    "SharedPaletteGroup": "codecs.lookup",
    "SvdBasis": "slots.slot_l",
    "TensorSource": "sources.contract",
    "UnknownFormatError": "errors",
    "build_group_with_fisher_z": "codecs.lookup",
    "build_group_with_leaf": "codecs.lookup",
    "build_hip_families": "slots.palette",
    "classify_component": "identity",
    "classify_role": "identity",
    "convert": "api.convert",
    "effective_shape": "identity",
    "encode": "api.encode",
    "is_encodable": "identity",
    "load_file": "api.files",
    "open": "pack.opening:open_pack",
    "save": "api.files",
    "save_file": "api.files",
    "should_use_leaf": "identity",
}

__all__ = sorted([*_HOMES, "__version__"])


def _first_use(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hhtld")
    if name in ("formats", "slots"):  # promised as hhtld.slots and hhtld.formats, whoever imported them
        return importlib.import_module(f"hhtld.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hhtld' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    value = getattr(importlib.import_module(f"hhtld.{module}"), attribute or name)
    globals()[name] = value  # the next access does not come through here
    return value


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one that comes from here
    __getattr__ = _first_use


def __dir__() -> list[str]:
    return __all__
