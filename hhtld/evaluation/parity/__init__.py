"""Gate 2, argmax parity: does a model decoded from its pack still say what the source says?

    from hhtld.evaluation.parity import gate_parity

    report = gate_parity("snapshot-folder", "model.hhtld")  # raises GateError below 0.90 top-1 agreement

For a causal language model, every next-token position of every prompt is compared; for a text encoder, the embeddings
of 1,000 sentences and the nearest neighbours that they give. The module needs the extra ``transformers``.

One model is in memory at a time, as float32: 4 bytes a weight, beside one prompt's logits (4 bytes a token and word
of the vocabulary). The source model goes first; its logits over all prompts wait in a temporary file (about 0.8 GB for
the built-in prompts and 49,152 words; TMPDIR says where), which is deleted afterwards. Two models at once would need
no file, but twice the memory. Logits are kept whole, because only they give the exact divergence.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hhtld.cosines import row_cosines
from hhtld.errors import FormatError, GateError, MissingExtraError, shown
from hhtld.evaluation.parity.metrics import compare_positions, nearest_others
from hhtld.evaluation.parity.prompts import BUILTIN, Prompt, Prompts, chosen_prompts, retrieval_sentences
from hhtld.evaluation.parity.report import EmbeddingReport, ParityReport, PromptParity, print_parity
from hhtld.formats import open_source
from hhtld.pack.made_from import check_made_from
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent
from hhtld.storage.locations import local_source, spelled

if TYPE_CHECKING:
    from hhtld.evaluation.parity.models import Snapshot

__all__ = ["EmbeddingReport", "ParityReport", "Prompt", "PromptParity", "gate_parity", "print_parity"]

N_SENTENCES = 1000


def gate_parity(
    model: str | os.PathLike[str],
    pack: str | os.PathLike[str] | HhtldPack,
    prompts: Prompts = BUILTIN,
    *,
    min_top1: float = 0.9,
    max_tokens: int = 512,
    n_continued: int = 20,
    jobs: int = 1,
    progress: Progress | None = None,
) -> ParityReport | EmbeddingReport:
    """Compare a model with what its pack decodes to, on texts that neither was fitted to.

    Every run gives the same numbers: it computes in float32, draws no samples and uses a fixed number of threads.

    Parameters
    ----------
    model : path
        A snapshot folder with config, tokenizer and safetensors; or "demo:".
    pack : path or HhtldPack
        What was made from it.
    prompts : "builtin", path, or sequence of str or Prompt
        The head of the built-in prompts describes the format of files. A text encoder takes each prompt as one
        sentence; of the built-in ones it takes the sentences, and templates fill them up to 1,000.
    min_top1 : float
        Top-1 agreement to reach, 0 to 1. The share itself is judged; its 95 % intervals are only reported.
    max_tokens : int
        Tokens of each prompt at most; never more than the model has positions for.
    n_continued : int
        Tokens of the greedy continuations; 0 for none.
    jobs : int
        Threads. The last bits of float32 sums depend on it, so numbers are compared at equal ones.
    progress : callable, optional
        Called with "source" or "packed", a prompt's kind and the bytes of its text whenever a causal model has read
        a prompt.

    Raises
    ------
    GateError
        If the agreement is below `min_top1`; the error's `report` holds every number.
    FormatError
        If a file is damaged, if the pack was not made from the model, or if the model is neither a causal language
        model nor a text encoder, or lacks a part.
    NonFiniteError
        If a model gives numbers that are not finite.
    MissingExtraError
        If torch or transformers is not installed.
    """
    _check_options(min_top1, max_tokens, n_continued, jobs)
    _require_libraries()
    from hhtld.evaluation.parity.models import Snapshot, fixed_threads
    from hhtld.integrations.torch.tensors import opened

    origin, texts = chosen_prompts(prompts)
    name = "a pack in memory" if isinstance(pack, HhtldPack) else spelled(pack)
    head = (os.fspath(model), name, origin, min_top1)
    with fixed_threads(jobs), opened(pack) as open_pack:
        snapshot = Snapshot(local_source(model, "MODEL"))
        with open_source(snapshot.folder) as source:
            check_made_from(open_pack, source)
        report: ParityReport | EmbeddingReport
        if snapshot.causal:
            items = _next_tokens(snapshot, open_pack, texts, max_tokens, n_continued, progress or silent)
            report = ParityReport(*head, items, n_continued)
        else:
            sentences = retrieval_sentences(texts, N_SENTENCES) if origin == BUILTIN else _different(texts)
            report = _embeddings(snapshot, open_pack, sentences, max_tokens, head)
    if not report:
        raise GateError(f"gate 2 failed for {name}: {report.verdict}", report)
    return report


def _check_options(min_top1: float, max_tokens: int, n_continued: int, jobs: int) -> None:
    if not 0 <= min_top1 <= 1:
        raise ValueError(f"min_top1 must be between 0 and 1, got {min_top1}")
    if max_tokens < 2 or n_continued < 0 or jobs < 1:
        raise ValueError(
            f"max_tokens must be at least 2, n_continued 0 and jobs 1, got {max_tokens}, {n_continued} and {jobs}"
        )


def _require_libraries() -> None:
    for library in ("torch", "transformers"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise MissingExtraError(f"gate-parity needs {library}: pip install 'hhtld[transformers]'") from error


def _next_tokens(
    snapshot: Snapshot,
    pack: HhtldPack,
    prompts: Sequence[Prompt],
    max_tokens: int,
    n_continued: int,
    progress: Progress,
) -> list[PromptParity]:
    """Let the source model read all prompts, and then the packed one."""
    from hhtld.evaluation.parity.models import LogitSpool, continued

    tokenizer = snapshot.tokenizer()
    ids = _tokenized(tokenizer, prompts, snapshot.token_limit(max_tokens, n_continued))
    model = snapshot.load_source()
    n_vocabulary = len(model.get_input_embeddings().weight)
    largest = max(map(max, ids))
    if largest >= n_vocabulary:
        raise FormatError(f"{snapshot.folder}: the tokenizer gives token {largest}, the model has {n_vocabulary}")
    source_tokens: list[list[int]] = []
    items = []
    with LogitSpool(4 * n_vocabulary * sum(len(prompt_ids) - 1 for prompt_ids in ids)) as spool:
        for prompt, prompt_ids in zip(prompts, ids, strict=True):
            logits, tokens = continued(model, prompt_ids, n_continued, snapshot.stops)
            spool.append(logits[:-1])
            source_tokens.append(tokens)
            progress("source", prompt.kind, len(prompt.text.encode()))
        del model, logits
        gc.collect()  # modules hold themselves in rings; the next model needs the room now
        model = snapshot.load_packed(pack)
        for place, (prompt, prompt_ids) in enumerate(zip(prompts, ids, strict=True)):
            logits, tokens = continued(model, prompt_ids, n_continued, snapshot.stops)
            scores = compare_positions(spool[place], logits[:-1], prompt_ids[1:])
            both = source_tokens[place], tokens
            items.append(PromptParity(prompt, scores, both, (tokenizer.decode(both[0]), tokenizer.decode(both[1]))))
            progress("packed", prompt.kind, len(prompt.text.encode()))
    return items


def _tokenized(tokenizer: Any, prompts: Sequence[Prompt], limit: int) -> list[list[int]]:
    """Return the tokens of each prompt, at least two."""
    ids = [tokenizer(prompt.text, truncation=True, max_length=limit)["input_ids"] for prompt in prompts]
    for number, (prompt, prompt_ids) in enumerate(zip(prompts, ids, strict=True), 1):
        if len(prompt_ids) < 2:
            raise FormatError(
                f"prompt {number}, {shown(prompt.text, 40)}, is {len(prompt_ids)} token long, so it has no next token"
            )
    return ids


def _different(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return each text once: equal texts would be each other's neighbours, whatever the weights are."""
    different = list({prompt.text: prompt for prompt in reversed(prompts)}.values())[::-1]
    if len(different) < 3:
        raise FormatError(f"neighbours of a text encoder need at least 3 different sentences, got {len(different)}")
    return different


def _embeddings(
    snapshot: Snapshot, pack: HhtldPack, sentences: list[Prompt], max_tokens: int, head: tuple[str, str, str, float]
) -> EmbeddingReport:
    from hhtld.evaluation.parity.models import embedded

    tokenizer, texts = snapshot.tokenizer(), [sentence.text for sentence in sentences]
    limit = snapshot.token_limit(max_tokens, 2)  # the RoBERTa family counts its positions from 2
    source = embedded(snapshot.load_source(), tokenizer, texts, limit)
    gc.collect()
    packed = embedded(snapshot.load_packed(pack), tokenizer, texts, limit)
    gc.collect()
    neighbours = np.stack([nearest_others(source), nearest_others(packed)])
    return EmbeddingReport(*head, sentences, row_cosines(source, packed), neighbours)
