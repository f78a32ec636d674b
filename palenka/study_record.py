"""A study's records: results.json with the results of its stages, seconds.json with the time of each."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import Field, RootModel

from palenka.data.signals.cache import TeacherCache
from palenka.eval.results import Results, SuiteResult
from palenka.ground.files import require_own
from palenka.ground.records import load_json, read_sealed, write_sealed
from palenka.ground.settings import Settings, read_as


class ModelRow(Settings):
    """A teacher, control or student of a study, with its figures."""

    name: str
    role: str
    parameters: int
    suites: dict[str, SuiteResult]
    """Results by suite; scores of tasks are in the model's own file."""

    @staticmethod
    def of(name: str, role: str, measured: Results) -> "ModelRow":
        """The row of a model's results, without the tasks."""
        suites = {}
        for result in measured.suites:
            figures = {name: figure.without_tasks() for name, figure in result.figures.items()}
            suites[result.suite] = result.model_copy(update={"figures": figures})
        return ModelRow(name=name, role=role, parameters=measured.parameters, suites=suites)


class CacheRow(Settings):
    """A teacher cache of a study."""

    name: str
    path: str
    """Relative to the study's output."""
    bytes_per_token: float
    kept_mass: float
    """Kept mass at temperature 1, or at the first of its temperatures."""
    kept_mass_by_temperature: dict[str, float]

    @staticmethod
    def of(name: str, cache: TeacherCache, output: Path) -> "CacheRow":
        """The row of a cache."""
        by_temperature = cache.kept_mass()
        return CacheRow(
            name=name,
            path=os.path.relpath(cache.directory, output),
            bytes_per_token=round(sum(cache.bytes_per_token().values()), 2),
            kept_mass=by_temperature.get(1.0, next(iter(by_temperature.values()))),
            kept_mass_by_temperature={str(temperature): mass for temperature, mass in by_temperature.items()},
        )


class StudyResults(Settings):
    """The results of a study."""

    models: tuple[ModelRow, ...] = ()
    caches: tuple[CacheRow, ...] = ()
    seconds: dict[str, float] = Field(default={})
    """Seconds of each stage, in the call that finished it."""


class StudySeconds(RootModel[dict[str, float]]):
    """The contents of seconds.json."""


@dataclass(frozen=True)
class StudyFiles:
    """The records in a study's output."""

    directory: Path

    @property
    def results(self) -> Path:
        """The path of the results, once all stages are finished."""
        return self.directory / "results.json"

    def measures(self, model: str) -> Path:
        """Where what was measured of a model is."""
        return self.directory / "measures" / f"{model}.json"

    @property
    def seconds(self) -> Path:
        """The path of the seconds, from the first finished stage on."""
        return self.directory / "seconds.json"

    def require_own(self) -> None:
        """Refuse a folder in which other files have these names.

        Raises:
            UserError: if there are any.
        """
        for path, names in ((self.results, set(StudyResults.model_fields)), (self.seconds, set[str]())):
            known = partial(_has, names | {"checksum"})
            require_own(path, known, "record of a study", "output")

    def write(self, results: StudyResults) -> None:
        """Write the results."""
        write_sealed(self.results, results.as_plain())

    def write_seconds(self, seconds: Mapping[str, float]) -> None:
        """Write the seconds of the stages that are finished."""
        write_sealed(self.seconds, seconds)

    def read_seconds(self) -> dict[str, float]:
        """The seconds of the finished stages.

        Raises:
            UserError: if they are damaged.
        """
        content = read_sealed(self.seconds) if self.seconds.is_file() else {}
        return read_as(StudySeconds, content, self.seconds).root

    def read(self) -> StudyResults:
        """The results so far; before the study's end only the seconds.

        Raises:
            UserError: if a file is damaged.
        """
        content = read_sealed(self.results) if self.results.is_file() else {}
        return read_as(StudyResults, {**content, "seconds": self.read_seconds()}, self.results)


def _has(names: set[str], text: str) -> bool:
    return names <= set(load_json(text))
