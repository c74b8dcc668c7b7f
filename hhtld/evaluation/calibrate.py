"""Profile parity: a model is run on a text, and tells what its tensors' columns see and what errors in them cost.

    from hhtld.evaluation.calibrate import calibrate

    calibration = calibrate("snapshot-folder")
    hhtld.convert("snapshot-folder", "model.hhtld", profile="parity", calibration=calibration)

The texts are halved. On the first half the model runs forwards and backwards, once (`hhtld.evaluation.gradients`): this
gives column scales, what errors in every row cost, and the moments of inputs for feedback. Nothing is fitted to the
second half: on it the whole model is measured with noise as large as the errors of coding
(`hhtld.evaluation.coding_noise`), at three levels of rates, and at a fourth if it still agrees at the lowest. The
module needs the extra ``transformers``.

Memory holds the model in float32 and at most `PRODUCTS_NBYTES` of sums: a larger model runs more than once over the
first half, for as many of its matrices at a time as fit. Logits wait in a temporary file, as they do for gate-parity.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from hhtld.cosines import row_cosines
from hhtld.encoding.calibrated_rates import FEW_POSITIONS, Calibration, Costs, Measurement, column_scale
from hhtld.encoding.fingerprint import weights_digest
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.errors import FormatError, MissingExtraError
from hhtld.evaluation.calibration_text import DEFAULT_TOKENS, read_text, text_digest
from hhtld.evaluation.parity.metrics import compare_positions, nearest_others
from hhtld.evaluation.parity.prompts import BUILTIN, Prompts
from hhtld.formats import open_source
from hhtld.progress import Progress, silent
from hhtld.slots.feedback import MAX_FEEDBACK_COLS
from hhtld.slots.moments import Moments
from hhtld.slots.slot_t import MAX_RATE
from hhtld.sources.contract import TensorSource
from hhtld.storage.locations import local_source

if TYPE_CHECKING:
    import torch

    from hhtld.evaluation.gradients import Seen
    from hhtld.evaluation.parity.models import Snapshot

__all__ = ["LEVELS", "calibrate"]

LEVELS = (5.25, 4.25, 3.25)
_LOWEST_LEVEL = 2.25  # errors of codes below 2 bits are not alike enough to normal noise
_MUCH = 0.75  # agreement at the last of `LEVELS`, above which the lowest is measured too
PRODUCTS_NBYTES = 1 << 30
_RANK_SHARE = 8  # a factor of moments takes a byte a column: about a twelfth of a square matrix as bfloat16


def calibrate(
    model: str | os.PathLike[str],
    text: Prompts = BUILTIN,
    *,
    n_tokens: int = DEFAULT_TOKENS,
    jobs: int = 1,
    progress: Progress | None = None,
    begun: Calibration | None = None,
    keep: Callable[[Calibration], None] | None = None,
) -> Calibration:
    """Run a model on a text and return what profile parity needs to know of it.

    Parameters
    ----------
    model : path
        A snapshot folder with config, tokenizer and safetensors, of a causal language model or a text encoder.
    text : "builtin", path, or sequence of str or Prompt
        What it reads, as `hhtld.evaluation.parity.gate_parity` takes prompts; "builtin" is a text of its own, which
        shares nothing with the built-in prompts. At least `LEAST_TEXTS` texts.
    n_tokens : int
        About how many tokens of the text the model reads; see `hhtld.evaluation.calibration_text`.
    jobs : int
        Threads. The last bits of sums depend on it, and may move a rate by a step.
    progress : callable, optional
        Called with "calibrate", a text's kind and its share of the model's bytes, when it is read.
    begun : Calibration, optional
        What an interrupted run over the same model and text gave to `keep`: only what is missing is done.
    keep : callable, optional
        Called with the unfinished calibration after each step.

    Raises
    ------
    FormatError
        If the folder holds no such model, there are too few texts, a text has fewer than two tokens, or none of the
        model's tensors can be encoded.
    NonFiniteError
        If the model gives numbers that are not finite.
    MissingExtraError
        If torch or transformers is not installed.
    """
    _require_libraries()
    import torch

    from hhtld.evaluation.parity.models import Snapshot, fixed_threads

    folder = local_source(model, "the model of profile parity")
    with fixed_threads(jobs), torch.inference_mode(False), torch.no_grad(), open_source(folder) as source:
        snapshot = Snapshot(folder)
        read = read_text(snapshot, text, n_tokens)
        facts = {
            "source": weights_digest(source),
            "text": text_digest(text, n_tokens),
            "text_origin": read.origin,
            "n_tokens": str(read.n_read),
            "n_text_tokens": str(read.n_tokens),
        }
        run = _Run(snapshot, source, progress or silent)
        calibration = begun if begun is not None and begun.facts == {**facts, **UNFINISHED} else None
        for step in (*run.fitting(read.fitted, calibration), *run.measuring(read.judged)):
            calibration = step(calibration or Calibration({}, {}, facts={**facts, **UNFINISHED}))
            if keep is not None:
                keep(calibration)
        assert calibration is not None
        return replace(calibration, facts=facts)


UNFINISHED: Mapping[str, str] = {"unfinished": "yes"}
_Step = Callable[[Calibration], Calibration]
_Text = tuple[str, list[int]]  # its kind and its tokens


def _require_libraries() -> None:
    try:
        import torch  # noqa: F401  (imported to see whether it is there)
        import transformers  # noqa: F401  (the same)
    except ImportError as error:
        raise MissingExtraError(
            "calibrating needs torch and transformers: pip install 'hhtld[transformers]'"
        ) from error


# ---- the model ----


@dataclass
class _Matrix:
    """An encoded tensor of the source, and the model's parameter that holds it.

    Attributes
    ----------
    name : str
    is_index : bool
        Whether each of its rows must stay the row that it is.
    parameter : torch.nn.Parameter
    shape : tuple of int
        Rows and columns.
    """

    name: str
    is_index: bool
    parameter: torch.nn.Parameter
    shape: tuple[int, int]


class _Run:
    """The steps of a calibration, upon one loaded model and its source."""

    def __init__(self, snapshot: Snapshot, source: TensorSource, progress: Progress) -> None:
        self._snapshot, self._source, self._progress = snapshot, source, progress
        self._model = snapshot.load_source()
        self._model.eval()
        self._matrices = matched(self._model, source)
        if not self._matrices:
            raise FormatError(f"{snapshot.folder}: no weight matrix of the files is one of the model's parameters")
        self._passes = self._split()
        self._n_bytes = sum(info.nbytes for info in source.infos().values())

    def _split(self) -> list[set[str]]:
        """Return the matrices whose products are summed in one pass over the texts, for each pass."""
        passes: list[set[str]] = [set()]
        nbytes = 0
        for name, matrix in self._matrices.items():
            matrix_nbytes = 4 * matrix.shape[1] ** 2
            if matrix.shape[1] > MAX_FEEDBACK_COLS:
                continue
            if passes[-1] and nbytes + matrix_nbytes > PRODUCTS_NBYTES:
                passes.append(set())
                nbytes = 0
            passes[-1].add(name)
            nbytes += matrix_nbytes
        return passes

    # ---- what errors cost ----

    def fitting(self, texts: Sequence[_Text], begun: Calibration | None) -> list[_Step]:
        """Return the steps that are left of running the model forwards and backwards."""
        done = set() if begun is None else set(begun.moments)
        left = [names for names in self._passes if not names <= done]
        if begun is None or not begun.costs:
            left = left or self._passes[:1]
        return [partial(self._fitted, texts=texts, names=names) for names in left]

    def _fitted(self, calibration: Calibration, *, texts: Sequence[_Text], names: set[str]) -> Calibration:
        import torch

        from hhtld.evaluation.gradients import answers_loss, embedding_loss, watched

        parameters = {name: matrix.parameter for name, matrix in self._matrices.items()}
        is_index = {name: matrix.is_index for name, matrix in self._matrices.items()}
        generator = torch.Generator()
        n_tokens = sum(len(ids) for _, ids in texts)
        with torch.enable_grad(), watched(self._model, parameters, is_index, names) as (seen, backwards):
            for number, (kind, ids) in enumerate(texts):
                generator.manual_seed(number)
                output = self._model(input_ids=torch.tensor([ids]))
                if self._snapshot.causal:
                    backwards(answers_loss(output.logits[0], generator))
                else:
                    backwards(embedding_loss(output.last_hidden_state[0], generator))
                self._progress("calibrate", kind, self._n_bytes * len(ids) // (2 * len(self._passes) * n_tokens))
        if not calibration.costs:
            # An encoder's text gives one direction: that tells of matrices, but too little of single rows.
            tells_rows = self._snapshot.causal and n_tokens >= FEW_POSITIONS
            calibration = self._with_costs(calibration, seen, tells_rows)
        moments = {}
        for name in sorted(names):
            products = seen[name].products
            if products is not None:
                moments[name] = _moments(products.double().numpy())
        return replace(calibration, moments={**calibration.moments, **moments})

    def _with_costs(self, calibration: Calibration, seen: Mapping[str, Seen], tells_rows: bool) -> Calibration:
        from hhtld.evaluation.gradients import row_costs

        scales: dict[str, NDArray[np.float32]] = {}
        costs = {}
        for name, matrix in self._matrices.items():
            weight, inputs = matrix.parameter.detach().reshape(matrix.shape), seen[name].inputs
            if inputs is not None:
                scales[name] = column_scale(inputs.numpy(), _column_squares(weight).numpy())
            costs[name] = Costs(row_costs(name, seen[name], weight, scales.get(name)), matrix.shape[1])
            if not tells_rows:
                costs[name] = Costs(np.full_like(costs[name].rows, costs[name].mean), matrix.shape[1])
        return replace(calibration, column_scales=scales, costs=costs)

    # ---- what levels come to ----

    def measuring(self, texts: Sequence[_Text]) -> list[_Step]:
        """Return the step that measures levels."""
        return [partial(self._measured, texts=texts)]

    def _measured(self, calibration: Calibration, *, texts: Sequence[_Text]) -> Calibration:
        from hhtld.evaluation.coding_noise import CodingNoise

        is_index = {name: matrix.is_index for name, matrix in self._matrices.items()}
        noise = CodingNoise(self._source, calibration.column_scales, calibration.moments, is_index)
        judge = _Answers(self._model, texts) if self._snapshot.causal else _Neighbours(self._model, texts)
        measurements: list[Measurement] = []
        with judge:
            for level in _levels(measurements):
                for name, bits in calibration.bits(level).items():
                    matrix = self._matrices[name]
                    noise.put(name, matrix.parameter.data.view(matrix.shape), bits)
                measurements.append(judge.measured(level))
                n_bytes = self._n_bytes // (2 * len(LEVELS)) if level in LEVELS else 0  # those that come on top
                self._progress("calibrate", f"level {level:g}", n_bytes)
        return replace(calibration, measurements=tuple(sorted(measurements, key=lambda measured: measured.level)))


def _levels(measurements: Sequence[Measurement]) -> Iterator[float]:
    """Yield the levels to measure, while `measurements` grow by what was asked for.

    Where a model breaks cannot be told from levels at which it agrees, so a lower one is measured if it still agrees.
    """
    yield from LEVELS
    if measurements[-1].top1 > _MUCH:
        yield _LOWEST_LEVEL


class _Answers:
    """The next tokens of a causal language model on texts, beside those of the model as it was.

    Parameters
    ----------
    model : torch.nn.Module
        As it is.
    texts : sequence of (kind, tokens)
    """

    def __init__(self, model: Any, texts: Sequence[_Text]) -> None:
        from hhtld.evaluation.parity.models import LogitSpool

        self._model, self._texts = model, [ids for _, ids in texts]
        width = len(model.get_input_embeddings().weight)
        self._spool = LogitSpool(4 * width * sum(len(ids) - 1 for ids in self._texts))
        for ids in self._texts:
            self._spool.append(self._logits(ids))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.__exit__()

    def measured(self, level: float) -> Measurement:
        """Return what the model as it is now comes to."""
        scores = [compare_positions(self._spool[i], self._logits(ids), ids[1:]) for i, ids in enumerate(self._texts)]
        sizes = [text.n_positions for text in scores]
        top1, error = typical([text.top1 for text in scores], sizes)
        return Measurement(level, top1, typical([text.kl for text in scores], sizes)[0], sum(sizes), len(sizes), error)

    def _logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        import torch

        logits: NDArray[np.float32] = self._model(input_ids=torch.tensor([list(ids)])).logits[0, :-1].numpy()
        return logits


def typical(sums: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """Return the mean over positions of what was summed over those of each text, and its standard error over texts.

    The mean is winsorized: of 20 texts the one with the least counts as the next, and so does the one with the most.
    A small error in a weight can break a single text, if it begins with a token that the model hardly holds on to, and
    one such text among 32 would be taken for a loss of all.

    Parameters
    ----------
    sums : sequence of float, shape (n_texts,)
    sizes : sequence of int, shape (n_texts,)
        Positions of each text.
    """
    n_texts, n_positions = len(sums), sum(sizes)
    shares = sorted(total / size for total, size in zip(sums, sizes, strict=True))
    n_cut = n_texts // 20
    least, most = shares[n_cut], shares[-1 - n_cut]
    held = [min(most, max(least, total / size)) * size for total, size in zip(sums, sizes, strict=True)]
    mean = sum(held) / n_positions
    squares = sum((total - mean * size) ** 2 for total, size in zip(held, sizes, strict=True))
    error = math.sqrt(squares * n_texts / max(1, n_texts - 1)) / n_positions
    return mean, error / (1 - 2 * n_cut / n_texts)


class _Neighbours:
    """The nearest other text of each, by a text encoder, beside those by the model as it was.

    Parameters
    ----------
    model : torch.nn.Module
        As it is.
    texts : sequence of (kind, tokens)
    """

    def __init__(self, model: Any, texts: Sequence[_Text]) -> None:
        self._model, self._texts = model, [ids for _, ids in texts]
        self._before = self._embeddings()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measured(self, level: float) -> Measurement:
        """Return what the model as it is now comes to."""
        now, n = self._embeddings(), len(self._texts)
        share = float((nearest_others(self._before) == nearest_others(now)).mean())
        distance = float(1 - row_cosines(self._before, now).mean())
        return Measurement(level, share, distance, n, n, math.sqrt(share * (1 - share) / n))

    def _embeddings(self) -> NDArray[np.float32]:
        import torch

        means = [self._model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0) for ids in self._texts]
        embeddings: NDArray[np.float32] = torch.stack(means).numpy()
        return embeddings


def _moments(products: NDArray[np.float64]) -> Moments:
    """Return a few factors of products, the largest mean square 1: only their proportions matter."""
    largest = float(products.diagonal().max())
    return Moments.of(products / largest if largest > 0 else products, len(products) // _RANK_SHARE)


def _column_squares(weight: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares of each column, as float64, a block of rows at a time."""
    import torch

    squares = torch.zeros(weight.shape[1], dtype=torch.float64)
    for block in weight.split(4096):
        squares += (block.double() ** 2).sum(0)
    return squares


def matched(model: Any, source: TensorSource) -> dict[str, _Matrix]:
    """Return the tensors that are encoded and that the model holds, by their names in the source."""
    plan = make_plan(source, Encoding(profile=f"bits:{MAX_RATE // 16}", quantized="keep"))
    parameters = dict(model.named_parameters(remove_duplicate=False))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    matrices = {}
    for name, tensor in plan.tensors.items():
        if tensor.group is None:
            continue
        for path in (name, prefix + name, name.removeprefix(prefix)):
            if path in parameters and tuple(parameters[path].shape) == tuple(tensor.info.shape):
                is_index = tensor.group.regime == "index"
                shape = tensor.info.n_rows, tensor.info.n_cols
                matrices[name] = _Matrix(name, is_index, parameters[path], shape)
                break
    return matrices
