"""What came of a grid: measures of what is finished, reasons for what is not, the ranking.

grid.json has all of it, report.html shows it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from palenka.grid.points import Grid, Point
from palenka.grid.ranking import Measured, best, print_ranking, print_runs, rank
from palenka.grid.running import is_finished, measures, reason_of_failure
from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers_of, write_record
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info
from palenka.report.write import write_report


@dataclass(frozen=True)
class StageResults:
    """What came of the points of a stage.

    Attributes:
        points: all of them.
        measured: the measures of those that are finished.
        failures: why others did not end well, by name.
        ranking: of the variants.
    """

    points: Sequence[Point]
    measured: Measured
    failures: dict[str, str]
    ranking: list[dict[str, Any]]

    @property
    def untried(self) -> list[str]:
        """The names of the points that never began."""
        return [point.name for point in self.points if point.name not in {**self.measured, **self.failures}]

    @property
    def is_whole(self) -> bool:
        """Whether every point is finished."""
        return len(self.measured) == len(self.points)

    def as_plain(self) -> dict[str, Any]:
        """As grid.json has it."""
        runs = {
            point.name: {"variant": point.variant.name, "seed": point.settings.seed, **self.measured[point.name]}
            for point in self.points
            if point.name in self.measured
        }
        return {"ranking": self.ranking, "runs": runs, "failures": self.failures, "untried": self.untried}


def results_of(grid: Grid, points: Sequence[Point]) -> StageResults:
    """What there is of some points; measures that are missing, or no longer fit, are computed."""
    measured = {point.name: measures(grid, point) for point in points if is_finished(grid, point)}
    failures = {point.name: reason for point in points if (reason := reason_of_failure(point)) is not None}
    return StageResults(points, measured, failures, rank(grid, points, measured))


def chosen_finalists(grid: Grid, results: StageResults) -> list[Point]:
    """The finalists, with their controls; none before every point was tried, since a better one may be to come."""
    count = grid.settings.finalists.count
    if not count or results.untried:
        return []
    return grid.finalists(best(results.ranking, count))


def publish(grid: Grid, points: StageResults, finalists: StageResults | None) -> None:
    """Write grid.json, print tables and what is missing, and write report.html if that can be.

    Whoever ranks the same grid at the same time is waited for.
    """
    path = grid.settings.output / "grid.json"
    with sole_writer(path, wait=True):
        _publish(grid, points, finalists, path)


def _publish(grid: Grid, points: StageResults, finalists: StageResults | None, path: Path) -> None:
    report = path.with_name("report.html")
    for left in (path, report):
        remove_leftovers_of(left)
    stages = {"points": points.as_plain(), "finalists": finalists.as_plain() if finalists else None}
    write_record(path, {"rank_by": grid.settings.rank_by, **stages})
    console = Console() if sys.stdout.isatty() else Console(width=160)
    print_ranking("Points", grid.settings.rank_by, points.ranking, console)
    if finalists:
        print_ranking("Finalists", grid.settings.rank_by, finalists.ranking, console)
        print_runs("Finalists", finalists.points, finalists.measured, console)
    for stage in (points, finalists) if finalists else (points,):
        for name, reason in stage.failures.items():
            info(f"{name} failed: {reason}")
        if stage.untried:
            info(f"{len(stage.untried)} of {len(stage.points)} never began, the first is {stage.untried[0]}")
    console.print(f"Written to {path}", soft_wrap=True)
    # A report that cannot be written is told, but is none of the grid's failures: the ranking is there.
    try:
        write_report([grid.settings.output], report)
    except (UserError, OSError) as error:
        info(f"{report} is not written: {error}")
    else:
        console.print(f"Written to {report}", soft_wrap=True)
