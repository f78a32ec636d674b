"""Ranking: variants by their mean over seeds of a measure on data that no point was trained on, never by their loss.

The weighted loss of a run depends on its weights, so it cannot be compared between points. Differences to the control
are paired: seed by seed, on the same windows in the same order.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from palenka.eval.statistics import mean_interval
from palenka.eval.suite import Score
from palenka.grid.points import Grid, Point, Variant

Measured = Mapping[str, Mapping[str, Any]]
"""The measures of those points that are finished, by the point's name."""


def rank(grid: Grid, points: Sequence[Point], measured: Measured) -> list[dict[str, Any]]:
    """A row for every variant of the points, the best first; variants that lack a seed come last, without a rank.

    Returns:
        ``{"rank", "variant", "role", "control", "values", "seeds", "lacking", "measures": {measure: {"mean",
        "deviation", "difference", "difference_deviation", "interval", "title", "unit", "higher_is_better"}}}``; a
        measure is a suite's main figure. Deviations, and the 95 % interval of the difference, are over seeds; None for
        a single one.
    """
    by_variant: dict[str, dict[int, Mapping[str, Any]]] = {point.variant.name: {} for point in points}
    for point in points:
        if point.name in measured:
            by_variant[point.variant.name][point.settings.seed] = measured[point.name]
    variants = {point.variant.name: point.variant for point in points}
    rows = [_row(grid, variant, by_variant[name], by_variant[variant.control]) for name, variant in variants.items()]
    whole = [row for row in rows if not row["lacking"]]
    whole.sort(key=lambda row: _badness(row["measures"][grid.settings.rank_by]))
    for place, row in enumerate(whole, start=1):
        row["rank"] = place
    return whole + [row for row in rows if row["lacking"]]


def best(ranking: Sequence[Mapping[str, Any]], count: int) -> list[str]:
    """The names of the best variants, and of their controls."""
    chosen = [row for row in ranking if row["rank"] is not None and row["role"] != "control"][:count]
    return list(dict.fromkeys([*(row["variant"] for row in chosen), *(row["control"] for row in chosen)]))


def print_ranking(title: str, rank_by: str, ranking: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a table of variants; a control stands in bold."""
    measures = {name: measure for row in ranking for name, measure in row["measures"].items()}
    for name in sorted(measures, key=lambda name: name != rank_by):
        about = ", ".join(filter(None, (measures[name]["title"], measures[name]["unit"])))
        table = Table("rank", Column("variant", overflow="fold"), title=f"{title}: {about}, over seeds")
        for heading in ("seeds", "mean", "deviation", "minus control", "95 % interval"):
            table.add_column(heading, justify="right")
        for row in ranking:
            table.add_row(*_cells(row, name), style="bold" if row["role"] == "control" else None)
        console.print(table)


def print_runs(title: str, rank_by: str, points: Sequence[Point], measured: Measured, console: Console) -> None:
    """Print what every run is ranked by, and how well it is known."""
    table = Table(Column("run", overflow="fold"), Column("value", justify="right"), title=title)
    for point in points:
        if found := measured.get(point.name):
            table.title = f"{title}: {found[rank_by]['title']}"
            score = Score(**{name: found[rank_by].get(name) for name in Score.model_fields})
            table.add_row(point.name, str(score), style="bold" if point.variant.is_control else None)
    console.print(table)


def _badness(measure: Mapping[str, Any]) -> float:
    """The lower, the better."""
    return -measure["mean"] if measure["higher_is_better"] else float(measure["mean"])


def _row(
    grid: Grid,
    variant: Variant,
    seeds: Mapping[int, Mapping[str, Any]],
    control: Mapping[int, Mapping[str, Any]],
) -> dict[str, Any]:
    first: Mapping[str, Any] = next(iter(seeds.values()), {})
    both = [seed for seed in seeds if seed in control and not variant.is_control]
    measures = {}
    for name, about in first.items():
        values = [figures[name]["value"] for figures in seeds.values()]
        differences = [seeds[seed][name]["value"] - control[seed][name]["value"] for seed in both]
        measures[name] = {
            "mean": statistics.fmean(values),
            "deviation": _deviation(values),
            "difference": statistics.fmean(differences) if differences else None,
            "difference_deviation": _deviation(differences),
            "interval": mean_interval(differences),
            **{key: about[key] for key in ("title", "unit", "higher_is_better")},
        }
    return {
        "rank": None,
        "variant": variant.name,
        "role": "control" if variant.is_control else "point",
        "control": variant.control,
        "values": dict(variant.values),
        "seeds": sorted(seeds),
        "lacking": [seed for seed in grid.settings.seeds if seed not in seeds],
        "measures": measures,
    }


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _cells(row: Mapping[str, Any], measure: str) -> list[str]:
    def figure(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    place = "–" if row["rank"] is None else str(row["rank"])
    name = f"{row['variant']} (control)" if row["role"] == "control" else row["variant"]
    seeds = f"{len(row['seeds'])} of {len(row['seeds']) + len(row['lacking'])}"
    found = row["measures"].get(measure, {})
    interval = found.get("interval")
    return [
        *(place, name, seeds),
        figure(found.get("mean"), ".4f"),
        figure(found.get("deviation"), ".4f"),
        figure(found.get("difference"), "+.4f"),
        f"{interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "–",
    ]
