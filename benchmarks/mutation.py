"""Mutation tests: random mutants by cosmic-ray, each against the tests that run its line.

It changes files of the checkout that it lies in, one at a time, and puts them back: run it in a clone.

    $ git clone . /tmp/mutants && cd /tmp/mutants && pip install -e '.[demo,dev,mutation]'
    $ python -m benchmarks.mutation --coverage          # which test runs which line
    $ python -m benchmarks.mutation --log mutants.jsonl --most 300   # goes on where it was stopped
    $ python -m benchmarks.mutation --log mutants.jsonl --again      # survivors, with all tests, new ones too
    $ python -m benchmarks.mutation --log mutants.jsonl --table

A sample has at most one mutant a place of the code. It is tried with the tests that run its line (its module, if only
an import runs the line), those that run the fewest lines first, until they have taken SECONDS in the run that measured
the coverage. A survivor may still die by a test that was not tried, which `--again` looks for. Write "equivalent" as
the outcome of one that is shown to be: no call then tries it.

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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any
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
_PYTEST = (
    *("-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
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


def in_functions(source: str) -> set[int]:
    """The lines of bodies of functions; all others are run by an import."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {line for node in functions for line in range(node.body[0].lineno, (node.end_lineno or 0) + 1)}


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


@dataclass(frozen=True)
class Coverage:
    """What `measure_coverage` found.

    Attributes:
        by_file: the tests that run each line, by file and line; none for a line that only an import runs.
        seconds: that each test takes, its set-up counted.
    """

    by_file: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]

    @staticmethod
    def read() -> "Coverage":
        """From the files of the last measurement."""
        from coverage import CoverageData

        data = CoverageData(str(ROOT / ".coverage"))
        data.read()
        by_file: dict[str, dict[int, list[str]]] = {}
        for file in data.measured_files():
            path = (ROOT / file).resolve()
            if path.is_relative_to(ROOT):
                tests_by_line = data.contexts_by_lineno(file).items()
                lines = {line: sorted({test.split("|")[0] for test in tests if test}) for line, tests in tests_by_line}
                by_file[str(path.relative_to(ROOT))] = lines
        cases = ElementTree.parse(DURATIONS).iter("testcase")
        return Coverage(
            by_file, {f"{case.get('file')}::{case.get('name')}": float(case.get("time", 0)) for case in cases}
        )

    @cached_property
    def breadth(self) -> Counter[str]:
        """How many lines each test runs: the fewer, the more it is about them."""
        return Counter(test for by_line in self.by_file.values() for tests in by_line.values() for test in tests)

    def tests_of(self, mutant: Mutant, everything: bool) -> list[str]:
        """The tests that a mutant has to pass, those that run the fewest lines first.

        Args:
            mutant: whose line they run, or whose module if an import runs the line: coverage gives such a line to the
                first test that imported it.
            everything: all of them, not only those of SECONDS, nor only those that are most about the module.
        """
        by_line = self.by_file.get(mutant.path, {})
        if mutant.line not in by_line:
            return []
        tests: Iterable[str] = by_line[mutant.line]
        if mutant.line not in in_functions((ROOT / mutant.path).read_text(encoding="utf-8")):
            lines = Counter(test for tests in by_line.values() for test in tests)
            about = [test for test in lines if lines[test] > self.breadth[test] / 10]
            tests = about if about and not everything else lines
        ordered = sorted(tests, key=lambda test: (self.breadth[test], test))
        if everything:
            return ordered
        sums = accumulate(map(self.seconds_of, ordered))
        return [test for test, seconds in zip(ordered, sums, strict=True) if seconds <= SECONDS] or ordered[:1]

    def seconds_of(self, test: str) -> float:
        """What a test takes."""
        return self.seconds.get(test, 1.0)

    def some_tests(self) -> list[str]:
        """A test of each module, so that what cannot run here is seen before it is called killed."""
        found = (self.by_file.get(str(path.relative_to(ROOT)), {}).values() for path in modules())
        by_module = [{test for tests in by_line for test in tests} for by_line in found]
        return sorted({min(tests, key=lambda test: (self.breadth[test], test)) for tests in by_module if tests})


def passes(tests: Sequence[str], seconds: float, output: Path) -> bool:
    """Whether tests pass, in a process of their own; one that takes too long does not."""
    child = os.fork()
    if not child:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.setsid()
        import pytest

        os._exit(int(pytest.main([*_PYTEST, *tests])))
    # Naps are counted and not the clock, so that both processes can be stopped for a while.
    for _ in range(round(20 * (60 + PATIENCE * seconds))):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            said = output.read_text(encoding="utf-8", errors="replace")
            fails_to_import = "while loading conftest" in said or "ERROR collecting" in said
            if code in _NO_TESTS_RUN and not fails_to_import:
                sys.exit(f"the tests did not run: pytest ended with {code}; see {output}")
            return code == 0
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return False


def try_mutants(log: Path, chosen: Sequence[Mutant], again: bool) -> None:
    """Try the mutants that the log has not, or `again` its survivors with all tests that run them."""
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    if changed:
        sys.exit(f"files of this checkout differ from its commit:\n{changed}put them back (git checkout .) first")
    coverage = Coverage.read()
    for name in HEAVY:
        importlib.import_module(name)
    os.chdir(ROOT)
    output = log.with_suffix(".out")
    # Before anything is called killed: without a change, the tests pass.
    if not passes(coverage.some_tests(), SECONDS, output):
        sys.exit(f"the tests fail without a mutant too; see {output}")
    records = _read(log)
    for place, mutant in enumerate(chosen):
        if place < len(records) and not (again and records[place]["outcome"] in ("survived", "not run")):
            continue
        records[place : place + 1] = [_tried(mutant, coverage, again, output)]
        aside = log.with_suffix(".new")
        aside.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        aside.replace(log)
        print(*(records[place][key] for key in ("outcome", "path", "line", "new", "seconds")), flush=True)


def _read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _tried(mutant: Mutant, coverage: Coverage, everything: bool, output: Path) -> dict[str, Any]:
    """The record of a mutant: whether a test fails with it."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    started, path = time.monotonic(), ROOT / mutant.path
    original, ran = path.read_text(encoding="utf-8").splitlines(), 0
    tests = coverage.tests_of(mutant, everything)
    with use_mutation(path, get_operator(mutant.operator)(**mutant.arguments), mutant.occurrence):
        now = path.read_text(encoding="utf-8").splitlines()
        is_code = _compiles("\n".join(now))
        outcome = "not run" if is_code else "no Python"
        for group in filter(None, (tests[:FIRST_TESTS], tests[FIRST_TESTS:]) if is_code else ()):
            ran += len(group)
            seconds = sum(map(coverage.seconds_of, group))
            outcome = "survived" if passes(group, seconds, output) else "killed"
            if outcome == "killed":
                break
    number = next(n for n, (old, new) in enumerate(zip(original, now, strict=False)) if old != new)
    return {
        "path": mutant.path,
        "line": number + 1,
        "operator": mutant.operator,
        "outcome": outcome,
        "old": original[number].strip(),
        "new": now[number].strip(),
        "tried": ran,
        "seconds": round(time.monotonic() - started, 1),
    }


def _compiles(source: str) -> bool:
    """Whether a mutant is Python at all; some operators of cosmic-ray put `not` where none may stand."""
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def table(log: Path) -> None:
    """Print how many died by module, and each that did not."""
    records = [record for record in _read(log) if record["outcome"] != "no Python"]
    paths = sorted({record["path"] for record in records})
    outcomes = ("killed", "equivalent", "survived", "not run")
    print(f"| module | mutants | {' | '.join(outcomes)} |\n|---|---{'|---' * len(outcomes)}|")
    for path in [*paths, ""]:
        found = Counter(record["outcome"] for record in records if path in ("", record["path"]))
        counts = " | ".join(str(found[outcome]) for outcome in outcomes)
        print(f"| {f'`{path}`' if path else 'all'} | {found.total()} | {counts} |")
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
    parser.add_argument("--again", action="store_true", help="try survivors again, with all tests that run their line")
    parser.add_argument("--table", action="store_true", help="print what the log says")
    arguments = parser.parse_args()
    if arguments.coverage:
        measure_coverage()
    elif arguments.table:
        table(arguments.log)
    else:
        chosen = mutants(arguments.seed)[arguments.first : arguments.most]
        try_mutants(arguments.log.resolve(), chosen, arguments.again)


if __name__ == "__main__":
    main()
