"""Full disks: every stage, and a grid of processes, on a small tmpfs with random bytes left; then with room.

    python -m benchmarks.fault_disk --folder FOLDER --rounds 2 --launched 6        (as root, who may mount)

A command on a full disk must end with status 2 and one sentence (a grid with 1, where points failed), or be done. Then
the filler is removed, and the same command must end with the files of an undisturbed one, times excluded, and nothing
beside them.
"""

import argparse
import importlib
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.fault_calls import Ended, Launch, LivesOnError, call
from benchmarks.fault_stages import Stage, Workshop
from benchmarks.faults import BEFORE_THE_FORKS, wrong_files

DISK = "trial"
"""The folder of the workshop that the disk is mounted on."""


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A tmpfs of 256 MB."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk with one file, but for some bytes."""
    filler, state = disk / "filler", os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - leave))
    return filler


def run(stage: Stage, place: Path) -> Ended:
    """A stage as a user runs it, or forked."""
    return Launch(stage.command_at(place), place).end() if stage.launched else call(stage.made_at(place))


def trial(workshop: Workshop, stage: Stage, draw: random.Random) -> tuple[str, str]:
    """A stage on a full disk, then with room; what it said, and what was wrong, or "same"."""
    disk = workshop.at(DISK)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    place, made = disk / stage.out, workshop.at(stage.out)
    size = sum(path.stat().st_blocks * 512 for path in made.rglob("*") if path.is_file())
    filler = fill(disk, int(draw.choice([0, 4096, 8192, draw.random() * size, draw.uniform(0.8, 1.3) * size])))
    try:
        full = run(stage, place)
        filler.unlink()
        done = full.status == 0 and stage.name.startswith("export")
        room = full if done else run(stage, place)
    except LivesOnError as error:
        return "", str(error)
    sentences = [line for line in full.said.splitlines() if line.startswith("error: ")]
    is_grid = stage.out in ("grid", "points")
    problems = []
    if full.status not in ((0, 1, 2) if is_grid else (0, 2)) or "Traceback" in full.said:
        problems.append(f"status {full.status}: {full.said[-800:]}")
    if full.status == 2 and len(sentences) != 1:
        problems.append(f"{len(sentences)} sentences: {full.said[-500:]}")
    if room.status != 0:
        problems.append(f"with room: status {room.status}: {room.said[-500:]}")
    problems += wrong_files(made, place)
    said = sentences[0] if sentences else "done" if full.status == 0 else full.said[-200:]
    return f"status {full.status}, {said}", "; ".join(problems) or "same"


def main() -> None:
    """Make everything once, and fill its disk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--launched", type=int, default=6, help="rounds of a grid of processes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for module in BEFORE_THE_FORKS:
        importlib.import_module(module)
    workshop, _ = Workshop.made(given.folder.absolute() / "workshop")
    points = next(stage for stage in workshop.launches() if stage.out == "points")
    if given.launched and (ended := run(points, workshop.at(points.out))).status != 0:
        raise RuntimeError(ended.said)
    counts: Counter[tuple[str, str]] = Counter()
    with small_disk(workshop.at(DISK)):
        for number, stage in [
            *((number, stage) for number in range(given.rounds) for stage in workshop.stages),
            *((number, points) for number in range(given.launched)),
        ]:
            said, outcome = trial(workshop, stage, random.Random(f"{given.seed} {stage.out} {number}"))
            counts[said[:8], "same" if outcome == "same" else "OTHER"] += 1
            print(f"{stage.name}: {said[:300]}" + ("" if outcome == "same" else f"\n  {outcome}"), flush=True)
    for (status, outcome), count in sorted(counts.items()):
        print(f"{status}: {count} {outcome}")


if __name__ == "__main__":
    main()
