"""Ranking: variants by a measure's mean over seeds, on data that no point was trained on, never by their loss.

The loss of a run depends on the terms' weights, so it does not compare between points. Differences to the control are
paired: seed by seed, on the same windows in the same order.
"""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Column, Table

from palenka.grid.points import Grid, Point, Variant
from palenka.grid.record import GridMeasure, GridRow, GridStage, RunFigure


def rank(grid: Grid, points: Sequence[Point], measured: Mapping[str, Mapping[str, RunFigure]]) -> tuple[GridRow, ...]:
    """A row for every variant of the points, the best first; variants that lack a seed come last, without a rank.

    Args:
        grid: of the points.
        points: of a stage.
        measured: the measures of finished points, by the point's name.
    """
    by_variant: dict[str, dict[int, Mapping[str, RunFigure]]] = {point.variant.name: {} for point in points}
    for point in points:
        if point.name in measured:
            by_variant[point.variant.name][point.settings.seed] = measured[point.name]
    variants = {point.variant.name: point.variant for point in points}
    rows = [_row(grid, variant, by_variant[name], by_variant[variant.control]) for name, variant in variants.items()]
    whole = [row for row in rows if not row.lacking]
    whole.sort(key=lambda row: row.measures[grid.settings.rank_by].badness)
    placed = [row.model_copy(update={"rank": place}) for place, row in enumerate(whole, start=1)]
    return (*placed, *(row for row in rows if row.lacking))


def best(ranking: Sequence[GridRow], count: int) -> list[str]:
    """The names of the best variants, and of their controls."""
    chosen = [row for row in ranking if row.rank is not None and not row.is_control][:count]
    return list(dict.fromkeys([*(row.variant for row in chosen), *(row.control for row in chosen)]))


def print_ranking(title: str, rank_by: str, stage: GridStage, console: Console) -> None:
    """Print a table of variants for each measure, with controls in bold."""
    measures = {name: measure for row in stage.ranking for name, measure in row.measures.items()}
    for name in sorted(measures, key=lambda name: name != rank_by):
        about = ", ".join(filter(None, (measures[name].title, measures[name].unit)))
        table = Table("rank", Column("variant", overflow="fold"), title=f"{title}: {about}, over seeds")
        for heading in ("seeds", "mean", "deviation", "minus control", "95 % interval"):
            table.add_column(heading, justify="right")
        for row in stage.ranking:
            table.add_row(*_cells(row, name), style="bold" if row.is_control else None)
        console.print(table)


def print_runs(title: str, rank_by: str, stage: GridStage, console: Console) -> None:
    """Print the ranking measure of every run, with its interval."""
    headings = {run.measures[rank_by].title for run in stage.runs.values()}
    table = Table(Column("run", overflow="fold"), Column("value", justify="right"), title=": ".join([title, *headings]))
    for name, run in stage.runs.items():
        style = "bold" if stage.rows[run.variant].is_control else None
        table.add_row(name, str(run.measures[rank_by]), style=style)
    console.print(table)


def _row(
    grid: Grid,
    variant: Variant,
    seeds: Mapping[int, Mapping[str, RunFigure]],
    control: Mapping[int, Mapping[str, RunFigure]],
) -> GridRow:
    both = [] if variant.is_control else [(ours, control[seed]) for seed, ours in seeds.items() if seed in control]
    return GridRow(
        rank=None,
        variant=variant.name,
        role="control" if variant.is_control else "point",
        control=variant.control,
        values=dict(variant.values),
        seeds=tuple(sorted(seeds)),
        lacking=tuple(seed for seed in grid.settings.seeds if seed not in seeds),
        measures={
            name: GridMeasure.over(
                [figures[name] for figures in seeds.values()],
                [ours[name].value - theirs[name].value for ours, theirs in both],
            )
            for name in next(iter(seeds.values()), {})
        },
    )


def _cells(row: GridRow, measure: str) -> list[str]:
    def figure(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    place = "–" if row.rank is None else str(row.rank)
    name = f"{row.variant} (control)" if row.is_control else row.variant
    cells = [place, name, f"{len(row.seeds)} of {row.planned}"]
    if (found := row.measures.get(measure)) is None:
        return [*cells, *"––––"]
    interval = f"{found.interval[0]:+.4f} to {found.interval[1]:+.4f}" if found.interval else "–"
    return [
        *cells,
        f"{found.mean:.4f}",
        figure(found.deviation, ".4f"),
        figure(found.difference, "+.4f"),
        interval,
    ]
