"""Snapshot folders and packs as transformers models: what a folder holds, and both sides loaded the same way."""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers.models.auto import modeling_auto

from hhtld.errors import FormatError, NonFiniteError, OutputError, shown
from hhtld.integrations.torch.tensors import load_state_dict
from hhtld.pack.pack import HhtldPack

__all__ = ["LogitSpool", "Snapshot", "continued", "embedded", "fixed_threads"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
)


@contextlib.contextmanager
def fixed_threads(jobs: int) -> Iterator[None]:
    """Compute on `jobs` threads without transformers' bars and remarks, and set the process back afterwards."""
    threads, logging = torch.get_num_threads(), transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    torch.set_num_threads(jobs)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class Snapshot:
    """A folder with config, tokenizer and safetensors, and what kind of model it holds.

    Attributes
    ----------
    folder : Path
    causal : bool
        Whether it is a causal language model; a text encoder otherwise.

    Raises
    ------
    FormatError
        If it is neither, or a part is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.exists():
            raise FileNotFoundError(2, "no such folder", str(folder))
        if not (folder / "config.json").is_file():
            raise FormatError(f"{folder}: MODEL must be a snapshot folder, with config.json, tokenizer and safetensors")
        try:
            self._config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever a config that is not one makes transformers raise
            raise FormatError(f"{folder}: transformers cannot read config.json: {error}") from error
        self.causal = _is_causal(self._config, folder)
        self._class: Any = None

    def tokenizer(self) -> Any:
        """Return the tokenizer."""
        # The folder itself is asked, because transformers makes an empty tokenizer if there is none.
        if not any((self.folder / name).is_file() for name in _TOKENIZER_FILES):
            raise FormatError(f"{self.folder}: has no tokenizer ({', '.join(_TOKENIZER_FILES)})")
        try:
            return transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:  # as above
            raise FormatError(f"{self.folder}: transformers cannot read the tokenizer: {error}") from error

    def token_limit(self, asked: int, reserved: int) -> int:
        """Return the most tokens a text may have, so that `reserved` more still have a position."""
        positions = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        limit = min(asked, positions - reserved) if isinstance(positions, int) else asked
        if limit < 2:
            raise FormatError(
                f"{self.folder}: the model has {positions} positions, too few for a text and {reserved} more"
            )
        return limit

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end a text."""
        end_ids = self._config.get_text_config().eos_token_id
        return frozenset([end_ids] if isinstance(end_ids, int) else end_ids or ())

    def load_source(self) -> Any:
        """Return the model of the folder, float32."""
        auto = transformers.AutoModelForCausalLM if self.causal else transformers.AutoModel
        try:
            model, info = auto.from_pretrained(
                self.folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # as above
            raise FormatError(f"{self.folder}: transformers cannot load the model: {error}") from error
        # transformers draws a pooler that the files lack at random; nothing here uses it.
        missing = sorted(name for name in info["missing_keys"] if self.causal or "pooler" not in name)
        if missing:
            raise FormatError(f"{self.folder}: the model needs tensors that its files do not hold: {_listed(missing)}")
        self._class = type(model)
        return model

    def load_packed(self, pack: HhtldPack) -> Any:
        """Return the same model with the weights of `pack`, decoded to float32; `load_source` comes first."""
        state = load_state_dict(pack, dtype=torch.float32)
        # This is how the source was loaded, renamings and tied tensors included. Tensors are taken over, not copied.
        return self._class.from_pretrained(
            None, config=copy.deepcopy(self._config), state_dict=state, dtype=torch.float32
        )


def _is_causal(config: Any, folder: Path) -> bool:
    names, kind = list(config.architectures or ()), config.model_type
    text = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if not config.is_encoder_decoder:
        if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
            return True
        if not names and kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not text:
            return True
        if text:
            return False
    raise FormatError(
        f"{folder}: {', '.join(names) or kind} is neither a causal language model nor a text encoder; "
        "gate-parity measures next tokens of the one and sentence embeddings of the other"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(shown(name) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def continued(
    model: Any, ids: Sequence[int], n_tokens: int, stops: frozenset[int]
) -> tuple[NDArray[np.float32], list[int]]:
    """Return the logits (n_positions, n_vocabulary) over a text, and its greedy continuation.

    The continuation has at most `n_tokens`, and ends with a token of `stops`.
    """
    out = model(input_ids=torch.tensor([ids]), use_cache=n_tokens > 0)
    logits: NDArray[np.float32] = out.logits[0].numpy()
    tokens: list[int] = []
    row = logits[-1]
    memory = _memory_name(model)
    while len(tokens) < n_tokens:
        tokens.append(int(row.argmax()))
        if tokens[-1] in stops or len(tokens) == n_tokens:
            break
        past = getattr(out, memory, None)
        # A model that remembers in another way reads the whole text again.
        new = [*ids, *tokens] if past is None else tokens[-1:]
        out = model(input_ids=torch.tensor([new]), **{memory: past}, use_cache=True)
        row = out.logits[0, -1].numpy()
    return logits, tokens


def _memory_name(model: Any) -> str:
    """Return the argument that takes what a model remembers of a text: "cache" from transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def embedded(model: Any, tokenizer: Any, texts: Sequence[str], limit: int) -> NDArray[np.float32]:
    """Return the mean of the last layer over each text's tokens, (n_texts, n_dimensions)."""
    means = []
    for text in texts:  # one by one: with padding, the last bits would depend on the other texts
        inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        means.append(model(**inputs).last_hidden_state[0].mean(dim=0).numpy())
    embeddings: NDArray[np.float32] = np.stack(means)
    if not np.isfinite(embeddings).all():
        raise NonFiniteError("a model gives embeddings that are infinite or not a number")
    return embeddings


class LogitSpool:
    """Logits of one text after another in a temporary file, so that two models need not be in memory at once.

    Raises
    ------
    OutputError
        If the folder for temporary files has no room for `nbytes`, or writing fails.
    """

    def __init__(self, nbytes: int) -> None:
        folder = Path(tempfile.gettempdir())
        if shutil.disk_usage(folder).free < nbytes:
            raise OutputError(
                28, f"cannot keep {nbytes} bytes of logits in {folder}: no room; set TMPDIR to a larger one"
            )
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._places: list[tuple[int, tuple[int, int]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, logits: NDArray[np.float32]) -> None:
        """Add the logits of a text, float32 (n_positions, n_vocabulary)."""
        n_positions, n_vocabulary = logits.shape
        try:
            self._places.append((self._file.seek(0, os.SEEK_END), (n_positions, n_vocabulary)))
            self._file.write(np.ascontiguousarray(logits).data)
        except OSError as error:
            raise OutputError(
                error.errno, f"cannot write logits to {tempfile.gettempdir()}: {error.strerror}"
            ) from error

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        offset, shape = self._places[index]
        self._file.seek(offset)
        return np.frombuffer(self._file.read(4 * shape[0] * shape[1]), np.float32).reshape(shape)
