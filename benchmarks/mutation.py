"""Mutation tests: random mutants by cosmic-ray, each against the tests that run its line.

It changes files of the checkout that it lies in, one at a time, and puts them back: run it in a clone.

    $ git clone . /tmp/mutants && cd /tmp/mutants && pip install -e '.[demo,dev,mutation]'
    $ python -m benchmarks.mutation --coverage          # which test runs which line
    $ python -m benchmarks.mutation --log mutants.jsonl --most 300   # goes on where it was stopped
    $ python -m benchmarks.mutation --log mutants.jsonl --table

A sample has at most one mutant a place of the code. It is tried with the tests that run its line (its module, if only
an import runs the line), those that run the fewest lines first, until they have taken SECONDS in the run that measured
the coverage. So a survivor may still die by a test that was not tried: what is counted as killed is a lower bound.
Every mutant has a process of its own, forked from one that has imported torch and nothing of the project.

Two streams on two cores: `--first 0 --most 150` and `--first 150 --most 300`, each in a clone with a copy of
`.coverage` and `.durations.xml`, and with its own log.
"""

import argparse
import ast
import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
DURATIONS = ROOT / ".durations.xml"
MODULES = (
    *("train_student/optimizer.py", "train_student/trainer.py", "train_student/model/head.py"),
    *("train_student/objective/*.py", "data/signals/*.py", "data/windows.py"),
    *("palenka/ground/lock.py", "palenka/ground/records.py", "cache_teachers/capture.py"),
)
HEAVY = (
    *("torch", "accelerate", "scipy.stats", "zarr", "pytest", "hypothesis"),
    *("transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama"),
)
FIRST_TESTS = 40
"""Tests that are tried before the others, so that few mutants are tried with all."""
SECONDS = 60.0
"""What the tests of one mutant take together, when nothing is changed."""
PATIENCE = 10
"""A mutant that takes so many times longer is killed: it does not end."""
_NO_TESTS_RUN = (3, 4, 5)
"""Exit statuses of pytest that say nothing of a mutant: an internal error, a wrong call, no tests."""


@dataclass(frozen=True)
class Mutant:
    """A change of one place: the `occurrence`-th that an operator of cosmic-ray finds in a file."""

    path: str
    line: int
    operator: str
    arguments: dict[str, object]
    occurrence: int


def modules() -> list[Path]:
    """The files that are changed."""
    return [path for pattern in MODULES for path in sorted(ROOT.glob(pattern)) if path.name != "__init__.py"]


def in_annotations(source: str) -> set[tuple[int, int]]:
    """The places (line, column) of everything in annotations: a change there only fails to import."""
    places = set()
    for node in ast.walk(ast.parse(source)):
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            for part in ast.walk(annotation) if annotation is not None else ():
                if isinstance(part, ast.expr):
                    places |= {(part.lineno, column) for column in range(part.col_offset, part.end_col_offset or 0)}
    return places


def mutants(seed: int) -> list[Mutant]:
    """One mutant for every place of the modules, in random order."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.plugins import get_operator, operator_names

    by_place: dict[tuple[str, int, int], list[Mutant]] = {}
    for path in modules():
        tree, skipped = get_ast_from_path(path), in_annotations(path.read_text(encoding="utf-8"))
        for name in sorted(operator_names()):
            if get_operator(name).arguments() or name == "core/NoOp":
                continue
            operator = get_operator(name)()
            places = [place for node in ast_nodes(tree) for place in operator.mutation_positions(node)]
            for occurrence, ((line, column), _) in enumerate(places):
                if (line, column) not in skipped:
                    mutant = Mutant(str(path.relative_to(ROOT)), line, name, {}, occurrence)
                    by_place.setdefault((mutant.path, line, column), []).append(mutant)
    draw = random.Random(seed)
    chosen = [draw.choice(by_place[place]) for place in sorted(by_place)]
    draw.shuffle(chosen)
    return chosen


def measure_coverage() -> None:
    """Run the fast tests once and keep which of them runs which line, in `.coverage`."""
    # By their own folders: coverage does not look behind the links in palenka/.
    rooms = [f"--cov={room}" for room in ("cache_teachers", "data", "palenka", "train_student")]
    command = ["pytest", "-q", "-m", "not slow", "-n", "auto", *rooms, "--cov-context=test", "--cov-report="]
    durations = ["-o", "junit_family=xunit1", f"--junitxml={DURATIONS}"]
    subprocess.run([sys.executable, "-m", *command, *durations], cwd=ROOT, check=True)


def tests_of_lines() -> dict[str, dict[int, list[str]]]:
    """By file and line, the tests that run it; none for a line that only an import runs."""
    from coverage import CoverageData

    data = CoverageData(str(ROOT / ".coverage"))
    data.read()
    found: dict[str, dict[int, list[str]]] = {}
    for file in data.measured_files():
        by_line = data.contexts_by_lineno(file)
        path = (ROOT / file).resolve()
        if path.is_relative_to(ROOT):
            lines = {line: sorted({test.split("|")[0] for test in tests if test}) for line, tests in by_line.items()}
            found[str(path.relative_to(ROOT))] = lines
    return found


def lines_run(by_file: dict[str, dict[int, list[str]]]) -> Counter[str]:
    """How many lines each test runs: the fewer, the more it is about them."""
    return Counter(test for by_line in by_file.values() for tests in by_line.values() for test in tests)


def durations() -> dict[str, float]:
    """Seconds of each test, its set-up counted."""
    cases = ElementTree.parse(DURATIONS).iter("testcase")
    return {f"{case.get('file')}::{case.get('name')}": float(case.get("time", 0)) for case in cases}


def tests_of(mutant: Mutant, by_line: dict[int, list[str]], breadth: Counter[str], took: dict[str, float]) -> list[str]:
    """The tests that a mutant has to pass, those that run the fewest lines first."""
    if mutant.line not in by_line:
        return []
    lines = Counter(test for tests in by_line.values() for test in tests)
    # A line that only an import runs, such as a constant: the tests that are most about its module.
    tests = by_line[mutant.line] or [test for test in lines if lines[test] > breadth[test] / 10] or list(lines)
    ordered = sorted(tests, key=lambda test: (breadth[test], test))
    sums = accumulate(took.get(test, 1.0) for test in ordered)
    return [test for test, seconds in zip(ordered, sums, strict=True) if seconds <= SECONDS] or ordered[:1]


def passes(tests: Sequence[str], seconds: float, output: Path) -> bool:
    """Whether tests pass, in a process of their own; one that takes too long does not."""
    child = os.fork()
    if not child:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.setsid()
        import pytest

        os._exit(
            int(
                pytest.main(
                    [
                        "-x",
                        "-q",
                        "-m",
                        "not slow",
                        "-p",
                        "no:cacheprovider",
                        "-W",
                        "ignore::pytest.PytestAssertRewriteWarning",
                        *tests,
                    ]
                )
            )
        )
    # Naps are counted and not the clock, so that both processes can be stopped for a while.
    for _ in range(round(20 * (60 + PATIENCE * seconds))):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            is_import = "while loading conftest" in output.read_text(encoding="utf-8", errors="replace")
            if code in _NO_TESTS_RUN and not is_import:
                sys.exit(f"the tests did not run: pytest ended with {code}; see {output}")
            return code == 0
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return False


def try_mutants(log: Path, chosen: Sequence[Mutant]) -> None:
    """Try the mutants that the log has not."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if changed:
        sys.exit(f"files of this checkout differ from its commit:\n{changed}put them back (git checkout .) first")
    done = len(log.read_text().splitlines()) if log.exists() else 0
    by_file, took = tests_of_lines(), durations()
    breadth = lines_run(by_file)
    for name in HEAVY:
        importlib.import_module(name)
    os.chdir(ROOT)
    # Before anything is called killed: without a change, the tests pass.
    if not passes(_tests_of_some(by_file, breadth), SECONDS, log.with_suffix(".out")):
        sys.exit(f"the tests fail without a mutant too; see {log.with_suffix('.out')}")
    for mutant in chosen[done:]:
        started = time.monotonic()
        path, ran = ROOT / mutant.path, 0
        original = path.read_text(encoding="utf-8").splitlines()
        with use_mutation(path, get_operator(mutant.operator)(**mutant.arguments), mutant.occurrence):
            now = path.read_text(encoding="utf-8").splitlines()
            is_code = _compiles("\n".join(now))
            outcome = "not run" if is_code else "no Python"
            tests = tests_of(mutant, by_file.get(mutant.path, {}), breadth, took) if is_code else []
            for group in filter(None, (tests[:FIRST_TESTS], tests[FIRST_TESTS:])):
                ran += len(group)
                seconds = sum(took.get(test, 1.0) for test in group)
                outcome = "survived" if passes(group, seconds, log.with_suffix(".out")) else "killed"
                if outcome == "killed":
                    break
        number = next(n for n, (old, new) in enumerate(zip(original, now, strict=False)) if old != new)
        record = {
            "path": mutant.path,
            "line": number + 1,
            "operator": mutant.operator,
            "outcome": outcome,
            "old": original[number].strip(),
            "new": now[number].strip(),
            "tried": ran,
            "seconds": round(time.monotonic() - started, 1),
        }
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(
            record["outcome"], f"{record['path']}:{record['line']}", record["new"], f"{record['seconds']} s", flush=True
        )


def _tests_of_some(by_file: dict[str, dict[int, list[str]]], breadth: Counter[str]) -> list[str]:
    """A test of each module, so that what cannot run here is seen before it is called killed."""
    tests = []
    for path in modules():
        found = {test for tests in by_file.get(str(path.relative_to(ROOT)), {}).values() for test in tests}
        tests += [min(found, key=lambda test: (breadth[test], test))] if found else []
    return sorted(set(tests))


def _compiles(source: str) -> bool:
    """Whether a mutant is Python at all; some operators of cosmic-ray put `not` where none may stand."""
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def table(log: Path) -> None:
    """Print how many died by module, and each that did not."""
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if record["outcome"] != "no Python"]
    paths = sorted({record["path"] for record in records})
    print("| module | mutants | killed | survived | no test runs it |\n|---|---|---|---|---|")
    for path in paths:
        of_path = Counter(record["outcome"] for record in records if record["path"] == path)
        print(f"| `{path}` | {of_path.total()} | {of_path['killed']} | {of_path['survived']} | {of_path['not run']} |")
    total = Counter(record["outcome"] for record in records)
    print(f"| all | {total.total()} | {total['killed']} | {total['survived']} | {total['not run']} |\n")
    for record in records:
        if record["outcome"] != "killed":
            print(f"- `{record['path']}` {record['line']}: `{record['old']}` → `{record['new']}` ({record['outcome']})")


def main() -> None:
    """Measure coverage, try mutants or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coverage", action="store_true", help="measure which test runs which line, once")
    parser.add_argument("--log", type=Path, default=Path("mutants.jsonl"), help="one JSON line a mutant")
    parser.add_argument("--most", type=int, default=300, help="size of the sample")
    parser.add_argument("--first", type=int, default=0, help="place in the sample that this log begins at")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--table", action="store_true", help="print what the log says")
    arguments = parser.parse_args()
    if arguments.coverage:
        measure_coverage()
    elif arguments.table:
        table(arguments.log)
    else:
        try_mutants(arguments.log.resolve(), mutants(arguments.seed)[arguments.first : arguments.most])


if __name__ == "__main__":
    main()
