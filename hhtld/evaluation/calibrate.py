"""Profile parity: a model is run on a text, and tells what its tensors' columns see and what errors in them cost.

    from hhtld.evaluation.calibrate import calibrate

    calibration = calibrate("snapshot-folder")
    hhtld.convert("snapshot-folder", "model.hhtld", profile="parity", calibration=calibration)

The texts are halved. The first half gives the mean squares of every linear layer's inputs, and the KL divergence that
coding one set of tensors alone costs. A set is the tensors whose names differ only in the layer's number, in at most
`BANDS` bands of neighbouring layers. No rate is fitted to the second half: on it the whole model is measured at two
levels of rates, and at the level that the line between these two gives for the target. The module needs the extra
``transformers``. Memory holds the model in float32, what the encoder makes of it, and one set twice; logits wait in a
temporary file, as they do for gate-parity.

The cost is `BANDS` runs over `SET_TOKENS` tokens for each kind of matrix, and four runs over the second half:
SmolLM2-135M took eight minutes on two threads of a busy machine.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld.encoding.calibration import TRIAL_RATE, Calibration, Measurement, Sensitivity, column_scale
from hhtld.encoding.encoder import encode
from hhtld.encoding.fingerprint import weights_digest
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.errors import FormatError, MissingExtraError, shown
from hhtld.evaluation.parity.metrics import PositionScores, compare_positions
from hhtld.evaluation.parity.prompts import BUILTIN, Prompt, Prompts, chosen_prompts
from hhtld.formats import open_source
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent
from hhtld.slots.feedback import MAX_FEEDBACK_COLS
from hhtld.slots.trellis import MAX_RATE
from hhtld.sources.contract import TensorSource
from hhtld.sources.schedule import workers
from hhtld.storage.locations import local_source

if TYPE_CHECKING:
    import torch

    from hhtld.evaluation.parity.models import LogitSpool, Snapshot

__all__ = ["BANDS", "SET_TOKENS", "calibrate", "text_digest"]

BANDS = 5
SET_TOKENS = 1536  # of the first half, spread over its texts
MAX_TOKENS = 512  # of each text
LEVELS = (4.5, 5.25)


def calibrate(
    model: str | os.PathLike[str],
    text: Prompts = BUILTIN,
    *,
    target_top1: float = 0.9,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Calibration:
    """Run a causal language model and return what profile parity needs to know of it.

    Parameters
    ----------
    model : path
        A snapshot folder with config, tokenizer and safetensors.
    text : "builtin", path, or sequence of str or Prompt
        What it reads, as `hhtld.evaluation.parity.gate_parity` takes prompts; "builtin" is a text of its own, which
        shares nothing with the built-in prompts. At least two texts.
    target_top1 : float
        The agreement on next tokens whose level is measured; `Calibration.level_for` takes any other.
    jobs : int
        Threads, of the model too. Rates may differ by a sixteenth with the last bits of its sums.
    progress : callable, optional
        Called with "calibrate", a set of tensors and its bytes when it is measured.

    Raises
    ------
    FormatError
        If the folder holds no causal language model, a text has fewer than two tokens, or none of the model's tensors
        can be encoded.
    NonFiniteError
        If the model gives numbers that are not finite.
    MissingExtraError
        If torch or transformers is not installed.
    """
    _require_libraries()
    from hhtld.evaluation.parity.models import Snapshot, fixed_threads

    folder = local_source(model, "the model of profile parity")
    origin, texts = _texts(text)
    if len(texts) < 2:
        raise FormatError(f"{origin}: one text cannot be halved; give at least two (a line '=== KIND' begins one)")
    with fixed_threads(jobs), workers(jobs) as executor, open_source(folder) as source:
        snapshot = Snapshot(folder)
        if not snapshot.causal:
            raise FormatError(f"{folder}: profile parity is for causal language models; use bits:B for this one")
        ids = _tokenized(snapshot, origin, texts)
        fitted, judged = ids[::2], ids[1::2]
        loaded = _LoadedModel(snapshot, source, executor, progress or silent)
        loaded.look_at_columns(fitted)
        n_tokens = max(2, SET_TOKENS // len(fitted))
        sensitivities = loaded.sensitivities([text_ids[:n_tokens] for text_ids in fitted])
        measurements = loaded.measurements(Calibration(loaded.scales, sensitivities), judged, target_top1)
        facts = {
            "source": weights_digest(source),
            "text": text_digest(text),
            "text_origin": origin,
            "n_tokens": str(sum(map(len, ids))),
        }
        return Calibration(loaded.scales, sensitivities, measurements, loaded.moments, facts)


def _require_libraries() -> None:
    try:
        import torch  # noqa: F401  (imported to see whether it is there)
        import transformers  # noqa: F401  (the same)
    except ImportError as error:
        raise MissingExtraError(
            "calibrating needs torch and transformers: pip install 'hhtld[transformers]'"
        ) from error


def _tokenized(snapshot: Snapshot, origin: str, texts: Sequence[Prompt]) -> list[list[int]]:
    """Return the tokens of each text, at least two."""
    tokenizer, limit = snapshot.tokenizer(), snapshot.token_limit(MAX_TOKENS, 1)
    ids = [tokenizer(text.text, truncation=True, max_length=limit)["input_ids"] for text in texts]
    for text, text_ids in zip(texts, ids, strict=True):
        if len(text_ids) < 2:
            raise FormatError(
                f"{origin}: text {shown(text.text, 40)} is {len(text_ids)} token long, so it has no next token"
            )
    return ids


def text_digest(text: Prompts) -> str:
    """Return a checksum of what `calibrate` would read."""
    return hashlib.sha256("\0".join(prompt.text for prompt in _texts(text)[1]).encode()).hexdigest()


def _texts(text: Prompts) -> tuple[str, list[Prompt]]:
    return chosen_prompts(text, "calibration.txt")


@dataclass
class _Matrix:
    """An encoded tensor of the source, and the model's parameter that holds it.

    Attributes
    ----------
    name : str
    nbytes : int
    is_index : bool
        Whether each of its rows must stay the row that it is.
    parameter : torch.nn.Parameter
    """

    name: str
    nbytes: int
    is_index: bool
    parameter: torch.nn.Parameter


class _LoadedModel:
    """A loaded model, whose weights are coded and put back, and its source.

    Attributes
    ----------
    scales : dict of name to float32 array (n_cols,)
        What each tensor's columns are multiplied by before they are coded.
    moments : dict of name to float32 array (n_cols, n_cols)
        Mean products of the inputs of each head's columns.
    """

    def __init__(self, snapshot: Snapshot, source: TensorSource, executor: Executor | None, progress: Progress) -> None:
        self._source, self._executor, self._progress = source, executor, progress
        self._model = snapshot.load_source()
        self._matrices = _matched(self._model, source)
        if not self._matrices:
            raise FormatError(f"{snapshot.folder}: no weight matrix of the files is one of the model's parameters")
        self.scales: dict[str, NDArray[np.float32]] = {}
        self.moments: dict[str, NDArray[np.float32]] = {}

    def look_at_columns(self, texts: Sequence[Sequence[int]]) -> None:
        """Find the scales of what linear layers read, and the moments of what heads read."""
        squares, products = self._input_sums(texts)
        for name, total in squares.items():
            weight = self._matrices[name].parameter
            self.scales[name] = column_scale(total.numpy(), _column_squares(weight).numpy())
        n_positions = sum(map(len, texts))
        for name, total in products.items():
            mean = total.numpy() / np.float32(n_positions)
            self.moments[name] = (mean + mean.T) / 2  # equal in both halves to the last bit

    def _input_sums(self, texts: Sequence[Sequence[int]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return sums of squares of the inputs of linear layers' columns, and of products of those of heads."""
        import torch

        names = {id(matrix.parameter): matrix.name for matrix in self._matrices.values()}
        squares: dict[str, torch.Tensor] = {}
        products: dict[str, torch.Tensor] = {}

        def add(module: torch.nn.Linear, args: tuple[torch.Tensor, ...], _: object) -> None:
            inputs = args[0].reshape(-1, args[0].shape[-1])
            name = names[id(module.weight)]
            squares[name] = squares.get(name, 0) + (inputs * inputs).sum(0, dtype=torch.float64)
            if self._matrices[name].is_index and inputs.shape[1] <= MAX_FEEDBACK_COLS:
                products[name] = products.get(name, 0) + inputs.T @ inputs

        linears = [m for m in self._model.modules() if isinstance(m, torch.nn.Linear) and id(m.weight) in names]
        hooks = [module.register_forward_hook(add) for module in linears]
        for ids in texts:
            self._logits(ids)
        for hook in hooks:
            hook.remove()
        return squares, products

    def sensitivities(self, texts: Sequence[Sequence[int]]) -> tuple[Sensitivity, ...]:
        """Measure what coding each set of tensors alone costs."""
        pack = self._coded(dict.fromkeys(self._matrices, TRIAL_RATE))
        sensitivities = []
        with self._reference(texts) as spool:
            for label, names in _sets(list(self._matrices)).items():
                matrices = [self._matrices[name] for name in names]
                originals = [matrix.parameter.detach().clone() for matrix in matrices]
                self._put(pack, matrices)
                kl = PositionScores.total(self._scores(spool, texts)).kl
                for matrix, weight in zip(matrices, originals, strict=True):
                    matrix.parameter.data.copy_(weight)
                n_weights = sum(weight.numel() for weight in originals)
                sensitivities.append(Sensitivity(tuple(names), n_weights, kl / sum(len(ids) - 1 for ids in texts)))
                self._progress("calibrate", label, sum(matrix.nbytes for matrix in matrices))
                del originals
        return tuple(sensitivities)

    def measurements(
        self, calibration: Calibration, texts: Sequence[Sequence[int]], target_top1: float
    ) -> tuple[Measurement, ...]:
        """Measure the whole model at two levels, and at the one that they promise for the target."""
        with self._reference(texts) as spool:
            measured = [self._measured(calibration, level, spool, texts) for level in LEVELS]
            promised = Calibration({}, calibration.sensitivities, tuple(measured)).level_for(target_top1)
            if promised not in LEVELS:
                measured.append(self._measured(calibration, promised, spool, texts))
        return tuple(measured)

    def _measured(
        self, calibration: Calibration, level: float, spool: LogitSpool, texts: Sequence[Sequence[int]]
    ) -> Measurement:
        pack = self._coded(calibration.rates(level))
        self._put(pack, self._matrices.values())
        text_scores = self._scores(spool, texts)
        total = PositionScores.total(text_scores)
        shared = {number for group in pack.table.groups for number in group.sections.values()}
        nbytes = sum(map(pack.nbytes, self._matrices)) + sum(map(pack.sections.nbytes, shared))
        bits = 8 * nbytes / sum(matrix.parameter.numel() for matrix in self._matrices.values())
        n, share = total.n_positions, total.top1 / total.n_positions
        error = math.sqrt(sum((scores.top1 - share * scores.n_positions) ** 2 for scores in text_scores)) / n
        return Measurement(level, bits, share, total.kl / n, n, error)

    def _coded(self, rates: Mapping[str, int]) -> HhtldPack:
        scales = {name: self.scales[name] for name in rates if name in self.scales}
        bits = {name: rate / 16 for name, rate in rates.items()}
        return encode(
            self._source, "parity", rates=bits, column_scales=scales, moments=self.moments, executor=self._executor
        )

    def _put(self, pack: HhtldPack, matrices: Iterable[_Matrix]) -> None:
        """Set parameters to what a pack decodes to."""
        import torch

        for matrix in matrices:
            decoded = torch.from_numpy(pack.get_tensor(matrix.name))
            matrix.parameter.data.copy_(decoded)

    def _reference(self, texts: Sequence[Sequence[int]]) -> LogitSpool:
        """Return the logits of the model as it is; a context manager."""
        from hhtld.evaluation.parity.models import LogitSpool

        width = len(self._model.get_input_embeddings().weight)
        spool = LogitSpool(4 * width * sum(len(ids) - 1 for ids in texts))
        for ids in texts:
            spool.append(self._logits(ids)[:-1])
        return spool

    def _scores(self, spool: LogitSpool, texts: Sequence[Sequence[int]]) -> list[PositionScores]:
        return [compare_positions(spool[i], self._logits(ids)[:-1], ids[1:]) for i, ids in enumerate(texts)]

    def _logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        import torch

        logits: NDArray[np.float32] = self._model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()
        return logits


def _column_squares(weight: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares of each column, as float64, a block of rows at a time."""
    import torch

    squares = torch.zeros(weight.shape[1], dtype=torch.float64)
    for block in weight.split(4096):
        squares += (block.double() ** 2).sum(0)
    return squares


def _matched(model: Any, source: TensorSource) -> dict[str, _Matrix]:
    """Return the tensors that are encoded and that the model holds, by their names in the source."""
    plan = make_plan(source, Encoding(f"bits:{MAX_RATE // 16}", quantized="keep"))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    matrices = {}
    for name, tensor in plan.tensors.items():
        if tensor.group is None:
            continue
        for path in (name, prefix + name, name.removeprefix(prefix)):
            if path in parameters and tuple(parameters[path].shape) == tuple(tensor.info.shape):
                is_index = tensor.group.regime == "index"
                matrices[name] = _Matrix(name, tensor.info.nbytes, is_index, parameters[path])
                break
    return matrices


def _sets(names: Sequence[str]) -> dict[str, list[str]]:
    """Return names by what they are without numbers, in bands of neighbouring layers, under a label each."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return {f"{kind} {band}": chosen for kind, of_kind in kinds.items() for band, chosen in _bands(of_kind)}


def _bands(names: list[str]) -> Iterator[tuple[int, list[str]]]:
    ordered = sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    n_bands = min(BANDS, max(1, len(ordered) // 2))
    for band in range(n_bands):
        yield band, ordered[band * len(ordered) // n_bands : (band + 1) * len(ordered) // n_bands]
