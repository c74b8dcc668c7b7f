"""Profile parity: a model is run on a text, and tells what its tensors' columns see and what errors in them cost.

    from hhtld.evaluation.calibrate import calibrate

    calibration = calibrate("snapshot-folder")
    hhtld.convert("snapshot-folder", "model.hhtld", profile="parity", calibration=calibration)

The texts are halved. On the first half the mean squares of every linear layer's inputs are taken, and the KL divergence
is measured that comes from coding one set of tensors alone: sets are what has one name but for the layer's number, in
at most `BANDS` bands of neighbouring layers. On the second half, which rates are not fitted to, the whole model is
measured at two levels of rates, and at the level that the line between them gives for the target. Needs the extra
``transformers``. Held are the model in float32, what the encoder makes of it, and one set twice; logits wait in a
temporary file, as for gate-parity.

Cost: `BANDS` runs over `SET_TOKENS` tokens for each kind of matrix, and four runs over the second half.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hhtld.api.convert import workers
from hhtld.encoding.calibration import TRIAL_RATE, Calibration, Measurement, Sensitivity, column_scale
from hhtld.encoding.encoder import encode
from hhtld.encoding.plan import make_plan
from hhtld.errors import FormatError, MissingExtraError, shown
from hhtld.evaluation.calibration_file import digest
from hhtld.evaluation.parity.metrics import PositionScores, compare_positions
from hhtld.evaluation.parity.prompts import BUILTIN, Prompt, Prompts, chosen_prompts
from hhtld.formats import open_source
from hhtld.formats.locations import local_source
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent
from hhtld.slots.feedback import MAX_FEEDBACK_COLS
from hhtld.slots.trellis import MAX_RATE
from hhtld.sources.contract import TensorSource

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
        When the folder holds no causal language model, a text has fewer than two tokens, or none of its tensors is
        encodable.
    NonFiniteError
        When the model gives what is not finite.
    MissingExtraError
        When torch or transformers is not installed.
    """
    try:
        import torch  # noqa: F401  (imported to see whether it is there)
        import transformers  # noqa: F401  (the same)
    except ImportError as error:
        raise MissingExtraError(
            "calibrating needs torch and transformers: pip install 'hhtld[transformers]'"
        ) from error
    from hhtld.evaluation.parity.models import Snapshot, fixed_threads

    folder = local_source(model, "the model of profile parity")
    origin, texts = _texts(text)
    if len(texts) < 2:
        raise FormatError(f"{origin}: one text cannot be halved; give at least two (a line '=== KIND' begins one)")
    with fixed_threads(jobs), workers(jobs) as executor, open_source(folder) as source:
        snapshot = Snapshot(folder)
        if not snapshot.causal:
            raise FormatError(f"{folder}: profile parity is for causal language models; use bits:B for this one")
        tokenizer, limit = snapshot.tokenizer(), snapshot.token_limit(MAX_TOKENS, 1)
        ids = [tokenizer(t.text, truncation=True, max_length=limit)["input_ids"] for t in texts]
        for t, own in zip(texts, ids, strict=True):
            if len(own) < 2:
                raise FormatError(f"{origin}: text {shown(t.text, 40)} is {len(own)} token long: no next token")
        run = _Run(snapshot, source, executor, progress or silent)
        fit, judged = ids[::2], ids[1::2]
        run.look_at_columns(fit)
        few = max(2, SET_TOKENS // len(fit))
        sensitivities = run.sensitivities([own[:few] for own in fit])
        found = Calibration(run.scales, sensitivities)
        measured = run.levels(found, judged, target_top1)
        facts = {
            "source": digest(source),
            "text": text_digest(text),
            "text_origin": origin,
            "n_tokens": str(sum(map(len, ids))),
        }
        return Calibration(run.scales, sensitivities, measured, run.moments, facts)


def text_digest(text: Prompts) -> str:
    """Return a checksum of what `calibrate` would read."""
    return hashlib.sha256("\0".join(prompt.text for prompt in _texts(text)[1]).encode()).hexdigest()


def _texts(text: Prompts) -> tuple[str, list[Prompt]]:
    return chosen_prompts(text, "calibration.txt")


@dataclass
class _Matrix:
    """An encoded tensor of the source, whether each of its rows has its identity, and the parameter that holds it."""

    name: str
    nbytes: int
    is_index: bool
    parameter: torch.nn.Parameter


class _Run:
    """A loaded model and its source."""

    def __init__(self, snapshot: Snapshot, source: TensorSource, executor: Executor | None, progress: Progress) -> None:
        self._source, self._executor, self._progress = source, executor, progress
        self._model = snapshot.load_source()
        self._matrices = _matched(self._model, source)
        if not self._matrices:
            raise FormatError(f"{snapshot.folder}: no weight matrix of the files is one of the model's parameters")
        self.scales: dict[str, NDArray[np.float32]] = {}
        self.moments: dict[str, NDArray[np.float32]] = {}

    def look_at_columns(self, texts: Sequence[Sequence[int]]) -> None:
        """Take the mean squares of what linear layers read, and the mean products of what heads read."""
        import torch

        names = {id(m.parameter): m.name for m in self._matrices.values()}
        sums: dict[str, torch.Tensor] = {}
        products: dict[str, torch.Tensor] = {}

        def look(module: torch.nn.Linear, args: tuple[torch.Tensor, ...], _: object) -> None:
            read = args[0].reshape(-1, args[0].shape[-1])
            name = names[id(module.weight)]
            sums[name] = sums.get(name, 0) + (read * read).sum(0, dtype=torch.float64)
            if self._matrices[name].is_index and read.shape[1] <= MAX_FEEDBACK_COLS:
                products[name] = products.get(name, 0) + read.T @ read

        linears = [m for m in self._model.modules() if isinstance(m, torch.nn.Linear) and id(m.weight) in names]
        hooks = [module.register_forward_hook(look) for module in linears]
        for ids in texts:
            self._logits(ids)
        for hook in hooks:
            hook.remove()
        for name, total in sums.items():
            weight = self._matrices[name].parameter
            squares = torch.zeros(weight.shape[1], dtype=torch.float64)
            for block in weight.split(4096):
                squares += (block.double() ** 2).sum(0)
            self.scales[name] = column_scale(total.numpy(), squares.numpy())
        n_positions = sum(map(len, texts))
        for name, total in products.items():
            mean = total.numpy() / np.float32(n_positions)
            self.moments[name] = (mean + mean.T) / 2  # equal in both halves to the last bit

    def sensitivities(self, texts: Sequence[Sequence[int]]) -> tuple[Sensitivity, ...]:
        """Measure what coding each set of tensors alone costs."""
        rates = dict.fromkeys(self._matrices, TRIAL_RATE)
        pack = self._coded(rates)
        found = []
        with self._reference(texts) as spool:
            for label, names in _sets(list(self._matrices)).items():
                own = [self._matrices[name] for name in names]
                before = [matrix.parameter.detach().clone() for matrix in own]
                self._put(pack, own)
                kl = PositionScores.total(self._scores(spool, texts)).kl
                for matrix, weight in zip(own, before, strict=True):
                    matrix.parameter.data.copy_(weight)
                n_weights = sum(weight.numel() for weight in before)
                found.append(Sensitivity(tuple(names), n_weights, kl / sum(len(ids) - 1 for ids in texts)))
                self._progress("calibrate", label, sum(matrix.nbytes for matrix in own))
                del before
        return tuple(found)

    def levels(
        self, calibration: Calibration, texts: Sequence[Sequence[int]], target_top1: float
    ) -> tuple[Measurement, ...]:
        """Measure the whole model at two levels, and at the one that they promise for the target."""
        with self._reference(texts) as spool:
            measured = [self._at(calibration, level, spool, texts) for level in LEVELS]
            promised = Calibration({}, calibration.sensitivities, tuple(measured)).level_for(target_top1)
            if promised not in LEVELS:
                measured.append(self._at(calibration, promised, spool, texts))
        return tuple(measured)

    def _at(
        self, calibration: Calibration, level: float, spool: LogitSpool, texts: Sequence[Sequence[int]]
    ) -> Measurement:
        pack = self._coded(calibration.rates(level))
        self._put(pack, self._matrices.values())
        parts = self._scores(spool, texts)
        scores = PositionScores.total(parts)
        shared = {i for record in pack.table.groups for i in record.sections.values()}
        nbytes = sum(map(pack.nbytes, self._matrices)) + sum(map(pack.sections.nbytes, shared))
        bits = 8 * nbytes / sum(matrix.parameter.numel() for matrix in self._matrices.values())
        n, share = scores.n_positions, scores.top1 / scores.n_positions
        error = math.sqrt(sum((part.top1 - share * part.n_positions) ** 2 for part in parts)) / n
        return Measurement(level, bits, share, scores.kl / n, n, error)

    def _coded(self, rates: Mapping[str, int]) -> HhtldPack:
        scales = {name: self.scales[name] for name in rates if name in self.scales}
        return encode(
            self._source, "parity", rates=rates, column_scales=scales, moments=self.moments, executor=self._executor
        )

    def _put(self, pack: HhtldPack, matrices: Any) -> None:
        import torch

        for matrix in matrices:
            decoded = torch.from_numpy(pack.get_tensor(matrix.name))
            matrix.parameter.data.copy_(decoded)

    def _reference(self, texts: Sequence[Sequence[int]]) -> LogitSpool:
        """The logits of the model as it is; a context manager."""
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

        found: NDArray[np.float32] = self._model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()
        return found


def _matched(model: Any, source: TensorSource) -> dict[str, _Matrix]:
    """Return the tensors that Slot T takes and the model holds, by their names in the source."""
    plan = make_plan(source, f"bits:{MAX_RATE // 16}", quantized="keep")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = {}
    for name, tensor in plan.tensors.items():
        if tensor.group is None:
            continue
        for own in (name, prefix + name, name.removeprefix(prefix)):
            if own in parameters and tuple(parameters[own].shape) == tuple(tensor.info.shape):
                found[name] = _Matrix(name, tensor.info.nbytes, tensor.group.regime == "index", parameters[own])
                break
    return found


def _sets(names: Sequence[str]) -> dict[str, list[str]]:
    """Return names by what they are called without numbers, in bands of neighbours, under a label each."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return {f"{kind} {band}": own for kind, all_own in kinds.items() for band, own in _bands(all_own)}


def _bands(names: list[str]) -> Iterator[tuple[int, list[str]]]:
    ordered = sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    n_bands = min(BANDS, max(1, len(ordered) // 2))
    for band in range(n_bands):
        yield band, ordered[band * len(ordered) // n_bands : (band + 1) * len(ordered) // n_bands]
