"""Plots of a page: SVG that matplotlib draws, in the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hhtld.errors import MissingExtraError

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "INK", "MARK", "OTHER", "Drawing", "Plots", "plots", "require_matplotlib"]

# matplotlib knows no CSS variables, so it draws in these colours and `Plots.drawing` puts the variables in.
INK, FAINT, ACCENT, MARK = "#010203", "#010204", "#010205", "#010206"
OTHER = "#010207"
_VARIABLES = {INK: "--ink", FAINT: "--faint", ACCENT: "--accent", MARK: "--mark", OTHER: "--other"}
_PLOT_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hhtld",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "legend.frameon": False,
}
_PLOT_WIDTH = 4.8  # inches; its 346 units are about a phone's width, so that text is legible there


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot as the template `parts.html.jinja` shows it.

    Attributes
    ----------
    title, note : str
        The words above and below the plot.
    view_box : str
        The rectangle in which `shapes` have their coordinates.
    shapes : Markup
        What stands inside the <svg> element; matplotlib has escaped the texts in it.
    """

    title: str
    note: str
    view_box: str
    shapes: Markup


class Plots:
    """Makes figures that look alike, and gives each an id of its own on the page."""

    def __init__(self) -> None:
        self._n_drawn = 0

    def figure(self, height: float) -> Figure:
        """Return an empty figure, `height` inches high."""
        from matplotlib.figure import Figure

        return Figure((_PLOT_WIDTH, height), layout="constrained")

    def drawing(self, title: str, note: str, figure: Figure) -> Drawing:
        """Return a figure as inline SVG with a title and a note."""
        from markupsafe import Markup

        self._n_drawn += 1
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        svg = file.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        # Inside HTML an SVG needs no namespaces, and a size of its own would keep it from scaling.
        start_tag, shapes = svg.split(">", 1)
        box = re.search(r'viewBox="([^"]*)"', start_tag)
        shapes = shapes[: shapes.rindex("</svg>")]
        # Two plots on one page must not share ids.
        shapes = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>plot{self._n_drawn}-", shapes)
        for color, variable in _VARIABLES.items():
            shapes = shapes.replace(color, f"var({variable})")
        shapes = re.sub(r"\n\s*", "\n", shapes).strip()
        return Drawing(title, note, box[1] if box else "", Markup(shapes))


@contextmanager
def plots() -> Iterator[Plots]:
    """Give what draws the plots of a page.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    mpl = require_matplotlib()
    with mpl.rc_context():
        mpl.rcdefaults()  # the page must not depend on a user's matplotlibrc
        mpl.rcParams.update(_PLOT_STYLE)
        yield Plots()


def require_matplotlib() -> ModuleType:
    """Return matplotlib, or raise MissingExtraError with the extra that installs it."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError("a report draws with matplotlib: pip install 'hhtld[report]'") from error
    return mpl
