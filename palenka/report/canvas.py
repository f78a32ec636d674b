"""Shared by all charts: sizes, look, and the form of numbers and names.

Every chart is drawn twice, at the width of a column on a screen and on a phone. The page shows the one that fits its
column, so its text has the page's size.
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
"""Pixels of a chart's text, at its drawn widths."""
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
    """A width for charts.

    Attributes:
        name: the class of such drawings in the page.
        width: in pixels.
        letters: maximum of a name at a line's end.
        ticks: maximum on the horizontal axis.
        names_above: whether rows are named above, for lack of room beside them.
        row_letters: maximum of a row's name.
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
        title: description for screen readers.
    """
    with mpl.rc_context(LOOK):
        return Markup().join(to_svg(draw(size), title, size.name) for size in (WIDE, NARROW))


def tell(artist: Artist, text: str) -> None:
    """Give a part of a chart a text that appears when it is pointed at."""
    artist.set_gid(TIP + " ".join(text.split()))


def round_ticks(axis: Axis, count: int) -> None:
    """At most `count` ticks, at round numbers in plain form: 1,500 and −0.25, no powers of ten."""
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: written(value))


def written(value: float) -> str:
    """A number in plain form."""
    return f"{value:,.10g}".replace("-", "−")


def short(label: str, letters: int) -> str:
    """A shortened label; the tables have the full one."""
    return label if len(label) <= letters else f"{label[: letters // 2 - 1]}…{label[-letters // 2 :]}"
