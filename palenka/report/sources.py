"""What there is to report on: the runs, teacher caches, evaluation results, studies and grids under some folders."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from palenka.data.signals.cache import TeacherCache
from palenka.eval.results import read_results
from palenka.ground.errors import UserError
from palenka.ground.files import is_partial, read_record
from palenka.report.grid.files import OF_POINTS, Grid, is_grid, is_ranked, read_grid
from palenka.report.run_files import Lenient, Run, is_run, read_as, read_run

_OF_MODELS = ("config.json", "generation_config.json", "inputs.json", "result.json")


class MeasuredModel(Lenient):
    """Which model a result is about: the hash of its tensors, and what it computed in."""

    weights: str
    precision: str = "float32"


class TaskScore(Lenient):
    """Accuracy on one task of a suite."""

    accuracy: float
    stderr: float
    n: int


class SuiteResult(Lenient):
    """What the report shows of an evaluation result; a suite fills in what it measures."""

    suite: str
    name: str | None = None
    model: MeasuredModel
    parameters: int | None = None
    protocol: str | None = None
    accuracy: float | None = None
    stderr: float | None = None
    tie_rate: float | None = None
    tie_half_accuracy: float | None = None
    data: str | None = None
    tasks: Mapping[str, TaskScore] = Field(default={})
    corpus: str | None = None
    length: int | None = None
    windows: int | None = None
    cross_entropy: float | None = None
    interval: tuple[float, float] | None = None
    per_word: float | None = None
    per_byte: float | None = None


class CacheRow(Lenient):
    """Which cache a study calls by a name; its path is relative to the study's output."""

    name: str
    path: str | None = None


class StudyResults(Lenient):
    """What the report reads of a study's results.json."""

    caches: tuple[CacheRow, ...] = ()


@dataclass(frozen=True)
class Study:
    """A study's output: seconds of each stage, and where the caches lie that its stages name."""

    directory: Path
    seconds: Mapping[str, float]
    caches: Mapping[str, Path]


@dataclass(frozen=True)
class Sources:
    """Everything found; results are paired with the file that they stand in. The points of grids are in those alone."""

    runs: tuple[Run, ...]
    unfinished: tuple[Path, ...]
    caches: tuple[TeacherCache, ...]
    results: tuple[tuple[Path, SuiteResult], ...]
    studies: tuple[Study, ...]
    grids: tuple[Grid, ...]
    unranked: tuple[Path, ...]


def find_sources(directories: Sequence[Path]) -> Sources:
    """Search some folders, and all folders in them, for what a report can tell of.

    Raises:
        UserError: if a folder does not exist or is that of a grid without a ranking, a file in it cannot be read, or
            there is nothing to report on.
    """
    runs: list[Run] = []
    unfinished: list[Path] = []
    caches: list[TeacherCache] = []
    results: list[tuple[Path, SuiteResult]] = []
    studies: list[Study] = []
    grids: list[Grid] = []
    unranked: list[Path] = []
    for folder, files in _folders(directories):
        if "zarr.json" in files:
            caches += [TeacherCache(folder)] if _is_teacher_cache(folder) else []
            continue
        if is_grid(folder):
            # What is asked for must be there; what lies deeper may be a grid that still runs.
            if is_ranked(folder) or folder in directories:
                grids.append(read_grid(folder))
            else:
                unranked.append(folder)
        if is_run(folder):
            run = read_run(folder)
            if run is None:
                unfinished.append(folder)
            else:
                runs.append(run)
        if "seconds.json" in files:
            studies.append(_read_study(folder))
        for name in files:
            if name.endswith(".json") and name not in _OF_MODELS and not name.startswith("tokenizer"):
                results += [(folder / name, result) for result in _read_suites(folder / name)]
    if not (runs or caches or results or studies or grids):
        searched = ", ".join(map(str, directories))
        raise UserError(
            f"nothing to report on in {searched}: no finished run, no teacher cache, no evaluation result and no grid; "
            "give the folder of a study or a grid, or one that holds runs"
        )
    return Sources(
        runs=tuple(runs),
        unfinished=tuple(unfinished),
        caches=tuple(caches),
        results=tuple(results),
        studies=tuple(studies),
        grids=tuple(grids),
        unranked=tuple(unranked),
    )


def _folders(directories: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder once, in a fixed order, with its files.

    Nothing inside a Zarr store, hidden or half-written; and no points of a grid that lies under one of the folders.
    """
    seen: set[Path] = set()
    left_out: set[Path] = set()
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory} is not a folder; give the folder of a study, or one that holds runs")
        for name, folders, files in os.walk(directory, onerror=_refuse):
            folder = Path(name)
            left_out |= {folder / points for points in OF_POINTS} if is_grid(folder) else set()
            folders[:] = sorted(
                inner
                for inner in folders
                if not inner.startswith(".") and not is_partial(inner) and folder / inner not in left_out
            )
            if "zarr.json" in files:
                folders.clear()
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder, sorted(files)


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot search {error.filename}: {error.strerror}; fix that or leave it out") from error


def _is_teacher_cache(directory: Path) -> bool:
    """Whether a Zarr group is a teacher cache: corpora are Zarr groups, too."""
    attributes = read_record(directory / "zarr.json").get("attributes")
    return isinstance(attributes, dict) and "teachers" in attributes


def _read_suites(path: Path) -> list[SuiteResult]:
    """The evaluation results in a JSON file; none if it is about something else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fix it, or leave its folder out") from None
    # A comparison of two models has suites by name.
    if not isinstance(record, dict) or not ("suite" in record or isinstance(record.get("suites"), list)):
        return []
    return [read_as(SuiteResult, result, path) for result in read_results(path)]


def _read_study(directory: Path) -> Study:
    seconds = read_record(directory / "seconds.json")
    if wrong := [stage for stage, value in seconds.items() if not isinstance(value, int | float)]:
        raise UserError(f"{directory / 'seconds.json'} is damaged: {wrong[0]} is not a number; delete it")
    path = directory / "results.json"
    content: Mapping[str, Any] = read_record(path) if path.is_file() else {}
    rows = read_as(StudyResults, content, path).caches
    return Study(directory, seconds, {row.name: directory / row.path for row in rows if row.path is not None})
