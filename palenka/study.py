"""A study: all stages from raw text to a table of students, each from its own file; finished stages are skipped.

`palenka study configs/demo/study.yaml`. Every file that a study names also works by itself, with
`palenka data prepare`, `palenka train` or `palenka cache run`.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pydantic import Field
from rich.table import Table

from palenka.cache_teachers.settings import SINGLE, CaptureSettings, VerifySettings
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.eval.protocols import Protocol
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES, SuiteName
from palenka.generate import GenerateSettings, draw_samples
from palenka.ground.command_line import SettingsType, parse, parse_file, run
from palenka.ground.console import console
from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers_of, resolved
from palenka.ground.lock import sole_writer
from palenka.ground.settings import Command, FileName
from palenka.report.write import try_report
from palenka.train_student.settings import TrainSettings

if TYPE_CHECKING:
    from palenka.study_record import StudyFiles, StudyResults

Result = TypeVar("Result")

_VERIFIED_WINDOWS = 16
"""Windows of every cache that are computed again to measure its error."""


class StudySettings(Command):
    """Run all stages of a study; each has its own file, and finished ones are skipped."""

    output: Path
    """Directory for the results."""
    corpus: Path
    """Settings of the corpus."""
    teachers: dict[FileName, Path] = Field(default={})
    """Settings of the teachers' training, by name."""
    caches: dict[FileName, Path] = Field(default={})
    """Settings of the captures, by name."""
    students: dict[FileName, Path]
    """Settings of the students' training, by name; those without teachers are controls."""
    held_out_split: str = "test"
    """Split on which all models are measured; training chooses its checkpoints on another one, dev."""
    held_out_windows: int | None = Field(default=None, ge=2)
    """Number of its windows, a sample that is the same for all models; default: all."""
    suites: dict[SuiteName, Path] = Field(default={})
    """Folders of the data of further suites for all models, by suite."""
    protocol: Protocol = "babylm-2024"
    """How minimal pairs are read and scored."""
    prompts: tuple[str, ...] = ()
    """Beginnings of texts that every model continues, for the report."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study; returns the exit status."""
    return run(_study, arguments)


def _study(arguments: Sequence[str]) -> None:
    run_study(Study(*parse_file(StudySettings, arguments, "palenka study")))


class Study:
    """A study's settings and those of its stages.

    Args:
        settings: of the study; its plugins apply to its stages too.
        file: of the settings; the files that they name are relative to it.

    Raises:
        UserError: before anything runs, if any of the files is missing or wrong.
    """

    def __init__(self, settings: StudySettings, file: Path) -> None:
        self.settings = settings
        plugins = ["--plugins", *settings.plugins] if settings.plugins else []

        def load(schema: type[SettingsType], stage: Path, program: str) -> SettingsType:
            return parse(schema, ["--config", str(file.parent / stage), *plugins], program)

        def load_runs(stages: dict[str, Path]) -> dict[str, TrainSettings]:
            return {name: load(TrainSettings, stage, "palenka train") for name, stage in stages.items()}

        self.conditions = Conditions(
            protocol=settings.protocol, split=settings.held_out_split, windows=settings.held_out_windows
        )
        self.corpus = load(CorpusSettings, self.settings.corpus, "palenka data prepare")
        self.teachers = load_runs(self.settings.teachers)
        self.caches = {
            name: load(CaptureSettings, stage, "palenka cache run") for name, stage in self.settings.caches.items()
        }
        self.students = load_runs(self.settings.students)

    def models(self) -> dict[str, "MeasuredModel"]:
        """The measured models by name; a teacher that no file of the study trains has the name of its cache.

        Raises:
            UserError: if two models would have the same name.
        """
        length = next((run.windows.length for run in self.students.values()), self.conditions.length)
        found = {name: MeasuredModel(path, "teacher", length) for name, path in self._teachers_from_elsewhere().items()}
        for name, run_settings in (self.teachers | self.students).items():
            if name in found:
                raise UserError(
                    f"cache {name} is of {found[name].path}, which is measured by that name, but the study has another "
                    "model called so; rename the cache"
                )
            role = "teacher" if name in self.teachers else "student" if run_settings.teachers else "control"
            found[name] = MeasuredModel(run_settings.output, role, run_settings.windows.length)
        return found

    def _teachers_from_elsewhere(self) -> dict[str, Path]:
        """Models that caches are captured from, but that no file of the study trains."""
        trained = {run.output for run in self.teachers.values()}
        found: dict[str, Path] = {}
        for cache, settings in self.caches.items():
            for model, path in settings.models().items():
                if path not in trained and path not in found.values():
                    found[cache if model == SINGLE else f"{cache}-{model}"] = path
        return found


class MeasuredModel(NamedTuple):
    """A model of a study: its directory, its role, and the length of the windows that it is measured on."""

    path: Path
    role: str
    length: int


def run_study(study: Study) -> "StudyResults":
    """Run the unfinished stages of a study, print its tables, and write results.json and report.html in its output.

    The seconds of a stage are those of the call that finished it. If no report can be written, the reason is printed.

    Raises:
        UserError: before anything runs, if a suite's data is missing or another process runs the study; or from any
            stage.
    """
    for suite, folder in study.settings.suites.items():
        SUITES[suite].read(folder, study.conditions)
    study.models()
    with sole_writer(study.settings.output):
        return _run_stages(study)


def _run_stages(study: Study) -> "StudyResults":
    # Imported only now, so that `--help` does not wait for torch.
    from palenka.cache_teachers.capture import capture
    from palenka.cache_teachers.verify import verify
    from palenka.data.signals.cache import TeacherCache
    from palenka.eval.measure import Measurement, measure
    from palenka.study_record import CacheRow, ModelRow, StudyFiles, StudyResults
    from palenka.train_student.train import train

    output = study.settings.output
    files, report = StudyFiles(output), output / "report.html"
    files.require_own()
    for left in (files.seconds, files.results, report):
        remove_leftovers_of(left)
    stages = _Stages(files)
    stages.run("corpus", study.corpus.output.exists(), lambda: prepare(study.corpus))
    for name, teacher in study.teachers.items():
        stages.run(f"teacher {name}", _is_trained(teacher), partial(train, teacher))
    for name, cache in study.caches.items():
        stages.run(f"cache {name}", _is_captured(cache), partial(capture, cache))
        if TeacherCache(cache.output).fidelity() is None:
            asked_of = VerifySettings.model_validate({**cache.as_plain(), "sample": _VERIFIED_WINDOWS})
            stages.run(f"fidelity {name}", False, partial(verify, asked_of))
    for name, student in study.students.items():
        stages.run(f"student {name}", _is_trained(student), partial(train, student))
    models = []
    for name, model in study.models().items():
        out = files.measures(name)
        folders = {"held_out": study.corpus.output, **study.settings.suites}
        asked = Measurement(model.path, folders, study.conditions.model_copy(update={"length": model.length}))
        measured = stages.run(f"measures {name}", out.exists(), partial(measure, asked, out))
        models.append(ModelRow.of(name, model.role, measured))
        if study.settings.prompts:
            kept = output / "samples" / f"{name}.json"
            drawn = GenerateSettings(model=model.path, prompt=study.settings.prompts, out=kept)
            stages.run(f"samples {name}", kept.exists(), partial(draw_samples, drawn))
    caches = [CacheRow.of(name, TeacherCache(cache.output), output) for name, cache in study.caches.items()]
    results = StudyResults(models=tuple(models), caches=tuple(caches), seconds=stages.seconds)
    files.write(results)
    _print_tables(results)
    console(soft_wrap=True).print(f"Written to {files.results}")
    try_report(_folders(study), report)
    return results


def _folders(study: Study) -> list[Path]:
    """The study's output, and outputs of its stages elsewhere."""
    output = study.settings.output
    runs = [*study.teachers.values(), *study.students.values()]
    stages = [*(run.output for run in runs), *(cache.output for cache in study.caches.values())]
    return [output, *(stage for stage in stages if not resolved(stage).is_relative_to(resolved(output)))]


class _Stages:
    """Runs stages and keeps the seconds that each took in the call that finished it."""

    def __init__(self, files: "StudyFiles") -> None:
        self._files = files
        self.seconds = files.read_seconds()

    def run(self, name: str, is_finished: bool, stage: Callable[[], Result]) -> Result:
        """Run a stage; one that was finished before is only checked, which does not count as its time."""
        started = time.perf_counter()
        result = stage()
        if not is_finished:
            self.seconds[name] = round(time.perf_counter() - started, 1)
            self._files.write_seconds(self.seconds)
        return result


def _is_trained(settings: TrainSettings) -> bool:
    from palenka.train_student.run import Run

    return Run(settings.output).result() is not None


def _is_captured(settings: CaptureSettings) -> bool:
    from palenka.data.signals.store import damage_of_shard, read_manifest

    if not settings.output.exists():
        return False
    shards = read_manifest(settings.output).shards(settings.fraction)
    return not any(damage_of_shard(settings.output, shard, contents=False) for shard in shards)


def _print_tables(results: "StudyResults") -> None:
    suites = []
    for suite, first in results.models[0].suites.items():
        table = Table("model", "role", title=first.heading)
        for heading in ("parameters", "value"):
            table.add_column(heading, justify="right")
        for row in results.models:
            table.add_row(row.name, row.role, f"{row.parameters:,}", str(row.suites[suite].main))
        suites.append(table)
    caches = Table("cache", title="Teacher caches")
    for heading in ("bytes per token", "kept mass by temperature"):
        caches.add_column(heading, justify="right")
    for cache in results.caches:
        masses = ", ".join(f"{mass:.3f} at {t}" for t, mass in cache.kept_mass_by_temperature.items())
        caches.add_row(cache.name, f"{cache.bytes_per_token:.1f}", masses)
    seconds = Table("stage", title="Seconds per stage")
    seconds.add_column("seconds", justify="right")
    for stage, duration in results.seconds.items():
        seconds.add_row(stage, f"{duration:.1f}")
    seconds.add_row("all", f"{sum(results.seconds.values()):.1f}")
    console().print(*suites, caches, seconds)


if __name__ == "__main__":
    sys.exit(main())
