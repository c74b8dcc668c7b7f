"""Sentences that a voice and its pack are compared on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from hhtld.errors import FormatError

__all__ = ["BUILTIN", "Text", "chosen_sentences"]

BUILTIN = "builtin"
# Each lasts one to five seconds; they hold plosives, sibilants, questions, numbers, pauses and exclamations. There are
# enough of them that no lucky choice decides the verdict.
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "A careful reader checks every number before believing the page.",
    "Seven thousand sheep were sleeping on the hill while the rain fell softly.",
    "Would you please open the window, or is it too cold for that?",
    "She bought three pounds of apples, some fresh bread, and a jar of honey.",
    "Numbers such as nineteen, forty-two and six hundred are harder than they look.",
    "On a bright morning in May the old train crossed the long bridge for the last time.",
    "Stop! That vase is worth more than both of our houses.",
    "Good morning.",
    "Who left the kettle on?",
    "Snow fell all night, and by six the village was quiet.",
    "The doctor asked him twice, but he could not remember the name.",
    "My sister plays the cello; my brother only plays cards.",
    "Thirty-one paper boats drifted under the wooden bridge.",
    "If the wind turns before noon, we shall have to row home.",
    "Please put the blue box behind the green one, not beside it.",
    "What a strange and beautiful machine!",
    "The judge read the letter slowly, folded it, and said nothing.",
    "Oranges, lemons and figs grow on the south side of the house.",
    "He whispered so softly that the microphone heard only hiss.",
    "Every Thursday the baker gives his unsold bread to the school.",
    "Zebras graze beside giraffes, although they rarely share a shade.",
    "Can you hear the difference, or do you merely believe that you can?",
    "Yes, that is all.",
)

Text = str | os.PathLike[str] | Sequence[str]


def chosen_sentences(text: Text) -> tuple[str, list[str]]:
    """Return where sentences come from, in words, and the sentences.

    Parameters
    ----------
    text : "builtin", path of a UTF-8 file of one sentence a line, or sequence of str

    Raises
    ------
    FormatError
        If a file is not text or holds no sentence.
    ValueError
        If a sequence is empty, or a sentence in it.
    """
    if isinstance(text, str | os.PathLike):
        if text == BUILTIN:
            return BUILTIN, list(_SENTENCES)
        try:
            lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise FormatError(f"{text}: not UTF-8 text (byte {error.start})") from None
        sentences = [line.strip() for line in lines if line.strip()]
        if not sentences:
            raise FormatError(f"{text}: holds no sentence")
        return str(text), sentences
    chosen = list(text)
    if not chosen or not all(sentence.strip() for sentence in chosen):
        raise ValueError("sentences are empty: give at least one, and none without words")
    return "given", chosen
