"""The base class of suites: where the data lies, how a model is measured item by item, and the figures.

Your own suite is one file: it derives from `Suite`, or from `eval.decisions.DecisionSuite` if a model gets items right
or wrong, and registers itself in `eval.suites.SUITES`. All other code uses only this interface.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from palenka.eval.glue.tasks import TaskName
from palenka.eval.protocols import Protocol
from palenka.ground.errors import UserError
from palenka.ground.files import is_pipe, sha256_of_file
from palenka.ground.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from palenka.eval.model import EvaluatedModel

Data = TypeVar("Data")
PredictionFiles = dict[str, dict[str, dict[str, list[dict[str, Any]]]]]
"""The official pipeline's files: by a file's path below results/MODEL/REVISION, its content ``{group: {"predictions":
[{"id": …, "pred": …}]}}``, with the pipeline's NaNs."""
PairPrecision = Literal["float32", "bf16"]
"""Types for scoring texts."""


class Conditions(Settings):
    """The conditions of a measurement; a suite reads those that concern it."""

    protocol: Protocol = "babylm-2024"
    """How minimal pairs are read and scored: babylm-2024 is that of the published tables."""
    precision: PairPrecision = "float32"
    """Type that minimal pairs are computed in; with bf16 the agreement with float32 is reported. held_out is always
    in float32."""
    split: str = "test"
    """Split of the corpus, for held_out; dev already chose checkpoints and points of a grid."""
    length: int = Field(default=128, ge=2, le=2**17)
    """Tokens in a window, for held_out."""
    windows: int | None = Field(default=None, ge=2)
    """Number of windows for held_out, a sample that is the same for every model; default: all."""
    seeds: tuple[int, ...] = Field(default=(42,), min_length=1)
    """Seeds for glue; every task is fine-tuned once with each, as --seeds 42 43 44."""
    tasks: tuple[TaskName, ...] = ()
    """Tasks for glue; default: all with files."""
    limit: int | None = Field(default=None, ge=1)
    """Maximum examples of a glue task, for training and for measurement each, as a quick check."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds are {list(seeds)}, but each should be given once")
        if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:  # NumPy's bound
            raise ValueError(f"seeds has {wrong[0]}, but each should be from 0 to 2^32 - 1")
        return seeds


class Score(Settings):
    """A value with its uncertainty."""

    value: float
    stderr: float | None = None
    """Standard error, if known."""
    interval: tuple[float, float] | None = None
    """95 % interval, if known."""
    n: int | None = None
    """Number of items, words or bytes that the value is a mean over."""

    def __str__(self) -> str:
        if self.interval is not None:
            return f"{self.value:.4f} ({self.interval[0]:.4f} to {self.interval[1]:.4f})"
        return f"{self.value:.4f}" if self.stderr is None else f"{self.value:.4f} ± {self.stderr:.4f}"


class Figure(Score):
    """A figure of a suite."""

    unit: str = ""
    """Unit, such as nats per token; empty for a share."""
    higher_is_better: bool
    chance: float | None = None
    """The value of guessing, if known."""
    pooled_stderr: float | None = None
    """Standard error as lm-eval pools it over tasks and published tables quote it; too small if tasks differ in
    size."""
    tasks: dict[str, Score] = Field(default={})
    """The same for each task, if the suite has tasks."""

    def without_tasks(self) -> Self:
        """Only the figure of the whole suite."""
        return self.model_copy(update={"tasks": {}})


class Measured(Settings):
    """The figures of a suite for a model's items."""

    figures: dict[str, Figure] = Field(min_length=1)
    """Figures by name; tables show the first, and models are ranked by it."""
    facts: dict[str, int | float] = Field(default={})
    """Further numbers, by name."""

    @property
    def main(self) -> Figure:
        """The main figure of the suite."""
        return next(iter(self.figures.values()))


class Suite(ABC, Generic[Data]):
    """Data to measure a model on, and how.

    Attributes:
        title: of its main figure in tables.
        folders: names of the subfolders that may hold its data.
        patterns: of its files in such a folder; the first pattern with files is used.
        fast_folder: name of the subfolder with the small part for revisions; empty for none.
        version: raised when the same data give other items or figures.
        column: of the official table (`eval.overall`) that its main figure belongs to; empty for none.
    """

    title: str
    folders: tuple[str, ...]
    patterns: tuple[str, ...] = ("*.jsonl",)
    fast_folder: str = ""
    version: int = 1
    column: str = ""

    @property
    def fast_folders(self) -> tuple[str, ...]:
        """The name of the subfolder with the small part of its data; none without one."""
        return (self.fast_folder,) if self.fast_folder else ()

    @property
    def all_folders(self) -> tuple[str, ...]:
        """Names of the subfolders that may hold its data, the small part last."""
        return tuple(dict.fromkeys((*self.folders, *self.fast_folders)))

    def found_in(self, folder: Path) -> list[Path]:
        """The suite's files in a folder, by name, if there are any."""
        by_pattern = (visible_files(folder, pattern) for pattern in self.patterns)
        return next((files for files in by_pattern if files), [])

    def files(self, folder: Path) -> list[Path]:
        """The suite's files in a folder, by name.

        Raises:
            UserError: if there is no such folder, or none of these files in it.
        """
        kinds = " or ".join(self.patterns)
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder; give the one that holds the suite's {kinds} files")
        if not (files := self.found_in(folder)):
            raise UserError(
                f"{folder} holds no {kinds} files, nor a folder {' or '.join(self.all_folders)}; give the folder that "
                "holds those of the suite"
            )
        return files

    def fingerprint(self, folder: Path, conditions: Conditions) -> str:
        """The identity of the data: the SHA-256 over the names and bytes of the files."""
        return hash_of_files(self.files(folder))

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """The conditions that decide the result, by name."""
        return {}

    @abstractmethod
    def read(self, folder: Path, conditions: Conditions) -> Data:
        """The data, checked.

        Raises:
            UserError: naming what is wrong, and where.
        """

    @abstractmethod
    def measure(self, data: Data, model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """A model's result on each item: a row with its ``task``, its ``index`` in the task, and numbers.

        Raises:
            UserError: if the model does not fit the data.
        """

    def measure_resumably(self, data: Data, model: "EvaluatedModel", conditions: Conditions, kept: Path) -> "pa.Table":
        """As `measure`; a suite that takes long keeps finished parts in a folder, and resumes there.

        Args:
            data: from `read`.
            model: that is measured.
            conditions: that it is measured under.
            kept: the suite's own folder beside the results; it need not exist.
        """
        return self.measure(data, model, conditions)

    def predictions(self, folder: Path, data: Data, items: "pa.Table") -> PredictionFiles:
        """A model's choices as files of the official pipeline; none for a suite that the pipeline lacks.

        Args:
            folder: of the data; its name is part of the files' paths.
            data: from `read`.
            items: from `measure`.
        """
        return {}

    @abstractmethod
    def figures(self, items: "pa.Table") -> Measured:
        """The figures of a table of items; they depend on nothing else."""

    @abstractmethod
    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """Compare two models on the same items, in the same order.

        Returns:
            A row ``{"n", "first", "second", "difference", "interval"}`` of the main figure, with ``"p_value"`` and
            ``"tasks": {task: <row>}`` where the suite has them.
        """


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match a pattern, by name, without pipes and a Mac's `._name` files."""
    return [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(".") and not is_pipe(file)]


def hash_of_files(files: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of some files."""
    lines = (f"{file.name} {sha256_of_file(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def column(items: "pa.Table", name: str) -> NDArray[Any]:
    """A column of a table; NaN if a number is missing."""
    values: NDArray[Any] = items.column(name).to_numpy(zero_copy_only=False)
    return values


def by_task(items: "pa.Table") -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each task in the order of its first item, with the places of its items."""
    names, first, task_of = np.unique(column(items, "task").astype(str), return_index=True, return_inverse=True)
    for number in np.argsort(first):
        yield str(names[number]), np.flatnonzero(task_of == number)
