"""What gate 2 measured, of next tokens or of embeddings: as JSON and in a terminal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from hhtld.display.numbers import reached, shortened
from hhtld.display.tables import Table, print_titled
from hhtld.display.terminal import safe
from hhtld.evaluation.parity.metrics import Agreement, PositionScores, first_difference
from hhtld.evaluation.parity.prompts import Prompt

__all__ = [
    "EmbeddingReport",
    "ParityReport",
    "PromptParity",
    "continuations",
    "cosine_facts",
    "number",
    "print_parity",
]

SCHEMA = "hhtld.parity/1"
_N_WORST = 5


@dataclass(frozen=True)
class PromptParity:
    """One prompt's scores, and both models' greedy continuations of it as tokens and as text."""

    prompt: Prompt
    scores: PositionScores
    tokens: tuple[list[int], list[int]]
    texts: tuple[str, str]

    @property
    def diverged_at(self) -> int | None:
        """The first continued token that differs, counted from 0; None if none differs."""
        return first_difference(*self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Return every number and both continuations."""
        return {
            "kind": self.prompt.kind,
            "text": self.prompt.text,
            **self.scores.to_json(),
            "diverged_at": self.diverged_at,
            "continuation_source": self.texts[0],
            "continuation_packed": self.texts[1],
        }


@dataclass(frozen=True)
class _Gate(ABC):
    """What was compared and what was asked; truthy if the share of `top1` reaches it, whatever its intervals are.

    Attributes
    ----------
    model, pack, prompts : str
        Where they come from.
    min_top1 : float
    """

    model: str
    pack: str
    prompts: str
    min_top1: float

    task: ClassVar[str]
    what: ClassVar[str]
    groups: ClassVar[str]

    @property
    @abstractmethod
    def top1(self) -> Agreement:
        """What is judged."""

    def __bool__(self) -> bool:
        return self.top1.share >= self.min_top1

    @property
    def verdict(self) -> str:
        """One sentence."""
        return f"{self.what} is {reached(self.top1.share)}, asked {self.min_top1:g}: {'pass' if self else 'below'}"

    @property
    def intervals(self) -> str:
        """What the number is worth, in words."""
        agreement = self.top1
        text = f"95 % interval {_range(agreement.wilson)} if all {agreement.total:,} were independent (Wilson)"
        if agreement.bootstrap is not None:
            text += f", {_range(agreement.bootstrap)} by resampling {self.groups}"
        return f"{text}. The share itself is judged, not the interval's lower end."

    def _head(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "task": self.task,
            "passed": bool(self),
            "model": self.model,
            "pack": self.pack,
            "prompts_from": self.prompts,
            "min_top1": self.min_top1,
            "top1": self.top1.to_json(),
        }


@dataclass(frozen=True)
class ParityReport(_Gate):
    """Next-token agreement of a causal language model with its pack.

    Attributes
    ----------
    items : list of PromptParity
        In the order of the prompts.
    n_continued : int
        Tokens of the continuations, at most.
    """

    items: list[PromptParity]
    n_continued: int

    task = "next-token"
    what = "next-token top-1 agreement"
    groups = "whole prompts, as positions of one prompt are not independent"

    @cached_property
    def top1(self) -> Agreement:
        """Positions where both models choose the same token first."""
        return Agreement.of([(item.scores.top1, item.scores.n_positions) for item in self.items])

    @cached_property
    def scores(self) -> PositionScores:
        """Over all prompts."""
        return PositionScores.total([item.scores for item in self.items])

    @cached_property
    def kinds(self) -> dict[str, tuple[int, PositionScores]]:
        """Prompts and scores by kind, in order of appearance."""
        return {
            kind: (len(chosen), PositionScores.total([item.scores for item in chosen]))
            for kind, chosen in ((k, [i for i in self.items if i.prompt.kind == k]) for k in _kinds(self.items))
        }

    @property
    def worst(self) -> list[int]:
        """Places in `items` of the prompts of the lowest agreement."""
        shares = [item.scores.top1 / item.scores.n_positions for item in self.items]
        return sorted(range(len(shares)), key=lambda place: (shares[place], place))[:_N_WORST]

    def kind_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return headings (">": numbers) and one row a kind, the last one for all."""
        headings = ("kind", ">prompts", ">positions", ">top-1", ">top-5", ">KL, nats", ">perplexity", ">packed")
        rows = []
        for kind, (n, scores) in {**self.kinds, "all": (len(self.items), self.scores)}.items():
            facts = scores.to_json()
            agreement = reached(facts["top1"]), reached(facts["top5"])
            perplexities = (number(value) for value in scores.perplexities)
            counts = f"{n:,}", f"{scores.n_positions:,}"
            rows.append((kind, *counts, *agreement, number(facts["kl_nats"]), *perplexities))
        return headings, rows

    def print_details(self, out: Console) -> None:
        """Print the prompts of the lowest agreement, and the continuations side by side."""
        lines = list(continuations(self))
        begins = [safe(shortened(" ".join(item.prompt.text.split()), 80)) for item in self.items]
        worst = ((*lines[i][:1], safe(lines[i][1]), lines[i][2], begins[i]) for i in self.worst)
        print_titled("Prompts of the lowest agreement", Table((">prompt", "kind", ">top-1", "~begins"), worst), out)
        if self.n_continued:
            cells = ((n, safe(kind), same, safe(a), safe(b)) for n, kind, _, same, a, b in lines)
            table = Table((">prompt", "kind", ">same", "~source continues", "~packed continues"), cells)
            title = f"Greedy continuations, up to {self.n_continued} tokens; same: tokens until they part"
            print_titled(title, table, out)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts; no time is among them, so that equal runs give equal text."""
        return {
            **self._head(),
            "n_prompts": len(self.items),
            "n_continued": self.n_continued,
            "all": self.scores.to_json(),
            "kinds": {kind: {"n_prompts": n, **scores.to_json()} for kind, (n, scores) in self.kinds.items()},
            "worst": self.worst,
            "items": [item.to_json() for item in self.items],
        }


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class EmbeddingReport(_Gate):
    """Agreement of a text encoder's embeddings with its pack's.

    Attributes
    ----------
    sentences : list of Prompt
    cosines : float64 (n_sentences,)
        Of each embedding with its packed self.
    neighbours : int64 (2, n_sentences)
        The nearest other sentence, to the source and to the packed model.
    """

    sentences: list[Prompt]
    cosines: NDArray[np.float64]
    neighbours: NDArray[np.int64]

    task = "embedding"
    what = "agreement on the nearest other sentence"
    groups = "sentences"

    @cached_property
    def top1(self) -> Agreement:
        """Sentences whose nearest other sentence is the same to both."""
        return Agreement.of([(int(a == b), 1) for a, b in self.neighbours.T])

    @cached_property
    def kinds(self) -> dict[str, tuple[int, float, NDArray[np.float64]]]:
        """Sentences, share of agreement and cosines by kind, in order of appearance."""
        agreed = self.neighbours[0] == self.neighbours[1]
        kinds = {}
        for kind in dict.fromkeys(sentence.kind for sentence in self.sentences):
            chosen = np.array([sentence.kind == kind for sentence in self.sentences])
            kinds[kind] = (int(chosen.sum()), float(agreed[chosen].mean()), self.cosines[chosen])
        return kinds

    @property
    def worst(self) -> list[int]:
        """Places in `sentences` of the lowest cosines."""
        return [int(place) for place in np.argsort(self.cosines, kind="stable")[:_N_WORST]]

    def kind_table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return headings (">": numbers) and one row a kind, the last one for all."""
        everything = (len(self.sentences), self.top1.share, self.cosines)
        rows = [
            (kind, f"{n:,}", reached(share), *(reached(value) for value in cosine_facts(cosines).values()))
            for kind, (n, share, cosines) in {**self.kinds, "all": everything}.items()
        ]
        return ("kind", ">sentences", ">same nearest", ">cosine, median", ">p5", ">min"), rows

    def print_details(self, out: Console) -> None:
        """Print the sentences whose embeddings are furthest from their packed selves."""
        worst = [(reached(self.cosines[i]), safe(self.sentences[i].text)) for i in self.worst]
        print_titled("Embeddings furthest from their packed selves", Table((">cosine", "~sentence"), worst), out)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            **self._head(),
            "n_sentences": len(self.sentences),
            "all": {"n_sentences": len(self.sentences), "top1": self.top1.share, **cosine_facts(self.cosines)},
            "kinds": {
                kind: {"n_sentences": n, "top1": share, **cosine_facts(cosines)}
                for kind, (n, share, cosines) in self.kinds.items()
            },
            "worst": [
                {"place": place, "text": self.sentences[place].text, "cosine": float(self.cosines[place])}
                for place in self.worst
            ],
        }


def cosine_facts(cosines: NDArray[np.float64]) -> dict[str, float]:
    """Return the median, p5 and minimum, in this order."""
    low, p5, median = np.quantile(cosines, (0.0, 0.05, 0.5))
    return {"cosine_median": float(median), "cosine_p5": float(p5), "cosine_min": float(low)}


def _kinds(items: Sequence[PromptParity]) -> list[str]:
    return list(dict.fromkeys(item.prompt.kind for item in items))


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


# ---- tables, for the terminal and the page ----


def number(value: float) -> str:
    """Return a number of any size in few characters."""
    return f"{value:.4f}" if value < 10 else f"{value:,.2f}" if value < 1e6 else f"{value:.2e}"


def continuations(report: ParityReport) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield each prompt's number, kind, top-1, tokens until continuations part, and both of them."""
    for place, item in enumerate(report.items, 1):
        same = "all" if item.diverged_at is None else str(item.diverged_at)
        share = reached(item.scores.top1 / item.scores.n_positions)
        yield str(place), item.prompt.kind, share, same, *item.texts


def print_parity(report: ParityReport | EmbeddingReport, out: Console) -> None:
    """Print the tables by kind, the worst texts, the continuations side by side and the verdict."""
    out.print(Text(f"{safe(report.pack)} beside {safe(report.model)}, on {safe(report.prompts)} prompts"))
    headings, rows = report.kind_table()
    out.print(Table(headings, ((safe(kind), *cells) for kind, *cells in rows)))
    report.print_details(out)
    out.print()
    out.print(Text(f"{'' if report else 'FAILED: '}{report.verdict}; {report.intervals}"))
