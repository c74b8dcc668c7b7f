"""What `hhtld probe` reports: what every way of searching found and cost, as JSON and as tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from hhtld.display.numbers import human_nbytes, reached, shape_text
from hhtld.display.tables import Table, print_titled
from hhtld.display.terminal import safe
from hhtld.slots.palette import RouteAction

__all__ = ["CascadeProbe", "NotEncodable", "ProbeReport", "SearchResult", "TensorProbe", "print_probe"]

_VIABLE, _PARTIAL = 0.90, 0.70


@dataclass(frozen=True)
class SearchResult:
    """What one way of searching found and cost.

    Attributes
    ----------
    name : str
    held : bool
        Whether the file itself is searched, not an encoding made for the comparison.
    top1 : float
        Share of the queries whose best row is the exact best.
    top5 : float
        Share of the exact best rows, up to 5 a query, that are among as many found.
    rows_rescored : float
        Rows read from the source, a query's average.
    milliseconds : float
        Median of queries made one at a time on one thread.
    nbytes : int
        Read for a query, on average.
    """

    name: str
    held: bool
    top1: float
    top5: float
    rows_rescored: float
    milliseconds: float
    nbytes: int

    @property
    def verdict(self) -> str:
        """What `top1` comes to."""
        if self.top1 >= _VIABLE:
            return "viable"
        return "partial" if self.top1 >= _PARTIAL else "not competitive"

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return {
            "name": self.name,
            "held": self.held,
            "top1": self.top1,
            "top5": self.top5,
            "rows_rescored": self.rows_rescored,
            "milliseconds": self.milliseconds,
            "nbytes": self.nbytes,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class NotEncodable:
    """A way of searching that the tensor does not allow, and why."""

    name: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return both."""
        return {"name": self.name, "verdict": "not encodable", "reason": self.reason}


@dataclass(frozen=True)
class CascadeProbe:
    """What the lookup grade's routes say, and what leaving out the rows they skip does to a search.

    Attributes
    ----------
    routes : dict of str to float
        Share of the rows by `RouteAction`, a query's average.
    hidden : float
        Share of the queries whose exact best row is on a skipped entry.
    routing : float
        Milliseconds of finding a query's entry, median.
    after, alone : SearchResult
        The lookup grade on the rows that are left, and on all. What is left for an entry was laid out
        before the clock ran, which a file does not hold: the cascade cannot be faster.
    """

    routes: dict[str, float]
    hidden: float
    routing: float
    after: SearchResult
    alone: SearchResult

    @property
    def helps(self) -> bool:
        """Whether it takes less time, there is less to score to explain that, and it finds as much as without it."""
        faster = self.after.milliseconds < self.alone.milliseconds and self.routing < self.saved
        return faster and self.after.top1 >= self.alone.top1

    @property
    def saved(self) -> float:
        """Milliseconds that scoring the skipped rows takes: their share of the whole search."""
        return self.routes[RouteAction.SKIP.name] * self.alone.milliseconds

    @property
    def verdict(self) -> str:
        """One sentence of judgement."""
        return (
            f"The cascade {'helps' if self.helps else 'does not help'}: it skips {_percent(self.routes['SKIP'])} "
            f"of the rows and takes {_ms(self.after.milliseconds)} ms where the lookup grade without it takes "
            f"{_ms(self.alone.milliseconds)} ms, and hides the exact best row of {_percent(self.hidden)} of the "
            f"queries; it saves time only if routing, {_ms(self.routing)} ms, takes less than scoring what is skipped, "
            f"about {_ms(self.saved)} ms."
        )

    def to_json(self) -> dict[str, Any]:
        """Return every number; the two searches stand among the scorers."""
        return {
            "routes": self.routes,
            "hidden": self.hidden,
            "routing_milliseconds": self.routing,
            "saved_milliseconds": self.saved,
            "after": self.after.name,
            "alone": self.alone.name,
            "helps": self.helps,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class TensorProbe:
    """One tensor, searched in every way.

    Attributes
    ----------
    name : str
    shape : tuple of int
    codec : str
    n_queries : int
    results : list of SearchResult or NotEncodable
        The yardstick, dense float32 numpy, is the first.
    cascade : CascadeProbe or None
        None if the lookup grade does not encode the tensor.
    """

    name: str
    shape: tuple[int, ...]
    codec: str
    n_queries: int
    results: list[SearchResult | NotEncodable]
    cascade: CascadeProbe | None = None

    @property
    def dense(self) -> SearchResult:
        """The yardstick."""
        first = self.results[0]
        assert isinstance(first, SearchResult)
        return first

    @property
    def summary(self) -> str:
        """The file's own ways of searching, in one line."""
        measured = [result for result in self.results if isinstance(result, SearchResult) and result.held]
        each_method = "; ".join(f"{result.name} {_percent(result.top1)}, {_cost(result)}" for result in measured)
        return f"Exact best row found: {each_method}; dense float32 takes {_cost(self.dense)} a query."

    def to_json(self) -> dict[str, Any]:
        """Return every number."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "codec": self.codec,
            "n_queries": self.n_queries,
            "scorers": [result.to_json() for result in self.results],
            "cascade": None if self.cascade is None else self.cascade.to_json(),
            "summary": self.summary,
        }


@dataclass
class ProbeReport:
    """Every tensor that was searched.

    Attributes
    ----------
    path, source : str
    queries : str
        Where they come from: "rows of SRC + 0.05 noise", or a file.
    seed : int
        Of the noise.
    tensors : list of TensorProbe
    """

    path: str
    source: str
    queries: str
    seed: int
    tensors: list[TensorProbe] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return every number, for scripts."""
        return {
            "schema": "hhtld.probe/1",
            "path": self.path,
            "source": self.source,
            "queries": self.queries,
            "seed": self.seed,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


# ---- printing ----


def _percent(share: float) -> str:
    return f"{reached(100 * share, 1)} %"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if milliseconds < 1 else f"{milliseconds:.2f}"


def _cost(result: SearchResult) -> str:
    return f"{_ms(result.milliseconds)} ms and {human_nbytes(result.nbytes)}"


def print_probe(report: ProbeReport, out: Console) -> None:
    """Print a table, what the routes do and a summary for every tensor."""
    for tensor in report.tensors:
        name = safe(tensor.name).plain
        title = f"{name}, {shape_text(tensor.shape)}; {tensor.n_queries} queries: {safe(report.queries).plain}"
        print_titled(title, _result_table(tensor), out)
        if tensor.cascade is not None:
            routes = ", ".join(f"{name} {_percent(share)}" for name, share in tensor.cascade.routes.items())
            out.print(Text(f"Rows by route: {routes}. {tensor.cascade.verdict}"))
        for reason in dict.fromkeys(r.reason for r in tensor.results if isinstance(r, NotEncodable)):
            out.print(Text(f"Not encodable: {reason}."))
        out.print(Text(tensor.summary))


def _result_table(tensor: TensorProbe) -> Table:
    headings = ("search", ">top-1", ">top-5", ">rows rescored", ">ms a query", ">bytes a query", "verdict")
    return Table(
        headings,
        [_cells(result) for result in tensor.results],
        spared=("rows rescored", "bytes a query"),
        notes=("* what the file holds; the rest is encoded from SRC for the comparison",),
    )


def _cells(result: SearchResult | NotEncodable) -> tuple[str, ...]:
    if isinstance(result, NotEncodable):
        return (result.name, "", "", "", "", "", "not encodable")
    return (
        result.name + (" *" if result.held else ""),
        _percent(result.top1),
        _percent(result.top5),
        f"{result.rows_rescored:,.1f}" if result.rows_rescored else "",
        _ms(result.milliseconds),
        human_nbytes(result.nbytes),
        "yardstick" if result.name.startswith("dense") else result.verdict,
    )
