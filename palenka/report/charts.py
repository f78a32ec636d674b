"""The kinds of charts: small, labelled directly, with a text for each part."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from palenka.report.canvas import TEXT, Size, drawn, round_ticks, short, tell, written
from palenka.report.colours import AXIS, INK, PAPER
from palenka.report.results import Estimate

_ROW_GAP = 0.33
"""Distance of a row's name above its dots, in rows; on a phone there is no room beside them."""


@dataclass(frozen=True)
class Line:
    """A line of a chart, with its name at its end; one without a label is a thin line of the background."""

    label: str
    colour: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    dashed: bool = False
    marked: bool = False
    name: str = ""
    """Its text when pointed at; default: its label."""
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """The ends of each point's interval."""


@dataclass(frozen=True)
class Dot:
    """A value with its interval, and its owner."""

    colour: str
    estimate: Estimate
    hollow: bool = False
    name: str = ""


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
        y_limits: of the axis; None to fit the lines.
        log: a logarithmic y axis.
        zero: a heavier rule at 0.
    """

    def draw(size: Size) -> Figure:
        """The lines in one size."""
        height = 260 if size.names_above else 300
        figure, axes = _figure(size, height, y_label)
        if log:
            axes.set_yscale("log")
        if zero:
            axes.axhline(0, color=AXIS, linewidth=1.2)
        for line in sorted(lines, key=lambda line: bool(line.label)):
            width = 2 if line.label else 1
            style = (0, (3.5, 1.8)) if line.dashed else "-"
            marker = "o" if line.marked or len(line.x) == 1 else ""
            (path,) = axes.plot(
                line.x, line.y, color=line.colour, linewidth=width, linestyle=style, marker=marker, markersize=5
            )
            tell(path, _of_line(line, x_label))
            if line.band is not None:
                axes.fill_between(line.x, *line.band, color=line.colour, alpha=0.14, linewidth=0)
        axes.set_ylim(*y_limits)
        axes.set_xlim(0, 1.01 * max((float(line.x.max()) for line in lines), default=1.0))
        axes.set_xlabel(x_label)
        _ticks(axes, size, log)
        _label_ends(axes, [line for line in lines if line.label], size, height)
        return figure

    return drawn(draw, title)


def histogram_chart(shapes: Sequence[Shape], title: str, x_label: str) -> Markup:
    """Outlined histograms over each other, each named at its highest bin."""

    def draw(size: Size) -> Figure:
        """The histograms in one size."""
        figure, axes = _figure(size, 250, "share of tokens")
        for label, colour, edges, shares in shapes:
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.14)
            outline = axes.stairs(shares, edges, color=colour, linewidth=1.8)
            tell(outline, f"{label}: most between {edges[shares.argmax()]:.3g} and {edges[shares.argmax() + 1]:.3g}")
        top = max(float(shares.max()) for *_, shares in shapes)
        axes.set_ylim(0, 1.22 * top)
        axes.set_xlim(shapes[0][2][0], shapes[0][2][-1])
        axes.set_xlabel(x_label)
        _ticks(axes, size)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        for label, colour, edges, shares in shapes:
            peak = int(shares.argmax())
            place = (edges[peak] + edges[peak + 1]) / 2
            side = "left" if place < edges.mean() else "right"
            axes.annotate(
                label, (place, shares[peak]), (0, 3), textcoords="offset points", ha=side, va="bottom", color=colour
            )
        return figure

    return drawn(draw, title)


def bar_chart(bars: Sequence[tuple[str, float, str]], title: str, x_label: str, colour: str = "#0072B2") -> Markup:
    """Horizontal bars in the order given: (name, value, text at the bar's end)."""

    def draw(size: Size) -> Figure:
        """The bars in one size."""
        figure, axes = _figure(size, 62 + (46 if size.names_above else 25) * len(bars), "")
        places = [place + _below(size) for place in range(len(bars))]
        patches = axes.barh(places, [value for _, value, _ in bars], height=0.4, color=colour)
        for patch, (name, _, text) in zip(patches, bars, strict=True):
            tell(patch, f"{name}: {text} {x_label}")
        axes.bar_label(patches, [text for *_, text in bars], padding=4)
        axes.set_xlabel(x_label)
        axes.set_xlim(0, 1.18 * max((value for _, value, _ in bars), default=1.0) or 1.0)
        _ticks(axes, size)
        _rows(axes, [name for name, _, _ in bars], size)
        return figure

    return drawn(draw, title)


def dot_chart(
    rows: Sequence[tuple[str, Sequence[Dot]]], title: str, x_label: str, reference: float | None = None
) -> Markup:
    """Rows of values with their intervals, several in a row a little apart; a dashed rule marks a reference."""
    crowd = max((len(dots) for _, dots in rows), default=1)

    def draw(size: Size) -> Figure:
        """The rows in one size."""
        pitch = max(25.0, 12.0 + 7.0 * crowd) + (20 if size.names_above else 0)
        figure, axes = _figure(size, 62 + pitch * len(rows), "")
        if reference is not None:
            axes.axvline(reference, color=AXIS, linewidth=1.2, linestyle=(0, (3, 2)))
        room = 0.44 if size.names_above else 0.72  # a single dot is in its middle
        for place, (row, dots) in enumerate(rows):
            for number, dot in enumerate(dots):
                height = place + _below(size) + room * ((number + 0.5) / len(dots) - 0.5)
                _dot(axes, dot, row, height, x_label)
        axes.set_xlabel(x_label)
        _ticks(axes, size)
        _rows(axes, [name for name, _ in rows], size)
        return figure

    return drawn(draw, title)


def _dot(axes: Axes, dot: Dot, row: str, height: float, x_label: str) -> None:
    """Draw a value and its interval at a height, each with its text."""
    low, value, high = (f"{part:.4g}" for part in (dot.estimate.low, dot.estimate.value, dot.estimate.high))
    said = f"{': '.join(dict.fromkeys(name for name in (dot.name, row) if name))}: {value} ({low} to {high}), {x_label}"
    (bar,) = axes.plot([dot.estimate.low, dot.estimate.high], [height] * 2, color=dot.colour, linewidth=1.6)
    face = PAPER if dot.hollow else dot.colour
    (point,) = axes.plot(dot.estimate.value, height, "o", color=dot.colour, markerfacecolor=face, markersize=6)
    for part in (bar, point):
        tell(part, said)


def _of_line(line: Line, x_label: str) -> str:
    """The text of a line: its last value."""
    return f"{line.name or line.label}: {line.y[-1]:.4g} at {written(float(f'{line.x[-1]:.3g}'))} {x_label}"


def _ticks(axes: Axes, size: Size, log: bool = False) -> None:
    round_ticks(axes.xaxis, size.ticks)
    round_ticks(axes.yaxis, 6)
    if log:
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axes.yaxis.set_minor_locator(NullLocator())


def _figure(size: Size, height: float, y_label: str) -> tuple[Figure, Axes]:
    figure = size.figure(height)
    axes = figure.add_subplot()
    # Horizontal and above the axis, it is easy to read and takes no width.
    axes.set_title(y_label)
    return figure, axes


def _below(size: Size) -> float:
    """Offset of a row's contents below its middle, in rows, if its name is above."""
    return 0.12 if size.names_above else 0.0


def _rows(axes: Axes, names: Sequence[str], size: Size) -> None:
    """Name the rows, the first at the top: beside them, or above each for lack of room."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    if size.names_above:
        axes.set_yticks([])
        for place, name in enumerate(names):
            label, across = short(name, size.row_letters), axes.get_yaxis_transform()
            axes.text(0, place - _ROW_GAP, label, va="center", color=INK, transform=across)
    else:
        axes.set_yticks(range(len(names)), [short(name, size.row_letters) for name in names])
        axes.tick_params(axis="y", labelcolor=INK)


def _label_ends(axes: Axes, lines: Sequence[Line], size: Size, height: float) -> None:
    """Write each line's name right of the frame at the height of its end, moved apart if they would touch.

    Args:
        axes: with all lines.
        lines: with a name.
        size: of the drawing.
        height: of the figure in pixels.
    """
    axes.set_ylim(axes.get_ylim())
    inside = axes.transData + axes.transAxes.inverted()
    ends = [min(max(float(inside.transform((line.x[-1], line.y[-1]))[1]), 0.0), 1.0) for line in lines]
    gap = 1.2 * TEXT / (0.72 * height)
    for line, end in zip(lines, _apart(ends, gap), strict=True):
        label = short(line.label, size.letters)
        axes.text(1.02, end, label, color=line.colour, va="center", transform=axes.transAxes)


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
