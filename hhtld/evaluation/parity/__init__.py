"""Gate 2, argmax parity: does a model decoded from its pack still say what the source says?

    from hhtld.evaluation.parity import gate_parity

    report = gate_parity("snapshot-folder", "model.hhtld")  # raises GateError below .90 top-1 agreement

Of a causal language model every next-token position of every prompt is compared; of a text encoder the embeddings
of 1,000 sentences and the nearest neighbours that they give. Needs the extra ``transformers``.

One model is in memory at a time, as float32: 4 bytes a weight, beside one prompt's logits (4 bytes a token and word
of the vocabulary). The source model goes first; its logits over all prompts wait in a temporary file (about 0.8 GB for
the built-in prompts and 49,152 words; TMPDIR says where) and are gone afterwards. Two models at once would need no
file, but twice the memory, and memory is what models of some size lack. Keeping logits, not a summary, is what makes
the divergence exact.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hhtld.errors import FormatError, GateError, MissingExtraError, shown
from hhtld.evaluation.parity.metrics import compare_positions, nearest_others
from hhtld.evaluation.parity.prompts import BUILTIN, Prompt, Prompts, chosen_prompts, retrieval_sentences
from hhtld.evaluation.parity.report import EmbeddingReport, ParityReport, PromptParity, print_parity
from hhtld.formats.locations import local_source, spelled
from hhtld.gates import row_cosines
from hhtld.pack.pack import HhtldPack
from hhtld.progress import Progress, silent

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

    The same numbers on every run: float32, no sampling, a fixed number of threads.

    Parameters
    ----------
    model : path
        A snapshot folder with config, tokenizer and safetensors; or "demo:".
    pack : path or HhtldPack
        What was made from it.
    prompts : "builtin", path, or sequence of str or Prompt
        A file's format is told in the head of the built-in ones. A text encoder takes each as one sentence; of the
        built-in ones it takes the sentences, filled up with templates to 1,000.
    min_top1 : float
        Top-1 agreement to reach, 0 to 1: the share itself is judged, its intervals of 95 % are told.
    max_tokens : int
        Of each prompt at most, also no more than the model has positions for.
    n_continued : int
        Tokens of the greedy continuations; 0 for none.
    jobs : int
        Threads. The last bits of float32 sums depend on it, so numbers are compared at equal ones.
    progress : callable, optional
        Called with "source" or "packed", a prompt's kind and the bytes of its text when a causal model is done
        with it.

    Raises
    ------
    GateError
        When agreement is below `min_top1`; its `report` holds every number.
    FormatError
        When a file is damaged, the pack was not made from the model, or the model is neither a causal language model
        nor a text encoder or lacks a part.
    NonFiniteError
        When a model gives what is not finite.
    MissingExtraError
        When torch or transformers is not installed.
    """
    if not 0 <= min_top1 <= 1:
        raise ValueError(f"min_top1 must be between 0 and 1, got {min_top1}")
    if max_tokens < 2 or n_continued < 0 or jobs < 1:
        raise ValueError(
            f"max_tokens must be at least 2, n_continued 0 and jobs 1, got {max_tokens}, {n_continued} and {jobs}"
        )
    for library in ("torch", "transformers"):
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise MissingExtraError(f"gate-parity needs {library}: pip install 'hhtld[transformers]'") from error
    from hhtld.evaluation.parity.models import Snapshot, check_made_from, fixed_threads
    from hhtld.integrations.torch.tensors import opened

    origin, texts = chosen_prompts(prompts)
    name = "a pack in memory" if isinstance(pack, HhtldPack) else spelled(pack)
    head = (os.fspath(model), name, origin, min_top1)
    with fixed_threads(jobs), opened(pack) as held:
        snapshot = Snapshot(local_source(model, "MODEL"))
        check_made_from(held, snapshot.folder)
        report: ParityReport | EmbeddingReport
        if snapshot.causal:
            items = _next_tokens(snapshot, held, texts, max_tokens, n_continued, progress or silent)
            report = ParityReport(*head, items, n_continued)
        else:
            sentences = retrieval_sentences(texts, N_SENTENCES) if origin == BUILTIN else _different(texts)
            report = _embeddings(snapshot, held, sentences, max_tokens, head)
    if not report:
        raise GateError(f"gate 2 failed for {name}: {report.verdict}", report)
    return report


def _next_tokens(
    snapshot: Snapshot,
    pack: HhtldPack,
    prompts: Sequence[Prompt],
    max_tokens: int,
    n_continued: int,
    progress: Progress,
) -> list[PromptParity]:
    from hhtld.evaluation.parity.models import LogitSpool, continued

    tokenizer = snapshot.tokenizer()
    limit = snapshot.token_limit(max_tokens, n_continued)
    encoded = [tokenizer(prompt.text, truncation=True, max_length=limit)["input_ids"] for prompt in prompts]
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), 1):
        if len(ids) < 2:
            raise FormatError(f"prompt {number}, {shown(prompt.text, 40)}, is {len(ids)} token long: no next token")
    model = snapshot.load_source()
    n_vocabulary = len(model.get_input_embeddings().weight)
    if max(map(max, encoded)) >= n_vocabulary:
        raise FormatError(
            f"{snapshot.folder}: the tokenizer gives token {max(map(max, encoded))}, the model has {n_vocabulary}"
        )
    nbytes = [len(prompt.text.encode()) for prompt in prompts]
    said: list[list[int]] = []
    items = []
    with LogitSpool(4 * n_vocabulary * sum(len(ids) - 1 for ids in encoded)) as spool:
        for prompt, ids, size in zip(prompts, encoded, nbytes, strict=True):
            logits, tokens = continued(model, ids, n_continued, snapshot.stops)
            spool.append(logits[:-1])
            said.append(tokens)
            progress("source", prompt.kind, size)
        del model, logits
        gc.collect()  # modules hold themselves in rings; the next model needs the room now
        model = snapshot.load_packed(pack)
        for place, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
            logits, tokens = continued(model, ids, n_continued, snapshot.stops)
            scores = compare_positions(spool[place], logits[:-1], ids[1:])
            both = said[place], tokens
            items.append(PromptParity(prompt, scores, both, (tokenizer.decode(both[0]), tokenizer.decode(both[1]))))
            progress("packed", prompt.kind, nbytes[place])
    return items


def _different(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Texts that stand there twice would be each other's neighbours, whatever the weights."""
    found = list({prompt.text: prompt for prompt in reversed(prompts)}.values())[::-1]
    if len(found) < 3:
        raise FormatError(f"neighbours of a text encoder need at least 3 different sentences, got {len(found)}")
    return found


def _embeddings(
    snapshot: Snapshot, pack: HhtldPack, sentences: list[Prompt], max_tokens: int, head: tuple[str, str, str, float]
) -> EmbeddingReport:
    from hhtld.evaluation.parity.models import embedded

    tokenizer, texts = snapshot.tokenizer(), [sentence.text for sentence in sentences]
    limit = snapshot.token_limit(max_tokens, 2)  # the RoBERTa family counts its positions from 2
    found = []
    for load in (snapshot.load_source, lambda: snapshot.load_packed(pack)):
        found.append(embedded(load(), tokenizer, texts, limit))
        gc.collect()
    neighbours = np.stack([nearest_others(embeddings) for embeddings in found])
    return EmbeddingReport(*head, sentences, row_cosines(*found), neighbours)
