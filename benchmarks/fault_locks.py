"""Locks where a file system has no flock: two writers at once, killed holders, holders on other hosts.

    python -m benchmarks.fault_locks --folder FOLDER --rounds 1

Each command is forked, and flock fails in it with ENOSYS, ENOLCK or EOPNOTSUPP in turn. Of two at once, one may wait,
or end with status 2 and the sentence that names the other; a holder that was killed, or has been silent on another
host, keeps nobody out; one that is not silent does. Then the same command must end with the files of an undisturbed
one, times excluded, and nothing beside them. `tests/ground/test_lock.py` has the same with a preloaded library.
"""

import argparse
import errno
import fcntl
import importlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.fault_calls import Ended, LivesOnError, call
from benchmarks.fault_stages import Stage, Workshop
from benchmarks.faults import BEFORE_THE_FORKS, new_trial, wrong_files
from palenka.ground.holder_file import SILENT_SECONDS

NUMBERS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
SAID = "has no file locks (flock)"
HELD = "is being written by"


def without_flock(number: int) -> Callable[[], None]:
    """Takes flock from the process that calls it."""

    def fail(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    def confine() -> None:
        vars(fcntl)["flock"] = fail

    return confine


def hold_elsewhere(place: Path, silent: bool) -> Path:
    """A holder's file of a process on another host."""
    path = place.with_name(f"{place.name}.lock.holder")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": "process 7 on elsewhere", "host": "elsewhere", "process": 7, "token": "x"}))
    if silent:
        before = time.time() - SILENT_SECONDS - 10
        os.utime(path, (before, before))
    return path


def output_of(stage: Stage, place: Path) -> Path:
    """What a stage locks: what it makes, or the file in it that its command names."""
    return next(Path(word) for word in stage.made_at(place) if word.startswith(str(place)))


def two_at_once(stage: Stage, place: Path, seconds: float, number: int, draw: random.Random) -> list[Ended]:
    """A command, and the same at a random moment of it."""
    ended: list[Ended] = []

    def second() -> None:
        time.sleep(draw.uniform(0, 0.8) * seconds)
        ended.append(call(stage.made_at(place), confine=without_flock(number)))

    return [call(stage.made_at(place), meanwhile=second, confine=without_flock(number)), *ended]


def killed(stage: Stage, place: Path, seconds: float, number: int, draw: random.Random) -> list[Ended]:
    """A command that is killed, and the same again."""
    call(stage.made_at(place), kill_after=draw.uniform(0.05, 1) * seconds, confine=without_flock(number))
    return [call(stage.made_at(place), confine=without_flock(number))]


def silent(stage: Stage, place: Path, _: float, number: int, __: random.Random) -> list[Ended]:
    """A command whose output a silent process of another host holds."""
    hold_elsewhere(output_of(stage, place), silent=True)
    return [call(stage.made_at(place), confine=without_flock(number))]


def held(stage: Stage, place: Path, _: float, number: int, __: random.Random) -> list[Ended]:
    """A command whose output a process of another host holds; it must be refused, or wait."""
    path = hold_elsewhere(output_of(stage, place), silent=False)
    ended = call(stage.made_at(place), kill_after=5.0, confine=without_flock(number))
    path.unlink()
    waits = ended.status is None and HELD in ended.said
    refused = ended.status == 2 and "process 7 on elsewhere" in ended.said
    return [Ended(2 if waits or refused else 70, ended.said, ended.seconds)]


CASES = (two_at_once, killed, silent, held)


def trial(workshop: Workshop, stage: Stage, number: int, seconds: float, draw: random.Random) -> dict[str, str]:
    """All cases of a stage; what was wrong by case, or "same"."""
    outcomes = {}
    for case in CASES:
        place = new_trial(workshop) / stage.out
        try:
            ended = case(stage, place, seconds, number, draw)
            last = call(stage.made_at(place), confine=without_flock(number))
        except LivesOnError as error:
            outcomes[case.__name__] = str(error)
            continue
        is_there = stage.name.startswith("export") and "exists; delete it" in last.said
        wrong = [each for each in ended if not (each.status == 0 or is_refusal(each))]
        wrong += [] if last.status == 0 or is_there else [last]
        problems = [f"status {each.status}: {each.said[-300:]}" for each in wrong]
        problems += wrong_files(workshop.at(stage.out), place)
        if case is two_at_once and not any(SAID in each.said for each in ended):
            problems.append("nothing said of flock")
        outcomes[case.__name__] = "; ".join(problems) or "same"
    return outcomes


def is_refusal(ended: Ended) -> bool:
    """Whether a command was refused by one sentence about who writes there, or what is there since."""
    sentences = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    told = HELD in ended.said or "exists; delete it" in ended.said
    return ended.status == 2 and (len(sentences) == 1 or not sentences) and told


def main() -> None:
    """Make everything once, and lock it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for module in BEFORE_THE_FORKS:
        importlib.import_module(module)
    workshop, seconds = Workshop.made(given.folder.absolute() / "workshop")
    counts: Counter[tuple[str, bool]] = Counter()
    for round_ in range(given.rounds):
        for place, stage in enumerate(workshop.stages):
            number = NUMBERS[(round_ + place) % len(NUMBERS)]
            draw = random.Random(f"{given.seed} {stage.out} {round_} {number}")
            for case, outcome in trial(workshop, stage, number, seconds[stage.out], draw).items():
                counts[case, outcome == "same"] += 1
                if outcome != "same":
                    print(f"{stage.name}, {errno.errorcode[number]}, {case}: {outcome}", flush=True)
    for (case, is_same), count in sorted(counts.items()):
        print(f"{case}: {count} {'as expected' if is_same else 'OTHER'}")


if __name__ == "__main__":
    main()
