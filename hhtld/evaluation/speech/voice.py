"""A Piper voice: an ONNX graph that speaks phonemes, and the settings beside it; with its own weights or a pack's.

A sentence becomes phonemes before anything is spoken: `Voice.phonemised` turns it into numbers once, and every
`Speaker` gets the same numbers.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from hhtld.errors import FormatError, HeaderError, HhtldError, MissingExtraError, shown
from hhtld.formats.onnx import OnnxFile, TensorWalk  # weights go back to where the reader found them
from hhtld.pack.made_from import check_made_from
from hhtld.pack.pack import HhtldPack
from hhtld.storage.locations import local_source

__all__ = ["Speaker", "Voice"]

Wave = NDArray[np.float32]
_INPUTS = {"input", "input_lengths", "scales"}
_DATA_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "raw_data")
_FIRST_SPEAKER = 0


class Voice:
    """A voice's graph and settings, checked; a context manager.

    Parameters
    ----------
    path : path
        The .onnx file; its settings are in the file of that name with .json behind it.

    Attributes
    ----------
    path : Path
    sample_rate : int
    nbytes : int
        Of the .onnx file.

    Raises
    ------
    FormatError
        If the settings are missing, or these two files are no Piper voice.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local_source(path, "VOICE")
        self._source = OnnxFile(self.path)
        self.nbytes = self.path.stat().st_size
        settings = self.path.with_name(self.path.name + ".json")
        self._facts = _settings(settings)
        self.sample_rate = int(_checked(self._facts, ("audio", "sample_rate"), settings, int))
        self._ids: dict[str, list[int]] = _checked(self._facts, ("phoneme_id_map",), settings, dict)
        inference = self._facts.get("inference")
        scale = inference.get("length_scale", 1) if isinstance(inference, dict) else 1
        if self.sample_rate < 1 or isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
            raise HeaderError(f"{settings}: sample_rate and length_scale must be above 0")
        self._length_scale = float(scale)
        graph = onnx.load(str(self.path), load_external_data=False).graph
        # Old graphs list their weights among the inputs as well.
        self._inputs = {i.name for i in graph.input} - {i.name for i in graph.initializer}
        if not self._inputs >= _INPUTS or self._inputs - _INPUTS - {"sid"}:
            raise HeaderError(
                f"{self.path}: not a Piper voice: its graph takes {sorted(self._inputs)}, "
                f"a voice's takes {sorted(_INPUTS)}, and sid if it has several speakers"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()

    def phonemised(self, sentence: str) -> list[list[int]]:
        """Return the phonemes' numbers, one list for each sentence that the phonemiser sees in the text.

        Raises
        ------
        FormatError
            If nothing of the text can be spoken.
        MissingExtraError
            If the voice is not of the kind "text", whose phonemes are letters, and piper is not installed.
        """
        spelled = self._facts.get("phoneme_type") == "text"
        spoken = [self._spelled(sentence)] if spelled else self._by_piper(sentence)
        if not any(spoken):
            raise FormatError(f"sentence {shown(sentence, 60)}: {self.path.name} knows no phoneme of it")
        return [ids for ids in spoken if ids]

    def _spelled(self, sentence: str) -> list[int]:
        """Return phonemes as piper writes them: a begin, each of them followed by a pad, an end."""
        letters = [letter for letter in unicodedata.normalize("NFD", sentence) if letter in self._ids]
        begin, pad, end = (self._ids.get(mark, []) for mark in "^_$")
        return [*begin, *pad, *(n for letter in letters for n in (*self._ids[letter], *pad)), *end] if letters else []

    def _by_piper(self, sentence: str) -> list[list[int]]:
        try:
            from piper import PiperVoice
            from piper.config import PiperConfig
        except ImportError as error:
            raise MissingExtraError(f"phonemes need piper ({error}): pip install 'hhtld[speech]'") from error
        try:
            piper = PiperVoice(session=None, config=PiperConfig.from_dict(self._facts))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise HeaderError(f"{self.path}.json: piper cannot read these settings: {error!r}") from error
        return [list(piper.phonemes_to_ids(phonemes)) for phonemes in piper.phonemize(sentence) if phonemes]

    def speaker(self, pack: HhtldPack | None = None, where: str = "the pack") -> Speaker:
        """Return what speaks with the voice's own weights, or with a pack's in their place.

        Parameters
        ----------
        pack : HhtldPack, optional
        where : str
            What messages call the pack.

        Raises
        ------
        FormatError
            If the pack was not made from this voice; the message names the tensor.
        """
        model = onnx.load(str(self.path))
        if pack is not None:
            check_made_from(pack, self._source)
            for name, tensor in TensorWalk(self.path).model(model):
                if name not in pack:  # a pack holds no tensors of text
                    continue
                weights = np.ascontiguousarray(pack.get_tensor(name, "source"))
                for field in _DATA_FIELDS:
                    tensor.ClearField(field)
                tensor.raw_data = weights.tobytes()
        feeds: dict[str, NDArray[Any]] = {"scales": np.array([0, self._length_scale, 0], np.float32)}
        if "sid" in self._inputs:
            feeds["sid"] = np.array([_FIRST_SPEAKER], np.int64)
        return Speaker(model.SerializeToString(), feeds, where if pack is not None else str(self.path))


class Speaker:
    """A voice's graph in onnxruntime: on the processor, one thread, without noise.

    Parameters
    ----------
    model : bytes
        The serialised graph.
    feeds : dict
        Inputs that are the same for every sentence; `scales` with both noises 0.
    where : str
        What messages call it.
    """

    def __init__(self, model: bytes, feeds: Mapping[str, NDArray[Any]], where: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # sums in one order
        options.use_deterministic_compute = True
        options.log_severity_level = 4  # what fails is raised; what it warns of is the exporter's graph
        self._where = where
        self._feeds = dict(feeds)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base
            raise HeaderError(f"{where}: onnxruntime cannot load the graph: {shown(str(error), 200)}") from error

    def say(self, phonemes: list[list[int]]) -> Wave:
        """Return samples, those of several sentences one after another.

        Raises
        ------
        HhtldError
            If onnxruntime fails on them, as it does on broken durations.
        """
        said = []
        for ids in phonemes:
            feeds = {"input": np.array([ids], np.int64), "input_lengths": np.array([len(ids)], np.int64)}
            try:
                said.append(np.asarray(self._session.run(None, self._feeds | feeds)[0], np.float32).reshape(-1))
            except Exception as error:
                raise HhtldError(f"{self._where}: onnxruntime failed: {shown(str(error), 200)}") from error
        return np.concatenate(said)


def _settings(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise HeaderError(f"{path} is missing: a Piper voice is an .onnx and its .onnx.json beside it") from None
    except ValueError as error:
        raise HeaderError(f"{path}: not JSON: {shown(str(error), 80)}") from None
    if not isinstance(facts, dict):
        raise HeaderError(f"{path}: not the settings of a Piper voice: no JSON object")
    return facts


def _checked(facts: Any, keys: tuple[str, ...], path: Path, kind: type) -> Any:
    for key in keys:
        facts = facts.get(key) if isinstance(facts, dict) else None
    if not isinstance(facts, kind) or isinstance(facts, bool) or not facts:
        raise HeaderError(f"{path}: not the settings of a Piper voice: it has no {'.'.join(keys)}")
    return facts
