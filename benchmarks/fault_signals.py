"""Signals to launches: a grid of processes, and `accelerate launch` with two, are stopped or killed, and go on.

    python -m benchmarks.fault_signals --folder FOLDER --rounds 3

Each round sends each signal to each launch at a random moment, most of them while something trains. After SIGTERM and
SIGINT a grid must end with status 143 or 130. accelerate ends with 1, which is its own for every signal; before that, a
process that kept its last step says so. After every signal no process may live on, and the same command must end with
the files of an undisturbed one, times excluded, and nothing beside them.
"""

import argparse
import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals

from benchmarks.fault_calls import Ended, Launch, LivesOnError, Target
from benchmarks.fault_stages import Stage, Workshop
from benchmarks.faults import new_trial, wrong_files

EPOCHS = 8
"""Of the runs, so that they take seconds."""


@dataclass(frozen=True)
class Way:
    """A signal to a launch.

    Attributes:
        number: of the signal.
        to: the process that launched the others, its group as Ctrl-C in a terminal, all processes, or any one.
        status: that the launch must end with; None for any.
    """

    number: Signals
    to: Target
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.number.name} to {self.to}"


WAYS = (
    Way(Signals.SIGTERM, "launcher", 143),
    Way(Signals.SIGINT, "launcher", 130),
    Way(Signals.SIGINT, "group", 130),
    Way(Signals.SIGTERM, "all", 143),
    Way(Signals.SIGKILL, "launcher"),
    Way(Signals.SIGKILL, "all"),
    Way(Signals.SIGKILL, "any"),
)


def launches(workshop: Workshop) -> list[Stage]:
    """The launched stages, with longer runs."""
    found, student = workshop.launches(), workshop.at("grid-student.yaml")
    student.write_text(json.dumps(json.loads(student.read_text()) | {"epochs": EPOCHS}))
    longer = {"launched": ("--epochs", str(EPOCHS))}
    return [replace(stage, arguments=(*stage.arguments, *longer.get(stage.out, ()))) for stage in found]


def wait(launch: Launch, place: Path, seconds: float, draw: random.Random) -> None:
    """Wait for a random moment: of the whole launch, or (three of four) soon after something trains."""
    until = time.monotonic() + draw.uniform(0.02, 1) * seconds
    if draw.random() < 0.75:
        while launch.is_running() and not any(place.rglob("metrics.jsonl")):
            time.sleep(0.02)
        until = time.monotonic() + draw.uniform(0, 3)
    while launch.is_running() and time.monotonic() < until:
        time.sleep(0.01)


def wrong_end(stage: Stage, way: Way, ended: Ended, place: Path) -> str | None:
    """What is wrong with how a launch ended after a signal that it can handle, if anything is."""
    is_accelerate = stage.out == "launched"
    early = () if place.exists() else (-way.number,)  # Python itself was still starting
    if ended.status not in (0, 1 if is_accelerate else way.status, *early):
        return f"status {ended.status}: {ended.said[-300:]}"
    kept = any(place.glob("checkpoints/*")) and not (place / "result.json").exists()
    if is_accelerate and kept and f"stopped by {way.number.name}" not in ended.said.replace("SIGTERM", way.number.name):
        return f"said nothing: {ended.said[:300]}"
    return "a traceback" if "Traceback" in ended.said and not is_accelerate else None


def trial(workshop: Workshop, stage: Stage, way: Way, seconds: float, draw: random.Random) -> str:
    """A launch, a signal, and the launch that goes on; what was wrong, or "same"."""
    while True:
        place = new_trial(workshop) / stage.out
        first = Launch(stage.command_at(place), place)
        wait(first, place, seconds, draw)
        if first.send(way.number, way.to, draw):
            break
        first.end()
        seconds *= 0.9
    problems: list[str] = []
    try:
        if way.status is not None or draw.random() < 0.5:
            ended = first.end()
            first.require_gone()
            if way.status is not None and (found := wrong_end(stage, way, ended, place)):
                problems.append(found)
        for _ in range(3):  # what is left of the first may still hold the output
            ended = Launch(stage.command_at(place), place).end()
            first.require_gone()
            if "is being written by" not in ended.said:
                break
    except LivesOnError as error:
        return str(error)
    if ended.status != 0:
        problems.append(f"again: status {ended.status}: {ended.said[-300:]}")
    problems += wrong_files(workshop.at(stage.out), place)
    return "; ".join(problems) or "same"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is needed, and send all signals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launches", nargs="+", default=["launched", "points"], help="by what they make")
    given = parser.parse_args(arguments)
    signal.signal(Signals.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would its children
    shutil.rmtree(given.folder, ignore_errors=True)
    workshop = Workshop(given.folder.absolute() / "workshop")
    workshop.write_text()
    workshop.plan()
    stages = [stage for stage in launches(workshop) if stage.out in given.launches]
    needed = {name for stage in stages for name in (stage.out, *stage.reads)} | {"teacher"}
    workshop.stages = [stage for stage in workshop.stages if stage.out in needed and not stage.launched] + stages
    seconds = workshop.make_everything()
    print({stage.out: round(seconds[stage.out], 1) for stage in stages}, flush=True)
    counts: Counter[tuple[str, str, bool]] = Counter()
    for number in range(given.rounds):
        for stage in stages:
            for way in WAYS:
                draw = random.Random(f"{given.seed} {stage.name} {way} {number}")
                outcome = trial(workshop, stage, way, seconds[stage.out], draw)
                counts[stage.name, str(way), outcome == "same"] += 1
                print(f"{number} {stage.name}, {way}: {outcome}", flush=True)
    for (name, told, is_same), count in sorted(counts.items()):
        print(f"| {name} | {told} | {'same' if is_same else 'OTHER'} | {count} |")


if __name__ == "__main__":
    main()
