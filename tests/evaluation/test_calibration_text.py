"""Which tokens of a text a model is calibrated on, and the built-in text."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hhtld.errors import FormatError
from hhtld.evaluation.calibration_text import CalibrationText, read_text, text_digest
from hhtld.evaluation.parity.prompts import Prompt, chosen_prompts


def runs_of_words(text: str, length: int = 8) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def test_the_builtin_text_shares_no_run_of_eight_words_with_the_prompts() -> None:
    told, asked = chosen_prompts("builtin", "calibration.txt")[1], chosen_prompts("builtin")[1]
    prompts = set().union(*(runs_of_words(prompt.text) for prompt in asked))
    for prompt in told:
        assert not runs_of_words(prompt.text) & prompts, prompt.text[:60]


def test_the_builtin_text_is_long_and_says_nothing_twice() -> None:
    texts = chosen_prompts("builtin", "calibration.txt")[1]
    assert sum(len(prompt.text.encode()) for prompt in texts) > 280_000
    assert len({prompt.kind for prompt in texts}) >= 20
    sentences = Counter(
        sentence
        for prompt in texts
        if prompt.kind not in ("code", "logs")
        for sentence in set(re.split(r"(?<=[.!?])\s+", " ".join(prompt.text.split())))
        if len(sentence.split()) >= 8
    )
    assert [sentence for sentence, count in sentences.items() if count > 1] == []


class Words:
    """A tokenizer and what is asked of a model's folder: a token for every word, at most so many."""

    def __init__(self, causal: bool, positions: int) -> None:
        self.causal, self._positions = causal, positions

    def tokenizer(self) -> Callable[..., dict[str, list[int] | list[list[int]]]]:
        def tokens(
            text: str | list[str], truncation: bool = False, max_length: int = 0, verbose: bool = True
        ) -> dict[str, list[int] | list[list[int]]]:
            if isinstance(text, list):
                return {"input_ids": [[int(word[1:]) for word in each.split()] for each in text]}
            ids = [int(word[1:]) for word in text.split()]
            return {"input_ids": ids[:max_length] if truncation else ids}

        return tokens

    def token_limit(self, asked: int, reserved: int) -> int:
        return min(asked, self._positions - reserved)


def text_of(kind: str, n_words: int, start: int = 0) -> Prompt:
    return Prompt(kind, " ".join(f"w{start + i}" for i in range(n_words)))


def read(texts: list[Prompt], n_tokens: int, causal: bool = True, positions: int = 10_000) -> CalibrationText:
    return read_text(Words(causal, positions), texts, n_tokens)  # type: ignore[arg-type]  # all that is asked of it


def test_a_bounded_number_of_tokens_is_spread_over_all_kinds() -> None:
    texts = [text_of(kind, 300, 1000 * i) for i, kind in enumerate(("a", "a", "a", "a", "b", "b", "c", "c") * 40)]
    found = read(texts, 2600)
    assert found.n_tokens == 320 * 300
    assert 2400 <= found.n_read <= 2600
    for half, n_tokens in ((found.fitted, 1600), (found.judged, 1000)):
        assert 0.9 * n_tokens <= sum(len(ids) for _, ids in half) <= n_tokens
        assert len({len(ids) for _, ids in half}) == 1
    share = Counter(kind for kind, _ in found.fitted)
    assert share["a"] / len(found.fitted) == pytest.approx(0.5, abs=0.06)
    assert share["b"] / len(found.fitted) == pytest.approx(0.25, abs=0.06)
    begun = [ids[0] for _, ids in (*found.fitted, *found.judged)]
    assert len(set(begun)) == len(begun), "no text is in both halves"
    assert all(ids == list(range(ids[0], ids[0] + len(ids))) for _, ids in found.fitted), "beginnings"
    again = read(texts, 2600)
    assert (again.fitted, again.judged) == (found.fitted, found.judged)


def test_a_kind_whose_texts_alternate_with_others_is_in_both_halves() -> None:
    texts = [text_of("ab"[i % 2], 40, 100 * i) for i in range(20)]
    found = read(texts, 10_000)
    assert Counter(kind for kind, _ in found.fitted) == Counter(kind for kind, _ in found.judged) == {"a": 5, "b": 5}


def test_a_kind_of_many_texts_does_not_decide_for_others() -> None:
    texts = [text_of(kind, 300, 1000 * i) for i, kind in enumerate("a" * 60 + "bb" * 2 + "cc" * 10 + "dddd")]
    found = read(texts, 6656)
    assert Counter(kind for kind, _ in found.judged) == {"a": 8, "b": 2, "c": 8, "d": 2}
    assert {len(ids) for _, ids in found.judged} == {128}
    places = [ids[0] // 1000 for kind, ids in found.judged if kind == "a"]
    assert max(places) > 45, "of a kind they are spread over all"
    many = [text_of(f"kind{i // 2}", 300, 1000 * i) for i in range(60)]
    assert len({kind for kind, _ in read(many, 6656).judged}) == 30, "every kind is judged on, if on less of each"
    assert len(read(many, 650).judged) == 3, "but not on words that know nothing of their text"


def test_a_short_text_is_read_whole_and_long_ones_take_what_short_ones_leave() -> None:
    short = [text_of("a", 10, 100 * i) for i in range(6)]
    assert read(short, 6656).n_read == 60
    mixed = [text_of("a", n, 1000 * i) for i, n in enumerate((10, 10, 500, 500, 10, 10, 500, 500))]
    found = read(mixed, 1300)
    assert [len(ids) for _, ids in found.fitted] == [10, 390, 10, 390]
    assert [len(ids) for _, ids in found.judged] == [10, 240, 10, 240]


def test_short_lines_fill_what_is_read() -> None:
    found = read([text_of("text", 20, 100 * i) for i in range(2000)], 2600)
    assert 2400 <= found.n_read <= 2600


def test_no_text_is_longer_than_the_model_takes_and_few_tokens_are_not_none() -> None:
    texts = [text_of("a", 300, 1000 * i) for i in range(4)]
    assert max(len(ids) for _, ids in read(texts, 6656, positions=66).fitted) == 64
    assert [len(ids) for _, ids in read(texts, 1).fitted] == [24, 24]


def test_an_encoder_is_judged_on_sentences_and_on_texts_if_there_are_none() -> None:
    texts = [text_of("a", 60, 100 * i) for i in range(8)]
    found = read(texts, 6656, causal=False)
    assert [ids[0] for _, ids in found.judged] == [100, 300, 500, 700]


@pytest.mark.parametrize(("n_tokens", "n_judged"), [(1, 3), (665, 59), (3328, 300), (6656, 600), (50_000, 600)])
def test_an_encoder_is_judged_on_fewer_sentences_if_fewer_tokens_are_asked_for(n_tokens: int, n_judged: int) -> None:
    texts = [text_of("a", 20, 100 * i) for i in range(1400)]
    assert len(read(texts, n_tokens, causal=False).judged) == n_judged


def test_a_text_without_a_next_token_is_refused() -> None:
    with pytest.raises(FormatError, match=r"given: text .* is 1 token long"):
        read([text_of("a", n) for n in (5, 1, 5, 5)], 100)


def test_how_much_is_read_belongs_to_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one two\nthree four\n")
    digests = [text_digest(path, 100), text_digest(path, 200), text_digest(["one two", "three"], 100)]
    assert all(first != second for first, second in itertools.combinations(digests, 2))
    assert text_digest(["one two", "three four"], 100) == digests[0]
