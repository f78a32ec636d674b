"""Faults of every stage: kills at random moments, and damage to files that it wrote or reads.

    python -m benchmarks.faults --folder FOLDER --kills 10 --damages 1000 --record benchmarks/records/faults.md

Each command is a process of its own, forked from this one once torch is loaded, so that thousands fit into an hour; two
stages have processes of their own, and are launched as a user does (`fault_stages.py` has all of them).

Kills: a stage is killed with SIGKILL at a random moment of its time, and called again; of a launch all processes, the
launcher alone, or any one. Its files must then be those of an undisturbed call, times excluded, with nothing beside
them and no process left. Damage: a file that Palenka wrote, or an input that it hashed, is flipped, cut, deleted,
zeroed or swapped with one of its kind, between commands or while one runs; a command that reads it, or the one that
wrote it, is called. It must refuse (status 2, one sentence) or come to the same files. The files that were damaged
least often come first. What is done is kept in FOLDER/done.jsonl, and the same call goes on with what is left.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fault_calls import Ended, Launch, LivesOnError, call
from benchmarks.fault_stages import NOT_DAMAGED, Stage, Workshop, files_of

BEFORE_THE_FORKS = (
    *("matplotlib.pyplot", "pyarrow.compute", "pyarrow.parquet", "transformers.models.llama.modeling_llama", "zarr"),
    *("palenka.data.text.prepare", "palenka.cache_teachers.capture", "palenka.train_student.train", "palenka.export"),
    *("palenka.eval.__main__", "palenka.eval.measure", "palenka.eval.compare", "palenka.eval.tables"),
    *("palenka.eval.submission", "palenka.eval.learning_curve", "palenka.eval.glue.finetune", "palenka.generate"),
    *("palenka.report.page", "palenka.grid.__main__", "palenka.grid.running", "palenka.grid.results", "palenka.study"),
)
WAYS = ("flip", "cut", "delete", "zero", "swap")


def beside(place: Path) -> list[str]:
    """What lies beside something that was made, and should not."""
    return [path.name for path in place.parent.iterdir() if path != place]


def wrong_files(made: Path, place: Path) -> list[str]:
    """What differs from an undisturbed output, times excluded, and what was left beside; empty if nothing."""
    expected, found = files_of(made), files_of(place) if place.exists() else {}
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    problems = [f"other files: {differ[:4]}"] if differ else []
    return problems + ([f"left behind: {left}"] if (left := beside(place)) else [])


def new_trial(workshop: Workshop) -> Path:
    """An empty folder for what a trial makes."""
    trial = workshop.at("trial")
    shutil.rmtree(trial, ignore_errors=True)
    trial.mkdir()
    return trial


def kill(workshop: Workshop, stage: Stage, seconds: dict[str, float], draw: random.Random) -> dict[str, Any]:
    """One kill while the stage runs, and the call that goes on; if it had ended, it was quicker than was known."""
    while True:
        place = new_trial(workshop) / stage.out
        moment = draw.uniform(0.05, 1.0) * seconds[stage.out]
        said = {"kind": "kill", "stage": stage.name, "moment": round(moment, 3)}
        try:
            killed = kill_launch(stage, place, moment, draw) if stage.launched else kill_call(stage, place, moment)
        except LivesOnError as error:
            return said | {"outcome": str(error)}
        if killed is not None:
            break
        seconds[stage.out] = 0.9 * moment
    outcome = "same"
    # It was whole when the signal came.
    is_there = stage.name.startswith("export") and "exists; delete it" in killed.said
    if killed.status != 0 and not is_there:
        outcome = f"status {killed.status}: {killed.said[-400:]}"
    elif problems := wrong_files(workshop.at(stage.out), place):
        outcome = "; ".join(problems)
    return said | {"outcome": outcome}


def kill_call(stage: Stage, place: Path, moment: float) -> Ended | None:
    """Kill a command at a moment, and call it again; None if it had ended before."""
    if call(stage.made_at(place), kill_after=moment).status is not None:
        return None
    return call(stage.made_at(place))


def kill_launch(stage: Stage, place: Path, moment: float, draw: random.Random) -> Ended | None:
    """Kill processes of a launch at a moment, and launch it again; None if it had ended before.

    Half of the second launches begin while what is left of the first may run still; one that is refused for that is
    repeated when it is gone.
    """
    command = stage.command_at(place)
    first = Launch(command, place)
    time.sleep(moment)
    if not first.kill(draw):
        return None
    if draw.random() < 0.5:
        first.require_gone()
    ended = Launch(command, place).end()
    first.require_gone()
    if ended.status != 0 and "is being written by" in ended.said:
        ended = Launch(command, place).end()
    return ended


def damage(path: Path, way: str, others: Sequence[Path], draw: random.Random) -> bool:
    """Damage a file; False where it would be as before."""
    content = path.read_bytes()
    if way == "delete":
        path.unlink()
        return True
    if way == "flip":
        changed = bytearray(content)
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        new = bytes(changed)
    elif way == "cut":
        new = content[: draw.randrange(len(content))] if content else content
    elif way == "zero":
        new = bytes(len(content))
    else:
        alike = [other for other in others if other.name == path.name and other != path]
        new = draw.choice(alike).read_bytes() if alike else content
    if draw.random() < 0.5:
        path.write_bytes(new)
    else:
        aside = path.with_name("aside")
        aside.write_bytes(new)
        aside.replace(path)
    return new != content


def outcome_of(stage: Stage, ended: Ended, named: bool, sentences: int) -> str | None:
    """How a command met a damage: refused (by the file's name), or badly; None if it ended well."""
    refused = "refused by name" if named else "refused"
    if ended.status == 1 and stage.out == "grid" and " failed: " in ended.said:
        return refused
    if "Traceback" in ended.said or ended.status not in (0, 2):
        return f"status {ended.status}: {ended.said[-400:]}"
    if ended.status == 2:
        return refused if sentences == 1 else f"{sentences} sentences"
    return None


def compared(file: str, expected: Mapping[str, Any], found: Mapping[str, Any], again: bool) -> str:
    """Whether what a command made in spite of a damaged file is what an undisturbed one makes."""
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    # Nobody reads the checkpoints of a run that is finished, or the tasks and seeds of a suite that is measured.
    differ = [name for name in differ if not (again and ("checkpoints/" in name or ".glue/" in name))]
    return f"ACCEPTED {file}: {differ[:4]}" if differ else "same files"


def cases_of(workshop: Workshop) -> dict[Path, list[tuple[Stage, bool]]]:
    """By file that may be damaged: the commands that read it, and the one that wrote it, called again (True)."""
    made = {stage.out: stage for stage in workshop.stages if not stage.launched}
    names = ["text", *(name for name in made if name not in NOT_DAMAGED)]
    cases: dict[Path, list[tuple[Stage, bool]]] = {}
    for name in names:
        # Text was hashed by the corpus that is there.
        commands = [(made["corpus"], True)] if name == "text" else [(made[name], True)]
        commands += [(stage, False) for stage in made.values() if name in stage.reads and name != "text"]
        cases |= {path: commands for path in sorted(workshop.at(name).rglob("*")) if path.is_file()}
    return cases


def harm(
    workshop: Workshop, cases: Mapping[Path, Sequence[tuple[Stage, bool]]], often: Counter[str], draw: random.Random
) -> dict[str, Any] | None:
    """One damage of a file that was damaged least often, and a command that reads it."""

    def name_of(path: Path) -> str:
        return path.relative_to(workshop.folder).as_posix()

    least = min(often[name_of(path)] for path in cases)
    victim = draw.choice([path for path in cases if often[name_of(path)] == least])
    stage, again = draw.choice(cases[victim])
    before, state = victim.read_bytes(), victim.stat()
    way, while_running = draw.choice(WAYS), draw.random() < 0.2
    trial = new_trial(workshop)
    place = workshop.at(stage.out) if again else trial / stage.out
    whole = trial / "whole"
    if again:
        shutil.copytree(place, whole)

    def strike() -> None:
        time.sleep(draw.random() * 0.4)
        with contextlib.suppress(FileNotFoundError):
            damage(victim, way, [*cases], draw)

    try:
        if not while_running and not damage(victim, way, [*cases], draw):
            return None
        ended = call(stage.made_at(place), meanwhile=strike if while_running else None)
        if while_running and again and ended.status == 0:
            ended = call(stage.made_at(place))  # the damage may have come when it was done with that file
        found = files_of(place) if place.exists() else {}
    finally:
        if again:
            shutil.rmtree(place)
            shutil.copytree(whole, place)
        victim.parent.mkdir(parents=True, exist_ok=True)
        victim.write_bytes(before)
        os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    named = victim.name in ended.said or str(victim.parent) in ended.said
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    expected = files_of(workshop.at(stage.out))
    met = outcome_of(stage, ended, named, len(lines))
    return {
        "kind": "damage",
        "stage": stage.name,
        "again": again,
        "way": way,
        "running": while_running,
        "file": name_of(victim),
        "outcome": met or compared(name_of(victim), expected, found, again),
        "said": lines[0][:300] if lines else "",
    }


def done(path: Path) -> Iterator[dict[str, Any]]:
    """What earlier calls have done."""
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def tell(trials: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> str:
    """The record."""
    kills = [trial for trial in trials if trial["kind"] == "kill"]
    harms = [trial for trial in trials if trial["kind"] == "damage"]
    lines = ["# Every stage under fire", "", f"`python -m benchmarks.faults --folder FOLDER --kills {given.kills} "]
    lines[-1] += (
        f"--damages {given.damages}`, torch {torch.__version__}, {os.cpu_count()} cores shared with others, seed "
    )
    lines[-1] += f"{given.seed}."
    lines += [
        "",
        "## Kills",
        "",
        "| stage | killed while it ran | the same files, nothing left |",
        "|---|---|---|",
    ]
    for stage in dict.fromkeys(trial["stage"] for trial in kills):
        of = [trial for trial in kills if trial["stage"] == stage]
        same = sum(trial["outcome"] == "same" for trial in of)
        lines.append(f"| {stage} | {len(of)} | {same} |")
    same = sum(trial["outcome"] == "same" for trial in kills)
    lines.append(f"| all | {len(kills)} | {same} |")
    lines += [
        "",
        "## Damage",
        "",
        "| way | cases | refused, the file or its folder named | refused | same files | other |",
    ]
    lines.append("|---|---|---|---|---|---|")
    for way in (*WAYS, "all"):
        of = [trial for trial in harms if way in (trial["way"], "all")]
        counts = Counter(trial["outcome"] for trial in of)
        known = [counts[name] for name in ("refused by name", "refused", "same files")]
        lines.append(f"| {way} | {len(of)} | {known[0]} | {known[1]} | {known[2]} | {len(of) - sum(known)} |")
    folders = Counter(trial["file"].split("/")[0] for trial in harms)
    lines += ["", f"{sum(trial['running'] for trial in harms)} of them while a command ran. Files of: "]
    lines[-1] += ", ".join(f"{name} {count}" for name, count in sorted(folders.items())) + "."
    good = ("same", "same files", "refused", "refused by name")
    bad = [trial for trial in trials if trial["outcome"] not in good]
    lines += ["", f"Other outcomes: {len(bad)}."]
    lines += [
        f"- {trial['stage']}, {trial.get('way', 'kill')} {trial.get('file', '')}: {trial['outcome']}" for trial in bad
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make everything once, and then kill and damage it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for module in BEFORE_THE_FORKS:
        importlib.import_module(module)
    folder = given.folder.absolute()
    log = folder / "done.jsonl"
    trials = list(done(log))
    shutil.rmtree(folder / "workshop", ignore_errors=True)
    workshop = Workshop(folder / "workshop")
    workshop.write_text()
    workshop.plan()
    seconds = workshop.make_everything()
    cases = cases_of(workshop)
    often = Counter(trial["file"] for trial in trials if trial["kind"] == "damage")
    killed = Counter(trial["stage"] for trial in trials if trial["kind"] == "kill")
    end = time.perf_counter() + 60 * given.minutes

    def note(trial: dict[str, Any] | None) -> None:
        if trial is not None:
            trials.append(trial)
            with log.open("a") as file:
                file.write(json.dumps(trial) + "\n")

    for number in range(given.kills):
        for stage in workshop.stages:
            if time.perf_counter() < end and killed[stage.name] <= number:
                seed = hashlib.sha256(f"{given.seed} {stage.out} {number}".encode()).hexdigest()
                note(kill(workshop, stage, seconds, random.Random(seed)))
        # As many damages to each round, so that all stages have had their part whenever the time is over.
        until = given.damages * (number + 1) // given.kills
        while time.perf_counter() < end and (count := often.total()) < until:
            trial = harm(workshop, cases, often, random.Random(f"{given.seed} {count} {time.time_ns()}"))
            note(trial)
            often.update([trial["file"]] if trial else [])
    text = tell(trials, given)
    print(text)
    if given.record:
        given.record.write_text(text)


if __name__ == "__main__":
    main()
