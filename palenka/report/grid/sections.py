"""The part of the page about a grid: its sentences, its tables, its figures."""

from collections.abc import Sequence
from dataclasses import dataclass

from palenka.report.finding import Finding, count
from palenka.report.grid.analysis import HELD_OUT, PairedRun, noise_of, paired_runs, unfinished_runs, varied_options
from palenka.report.grid.figures import finalist_figures, grid_figures
from palenka.report.grid.files import Grid, GridMeasure, GridRow, GridStage
from palenka.report.grid.finding import grid_finding, limits_of, signed, unsigned
from palenka.report.models import Measure, distinct_names
from palenka.report.sections import Captioned, Tile
from palenka.report.sources import Sources

TestCell = tuple[str, str]
"""A figure, and in small print its interval."""


@dataclass(frozen=True)
class RankingRow:
    """A variant: for each measure its mean, and its difference from the control, each with what is in small print."""

    place: str
    name: str
    is_control: bool
    seeds: str
    cells: tuple[TestCell, ...]


@dataclass(frozen=True)
class RankingTable:
    """Variants in their order, by each measure."""

    measures: tuple[TestCell, ...]
    rows: tuple[RankingRow, ...]


@dataclass(frozen=True)
class TestRow:
    """A finalist's run beside its control's."""

    name: str
    seed: int
    cells: tuple[TestCell, ...]


@dataclass(frozen=True)
class FinalistSection:
    """The best variants, trained again.

    Attributes:
        ranking: of them and their controls.
        figures: of their runs.
        suites: titles of those that they are tested on.
        tests: of each run against its control's.
        has_windows: whether any of them is paired over windows.
        lacks_windows: whether any of them is not, although both of its runs are finished.
        unfinished: the runs without which a test is missing.
        missing: what failed, and what never began.
    """

    ranking: RankingTable
    figures: tuple[Captioned, ...]
    suites: tuple[str, ...]
    tests: tuple[TestRow, ...]
    has_windows: bool
    lacks_windows: bool
    unfinished: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class GridSection:
    """A grid: no finalists where there are none yet."""

    name: str
    finding: Finding
    figures: tuple[Captioned, ...]
    ranking: RankingTable
    limits: str
    missing: tuple[str, ...]
    finalists: FinalistSection | None


def grid_sections(sources: Sources) -> list[GridSection]:
    """A section for every grid.

    Raises:
        UserError: if the measures of finalists and controls are not of the same windows or pairs.
    """
    names = distinct_names(grid.directory for grid in sources.grids)
    return [_section(grid, names[grid.directory]) for grid in sources.grids]


def grid_tiles(sources: Sources) -> list[Tile]:
    """The numbers at the top: how much of each grid there is."""
    tiles = []
    for grid in sources.grids:
        points = grid.record.points
        controls = sum(row.is_control for row in points.ranking)
        variants = count(len(points.ranking) - controls, "variant")
        note = f"of {points.planned}: {variants} and {count(controls, 'control')}, {count(len(points.seeds), 'seed')}"
        tiles.append(Tile("finished points", str(len(points.runs)), note))
    return tiles


def _section(grid: Grid, name: str) -> GridSection:
    points, finalists = grid.record.points, grid.record.finalists
    noise = noise_of(points)
    return GridSection(
        name=name,
        finding=grid_finding(grid, name),
        figures=tuple(grid_figures(points, varied_options(points), noise)),
        ranking=_ranking(points, grid.record.rank_by),
        limits=limits_of(noise),
        missing=_missing(points),
        finalists=_finalists(grid, finalists) if finalists else None,
    )


def _ranking(stage: GridStage, rank_by: str) -> RankingTable:
    found = dict.fromkeys(name for row in stage.ranking for name in row.measures)
    measures = sorted(found, key=lambda name: name != rank_by)
    units = [(Measure(name).title, "nats per token" if name == HELD_OUT else "%") for name in measures]
    return RankingTable(tuple(units), tuple(_ranking_row(row, measures) for row in stage.ranking))


def _ranking_row(row: GridRow, measures: Sequence[str]) -> RankingRow:
    cells = [cell for name in measures for cell in _measure_cells(name, row.measures.get(name))]
    return RankingRow(
        place="–" if row.rank is None else str(row.rank),
        name=row.variant,
        is_control=row.is_control,
        seeds=f"{len(row.seeds)} of {len(row.seeds) + len(row.lacking)}",
        cells=tuple(cells),
    )


def _measure_cells(name: str, measure: GridMeasure | None) -> tuple[TestCell, TestCell]:
    if measure is None:
        return ("–", ""), ("–", "")
    deviation = "" if measure.deviation is None else f"± {unsigned(name, measure.deviation)}"
    return (unsigned(name, measure.mean), deviation), _difference(name, measure.difference, measure.interval)


def _difference(name: str, difference: float | None, interval: Sequence[float] | None) -> TestCell:
    if difference is None:
        return "–", ""
    ends = "" if interval is None else " to ".join(signed(name, end) for end in interval)
    return signed(name, difference), ends


def _finalists(grid: Grid, stage: GridStage) -> FinalistSection:
    pairs = paired_runs(grid, stage)
    suites = list(dict.fromkeys(suite for pair in pairs for suite in pair.suites))
    return FinalistSection(
        ranking=_ranking(stage, grid.record.rank_by),
        figures=tuple(finalist_figures(stage, pairs)),
        suites=tuple(Measure(suite).title for suite in suites),
        tests=tuple(_test_row(pair, suites) for pair in pairs),
        has_windows=any(pair.windows is not None for pair in pairs),
        lacks_windows=any(pair.control is not None and pair.windows is None for pair in pairs),
        unfinished=unfinished_runs(stage),
        missing=_missing(stage),
    )


def _test_row(pair: PairedRun, suites: Sequence[str]) -> TestRow:
    held_out = pair.run.held_out
    control = "–" if pair.control is None else unsigned(HELD_OUT, pair.control.held_out.value)
    cells = [
        (unsigned(HELD_OUT, held_out.value), " to ".join(unsigned(HELD_OUT, end) for end in held_out.interval)),
        (control, ""),
        ("–", "")
        if pair.windows is None
        else _difference(HELD_OUT, pair.windows["difference"], pair.windows["interval"]),
    ]
    for suite in suites:
        test = pair.suites.get(suite)
        if test is None:
            cells += [("–", ""), ("–", "")]
        else:
            cells += [_difference(suite, test["difference"], test["interval"]), (f"{test['p_value']:.2g}", "")]
    return TestRow(pair.run.variant, pair.run.seed, tuple(cells))


def _missing(stage: GridStage) -> tuple[str, ...]:
    """What failed, and what never began."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in stage.failures.items():
        by_reason.setdefault(reason, []).append(name)
    told = [f"{', '.join(names)} failed: {reason}" for reason, names in by_reason.items()]
    if stage.untried:
        told.append(f"{len(stage.untried)} of {stage.planned} never began: {', '.join(stage.untried)}")
    return tuple(told)
