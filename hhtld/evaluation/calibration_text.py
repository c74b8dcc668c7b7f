"""Which tokens of a text a model is calibrated on: a bounded number, spread over all of its kinds and texts.

Texts of each kind are dealt in turn to two halves: one is fitted to, on the other the model is judged. If a half has
more tokens than are read, some of its texts are taken, and of each its beginning.

To fit to, little of many texts tells most. To judge on, more is read of each text, because a model agrees less or more
far from a text's beginning, and texts are taken from the kinds in turn: of which kind other text will be is not known,
so kinds count alike, and one of which there are many texts does not decide for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hhtld.encoding.calibrated_rates import FEW_TEXTS
from hhtld.errors import FormatError, shown
from hhtld.evaluation.parity.prompts import Prompt, Prompts, chosen_prompts, sentences_of

if TYPE_CHECKING:
    from hhtld.evaluation.parity.models import Snapshot

__all__ = ["DEFAULT_TOKENS", "LEAST_TEXTS", "CalibrationText", "read_text", "text_digest"]

LEAST_TEXTS = 4  # two in each half: one alone says nothing of how texts differ
DEFAULT_TOKENS = 6656
_LEAST_TOKENS = 24  # of a text, if it has so many: the first of a text know nothing of it
_FITTED = 8 / 13  # of the tokens that are read
_MANY_FITTED, _MANY_JUDGED = 64, 128  # tokens of a text
_N_SENTENCES, _SENTENCE_TOKENS = 600, 128  # that an encoder is judged on: at most, and of each
_LEAST_SENTENCES = 3  # two others, one of which is the nearest


@dataclass(frozen=True)
class CalibrationText:
    """What a model reads.

    Attributes
    ----------
    origin : str
        Where the text comes from, in words.
    fitted, judged : list of (kind, tokens)
    n_tokens : int
        Of the whole text.
    """

    origin: str
    fitted: list[tuple[str, list[int]]]
    judged: list[tuple[str, list[int]]]
    n_tokens: int

    @property
    def n_read(self) -> int:
        """Tokens that the model reads; of a text encoder's sentences, those that it is judged on too."""
        return sum(len(ids) for _, ids in (*self.fitted, *self.judged))


def text_digest(text: Prompts, n_tokens: int) -> str:
    """Return a checksum of a text and of how much of it is read."""
    read = "\0".join(prompt.text for prompt in _texts(text)[1])
    return hashlib.sha256(f"{n_tokens}\0{read}".encode()).hexdigest()


def read_text(snapshot: Snapshot, text: Prompts, n_tokens: int) -> CalibrationText:
    """Return about `n_tokens` tokens of a text.

    They bound what a text encoder is fitted to, 8/13 of them. It is judged on the beginnings of at most 600 sentences,
    and on proportionally fewer below the default of 6656 tokens.

    Raises
    ------
    FormatError
        If there are too few texts, or one has fewer than two tokens.
    """
    origin, texts = _texts(text)
    if len(texts) < LEAST_TEXTS:
        raise FormatError(
            f"{origin}: {len(texts)} {'text is' if len(texts) == 1 else 'texts are'} too few for a calibration, which "
            f"halves them and compares those of a half; give at least {LEAST_TEXTS} (a line '=== KIND' begins one)"
        )
    tokenizer = snapshot.tokenizer()
    places = {kind: place for place, kind in enumerate(dict.fromkeys(text.kind for text in texts))}
    texts = sorted(texts, key=lambda text: places[text.kind])
    lengths = [len(ids) for ids in tokenizer([text.text for text in texts], verbose=False)["input_ids"]]
    for prompt, length in zip(texts, lengths, strict=True):
        if length < 2:
            raise FormatError(
                f"{origin}: text {shown(prompt.text, 40)} is {length} token long, so it has no next token"
            )
    n_fitted = round(_FITTED * n_tokens)
    taken = _spread(len(lengths[::2]), _n_texts(lengths[::2], n_fitted, _MANY_FITTED))
    fitted = _beginnings(snapshot, tokenizer, [texts[2 * place] for place in taken], n_fitted)
    if snapshot.causal:
        n_judged = n_tokens - n_fitted
        kinds = [text.kind for text in texts[1::2]]
        several = min(max(FEW_TEXTS, len(set(kinds))), n_judged // _MANY_FITTED)
        taken = _spread_over_kinds(kinds, max(several, _n_texts(lengths[1::2], n_judged, _MANY_JUDGED)))
        judged = _beginnings(snapshot, tokenizer, [texts[2 * place + 1] for place in taken], n_judged)
    else:
        sentences = sentences_of(texts[1::2])
        if len(sentences) < _LEAST_SENTENCES:  # no running text
            sentences = texts[1::2]
        taken = _spread(len(sentences), _most_sentences(n_tokens))
        judged = _tokenized(snapshot, tokenizer, [sentences[place] for place in taken], _SENTENCE_TOKENS)
    return CalibrationText(origin, fitted, judged, sum(lengths))


def _most_sentences(n_tokens: int) -> int:
    return max(_LEAST_SENTENCES, min(_N_SENTENCES, _N_SENTENCES * n_tokens // DEFAULT_TOKENS))


def _texts(text: Prompts) -> tuple[str, list[Prompt]]:
    return chosen_prompts(text, "calibration.txt")


def _n_texts(lengths: Sequence[int], n_tokens: int, many: int) -> int:
    """Return of how many texts to take at most `many` tokens each, about `n_tokens` in all."""
    return max(LEAST_TEXTS // 2, n_tokens // max(1, min(many, sum(lengths) // len(lengths))))


def _beginnings(
    snapshot: Snapshot, tokenizer: Any, texts: Sequence[Prompt], n_tokens: int
) -> list[tuple[str, list[int]]]:
    """Return the tokens of texts, about `n_tokens` in all: what short ones leave, long ones take."""
    lengths = [len(ids) for ids in tokenizer([text.text for text in texts], verbose=False)["input_ids"]]
    return _tokenized(snapshot, tokenizer, texts, _longest(lengths, n_tokens))


def _spread(n_items: int, most: int) -> list[int]:
    """Return the places of at most so many items, spread evenly over all."""
    n_taken = min(n_items, most)
    return [place * n_items // n_taken for place in range(n_taken)]


def _spread_over_kinds(kinds: Sequence[str], most: int) -> list[int]:
    """Return the places of at most so many items, of each kind as many as of any other, or all that there are."""
    places: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    n_taken, left = dict.fromkeys(places, 0), min(len(kinds), most)
    while left:
        more = [kind for kind in places if n_taken[kind] < len(places[kind])]
        for number in _spread(len(more), left):
            n_taken[more[number]] += 1
            left -= 1
    return sorted(of[i] for kind, of in places.items() if n_taken[kind] for i in _spread(len(of), n_taken[kind]))


def _tokenized(
    snapshot: Snapshot, tokenizer: Any, texts: Sequence[Prompt], longest: int
) -> list[tuple[str, list[int]]]:
    limit = snapshot.token_limit(longest, 2)
    tokens = [tokenizer(text.text, truncation=True, max_length=max(limit, 2))["input_ids"] for text in texts]
    return [(text.kind, ids) for text, ids in zip(texts, tokens, strict=True)]


def _longest(lengths: Sequence[int], n_tokens: int) -> int:
    """Return the length to cut texts to, so that about `n_tokens` are left."""
    left, longest = n_tokens, max(lengths)
    for place, length in enumerate(sorted(lengths)):
        longest = left // (len(lengths) - place)
        if length > longest:
            break
        left -= length
    return max(_LEAST_TOKENS, longest)
