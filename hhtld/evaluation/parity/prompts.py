"""Texts that a model and its pack are compared on: the built-in ones, a user's file, and sentences for encoders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hhtld.errors import FormatError, shown

__all__ = ["BUILTIN", "Prompt", "Prompts", "chosen_prompts", "parse_prompts", "retrieval_sentences", "sentences_of"]

BUILTIN = "builtin"
_MARK = "=== "
_PLAIN = "text"  # the kind of a prompt that names none


@dataclass(frozen=True)
class Prompt:
    """A text and what kind of text it is."""

    kind: str
    text: str


Prompts = str | os.PathLike[str] | Sequence[str | Prompt]


def chosen_prompts(prompts: Prompts, builtin: str = "prompts.txt") -> tuple[str, list[Prompt]]:
    """Return where prompts come from, in words, and the prompts.

    Parameters
    ----------
    prompts : "builtin", path, or sequence of str or Prompt
        The head of the built-in ones, `prompts.txt` beside this module, describes the format of files.
    builtin : str
        The file beside this module that "builtin" means.

    Raises
    ------
    FormatError
        If a file is not text or JSON of that form, or holds no prompt.
    ValueError
        If a sequence is empty, or a text in it.
    """
    if isinstance(prompts, str | os.PathLike):
        is_builtin = prompts == BUILTIN
        path = Path(__file__).with_name(builtin) if is_builtin else Path(prompts)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not UTF-8 text (byte {error.start})") from None
        return BUILTIN if is_builtin else str(path), parse_prompts(text, path.name)
    chosen = [prompt if isinstance(prompt, Prompt) else Prompt(_PLAIN, prompt) for prompt in prompts]
    if not chosen or not all(prompt.text.strip() for prompt in chosen):
        raise ValueError("prompts are empty: give at least one text, and none without words")
    return "given", chosen


def parse_prompts(text: str, name: str) -> list[Prompt]:
    """Return the prompts of a file's text: blocks by kind, one a line, or JSON if the name ends in .json."""
    if name.lower().endswith(".json"):
        prompts = _from_json(text, name)
    elif any(line.startswith(_MARK) for line in text.splitlines()):
        prompts = _from_blocks(text)
    else:
        prompts = [Prompt(_PLAIN, line) for line in text.splitlines() if line.strip()]
    if not prompts:
        raise FormatError(f"{name}: holds no prompt")
    for number, prompt in enumerate(prompts, 1):
        if not prompt.text.strip():
            raise FormatError(f"{name}: prompt {number}, of kind {shown(prompt.kind)}, is empty")
    return prompts


def _from_blocks(text: str) -> list[Prompt]:
    blocks: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith(_MARK):
            blocks.append((line[len(_MARK) :].strip() or _PLAIN, []))
        elif blocks:  # what stands before the first mark is the file's head
            blocks[-1][1].append(line)
    return [Prompt(kind, "\n".join(lines).strip("\n")) for kind, lines in blocks]


def _from_json(text: str, name: str) -> list[Prompt]:
    def one(entry: Any) -> Prompt:
        if isinstance(entry, str):
            return Prompt(_PLAIN, entry)
        if isinstance(entry, dict) and isinstance(entry.get("text"), str):
            return Prompt(str(entry.get("kind", _PLAIN)), entry["text"])
        raise FormatError(f"{name}: expected strings or objects with a text, got {shown(str(entry))}")

    try:
        entries = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{name}: not JSON ({error})") from None
    if not isinstance(entries, list):
        raise FormatError(f"{name}: expected a JSON list, got {type(entries).__name__}")
    return [one(entry) for entry in entries]


# ---- sentences for encoders ----

_SENTENCE_END = re.compile("(?<=[.!?])\\s+|(?<=\u3002)")
_RUNNING_TEXT = ("prose", "dialogue", "instructions", "languages", "text")
# Many sentences that differ in one word are what tells a good embedding from one that nearly is.
_TEMPLATES = (
    "The {who} carried the {what} {where}.",
    "Nobody knows why the {who} left a {what} {where}.",
    "How much does it cost to have a {what} repaired {where}?",
    "The {who} wrote a short report about the {what} that was found {where}.",
    "Please ask the {who} whether the {what} is still {where}.",
    "A broken {what} {where} is no reason to call the {who}.",
    "Last winter the {who} sold every {what} {where}.",
)
_WORDS = {
    "who": ("baker", "nurse", "pilot", "gardener", "judge", "violinist", "farmer", "librarian", "plumber", "chemist"),
    "what": ("ladder", "clock", "suitcase", "microscope", "kettle", "map", "bicycle", "lamp", "telescope", "basket"),
    "where": (
        "in the cellar",
        "behind the station",
        "near the lighthouse",
        "at the market",
        "on the roof",
        "by the lake",
    ),
}


def sentences_of(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the different sentences of the running text of prompts, each of its prompt's kind."""
    kinds: dict[str, str] = {}
    for prompt in prompts:
        if prompt.kind in _RUNNING_TEXT:
            for sentence in _SENTENCE_END.split(" ".join(prompt.text.split())):
                if len(sentence) >= 20:
                    kinds.setdefault(sentence, prompt.kind)
    return [Prompt(kind, sentence) for sentence, kind in kinds.items()]


def retrieval_sentences(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """Return `count` different sentences: those of the running text of prompts, then filled templates.

    Every call returns the same ones. Their kinds are those of the prompts, and "template".
    """
    kinds = {sentence.text: sentence.kind for sentence in sentences_of(prompts)}
    filled = dict.fromkeys(
        template.format(who=who, what=what, where=where)
        for template, who, what, where in product(_TEMPLATES, *_WORDS.values())
    )
    wanted, templates = max(0, count - len(kinds)), list(filled)
    for i in range(wanted):
        kinds.setdefault(templates[i * len(templates) // wanted], "template")
    return [Prompt(kind, text) for text, kind in kinds.items()][:count]
