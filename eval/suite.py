"""What a suite says of itself: where its data lies, how it measures a model item by item, and its figures from that.

A suite of a user's own is one file: it derives from `Suite`, or from `eval.decisions.DecisionSuite` where a model gets
items right or wrong, and registers itself in `eval.suites.SUITES`. Everything else asks a suite only what is here.
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
"""What the official pipeline would have written: by a file's path below results/MODEL/REVISION, its content
``{group: {"predictions": [{"id": …, "pred": …}]}}``; with NaN where the pipeline has it."""
PairPrecision = Literal["float32", "bf16"]
"""What texts may be scored in."""


class Conditions(Settings):
    """What a model is measured under; a suite reads what concerns it."""

    protocol: Protocol = "babylm-2024"
    """How minimal pairs are read and scored: babylm-2024 is that of the published tables."""
    precision: PairPrecision = "float32"
    """Type that minimal pairs are computed in; with bf16 the agreement with float32 is reported. held_out is always
    in float32."""
    split: str = "test"
    """Split of the corpus, for held_out; dev is what checkpoints and points of a grid are chosen on."""
    length: int = Field(default=128, ge=2, le=2**17)
    """Tokens in a window, for held_out."""
    windows: int | None = Field(default=None, ge=2)
    """Windows for held_out, a sample that is the same for every model; all of them unless given."""
    seeds: tuple[int, ...] = Field(default=(42,), min_length=1)
    """Seeds for glue; every task is fine-tuned once with each, as --seeds 42 43 44."""
    tasks: tuple[TaskName, ...] = ()
    """Tasks for glue; all that have files unless given."""
    limit: int | None = Field(default=None, ge=1)
    """Maximum examples of a glue task, to train on and to measure on: for a quick run that shows that all works."""

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds are {list(seeds)}, but each should be given once")
        return seeds


class Score(Settings):
    """A value, and how well it is known."""

    value: float
    stderr: float | None = None
    """Standard error, where it is known."""
    interval: tuple[float, float] | None = None
    """Of 95 %, where it is known."""
    n: int | None = None
    """What the value is a mean over: items, words, bytes."""

    def __str__(self) -> str:
        if self.interval is not None:
            return f"{self.value:.4f} ({self.interval[0]:.4f} to {self.interval[1]:.4f})"
        return f"{self.value:.4f}" if self.stderr is None else f"{self.value:.4f} ± {self.stderr:.4f}"


class Figure(Score):
    """A figure of a suite."""

    unit: str = ""
    """Such as nats per token; none of a share."""
    higher_is_better: bool
    chance: float | None = None
    """What guessing gives, where that is known."""
    pooled_stderr: float | None = None
    """Standard error as lm-eval pools it over tasks, which published tables quote; too small where these differ in
    size."""
    tasks: dict[str, Score] = Field(default={})
    """The same of each task, where the suite has tasks."""

    def without_tasks(self) -> Self:
        """The figure of the whole suite alone."""
        return self.model_copy(update={"tasks": {}})


class Measured(Settings):
    """What a suite says of a model's items."""

    figures: dict[str, Figure] = Field(min_length=1)
    """By name; the first is what tables show and models are ranked by."""
    facts: dict[str, int | float] = Field(default={})
    """What else there is to say, by name."""

    @property
    def main(self) -> Figure:
        """The figure that stands for the suite."""
        return next(iter(self.figures.values()))


class Suite(ABC, Generic[Data]):
    """Data to measure a model on, and how.

    Attributes:
        title: what tables call its main figure.
        folders: names of the subfolders that may hold its data.
        patterns: of its files in such a folder; the first one that there are files of counts.
        fast_folder: name of the subfolder with the small part of them that revisions are measured on; empty for none.
        version: raised when the same data would come to give other items or figures.
        column: of the official table (`eval.overall`) that its main figure stands in, or is part of; empty for none.
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
        """What is equal for the same data alone: the SHA-256 over the names and bytes of the files."""
        return hash_of_files(self.files(folder))

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """Those of the conditions that decide the result, by name."""
        return {}

    @abstractmethod
    def read(self, folder: Path, conditions: Conditions) -> Data:
        """The data, checked.

        Raises:
            UserError: naming what is wrong, and where.
        """

    @abstractmethod
    def measure(self, data: Data, model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """What a model makes of each item: a row with its ``task``, its ``index`` in that, and numbers.

        Raises:
            UserError: if the model and the data do not fit.
        """

    def measure_resumably(self, data: Data, model: "EvaluatedModel", conditions: Conditions, kept: Path) -> "pa.Table":
        """As `measure`; a suite that takes long keeps in a folder what is done, and goes on from there.

        Args:
            data: as `read` has them.
            model: that is measured.
            conditions: that it is measured under.
            kept: a folder of the suite's own beside the results; it need not exist.
        """
        return self.measure(data, model, conditions)

    def predictions(self, folder: Path, data: Data, items: "pa.Table") -> PredictionFiles:
        """What a model chose, as files of the official pipeline; none for a suite that this does not know.

        Args:
            folder: that the data are in; its name is part of the files' paths.
            data: as `read` has them.
            items: as `measure` has them.
        """
        return {}

    @abstractmethod
    def figures(self, items: "pa.Table") -> Measured:
        """The figures of a table of items, and of nothing else."""

    @abstractmethod
    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """Two models on the same items, in the same order.

        Returns:
            A row ``{"n", "first", "second", "difference", "interval"}`` of the main figure, with ``"p_value"`` and
            ``"tasks": {task: <row>}`` where the suite has them.
        """


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match a pattern, by name; no pipes, nor what a Mac puts beside files (`._name`)."""
    return [file for file in sorted(folder.glob(pattern)) if not file.name.startswith(".") and not is_pipe(file)]


def hash_of_files(files: Iterable[Path]) -> str:
    """SHA-256 over the names and bytes of some files."""
    lines = (f"{file.name} {sha256_of_file(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def column(items: "pa.Table", name: str) -> NDArray[Any]:
    """A column of a table; NaN where a number is missing."""
    values: NDArray[Any] = items.column(name).to_numpy(zero_copy_only=False)
    return values


def by_task(items: "pa.Table") -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each task in the order of its first item, with the places of its items."""
    names, first, task_of = np.unique(column(items, "task").astype(str), return_index=True, return_inverse=True)
    for number in np.argsort(first):
        yield str(names[number]), np.flatnonzero(task_of == number)
