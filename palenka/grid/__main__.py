"""`palenka grid configs/grids/NAME.yaml`: trains every point of a grid, ranks them, and trains the best again.

output/points, output/finalists   runs; NAME.failure.json beside one that failed
output/measures                   figures and items of every run
output/logs                       output of points on this machine, or of SLURM's tasks
output/grid.json                  the ranking, and reasons of failures
output/report.html                both as a page, with heat map and paired tests
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from palenka.grid.settings import GridSettings, PointSettings
from palenka.ground.command_line import parse_file, run
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info
from palenka.ground.stopping import ends_with

if TYPE_CHECKING:
    from palenka.grid.points import Grid, Point
    from palenka.grid.record import GridStage
    from palenka.grid.slurm import Following

INCOMPLETE = 1
"""Exit status if points failed or are not finished."""
_COMMANDS = ("point", "finish", "rank")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of grids; returns the exit status."""
    return run(_grid, arguments)


def _grid(arguments: Sequence[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments and arguments[0] in _COMMANDS else ("", arguments)
    program = f"palenka grid {command}".strip()
    if command == "point":
        _point(*parse_file(PointSettings, rest, program))
        return 0
    return _stages(command, *parse_file(GridSettings, rest, program), rest)


def _point(asked: PointSettings, file: Path) -> None:
    if asked.parent is not None:
        ends_with(asked.parent)
    from palenka.grid.points import Grid
    from palenka.grid.running import run_point

    grid = Grid(GridSettings.model_validate(asked.model_dump(exclude={"name", "parent"})), file)
    run_point(grid, grid.point(asked.name))


def _stages(command: str, settings: GridSettings, file: Path, rest: Sequence[str]) -> int:
    """Run points, ranking and finalists, as far as a command requires; returns the exit status."""
    from palenka.grid.points import Grid, require_same_settings
    from palenka.grid.record import GridFiles
    from palenka.grid.running import require_inputs

    grid = Grid(settings, file)
    GridFiles(settings.output).require_own()
    require_inputs(grid)
    require_same_settings(grid.points)
    settings.output.mkdir(parents=True, exist_ok=True)
    # Points have their own locks, and a ranking may be requested while they run.
    with nullcontext() if command == "rank" else sole_writer(settings.output):
        return _run_stages(grid, command, rest)


def _run_stages(grid: "Grid", command: str, rest: Sequence[str]) -> int:
    """Launch the remaining points, then finalists, and rank what is finished; `rank` only ranks."""
    from palenka.grid.points import require_same_settings
    from palenka.grid.results import chosen_finalists, publish, results_of

    if not command and _launch(grid, grid.points, rest, "finish"):
        return 0
    points = results_of(grid, grid.points)
    finalists = chosen_finalists(grid, points)
    require_same_settings(finalists)
    if finalists and command != "rank" and _launch(grid, finalists, rest, "rank"):
        publish(grid, points, None)
        return _status(points)
    results = results_of(grid, finalists) if finalists else None
    publish(grid, points, results)
    return _status(points, results)


def _launch(grid: "Grid", points: "Sequence[Point]", arguments: Sequence[str], following: "Following") -> bool:
    """Run unfinished points here, or submit them; returns whether a following job will continue."""
    from palenka.grid.running import is_damaged, is_finished, run_local
    from palenka.grid.slurm import submit

    left = [point for point in points if not is_finished(grid, point) or is_damaged(point)]
    info(f"{grid.settings.output}: {len(points) - len(left)} of {len(points)} {points[0].stage} are finished")
    if left and grid.settings.launcher == "slurm":
        submit(grid, left, arguments, following)
        return True
    run_local(grid, left, arguments)
    return False


def _status(points: "GridStage", finalists: "GridStage | None" = None) -> int:
    return 0 if points.is_whole and (finalists is None or finalists.is_whole) else INCOMPLETE


if __name__ == "__main__":
    sys.exit(main())
