"""Running points: one from training to measures, and many on this machine, one at a time or one per GPU.

A point's failure is recorded when it begins, and the record is removed when it succeeds. So a killed point differs from
one that never began, whatever killed it and wherever it ran.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence

import torch

from palenka.data.corpus import Corpus
from palenka.eval.measure import Measurement, measure
from palenka.eval.results import read_results
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES
from palenka.grid.points import Grid, Point
from palenka.grid.processes import describe, log_of, run_in_processes
from palenka.grid.record import HELD_OUT, GridFiles, RunFigure
from palenka.grid.settings import LocalSettings
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info
from palenka.ground.records import read_record, write_record
from palenka.ground.stopping import Stopped
from palenka.train_student.run import Run
from palenka.train_student.train import train

_NOT_ENDED = "it began and did not end: it runs still, was killed, or ran out of time or memory"


def require_inputs(grid: Grid) -> None:
    """Require that the held-out text and the suites' data exist, before hours are spent.

    Raises:
        UserError: if they do not.
    """
    splits = [grid.settings.ranking_split, *([grid.settings.held_out_split] if grid.settings.finalists.count else [])]
    for corpus in {point.settings.corpus for point in grid.points}:
        for split in splits:
            Corpus.open(corpus, split)
    for suite, folder in grid.settings.suites.items():
        SUITES[suite].read(folder, _conditions(grid, grid.points[0]))


def is_finished(grid: Grid, point: Point) -> bool:
    """Whether a point is trained and measured."""
    ended_well = not point.failure.exists() and Run(point.settings.output).result() is not None
    return ended_well and GridFiles(grid.settings.output).measures(point.name).is_file()


def is_damaged(point: Point) -> bool:
    """Whether a file of a finished point was changed; calling the point again names it. Reads its weights once."""
    try:
        Run(point.settings.output).require_whole()
    except UserError:
        return True
    return False


def reason_of_failure(point: Point) -> str | None:
    """The reason why a point failed, in a sentence; None if it succeeded or never began."""
    try:
        return str(read_record(point.failure)["reason"])
    except FileNotFoundError:
        return None


def run_point(grid: Grid, point: Point) -> dict[str, RunFigure]:
    """Train or resume a point, and measure it; returns its measures.

    Waits for another process that runs it: a killed grid leaves some for a while.

    Raises:
        UserError: as in training and measuring; the sentence is recorded beside the run.
        Stopped: after a signal; the reason is recorded beside the run.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(point.failure))
        except UserError as running:
            info(f"{point.name} runs already, and is waited for: {running}")
            stack.enter_context(sole_writer(point.failure, wait=True))
        if not is_finished(grid, point):  # one that is, is never told as failed while it is looked at again
            write_record(point.failure, {"reason": _NOT_ENDED})
        try:
            train(point.settings)
            measured = measures(grid, point)
        except (UserError, OSError) as error:
            _record(point, str(error))
            raise
        except Stopped as stop:
            _record(point, f"stopped by {stop.by.name}: {stop}")
            raise
        point.failure.unlink(missing_ok=True)
        return measured


def _record(point: Point, reason: str) -> None:
    """Record why a point failed; on a full disk, report that it cannot be recorded."""
    try:
        write_record(point.failure, {"reason": reason})
    except OSError as error:
        info(f"{point.name} failed: {reason} (and {point.failure} cannot be written: {error.strerror or error})")


def measures(grid: Grid, point: Point) -> dict[str, RunFigure]:
    """The main figure of each suite of a trained point, from disk if up to date, else computed.

    Raises:
        UserError: if it cannot be measured.
    """
    folders = {HELD_OUT: point.settings.corpus, **grid.settings.suites}
    asked = Measurement(point.settings.output, folders, _conditions(grid, point))
    results = measure(asked, GridFiles(grid.settings.output).measures(point.name))
    return {result.suite: RunFigure.of(result) for result in results.suites}


def _conditions(grid: Grid, point: Point) -> Conditions:
    return Conditions(
        protocol=grid.settings.protocol,
        split=grid.settings.ranking_split if point.stage == "points" else grid.settings.held_out_split,
        length=point.settings.windows.length,
        windows=grid.settings.held_out_windows if point.stage == "points" else None,
    )


def run_local(grid: Grid, points: Sequence[Point], arguments: Sequence[str]) -> None:
    """Run points on this machine; a failed point is reported and recorded, and the others continue.

    Each runs in its own process that sees one GPU, or in this process if they are not isolated.

    Args:
        grid: of the points.
        points: to run.
        arguments: of the command line that the grid was read from.
    """
    started = time.perf_counter()
    ended = _in_processes(grid, points, arguments) if grid.settings.local.isolated else _in_this_one(grid, points)
    for done, point in enumerate(ended, start=1):
        _tell(grid, point, done, len(points), started)


def _in_this_one(grid: Grid, points: Sequence[Point]) -> Iterator[Point]:
    """Run points one after the other; yields each when it has ended."""
    for point in points:
        with contextlib.suppress(UserError, OSError):  # the reason is recorded beside the run
            run_point(grid, point)
        yield point


def _in_processes(grid: Grid, points: Sequence[Point], arguments: Sequence[str]) -> Iterator[Point]:
    """Run points in processes, some at the same time on each GPU; yields each when it has ended."""
    devices = _devices(grid.settings.local)

    def record(point: Point, status: int) -> None:
        """Record the failure of a process that was killed or crashed."""
        if status and reason_of_failure(point) in (None, _NOT_ENDED):
            _record(point, f"its process {describe(status)}; see {log_of(grid, point)}")

    for point in points:
        point.failure.unlink(missing_ok=True)
    return run_in_processes(grid, points, arguments, devices, record)


def _devices(local: LocalSettings) -> list[str | None]:
    """The devices of points that run at the same time, one entry each; None is the CPU."""
    gpus = visible_gpus()
    count = local.processes or max(1, len(gpus) * local.per_gpu)
    return [gpus[number % len(gpus)] if gpus else None for number in range(count)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as named in CUDA_VISIBLE_DEVICES."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in given.split(",") if device.strip() not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]


def _tell(grid: Grid, point: Point, done: int, count: int, started: float) -> None:
    reason = reason_of_failure(point)
    if is_finished(grid, point):
        results = read_results(GridFiles(grid.settings.output).measures(point.name))
        result = results.by_suite[grid.settings.rank_by]
        outcome = f"{result.heading}, {result.main}"
    else:
        outcome = f"failed: {reason or 'why could not be written'}"
    info(f"{done} of {count}, {time.perf_counter() - started:,.0f} s: {point.name} {outcome}")
