"""The heat map of a grid over two of its options, with the controls' levels in its legend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from palenka.report.canvas import TEXT, Size, drawn, round_ticks, short, tell
from palenka.report.colours import CROWD, INK, PAPER
from palenka.report.grid.seed_chart import OPTION_LETTERS, VALUE_LETTERS
from palenka.report.results import signed

_SMALL = 13
"""Pixels of a cell's numbers."""
_ROOM = {4: 56, 3: 48}
"""Minimum width of a cell, in pixels, for a number with so many digits."""
_FAR = 1.5
"""A control further from the cells than this, in spans of theirs, is drawn at the edge of the legend."""
_STEPS = 48

Colour = tuple[float, float, float, float]
"""Red, green, blue and opacity."""


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map.

    Attributes:
        value: for its colour; None if it does not compare with the others.
        difference: from the control; None if unknown.
        note: text instead of missing numbers.
        name: of the variant.
    """

    value: float | None
    difference: float | None = None
    note: str = ""
    name: str = ""


def heat_map(
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    cells: Mapping[tuple[int, int], Cell],
    levels: Sequence[float],
    title: str,
) -> Markup:
    """Values over two options: the darker the lower, the lowest outlined, with the controls' levels in its legend.

    Args:
        rows: an option and its values.
        columns: the other.
        cells: by places of both values; missing ones were never planned.
        levels: of the controls.
        title: what it shows, for those who hear the page.
    """
    known = [cell.value for cell in cells.values() if cell.value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)

    def draw(size: Size) -> Figure:
        """The map in one size."""
        height = 44 * len(rows[1])
        figure = size.figure(90 + height + (75 if known else 0))
        grid = figure.add_gridspec(2 if known else 1, height_ratios=[height, 9] if known else None)
        axes = figure.add_subplot(grid[0])
        _frame(axes, rows, columns)
        colours = mpl.colormaps["cividis"]
        shares = Normalize(low, high)
        digits = digits_in(size.width, len(columns[1]))
        for place, cell in cells.items():
            face = PAPER if cell.value is None else colours(float(shares(cell.value)))
            _draw_cell(axes, place, cell, face, digits)
        if known:
            row, column = min(cells, key=lambda place: np.inf if (value := cells[place].value) is None else value)
            for edge, width in (("black", 5.0), ("white", 2.2)):  # one of the two is visible on any colour
                frame = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=edge, linewidth=width)
                axes.add_patch(frame)
            draw_legend(figure.add_subplot(grid[1]), low, high, levels, colours)
        return figure

    return drawn(draw, title)


def digits_in(width: int, columns: int) -> int | None:
    """Digits of numbers for which `columns` cells side by side have room; None if there is none."""
    room = 0.86 * width / columns
    return next((digits for digits, needed in _ROOM.items() if room >= needed), None)


def draw_legend(axes: Axes, low: float, high: float, levels: Sequence[float], colours: Colormap) -> None:
    """The colour of each value between two, and the controls' levels on the same axis, or beyond its edge."""
    span = high - low or max(abs(low) * 1e-3, 1e-6)
    near = [level for level in levels if low - _FAR * span <= level <= high + _FAR * span]
    edges = np.linspace(low, high if high > low else low + span, _STEPS + 1)
    axes.pcolormesh(edges, [0, 1], [(edges[1:] + edges[:-1]) / 2], cmap=colours, edgecolors="face", linewidth=0.5)
    axes.set_xlim(min([edges[0], *near]) - 0.01 * span, max([edges[-1], *near]) + 0.01 * span)
    axes.set_ylim(0, 1)
    axes.yaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    round_ticks(axes.xaxis, 4)
    axes.set_xlabel("held-out cross-entropy, nats per token")
    _mark_controls(axes, near, [level for level in levels if level not in near])


def _mark_controls(axes: Axes, near: Sequence[float], far: Sequence[float]) -> None:
    """Marks at the levels on the axis, arrows towards those beyond it, and their labels."""
    left, right = axes.get_xlim()
    name = "control" if len(near) + len(far) == 1 else "controls"

    def write(share: float, text: str) -> None:
        side = "left" if share < 0.2 else "right" if share > 0.8 else "center"
        axes.text(share, 1.6, text, ha=side, va="bottom", transform=axes.transAxes)

    for level in near:
        share = (level - left) / (right - left)
        axes.plot([share] * 2, [-0.25, 1.45], color=INK, linewidth=1.6, transform=axes.transAxes, clip_on=False)
    if near:
        write((min(near) - left) / (right - left), f"{name} {min(near):.4f}" if name == "control" else name)
    if above := [level for level in far if level > right]:
        write(1.0, f"{name} {min(above):.4f} →")
    if below := [level for level in far if level < left]:
        write(0.0, f"← {name} {max(below):.4f}")


def readable_on(colour: Colour) -> str:
    """Black or white, whichever stands out more on a colour: at least 4.5 to 1 by the WCAG's definition."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#ffffff"


def _frame(axes: Axes, rows: tuple[str, Sequence[str]], columns: tuple[str, Sequence[str]]) -> None:
    axes.set_xlim(-0.5, len(columns[1]) - 0.5)
    axes.set_ylim(len(rows[1]) - 0.5, -0.5)
    axes.set_xticks(range(len(columns[1])), [short(label, VALUE_LETTERS) for label in columns[1]])
    axes.set_yticks(range(len(rows[1])), [short(label, VALUE_LETTERS) for label in rows[1]])
    axes.tick_params(labelcolor=INK)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(short(columns[0], OPTION_LETTERS))
    # Above the axis and level, it is read without turning the head and takes no width.
    axes.set_title(short(rows[0], OPTION_LETTERS))


def _draw_cell(axes: Axes, place: tuple[int, int], cell: Cell, face: Colour | str, digits: int | None) -> None:
    row, column = place
    hatch = {"hatch": "////", "edgecolor": CROWD, "linewidth": 0} if cell.value is None else {"edgecolor": "none"}
    patch = Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=face, **hatch)
    tell(patch, f"{cell.name}: {' '.join(_lines(cell, 4))}")
    axes.add_patch(patch)
    if digits is None:
        return
    ink = INK if isinstance(face, str) else readable_on(face)
    lines = _lines(cell, digits)
    for number, line in enumerate(lines):
        height = row + 0.36 * (number - (len(lines) - 1) / 2)
        size = TEXT if number == 0 else _SMALL
        ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5} if cell.value is None else None
        axes.text(column, height, line, ha="center", va="center", color=ink, fontsize=size, bbox=ground)


def _lines(cell: Cell, digits: int) -> list[str]:
    """The text of a cell: its value, and beneath it the difference."""
    if cell.value is None:
        return [cell.note]
    value = f"{cell.value:.{digits}f}"
    return [value] if cell.difference is None else [value, signed(cell.difference, digits)]
