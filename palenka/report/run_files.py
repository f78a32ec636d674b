"""What the report reads of a training run: its settings, inputs, result, weights and metrics, from plain files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from palenka.data.model_files import identity_of
from palenka.ground.errors import UserError
from palenka.ground.files import read_record
from palenka.ground.settings import read_yaml

Schema = TypeVar("Schema", bound="Lenient")
Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps, and a metric's value at each of them."""


class Lenient(BaseModel):
    """What is read of a file that may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def read_as(schema: type[Schema], content: Mapping[str, Any], source: Path) -> Schema:
    """The part of a file's content that the report uses.

    Raises:
        UserError: if something in it is missing or of the wrong kind; the file and the field are named.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{source} cannot be reported on: {field}: {first['msg'].lower()}; make it again, or leave its folder out"
        ) from None


class WindowSettings(Lenient):
    """How a run cut its text."""

    length: int
    views: int = 1


class RunSettings(Lenient):
    """What the report shows of a run's config.yaml."""

    model: dict[str, Any]
    windows: WindowSettings
    teachers: dict[str, dict[str, Any]] = {}
    objective: dict[str, Any] = {}
    fraction: float = 1.0
    epochs: int
    global_batch: int
    seed: int = 0


class RunInputs(Lenient):
    """What the report reads of a run's inputs.json."""

    corpus: str = ""
    teachers: dict[str, dict[str, Any]] = {}


class RunResult(Lenient):
    """What the report shows of a run's result.json."""

    parameters: int
    tokens: int
    validation_cross_entropy: float
    seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        directory: where it lies.
        settings: what it was made with.
        inputs: fingerprints of its text, and what each of its teachers was; empty where none were recorded.
        result: what came of it.
        weights: the hash of its tensors; None where they were deleted.
        metrics: every logged number by its name.
    """

    directory: Path
    settings: RunSettings
    inputs: RunInputs
    result: RunResult
    weights: str | None
    metrics: Mapping[str, Series]

    @property
    def teacher_weights(self) -> set[str]:
        """The hashes of its teachers' weights."""
        # A cache's manifest has its models in a field of its own; of a live teacher they are all there is.
        models = (said.get("teachers", said) for said in self.inputs.teachers.values())
        return {identity["weights"] for named in models for identity in named.values()}

    def tokens_at(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens that were read up to some steps."""
        return steps * self.settings.global_batch * self.settings.windows.length

    def reads_like(self, other: "Run") -> bool:
        """Whether both runs read the same windows in the same order."""
        return bool(self.inputs.corpus) and self._reading() == other._reading()

    def _reading(self) -> tuple[object, ...]:
        settings = self.settings
        windows = (settings.windows, settings.fraction, settings.epochs, settings.global_batch, settings.seed)
        return (self.inputs.corpus, *windows)


def is_run(directory: Path) -> bool:
    """Whether a folder is a training run, finished or not."""
    return all((directory / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def read_run(directory: Path) -> Run | None:
    """The run in a folder; None if it is not finished. Reads its weights once, about 1 s a gigabyte.

    Raises:
        UserError: if a file of it cannot be read.
    """
    if not (directory / "result.json").is_file():
        return None
    inputs = directory / "inputs.json"
    return Run(
        directory=directory,
        settings=read_as(RunSettings, read_yaml(directory / "config.yaml"), directory / "config.yaml"),
        inputs=read_as(RunInputs, read_record(inputs) if inputs.is_file() else {}, inputs),
        result=read_as(RunResult, read_record(directory / "result.json"), directory / "result.json"),
        weights=identity_of(directory, "float32").weights if any(directory.glob("*.safetensors")) else None,
        metrics=_read_metrics(directory / "metrics.jsonl"),
    )


def _read_metrics(path: Path) -> dict[str, Series]:
    """Every number in the lines of a metrics file, by its name; numbers that were not finite are left out."""
    points: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
            step = float(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is damaged: line {number} is not a JSON object with a step; fix it") from None
        for name, value in values.items():
            if isinstance(value, int | float):
                points.setdefault(name, []).append((step, float(value)))
    return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}
