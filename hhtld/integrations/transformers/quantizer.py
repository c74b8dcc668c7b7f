"""How transformers loads a packed folder: a quantization method "hhtld", registered on import.

A packed folder's safetensors file holds names in the place of weights (see `hhtld.formats.hf`). transformers reads it
as any checkpoint, renames, prefixes and ties what it finds as the model asks, and hands every name to `_Unpack`. That
gives the tensor which the name stands for: decoded, or, for the weight of an embedding or linear layer, a parameter
that carries the packed weight. When everything is in place, such layers are replaced.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hhtld.errors import HeaderError, shown
from hhtld.formats.hf import NAMES_FILE
from hhtld.formats.safetensors import SafetensorsFile
from hhtld.integrations.torch.modules import HhtlEmbedding, HhtlLinear
from hhtld.integrations.torch.packed import PackedWeight
from hhtld.integrations.torch.replace import dequantize, replaced
from hhtld.integrations.torch.tensors import loaded, torch_dtype
from hhtld.integrations.transformers.internals import (
    ConversionOps,
    HfQuantizer,
    QuantizationConfigMixin,
    WeightConverter,
    conversions_kept,
    conversions_of,
    register_quantization_config,
    register_quantizer,
    should_convert_module,
    tied_places,
    with_operations,
)
from hhtld.integrations.transformers.methods import set_methods, unset_methods
from hhtld.matrix import TensorInfo
from hhtld.pack.container import ContainerReader
from hhtld.pack.opening import PACK_NAME, open_pack
from hhtld.pack.pack import HhtldPack

__all__ = ["HhtldConfig", "HhtldQuantizer"]

METHOD = "hhtld"


@register_quantization_config(METHOD)
class HhtldConfig(QuantizationConfigMixin):
    """What a packed folder's config.json says in ``quantization_config``.

    Parameters
    ----------
    profile : str, optional
        What the pack was made with. Only people read it.
    dtype : str
        The type of the source's weights, as safetensors names it.
    dequantize : bool
        Whether to load an ordinary model with decoded weights.
    modules_to_not_convert : list of str, optional
        Modules whose weights are loaded decoded, named in part or whole as for transformers' own methods.
    """

    def __init__(
        self,
        profile: str | None = None,
        dtype: str = "F32",
        dequantize: bool = False,
        modules_to_not_convert: list[str] | None = None,
        **_: Any,
    ) -> None:
        self.quant_method = METHOD
        self.profile = profile
        self.dtype = dtype
        self.dequantize = dequantize
        self.modules_to_not_convert = modules_to_not_convert


class _Unpack(ConversionOps):
    """Puts tensors in the place of their names.

    Attributes
    ----------
    dtype : torch.dtype or None
        The type that transformers asks for, set anew for every parameter.
    """

    def __init__(self, quantizer: HhtldQuantizer, *, last: bool) -> None:
        self.quantizer = quantizer
        self.last = last
        self.dtype: torch.dtype | None = None

    def __deepcopy__(self, _: object) -> _Unpack:  # transformers makes one for every parameter
        return type(self)(self.quantizer, last=self.last)

    def convert(
        self,
        input_dict: Mapping[str, Any],
        source_patterns: Sequence[str],
        target_patterns: Sequence[str],
        full_layer_name: str = "",
        model: Any = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Return tensors under the keys that came; if nothing else converts a parameter, under its name."""
        if not self.last:
            return {key: [self.quantizer.decoded(name, self.dtype) for name in n] for key, n in input_dict.items()}
        ((name,),) = input_dict.values()
        return {full_layer_name: self.quantizer.parameter(model, full_layer_name, name, self.dtype)}


@register_quantizer(METHOD)
class HhtldQuantizer(HfQuantizer):
    """Loads models from packed folders; transformers' `HfQuantizer` says what is called when."""

    requires_calibration = True  # packs are made by `hhtld convert`, not while a model loads

    def __init__(self, quantization_config: HhtldConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._packed = not quantization_config.dequantize
        self._weights: dict[tuple[str, torch.dtype], PackedWeight] = {}
        self._conversions: dict[int, Any] = {}
        self._pack: HhtldPack | None = None

    # ---- what transformers asks before it loads ----

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the source's type if transformers took the bytes of names for weights."""
        return dtype if dtype.is_floating_point else torch_dtype(self.quantization_config.dtype)

    def update_attn_implementation(self, config: Any) -> Any:
        """Let transformers find the file of names: its key, which stops whoever has no hhtld, is not needed now."""
        if getattr(config, "transformers_weights", None) == PACK_NAME:
            config.transformers_weights = None
        return config

    def update_device_map(self, device_map: Any) -> Any:
        """Raise ValueError if packed weights are to be placed on other devices than the CPU."""
        if not self._packed or device_map is None:
            return device_map
        if isinstance(device_map, str):  # "auto" and its kin, the rest are dicts by now
            return {"": torch.device("cpu")}
        others = sorted({str(device) for device in device_map.values()} - {"cpu"})
        if others:
            raise ValueError(
                f"packed weights decode on the CPU and cannot be placed on {', '.join(others)}; load them decoded with "
                f"hhtld.integrations.transformers.from_pretrained(..., packed=False, device_map=...)"
            )
        return device_map

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **_: Any) -> Any:
        folder = Path(checkpoint_files[0]).parent  # not resolved: the files of a hub cache are links to elsewhere
        path = folder / PACK_NAME
        if not path.is_file():
            raise FileNotFoundError(
                2,
                "no such file; transformers fetches only files that it knows: fetch the whole folder first, with "
                "huggingface_hub.snapshot_download",
                str(path),
            )
        self._pack = open_pack(path)
        weakref.finalize(self, self._pack.close)
        if isinstance(self._pack.sections, ContainerReader):
            self._pack.sections.verify()  # everything will be read, and an error here names the file
        _check_names(path, checkpoint_files[0], self._pack)
        return model

    # ---- loading ----

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Decode before the model's own conversions (merging experts, ...), and load what they leave."""
        updated = []
        for conversion in weight_conversions:
            if isinstance(conversion, WeightConverter):
                updated.append(with_operations(conversion, _Unpack(self, last=False)))
            else:
                updated.append(conversion)
            self._conversions[id(updated[-1])] = conversion
        updated.append(WeightConverter(["(.+)"], [r"\1"], [_Unpack(self, last=True)]))
        self._updated = updated  # held, so that no other object gets one of the ids above
        return updated

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> None:
        """Remember the type of what a name stands for; the name itself stays bytes."""
        for operation in getattr(converter, "operations", ()):
            if isinstance(operation, _Unpack):
                operation.dtype = dtype

    def decoded(self, name: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        """Return the tensor of the pack that the bytes of `name` name."""
        assert self._pack is not None
        return loaded(self._pack, self._pack.info(_text(name)), dtype, "cpu")

    def parameter(self, model: Any, place: str, name: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
        """Return what goes to a place of the model: a tensor, or a parameter that carries a packed weight."""
        assert self._pack is not None
        record = self._pack.info(_text(name))
        shape = torch.Size(record.info.shape)
        can_pack = self._packed and record.is_encoded and len(shape) == 2
        if not can_pack or not all(self._takes_packed(model, tied, shape) for tied in tied_places(model, place)):
            return self.decoded(name, dtype)
        key = record.name, dtype or torch.get_default_dtype()
        if key not in self._weights:
            self._weights[key] = PackedWeight(self._pack, *key)
        # It has the weight's shape and takes the memory of one number; transformers compares what may be tied.
        number = torch.tensor(list(self._weights).index(key), dtype=torch.int32)
        parameter = nn.Parameter(number.expand(shape), requires_grad=False)
        parameter.packed = self._weights[key]
        return parameter

    def _takes_packed(self, model: Any, place: str, shape: torch.Size) -> bool:
        owner, _, key = place.rpartition(".")
        module = model.get_submodule(owner)
        is_plain = type(module) is nn.Linear or (type(module) is nn.Embedding and module.max_norm is None)
        is_wanted = should_convert_module(owner, self.quantization_config.modules_to_not_convert)
        return bool(is_wanted and is_plain and key == "weight" and module.weight.shape == shape)

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self._pack is not None:
            self._pack.close()
            self._pack = None
        self._weights.clear()  # the modules hold them
        # What saving will turn back: the model's own conversions without the decoding.
        loaded_with = conversions_of(model)
        if loaded_with is not None:
            conversions_kept(model, [self._conversions[id(c)] for c in loaded_with if id(c) in self._conversions])
        replaced(model, _packed_module)
        if self._packed:
            set_methods(model)
        return model

    # ---- afterwards ----

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        unset_methods(model)
        return dequantize(model, dtype)

    def remove_quantization_config(self, model: Any) -> None:
        """Make the model an ordinary one, which is saved under the names that its checkpoint had."""
        loaded_with = conversions_of(model)
        super().remove_quantization_config(model)
        conversions_kept(model, loaded_with)

    def is_serializable(self) -> bool:
        """Raise ValueError, because what transformers would write has no weights."""
        raise ValueError(
            "save_pretrained does not save packed weights: copy the packed folder or the .hhtld, or make the model "
            "an ordinary one with model.dequantize() or from_pretrained(..., packed=False) and save that"
        )

    @property
    def is_trainable(self) -> bool:
        """Packed weights take no gradients."""
        return not self._packed


def _check_names(path: Path, names_file: str, pack: HhtldPack) -> None:
    """Raise `HeaderError` if a file of names is not that of a pack."""
    with SafetensorsFile(names_file) as file:
        infos = file.infos()
    odd = sorted(set(infos) ^ set(pack)) or [name for name, info in infos.items() if not _named(info)]
    if odd:
        raise HeaderError(f"{path}: does not belong to the {NAMES_FILE} beside it, they differ in {shown(odd[0])}")


def _named(info: TensorInfo) -> bool:
    return info.dtype.name == "U8" and info.shape[:-1] == (1,) * 5


def _text(name: torch.Tensor) -> str:
    return bytes(name.flatten().tolist()).decode()


def _packed_module(module: nn.Module) -> nn.Module | None:
    weight = getattr(dict(module.named_parameters(recurse=False)).get("weight"), "packed", None)
    if weight is None:
        return None
    if isinstance(module, nn.Embedding):
        return HhtlEmbedding.of_weight(weight, module.padding_idx)
    return HhtlLinear.of_weight(weight, getattr(module, "bias", None))
