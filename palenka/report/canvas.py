"""What all charts share: the sizes that each is drawn in, their look, and how they write numbers and names.

Every chart is drawn twice, at the width of a column on a screen and on a phone; the page shows the one that fits its
column. So a chart fills it with text of the page's own size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from palenka.report.colours import AXIS, INK, MUTED, RULE
from palenka.report.svg import TIP, to_svg

TEXT = 14
"""Pixels of a chart's text, at the widths that it is drawn in."""
LOOK: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": AXIS,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlesize": TEXT,
    "figure.constrained_layout.use": True,
    "font.size": TEXT,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "legend.fontsize": TEXT,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelsize": TEXT,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.labelsize": TEXT,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Size:
    """A width that charts are drawn in.

    Attributes:
        name: the class of such drawings in the page.
        width: in pixels.
        letters: of a name at a line's end that leave room for the chart.
        ticks: on the horizontal axis, at most.
        names_above: whether the names of rows stand above what they name: there is no room beside it.
        row_letters: of a row's name, at most.
    """

    name: str
    width: int
    letters: int
    ticks: int
    names_above: bool
    row_letters: int

    def figure(self, height: float) -> Figure:
        """An empty figure of a height in pixels."""
        return Figure(figsize=(self.width / 72, height / 72))


WIDE = Size("wide", 533, letters=20, ticks=6, names_above=False, row_letters=28)
NARROW = Size("narrow", 358, letters=14, ticks=4, names_above=True, row_letters=44)


def drawn(draw: Callable[[Size], Figure], title: str) -> Markup:
    """A chart in both sizes.

    Args:
        draw: makes the figure of a size, in the page's look.
        title: what it shows, for those who hear the page.
    """
    with mpl.rc_context(LOOK):
        return Markup().join(to_svg(draw(size), title, size.name) for size in (WIDE, NARROW))


def tell(artist: Artist, text: str) -> None:
    """Let a part of a chart tell something when it is pointed at."""
    artist.set_gid(TIP + " ".join(text.split()))


def round_ticks(axis: Axis, count: int) -> None:
    """So many ticks at most, at round numbers, written as they are read: 1,500 and −0.25, no powers of ten."""
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: written(value))


def written(value: float) -> str:
    """A number as it is read."""
    return f"{value:,.10g}".replace("-", "−")


def short(label: str, letters: int) -> str:
    """A label that leaves room for the chart; the tables have it whole."""
    return label if len(label) <= letters else f"{label[: letters // 2 - 1]}…{label[-letters // 2 :]}"
