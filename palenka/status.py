"""`palenka status DIR`: the runs, caches and grids under a folder, and the state of each.

done          finished; damage is noticed by file sizes, contents are not read
running       a process holds its lock
interrupted   begun, and no process continues it
damaged       a file is missing, or differs from its record
unknown       made with a plug-in that was not named (--plugins)
"""

import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from palenka.ground.command_line import parse, run
from palenka.ground.console import console, plain_table
from palenka.ground.errors import NeedsPluginsError, UserError
from palenka.ground.files import is_partial
from palenka.ground.lock import holder_of
from palenka.ground.progress import info
from palenka.ground.records import damage_of
from palenka.ground.settings import Printing

State = Literal["done", "running", "interrupted", "damaged", "unknown"]


class StatusSettings(Printing):
    """List the runs, teacher caches and grids under some folders: done, running, interrupted, damaged or unknown."""

    positional: ClassVar[tuple[str, ...]] = ("directories",)

    directories: list[Path] = Field(min_length=1)
    """Folders to search, with all folders in them."""


@dataclass(frozen=True)
class Status:
    """The state of a run, cache or grid.

    Attributes:
        path: of its folder.
        kind: what it is.
        state: done, running, interrupted, damaged, or unknown without a plug-in.
        detail: its progress, its process, or its damage.
    """

    path: Path
    kind: Literal["run", "cache", "grid"]
    state: State
    detail: str


def find_statuses(directories: Sequence[Path]) -> Iterator[Status]:
    """Everything under some folders, in a fixed order; the points of a grid are counted in its line.

    Raises:
        UserError: if a folder does not exist, or may not be read; a folder in it that may not is named and left out.
    """
    from palenka.grid.record import GridFiles
    from palenka.train_student.run import Run

    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory} is not a folder; give one that holds runs, caches or grids")

        def leave_out(error: OSError, asked: Path = directory) -> None:
            if Path(error.filename) == asked:
                raise UserError(f"cannot search {asked}: {error.strerror}; fix that, or give another folder") from error
            info(f"{error.filename} is left out: {error.strerror}")

        for name, folders, files in os.walk(directory, onerror=leave_out):
            folder = Path(name)
            folders[:] = sorted(each for each in folders if not each.startswith(".") and not is_partial(each))
            if "zarr.json" in files:
                folders.clear()
                if (folder / "commits").is_dir():
                    yield _of_cache(folder)
            elif GridFiles(folder).exist():
                folders[:] = [each for each in folders if each not in ("points", "finalists", "measures", "logs")]
                yield _of_grid(folder)
            elif Run(folder).is_begun() or (folder / "inputs.json").is_file():
                folders.clear()
                yield _of_run(folder)


def _of_run(folder: Path) -> Status:
    from palenka.train_student.run import Run

    try:
        result, holder = Run(folder).result(), holder_of(folder)
        if result is not None:
            if damage := damage_of(folder, "result.json", contents=False):
                return Status(folder, "run", "damaged", damage)
            best = f"validation {result.validation_cross_entropy:.4f} at step {result.best_step:,}"
            return Status(folder, "run", "done", f"{result.steps:,} steps, {best}")
        begun = Run(folder).so_far()
    except NeedsPluginsError as error:
        return Status(folder, "run", "running" if holder else "interrupted", str(error))
    except UserError as error:
        return Status(folder, "run", "damaged", str(error))
    if holder:
        return Status(folder, "run", "running", f"after step {begun.step:,}, by {holder}")
    return Status(folder, "run", "interrupted", f"at step {begun.step:,}, goes on after step {begun.checkpoint:,}")


def _of_cache(folder: Path) -> Status:
    from palenka.data.signals.cache import TeacherCache
    from palenka.data.signals.store import damage_of_shard

    try:
        cache = TeacherCache(folder)
        asked, captured = cache.asked, cache.committed()
        wanted = list(cache.manifest.shards(asked))
        damages = [damage for shard in captured if (damage := damage_of_shard(folder, shard, contents=False))]
    except NeedsPluginsError as error:
        return Status(folder, "cache", "running" if _holders_of_cache(folder) else "unknown", str(error))
    except UserError as error:
        return Status(folder, "cache", "damaged", str(error))
    far = f"{len(captured):,} of {len(wanted):,} shards" + (f", a fraction of {asked:g}" if asked < 1 else "")
    if holders := _holders_of_cache(folder):
        return Status(folder, "cache", "running", f"{far}, by {', '.join(holders)}")
    if damages:
        return Status(folder, "cache", "damaged", f"{damages[0]} ({len(damages)} of {far}); capture it again")
    if not set(wanted) <= set(captured):
        return Status(folder, "cache", "interrupted", far)
    return Status(folder, "cache", "done", far)


def _holders_of_cache(folder: Path) -> list[str]:
    """The processes that write a cache, or parts of it."""
    locks = folder.parent.glob(f"{glob.escape(folder.name)}.part-*.lock*")  # or .lock.holder, without flock
    parts = {lock.with_name(lock.name.removesuffix(".holder").removesuffix(".lock")) for lock in locks}
    return [holder for part in (folder, *sorted(parts)) if (holder := holder_of(part))]


def _of_grid(folder: Path) -> Status:
    runs = [_of_run(path) for stage in ("points", "finalists") for path in sorted(folder.glob(f"{stage}/*-seed*/"))]
    failed = [path for path in folder.glob("*/*.failure.json") if holder_of(path) is None]
    counts = Counter(run.state for run in runs)
    far = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no point begun"
    told = f"points: {far}" + (f"; {len(failed)} did not end well" if failed else "")
    if holder := holder_of(folder):
        return Status(folder, "grid", "running", f"{told}; by {holder}")
    if counts["damaged"]:
        return Status(folder, "grid", "damaged", told)
    is_ranked = (folder / "grid.json").is_file()
    is_done = is_ranked and not failed and set(counts) == {"done"}
    running: State = "running" if counts["running"] else "interrupted"
    return Status(folder, "grid", "done" if is_done else running, told + ("" if is_ranked else "; not ranked"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the statuses; returns the exit status."""
    return run(_status, arguments)


def _status(arguments: Sequence[str]) -> None:
    settings = parse(StatusSettings, arguments, "palenka status")
    found = list(find_statuses(settings.directories))
    if settings.as_json:
        sys.stdout.write(json.dumps([asdict(each) | {"path": str(each.path)} for each in found], indent=1) + "\n")
        return
    if not found:
        raise UserError(f"no run, cache or grid in {', '.join(map(str, settings.directories))}; give another folder")
    table = plain_table("what", "state", "how far")
    for each in found:
        table.add_row(f"{each.kind} {each.path}", each.state, each.detail)
    console().print(table)


if __name__ == "__main__":
    sys.exit(main())
