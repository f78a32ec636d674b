"""The part of the page about a grid: its sentences, its stages and their figures."""

from dataclasses import dataclass
from pathlib import Path

from palenka.grid.record import GridMeasure, GridRecord, GridStage
from palenka.ground.quantities import count
from palenka.report.figures import Captioned
from palenka.report.finding import Finding
from palenka.report.grid.analysis import PairedRun, noise_of, paired_runs, unfinished_runs, varied_options
from palenka.report.grid.figures import finalist_figures, grid_figures
from palenka.report.grid.finding import grid_finding, limits_of
from palenka.report.names import distinct_names
from palenka.report.sections import Tile
from palenka.report.sources import Sources


@dataclass(frozen=True)
class StageSection:
    """The points of a grid, or its finalists.

    Attributes:
        stage: its ranking and its runs.
        measures: the ranking measure and the others, as far as any row has them.
        figures: of its runs.
        missing: runs that failed, and runs that never began.
        pairs: the finalists' runs beside their controls'.
        unfinished: runs that finalists' pairs lack.
    """

    stage: GridStage
    measures: dict[str, GridMeasure]
    figures: list[Captioned]
    missing: list[str]
    pairs: list[PairedRun]
    unfinished: tuple[str, ...]

    @property
    def suites(self) -> dict[str, str]:
        """The titles of the suites that finalists are compared on, by name."""
        return {name: found["title"] for pair in self.pairs for name, found in pair.comparison.suites.items()}


@dataclass(frozen=True)
class GridSection:
    """A grid; its finalists may not exist yet."""

    name: str
    finding: Finding
    limits: str
    points: StageSection
    finalists: StageSection | None


def grid_sections(sources: Sources) -> list[GridSection]:
    """A section for every grid.

    Raises:
        UserError: if the measures of finalists and controls do not have the same windows or pairs.
    """
    names = distinct_names(sources.grids)
    return [_section(directory, grid, names[directory]) for directory, grid in sources.grids.items()]


def grid_tiles(sources: Sources) -> list[Tile]:
    """The numbers at the top: the size of each grid."""
    tiles = []
    for grid in sources.grids.values():
        points = grid.points
        controls = sum(row.is_control for row in points.ranking)
        variants = count(len(points.ranking) - controls, "variant")
        note = f"of {points.planned}: {variants} and {count(controls, 'control')}, {count(len(points.seeds), 'seed')}"
        tiles.append(Tile("finished points", str(len(points.runs)), note))
    return tiles


def _section(directory: Path, grid: GridRecord, name: str) -> GridSection:
    noise = noise_of(grid.points)
    figures = grid_figures(grid.points, varied_options(grid.points), noise)
    finalists = None
    if grid.finalists:
        pairs = paired_runs(directory, grid.finalists)
        drawn, unfinished = finalist_figures(grid.finalists, pairs), unfinished_runs(grid.finalists)
        finalists = _stage(grid, grid.finalists, drawn, pairs, unfinished)
    return GridSection(
        name=name,
        finding=grid_finding(grid, name),
        limits=limits_of(noise),
        points=_stage(grid, grid.points, figures),
        finalists=finalists,
    )


def _stage(
    grid: GridRecord,
    stage: GridStage,
    figures: list[Captioned],
    pairs: list[PairedRun] | None = None,
    unfinished: tuple[str, ...] = (),
) -> StageSection:
    measures = {name: measure for row in stage.ranking for name, measure in row.measures.items()}
    ordered = {name: measures[name] for name in sorted(measures, key=lambda name: name != grid.rank_by)}
    return StageSection(stage, ordered, figures, _missing(stage), pairs or [], unfinished)


def _missing(stage: GridStage) -> list[str]:
    """Runs that failed, and runs that never began."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in stage.failures.items():
        by_reason.setdefault(reason, []).append(name)
    told = [f"{', '.join(names)} failed: {reason}" for reason, names in by_reason.items()]
    if stage.untried:
        told.append(f"{len(stage.untried)} of {stage.planned} never began: {', '.join(stage.untried)}")
    return told
