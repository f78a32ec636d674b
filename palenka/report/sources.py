"""The sources of a report: the runs, teacher caches, evaluation results, studies and grids under some folders."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from palenka.data.signals.cache import TeacherCache
from palenka.eval.learning_curve import LearningCurve, read_curve
from palenka.eval.results import Results, are_items, has_items, items_file, read_results
from palenka.grid.record import GridFiles, GridRecord
from palenka.ground.errors import UserError
from palenka.ground.files import is_partial, read_text, resolved
from palenka.ground.records import load_json, read_record
from palenka.samples import Samples, read_samples
from palenka.study_record import StudyFiles, StudyResults
from palenka.train_student.run import Run
from palenka.train_student.run_facts import BegunRun, FinishedRun

_OF_MODELS = ("config.json", "generation_config.json", "inputs.json", "model.commit.json", "result.json")


@dataclass
class Sources:
    """Everything found; results come with their file. The points of grids are only in the grids.

    Attributes:
        unranked: folders of grids without a ranking.
        lacking: files that are missing or changed since they were written, each with the file that names it.
    """

    runs: list[FinishedRun] = field(default_factory=list)
    unfinished: list[BegunRun] = field(default_factory=list)
    caches: list[TeacherCache] = field(default_factory=list)
    results: list[tuple[Path, Results]] = field(default_factory=list)
    curves: list[LearningCurve] = field(default_factory=list)
    samples: list[Samples] = field(default_factory=list)
    studies: dict[Path, StudyResults] = field(default_factory=dict)
    grids: dict[Path, GridRecord] = field(default_factory=dict)
    unranked: list[Path] = field(default_factory=list)
    lacking: dict[Path, Path] = field(default_factory=dict)


def find_sources(directories: Sequence[Path]) -> Sources:
    """Search some folders, and all folders in them, for a report's sources.

    Raises:
        UserError: if a folder does not exist or is a grid without a ranking, a file in it cannot be read, or there is
            nothing to report on.
    """
    found = Sources()
    for folder, files in _folders(directories):
        if "zarr.json" in files:
            found.caches += [TeacherCache(folder)] if _is_teacher_cache(folder) else []
            continue
        _add_records(found, folder, is_asked_for=folder in directories)
        for name in files:
            if name.endswith(".json") and name not in _OF_MODELS and not name.startswith("tokenizer"):
                _add_results(found, folder / name)
            elif name.endswith(".parquet") and _is_alone(name, files) and are_items(folder / name):
                found.lacking[(folder / name).with_suffix(".json")] = folder / name
    if not any(content for name, content in vars(found).items() if name not in ("unranked", "lacking")):
        searched = ", ".join(map(str, directories))
        raise UserError(
            f"nothing to report on in {searched}: no run, no teacher cache, no evaluation result, no learning curve, "
            "no samples, no study and no grid with a ranking; give the folder of a study or a grid, or one that holds "
            "runs"
        )
    return found


def _add_records(found: Sources, folder: Path, is_asked_for: bool) -> None:
    """The grid, the run and the study in a folder."""
    grid, run, study = GridFiles(folder), Run(folder), StudyFiles(folder)
    if grid.exist():
        # A given folder must be complete; a deeper one may be a grid that still runs.
        if grid.ranking.is_file() or is_asked_for:
            found.grids[folder] = grid.read()
        else:
            found.unranked.append(folder)
    if run.is_begun():
        if finished := run.read():
            found.runs.append(finished)
        else:
            found.unfinished.append(run.so_far())
    if study.seconds.is_file():
        found.studies[folder] = study.read()
        measures = [study.measures(model.name) for model in found.studies[folder].models]
        found.lacking |= {path: study.results for path in measures if not path.is_file()}


def _add_results(found: Sources, path: Path) -> None:
    """Add the results in a JSON file, if it is one of ours.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        record = load_json(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fix it, or leave its folder out") from None
    names = ("suites", "samples", "revisions")
    kinds = {name for name in names if isinstance(record, dict) and isinstance(record.get(name), list)}
    # A comparison of two models also has suites, by name.
    if "suites" in kinds:
        found.results.append((path, results := read_results(path)))
        if results.items and not has_items(path):
            found.lacking[items_file(path)] = path
    elif "samples" in kinds:
        found.samples.append(read_samples(path))
    elif "revisions" in kinds:
        found.curves.append(read_curve(path))


def _is_alone(name: str, files: Sequence[str]) -> bool:
    """Whether a file is the only one of its name, whatever the suffix."""
    return [Path(other).stem for other in files].count(Path(name).stem) == 1


def _folders(directories: Sequence[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Every folder once, in a fixed order, with its files.

    Without the insides of Zarr stores, hidden and temporary folders, and the points of grids.
    """
    seen: set[Path] = set()
    left_out: set[Path] = set()
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"{directory} is not a folder; give the folder of a study, or one that holds runs")
        for name, folders, files in os.walk(directory, onerror=_refuse):
            folder = Path(name)
            left_out |= GridFiles(folder).of_points if GridFiles(folder).exist() else set()
            folders[:] = sorted(
                inner
                for inner in folders
                if not inner.startswith(".") and not is_partial(inner) and folder / inner not in left_out
            )
            if "zarr.json" in files:
                folders.clear()
            if resolved(folder) not in seen:
                seen.add(resolved(folder))
                yield folder, sorted(files)


def _refuse(error: OSError) -> None:
    raise UserError(f"cannot search {error.filename}: {error.strerror}; fix that or leave it out") from error


def _is_teacher_cache(directory: Path) -> bool:
    """Whether a Zarr group is a teacher cache; corpora are Zarr groups too."""
    attributes = read_record(directory / "zarr.json").get("attributes")
    return isinstance(attributes, dict) and "teachers" in attributes
