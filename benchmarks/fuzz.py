"""Fuzz of the front door: hostile YAML, options, names, numbers, lines of data and models; each call is a process.

    python -m benchmarks.fuzz --folder FOLDER --cases 200

Each case is a whole command with something hostile in it (`fuzz_cases.py`), forked from this process once torch is
loaded. It must end with status 0, or 2 and one sentence within 10 s, or 1 where a grid's points failed, and need at
most 2 GB beside what was loaded: no traceback, no abort, no temporary file, no process left. The seed decides all
cases; `--only KIND:NUMBER` repeats one.
"""

import argparse
import importlib
import json
import os
import random
import re
import resource
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from benchmarks.fault_calls import Ended, LivesOnError, call
from benchmarks.fault_stages import Workshop
from benchmarks.faults import BEFORE_THE_FORKS
from benchmarks.fuzz_cases import KINDS, Desk
from tests.test_hostile import VALUES

SECONDS = 10.0
MOST_BYTES = 2 * 2**30
_LIMIT_SECONDS = 120.0
"""After which a case is killed; a hostile number may be a right one, and its work long."""


def values(count: int, seed: int) -> list[Any]:
    """Values of any type and text, by hypothesis."""
    found: list[Any] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @hypothesis.given(VALUES | st.text(max_size=30) | st.integers() | st.floats())
    def collect(value: Any) -> None:  # noqa: ANN401 - any
        found.append(value)

    collect()
    return found


@cache
def options_of(command: tuple[str, ...]) -> Sequence[str]:
    """The options of a command, as its help has them."""
    return sorted(set(re.findall(r"--[a-z][\w.]+", call([*command, "--help"]).said)) - {"--help"})


def confine(folder: Path) -> None:
    """Let this process run in a folder, with little more memory than it has."""
    os.chdir(folder)
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    now = int(told["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (now + MOST_BYTES, now + MOST_BYTES))


def fault_of(ended: Ended, command: Sequence[str], folder: Path) -> str | None:
    """What is wrong with how a command ended, if anything is."""
    sentences = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    allowed = (0, 1, 2) if command[0] == "grid" else (0, 2)
    left = [path.name for path in folder.rglob("*") if path.name.endswith((".partial", ".lock", ".holder"))]
    if ended.status is None:
        return "it did not end"
    if "Traceback" in ended.said or ended.status not in allowed:
        return f"status {ended.status}: {ended.said[-1500:]}"
    if ended.status == 2 and (len(sentences) != 1 or ended.said.rstrip().splitlines()[-1:] != sentences):
        return f"{len(sentences)} sentences: {ended.said[-500:]}"
    if ended.status == 2 and ended.seconds > SECONDS:
        return f"it took {ended.seconds:.1f} s"
    return f"it left {left}" if left else None


def note(path: Path, kind: str, number: int, command: Sequence[str], ended: Ended) -> None:
    """Add a case to the file that tells what each one said."""
    case = {"case": f"{kind}:{number}", "command": [word[:200] for word in command], "status": ended.status}
    with path.open("a") as file:
        file.write(json.dumps(case | {"seconds": round(ended.seconds, 2), "said": ended.said[-600:]}) + "\n")


def main() -> None:
    """Run all cases, and print the faults and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=200, help="of each kind")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="cases, as KIND:NUMBER")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    for module in BEFORE_THE_FORKS:
        importlib.import_module(module)
    workshop, _ = Workshop.made(given.folder.absolute() / "workshop")
    hostile = values(2000, given.seed)
    folder = given.folder.absolute() / "trial"
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in given.kinds}
    asked = [tuple(each.split(":")) for each in given.only]
    cases = [(kind, int(number)) for kind, number in asked]
    for kind, number in cases or [(kind, number) for number in range(given.cases) for kind in given.kinds]:
        desk = Desk(workshop, folder, random.Random(f"{given.seed} {kind} {number}"), hostile, options_of)
        desk.lay_out()
        command = KINDS[kind](desk, number)
        if {"-h", "--help"} & {*command}:
            continue
        try:
            ended = call(command, kill_after=_LIMIT_SECONDS, confine=lambda: confine(folder))
            fault = fault_of(ended, command, folder)
        except LivesOnError as error:
            ended, fault = Ended(None, "", 0.0), str(error)
        note(given.folder / "said.jsonl", kind, number, command, ended)
        counts[kind].update([f"status {ended.status}" if fault is None else "fault"])
        if fault or asked:
            print(f"{kind}:{number} {[word[:80] for word in command]}\n  {fault or ended.said}", flush=True)
    for kind, count in counts.items():
        print(kind, count.total(), dict(count))


if __name__ == "__main__":
    main()
