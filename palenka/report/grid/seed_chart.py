"""The chart of every run's loss over one option of a grid, seed by seed, with the controls' levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palenka.report.canvas import Size, drawn, round_ticks, short, tell
from palenka.report.colours import INK, MUTED

SEED_STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "^"),
    ("#009E73", "s"),
    ("#CC79A7", "D"),
    ("#8C510A", "v"),
    ("#56B4E9", "P"),
)
"""A colour and a shape for each seed, in turn: Okabe and Ito's colours, and shapes for readers without colour
vision."""
VALUE_LETTERS, OPTION_LETTERS = 10, 44
_DASHES = (0, (4, 2))
_FAR = 0.7
"""Controls further from the runs than this fraction of the runs' span have their own panel."""
_MARGIN = 0.12
_BREAK = {"marker": [(-1.0, -0.6), (1.0, 0.6)], "color": MUTED, "markersize": 8, "clip_on": False}


@dataclass(frozen=True)
class SeedDot:
    """A run's loss at the place of its value among the option's values; a control may apply to all of them."""

    place: int | None
    seed: int
    loss: float
    name: str = ""
    """Of its variant."""


def seed_chart(
    labels: Sequence[str],
    dots: Sequence[SeedDot],
    controls: Sequence[SeedDot],
    means: Sequence[float | None],
    x_label: str,
    title: str,
) -> Markup:
    """Every run's loss over an option's values, by seed, with the controls' levels.

    Args:
        labels: the values, from left to right.
        dots: the runs.
        controls: the controls' runs.
        means: over all runs of each value, joined by a line; None if any run is missing.
        x_label: the option.
        title: what it shows, for those who hear the page.
    """
    seeds = sorted({dot.seed for dot in [*dots, *controls]})
    limits = panel_limits([dot.loss for dot in dots], [control.loss for control in controls])
    joined = [(place, mean) for place, mean in enumerate(means) if mean is not None]

    def draw(size: Size) -> Figure:
        """The chart in one size."""
        figure = size.figure(340)
        ratios = [3.0 if low <= min((dot.loss for dot in dots), default=low) <= high else 1.0 for low, high in limits]
        panels = figure.subplots(len(limits), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, (low, high), ratio in zip(panels, limits, ratios, strict=True):
            axes.set_xlim(-0.5, len(labels) - 0.5)
            axes.set_ylim(low, high)
            draw_seeds(axes, dots, controls, seeds)
            axes.plot([place for place, _ in joined], [mean for _, mean in joined], color=INK, linewidth=1.6)
            round_ticks(axes.yaxis, 6 if ratio > 1 else 2)
            axes.grid(visible=False, axis="x")
        for above, below in pairwise(panels):
            above.spines.bottom.set_visible(False)
            above.plot([0], [0], transform=above.transAxes, **_BREAK)
            below.plot([0], [1], transform=below.transAxes, **_BREAK)
        panels[0].set_title("held-out cross-entropy, nats per token")
        panels[-1].set_xticks(range(len(labels)), [short(label, VALUE_LETTERS) for label in labels])
        panels[-1].set_xlabel(short(x_label, OPTION_LETTERS))
        handles = _handles(seeds, bool(controls), len(joined) > 1)
        columns = 2 if size.names_above else 3
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, frameon=False, handletextpad=0.4)
        return figure

    return drawn(draw, title)


def seed_styles(seeds: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Colour and shape of each seed."""
    return {seed: SEED_STYLES[place % len(SEED_STYLES)] for place, seed in enumerate(seeds)}


def panel_limits(runs: Sequence[float], controls: Sequence[float]) -> list[tuple[float, float]]:
    """The part of the axis in each panel, the highest first: one, or two if controls are far from all runs.

    A distant control would hide differences between runs, so the axis is broken between them.
    """
    everything = [*runs, *controls] or [0.0]
    low, high = min(runs, default=min(everything)), max(runs, default=max(everything))
    span = high - low or 1e-3
    margin = _MARGIN * span
    if runs and controls and (min(controls) > high + _FAR * span or max(controls) < low - _FAR * span):
        parts = [(low - margin, high + margin), (min(controls) - margin, max(controls) + margin)]
        return sorted(parts, reverse=True)
    return [(min(everything) - margin, max(everything) + margin)]


def draw_seeds(axes: Axes, dots: Sequence[SeedDot], controls: Sequence[SeedDot], seeds: Sequence[int]) -> None:
    """Dots of each seed, slightly shifted; a dashed line at the level of each control, where it applies."""
    pitch = 0.5 / max(1, len(seeds))
    for number, (seed, (colour, marker)) in enumerate(seed_styles(seeds).items()):
        for control in (control for control in controls if control.seed == seed):
            left, right = axes.get_xlim() if control.place is None else (control.place - 0.45, control.place + 0.45)
            (rule,) = axes.plot([left, right], [control.loss] * 2, color=colour, linewidth=1.6, linestyle=_DASHES)
            tell(rule, f"{control.name or 'control'}, seed {seed}: {control.loss:.4f}")
        shift = (number - (len(seeds) - 1) / 2) * pitch
        for dot in (dot for dot in dots if dot.seed == seed and dot.place is not None):
            assert dot.place is not None
            (point,) = axes.plot(
                dot.place + shift, dot.loss, marker, color=colour, markersize=7, markeredgewidth=0, alpha=0.85
            )
            tell(point, f"{dot.name}, seed {seed}: {dot.loss:.4f}")


def _handles(seeds: Sequence[int], has_controls: bool, has_means: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7, label=f"seed {seed}")
        for seed, (colour, marker) in seed_styles(seeds).items()
    ]
    if has_means:
        handles.append(Line2D([], [], color=INK, linewidth=1.6, label="mean"))
    if has_controls:
        handles.append(Line2D([], [], color=MUTED, linestyle=_DASHES, label="control of a seed"))
    return handles
