"""The results of a grid: measures of finished runs, reasons of failed ones, the ranking.

grid.json has all of them, and report.html shows them.
"""

from collections.abc import Sequence

from palenka.grid.points import Grid, Point
from palenka.grid.ranking import best, print_ranking, print_runs, rank
from palenka.grid.record import GridFiles, GridRecord, GridRun, GridStage
from palenka.grid.running import is_finished, measures, reason_of_failure
from palenka.ground.console import console
from palenka.ground.files import remove_leftovers_of
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info
from palenka.report.write import try_report


def results_of(grid: Grid, points: Sequence[Point]) -> GridStage:
    """The results of points; missing or outdated measures are computed."""
    measured = {point.name: measures(grid, point) for point in points if is_finished(grid, point)}
    failures = {point.name: reason for point in points if (reason := reason_of_failure(point)) is not None}
    return GridStage(
        ranking=rank(grid, points, measured),
        runs={
            point.name: GridRun(variant=point.variant.name, seed=point.settings.seed, measures=measured[point.name])
            for point in points
            if point.name in measured
        },
        failures=failures,
        untried=tuple(point.name for point in points if point.name not in {**measured, **failures}),
    )


def chosen_finalists(grid: Grid, points: GridStage) -> list[Point]:
    """The finalists with their controls; none before every point was tried, since a better one may follow."""
    count = grid.settings.finalists.count
    return grid.finalists(best(points.ranking, count)) if count and not points.untried else []


def publish(grid: Grid, points: GridStage, finalists: GridStage | None) -> None:
    """Write grid.json, print tables and missing runs, and write report.html if possible.

    Waits for another process that ranks the same grid.
    """
    files = GridFiles(grid.settings.output)
    with sole_writer(files.ranking, wait=True):
        _publish(files, GridRecord(rank_by=grid.settings.rank_by, points=points, finalists=finalists))


def _publish(files: GridFiles, record: GridRecord) -> None:
    report = files.directory / "report.html"
    rank_by, points, finalists = record.rank_by, record.points, record.finalists
    for left in (files.ranking, report):
        remove_leftovers_of(left)
    files.write(record)
    wide = console(wide=True)
    print_ranking("Points", rank_by, points, wide)
    if finalists:
        print_ranking("Finalists", rank_by, finalists, wide)
        print_runs("Finalists", rank_by, finalists, wide)
    for stage in (points, finalists) if finalists else (points,):
        for name, reason in stage.failures.items():
            info(f"{name} failed: {reason}")
        if stage.untried:
            info(f"{len(stage.untried)} of {stage.planned} never began, the first is {stage.untried[0]}")
    console(soft_wrap=True).print(f"Written to {files.ranking}")
    try_report([files.directory], report)
