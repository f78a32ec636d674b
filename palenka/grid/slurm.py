"""Points as tasks of a SLURM array: scripts are written into the grid's output and handed to sbatch.

A script names its points itself, and sbatch keeps its own copy, so a task that is requeued days later is still the same
point; its run resumes at the last checkpoint. A second job, which starts when all tasks have ended, ranks them.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from palenka.grid.points import Grid, Point
from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers_of, write_whole
from palenka.ground.progress import info

Following = Literal["finish", "rank"]

SCRIPTS = {"points": "grid", "finalists": "finalists"}
"""Names of the scripts by stage."""


def submit(grid: Grid, points: Sequence[Point], arguments: Sequence[str], following: Following) -> tuple[str, str]:
    """Write and submit an array with a task for every point, and a job that follows it; returns the two jobs' ids.

    The sole writer of the grid alone may.

    Args:
        grid: of the points.
        points: of one stage.
        arguments: of the command line that the grid was read from.
        following: the command of the job that starts when all tasks have ended, with or without success.

    Raises:
        UserError: if sbatch does not exist or refuses.
    """
    output = grid.settings.output.absolute()
    (output / "logs").mkdir(parents=True, exist_ok=True)
    script, after = output / f"{SCRIPTS[points[0].stage]}.sbatch", output / f"{following}.sbatch"
    for path, text in (
        (script, array_script(grid, points, arguments)),
        (after, following_script(grid, arguments, following)),
    ):
        remove_leftovers_of(path)
        write_whole(path, text)
    array = _sbatch(script)
    last = _sbatch(after, f"--dependency=afterany:{array}")
    info(
        f"{len(points)} task(s) of {script} submitted as job {array}; job {last} ranks them when all have ended "
        f"(`squeue --jobs {array},{last}`, logs in {output / 'logs'})"
    )
    return array, last


def array_script(grid: Grid, points: Sequence[Point], arguments: Sequence[str]) -> str:
    """The script of an array with a task for every point."""
    slurm = grid.settings.slurm
    of_finalists = points[0].stage == "finalists"
    at_once = f"%{slurm.at_once}" if slurm.at_once else ""
    options = [
        f"--array=0-{len(points) - 1}{at_once}",
        f"--time={(of_finalists and slurm.finalists_time) or slurm.time}",
        f"--cpus-per-task={slurm.cpus}",
        *([f"--mem={slurm.memory}"] if slurm.memory else []),
        *([f"--gres={slurm.gres}"] if slurm.gres else []),
    ]
    names = "\n".join(f"  {shlex.quote(point.name)}" for point in points)
    body = f'points=(\n{names}\n)\n{_command(["point", *arguments])} --name "${{points[$SLURM_ARRAY_TASK_ID]}}"'
    return _script(grid, SCRIPTS[points[0].stage], "%A_%a", options, body)


def following_script(grid: Grid, arguments: Sequence[str], following: Following) -> str:
    """The script of the job that follows an array; it computes only the points' missing measures."""
    options = [f"--time={grid.settings.slurm.time}", f"--cpus-per-task={grid.settings.slurm.cpus}"]
    return _script(grid, following, "%j", options, _command([following, *arguments]))


def _script(grid: Grid, name: str, number: str, options: Sequence[str], body: str) -> str:
    slurm, output = grid.settings.slurm, grid.settings.output.absolute()
    places = {"chdir": Path.cwd(), "output": output / "logs" / f"{name}-{number}.out"}
    for place in places.values():
        if not str(place).isprintable():
            raise UserError(f"{str(place)!r} has a control character in it, which no script can hold; rename it")
    given = [
        f"--job-name=palenka-{name}",
        *(shlex.quote(f"--{option}={place}") for option, place in places.items()),
        "--open-mode=append",
        "--requeue",
        *([f"--partition={slurm.partition}"] if slurm.partition else []),
        *([f"--account={slurm.account}"] if slurm.account else []),
        *options,
        *slurm.options,
    ]
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in given), "set -euo pipefail"]
    return "\n".join([*lines, *slurm.setup.splitlines(), body]) + "\n"


def _command(arguments: Sequence[str]) -> str:
    # Replaces the shell, so that SLURM's signals reach it.
    return f"exec {shlex.join([sys.executable, '-m', 'palenka', 'grid', *arguments])}"


def _sbatch(script: Path, *options: str) -> str:
    try:
        command = ["sbatch", "--parsable", *options, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except FileNotFoundError:
        raise UserError(
            f"sbatch is not on this machine, so {script} was not submitted; call it where SLURM is, or set launcher to "
            "local"
        ) from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise UserError(f"sbatch refuses {script}: {said}; fix slurm.* in the grid's file")
    return done.stdout.strip().split(";")[0]
