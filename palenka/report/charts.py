"""The kinds of charts: small, labelled where they are read.

Every chart is drawn some 320 points wide, so that its text is legible on a phone, where it fills the screen, and on
paper, where two stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from palenka.report.results import Estimate
from palenka.report.svg import to_svg

WIDTH = 4.5
INK, MUTED, RULE = "#1b1f24", "#5b6470", "#dfe3e8"
_END_LETTERS, _ROW_LETTERS = 18, 28
LOOK: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#9aa3ad",
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Line:
    """A line of a chart, with its label at its end; one without a label is a thin line of the background."""

    label: str
    colour: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    dashed: bool = False
    marked: bool = False


@dataclass(frozen=True)
class Dot:
    """A value with its interval."""

    colour: str
    estimate: Estimate
    hollow: bool = False


Shape = tuple[str, str, NDArray[np.float64], NDArray[np.float64]]
"""A histogram: its label, colour, edges and shares."""


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    *,
    y_limits: tuple[float | None, float | None] = (None, None),
    log: bool = False,
    zero: bool = False,
) -> Markup:
    """Lines over a common axis, each named at its end.

    Args:
        lines: in drawing order.
        title: what it shows, for those who hear the page.
        x_label: below the axis, with its unit.
        y_label: above the axis, with its unit.
        y_limits: of the axis; None where the lines decide.
        log: a logarithmic y axis.
        zero: a heavier rule at 0.
    """
    with mpl.rc_context(LOOK):
        figure, axes = _figure(2.75, y_label)
        if log:
            axes.set_yscale("log")
        if zero:
            axes.axhline(0, color="#9aa3ad", linewidth=0.9)
        for line in sorted(lines, key=lambda line: bool(line.label)):
            width = 1.5 if line.label else 0.8
            style = (0, (3.5, 1.8)) if line.dashed else "-"
            marker = "o" if line.marked or len(line.x) == 1 else ""
            axes.plot(line.x, line.y, color=line.colour, linewidth=width, linestyle=style, marker=marker, markersize=4)
        axes.set_ylim(*y_limits)
        axes.set_xlim(0, 1.01 * max((float(line.x.max()) for line in lines), default=1.0))
        axes.set_xlabel(x_label)
        _ticks(axes, log)
        _label_ends(axes, [line for line in lines if line.label])
        return to_svg(figure, title)


def histogram_chart(shapes: Sequence[Shape], title: str, x_label: str) -> Markup:
    """Outlined histograms over each other, each named at its highest bin."""
    with mpl.rc_context(LOOK):
        figure, axes = _figure(2.3, "share of tokens")
        for _, colour, edges, shares in shapes:
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.14)
            axes.stairs(shares, edges, color=colour, linewidth=1.3)
        top = max(float(shares.max()) for *_, shares in shapes)
        axes.set_ylim(0, 1.22 * top)
        axes.set_xlim(shapes[0][2][0], shapes[0][2][-1])
        axes.set_xlabel(x_label)
        _ticks(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        for label, colour, edges, shares in shapes:
            peak = int(shares.argmax())
            place = (edges[peak] + edges[peak + 1]) / 2
            side = "left" if place < edges.mean() else "right"
            axes.annotate(
                label, (place, shares[peak]), (0, 3), textcoords="offset points", ha=side, va="bottom", color=colour
            )
        return to_svg(figure, title)


def bar_chart(bars: Sequence[tuple[str, float, str]], title: str, x_label: str, colour: str = "#0072B2") -> Markup:
    """Horizontal bars in the order given: (name, value, the value as it is written at the bar's end)."""
    with mpl.rc_context(LOOK):
        figure, axes = _figure(0.55 + 0.21 * len(bars), "")
        drawn = axes.barh(range(len(bars)), [value for _, value, _ in bars], height=0.62, color=colour)
        axes.bar_label(drawn, [text for *_, text in bars], padding=3)
        axes.set_xlabel(x_label)
        axes.set_xlim(0, 1.18 * max((value for _, value, _ in bars), default=1.0) or 1.0)
        _ticks(axes)
        _rows(axes, [name for name, _, _ in bars])
        return to_svg(figure, title)


def dot_chart(
    rows: Sequence[tuple[str, Sequence[Dot]]], title: str, x_label: str, reference: float | None = None
) -> Markup:
    """Rows of values with their intervals, several in a row a little apart; a dashed rule marks a reference."""
    crowd = max((len(dots) for _, dots in rows), default=1)
    pitch = 0.2 if crowd == 1 else 0.1 + 0.07 * crowd
    with mpl.rc_context(LOOK):
        figure, axes = _figure(0.55 + pitch * len(rows), "")
        if reference is not None:
            axes.axvline(reference, color="#9aa3ad", linewidth=0.9, linestyle=(0, (3, 2)))
        for place, (_, dots) in enumerate(rows):
            for number, dot in enumerate(dots):
                height = place + 0.72 * ((number + 0.5) / len(dots) - 0.5)
                axes.plot([dot.estimate.low, dot.estimate.high], [height] * 2, color=dot.colour, linewidth=1.2)
                face = "white" if dot.hollow else dot.colour
                axes.plot(dot.estimate.value, height, "o", color=dot.colour, markerfacecolor=face, markersize=4)
        axes.set_xlabel(x_label)
        _ticks(axes)
        _rows(axes, [name for name, _ in rows])
        return to_svg(figure, title)


def _ticks(axes: Axes, log: bool = False) -> None:
    round_ticks(axes.xaxis, 5)
    round_ticks(axes.yaxis, 6)
    if log:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())


def round_ticks(axis: Axis, count: int) -> None:
    """So many ticks at most, at round numbers, written as they are read: 1,500 and −0.25, no powers of ten."""
    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}".replace("-", "−"))


def short(label: str, letters: int) -> str:
    """A label that leaves room for the chart; the tables have it whole."""
    return label if len(label) <= letters else f"{label[: letters // 2 - 1]}…{label[-letters // 2 :]}"


def _figure(height: float, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_subplot()
    # Above the axis and level, it is read without turning the head and takes no width.
    axes.set_title(y_label)
    return figure, axes


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first at the top."""
    axes.set_yticks(range(len(names)), [short(name, _ROW_LETTERS) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(visible=False, axis="y")


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name right of the frame at the height of its end, moved apart where they would touch."""
    axes.set_ylim(axes.get_ylim())
    inside = axes.transData + axes.transAxes.inverted()
    heights = [min(max(float(inside.transform((line.x[-1], line.y[-1]))[1]), 0.0), 1.0) for line in lines]
    for line, height in zip(lines, _apart(heights, 0.075), strict=True):
        label = short(line.label, _END_LETTERS)
        axes.text(1.02, height, label, color=line.colour, va="center", transform=axes.transAxes)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved as little as keeps each pair at least a gap apart, and inside [0, 1] if there is room."""
    order = sorted(range(len(heights)), key=lambda place: heights[place])
    moved = list(heights)
    floor = -1.0
    for place in order:
        floor = moved[place] = max(moved[place], floor)
        floor += gap
    ceiling = max(1.0, (len(heights) - 1) * gap)
    for place in reversed(order):
        ceiling = moved[place] = min(moved[place], ceiling)
        ceiling -= gap
    return moved
