"""Bytes against next-token agreement: this project's profiles beside llama.cpp's types, on the same weights and text.

    pip install -e '.[bench,transformers]'
    python benchmarks/llama_types.py MODEL CALIBRATION [--bits 2 3 4 5 6] [--types Q4_K Q5_K] [--targets .85 .9]
        [--target-bits 4.85] [--prompts builtin benchmarks/second_text.txt]

MODEL is a snapshot folder, CALIBRATION what `hhtld convert MODEL x.hhtld --profile parity --calibrate builtin` kept
beside its output. All weight matrices are coded, embedding and head included, with one type each; llama.cpp's through
ggml_quantize_chunk, four rows joined to one where a row is no multiple of 256, with every weight of the same
importance and with the mean squares that the calibration holds as importance ("+ imatrix"). Agreement is measured on
the built-in prompts of gate-parity, none of which the calibration has seen, and on the texts of each file that
--prompts names. Behind a target stands, in brackets, the agreement that the calibration expects. Bytes are those of all
sections but side files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from ggml import BLOCK, Ggml
from lookup_grade import processor

import hhtld
from hhtld.api.targets import level_for_bits
from hhtld.encoding.options import Encoding
from hhtld.encoding.plan import make_plan
from hhtld.evaluation.calibration_file import read_calibration
from hhtld.evaluation.parity.metrics import PositionScores, compare_positions
from hhtld.evaluation.parity.models import LogitSpool, Snapshot, fixed_threads
from hhtld.evaluation.parity.prompts import chosen_prompts
from hhtld.formats import open_source
from hhtld.pack.pack import HhtldPack
from hhtld.sources.contract import SourceRows

GGML = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K")


def through(ggml: Ggml, name: str, weights: np.ndarray, importance: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Return weights (n_rows, n_cols) through a type and back, and the bytes between."""
    joined = 1
    while weights.shape[1] * joined % BLOCK:
        joined *= 2
    rows = np.ascontiguousarray(weights, np.float32).reshape(-1, weights.shape[1] * joined)
    told = None if importance is None else np.tile(importance.astype(np.float32), joined)
    blocks = ggml.encode(name, rows, told)
    out = np.empty_like(rows)
    ggml.decode(name, blocks, out)
    return out.reshape(weights.shape), blocks.nbytes


class Agreement:
    """A model in memory, what it says to each text as it is, and how much of it stays with other weights."""

    def __init__(self, folder: Path, texts: list[str]) -> None:
        snapshot = Snapshot(folder)
        self._model = snapshot.load_source()
        tokenizer, limit = snapshot.tokenizer(), snapshot.token_limit(512, 1)
        self.parameters = dict(self._model.named_parameters(remove_duplicate=False))
        n_words = len(self._model.get_input_embeddings().weight)
        self._texts: list[tuple[list[list[int]], LogitSpool]] = []
        for text in texts:
            prompts = [prompt.text for prompt in chosen_prompts(text)[1]]
            ids = [tokenizer(prompt, truncation=True, max_length=limit)["input_ids"] for prompt in prompts]
            spool = LogitSpool(4 * n_words * sum(len(prompt_ids) - 1 for prompt_ids in ids))
            for prompt_ids in ids:
                spool.append(self._logits(prompt_ids))
            self._texts.append((ids, spool))

    def _logits(self, ids: list[int]) -> np.ndarray:
        return self._model(input_ids=torch.tensor([ids])).logits[0, :-1].numpy()

    def line(self, name: str, nbytes: int, n_weights: int) -> None:
        """Measure the model as it stands and print a line, with the agreement on each text."""
        print(f"{name:22}{nbytes / 1e6:9.2f} MB {8 * nbytes / n_weights:7.3f} b", end="")
        for ids, spool in self._texts:
            compared = (compare_positions(spool[i], self._logits(each), each[1:]) for i, each in enumerate(ids))
            scores = PositionScores.total(list(compared))
            print(f" {scores.top1 / scores.n_positions:7.4f} {scores.kl / scores.n_positions:8.4f}", end="")
        print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--bits", nargs="*", default=["2", "3", "4", "5", "6"])
    parser.add_argument("--types", nargs="*", default=list(GGML), choices=list(GGML))
    parser.add_argument("--targets", nargs="*", type=float, default=[0.85, 0.9])
    parser.add_argument("--target-bits", nargs="*", type=float, default=[])
    parser.add_argument("--prompts", nargs="+", default=["builtin"], help="texts, as gate-parity takes them")
    parser.add_argument("--ggml", type=Path, help="a shared object with ggml")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    calibration = read_calibration(args.calibration)
    with fixed_threads(args.jobs), open_source(args.model) as source:
        said = Agreement(args.model, args.prompts)
        plan = make_plan(source, Encoding("bits:4"))
        names = [name for name, tensor in plan.tensors.items() if tensor.group is not None]
        kept = sum(
            tensor.info.nbytes for tensor in plan.tensors.values() if tensor.group is None and not tensor.alias_of
        )
        n_weights = sum(
            info.n_rows * info.n_cols for name, info in source.infos().items() if not plan.tensors[name].alias_of
        )
        print(f"{args.model.name}, {n_weights:,} weights, {processor()}")
        print(f"{'':22}{'file':>12} {'a weight':>9}" + f" {'top-1':>7} {'KL':>8}" * len(args.prompts))

        def put(name: str, weights: np.ndarray) -> None:
            said.parameters[name].data.copy_(torch.from_numpy(weights))

        def ours(label: str, pack: HhtldPack) -> None:
            for name in names:
                put(name, pack.get_tensor(name))
            kinds = enumerate(pack.sections.kinds())
            said.line(label, sum(pack.sections.nbytes(i) for i, kind in kinds if kind != "file"), n_weights)

        for bits in args.bits:
            ours(f"bits:{bits}", hhtld.encode(source, f"bits:{bits}"))
        levels = {}
        for target in args.targets:
            level = calibration.level_for(target)
            levels[f"parity {target:g} ({calibration.expected_top1(level):.3f})"] = level
        levels |= {
            f"parity {bits:g} b": level_for_bits(calibration, bits, source, Encoding()) for bits in args.target_bits
        }
        for label, level in levels.items():
            told = {"column_scales": calibration.column_scales, "moments": calibration.moments}
            ours(label, hhtld.encode(source, "parity", rates=calibration.bits(level), **told))
        ggml = Ggml(args.ggml) if args.types else None
        for kind in args.types:
            for told in (False, True):
                nbytes = kept
                for name in names:
                    weights = np.asarray(SourceRows(source, name).read(0, source.infos()[name].n_rows))
                    scale, importance = calibration.column_scales.get(name), None
                    if told and scale is not None:  # the scale is (h / sum of squares) ** (1/4)
                        importance = scale.astype(np.float64) ** 4 * np.square(weights, dtype=np.float64).sum(0)
                    assert ggml is not None
                    coded, size = through(ggml, kind, weights, importance)
                    put(name, coded)
                    nbytes += size
                said.line(kind + (" + imatrix" if told else ""), nbytes, n_weights)


if __name__ == "__main__":
    sys.exit(main())
