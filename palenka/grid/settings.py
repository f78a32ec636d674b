"""Settings of a grid: a student's file, the options that vary, the launcher and the ranking."""

import math
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from palenka.eval.protocols import Protocol
from palenka.eval.suites import SuiteName
from palenka.grid.record import HELD_OUT
from palenka.ground.settings import Command, OneLine, Settings

_DECIDED = ("output", "seed")
"""Options of a student that the grid sets itself."""
_MOST_POINTS = 10_000
_SHARED = ("corpus", "split", "windows", "validation")
"""Options that all points share: cross-entropies on different text or windows do not compare."""


class FinalistSettings(Settings):
    """The best points, trained again."""

    count: int = Field(default=3, ge=0)
    """Number of finalists, trained with their controls; 0 for none."""
    overrides: dict[str, Any] = Field(default={"fraction": 1.0})
    """Dotted options of the student in which finalists differ from their points, for instance all of the text.
    Something must differ, since the seeds are the same."""


class LocalSettings(Settings):
    """Points on this machine."""

    processes: int | None = Field(default=None, ge=1, le=2**10)
    """Points at the same time; default: per_gpu for each GPU, or one without GPUs."""
    per_gpu: int = Field(default=1, ge=1, le=2**6)
    """Points at the same time on each GPU: one small student leaves most of a large GPU idle."""
    isolated: bool = True
    """Run each point in its own process, so that a crash ends only that point, at a start of some seconds. Otherwise
    all points run in this process, one after the other."""

    @model_validator(mode="after")
    def _one_process_is_no_crowd(self) -> Self:
        if self.processes is not None and self.per_gpu > 1:
            raise ValueError(
                f"processes is {self.processes} and per_gpu {self.per_gpu}, but each says how many points run at the "
                "same time; give one of them"
            )
        if not self.isolated and self.per_gpu > 1:
            raise ValueError(
                f"per_gpu is {self.per_gpu}, but points that are not isolated run one after the other; set isolated to "
                "true, or per_gpu to 1"
            )
        if not self.isolated and self.processes not in (None, 1):
            raise ValueError(
                f"processes is {self.processes}, but points that are not isolated run one after the other; "
                "set isolated to true, or processes to 1"
            )
        return self


class SlurmSettings(Settings):
    """Points as tasks of a SLURM array; each has a line in `sbatch --help`."""

    partition: OneLine | None = None
    """Partition; default: the cluster's."""
    account: OneLine | None = None
    """Account to charge."""
    time: OneLine = "04:00:00"
    """Time limit of a point. A point that hits it resumes at its last checkpoint when the grid is called again."""
    finalists_time: OneLine | None = None
    """Time limit of a finalist; default: that of a point."""
    cpus: int = Field(default=4, ge=1, le=2**16)
    """Processor cores of a point."""
    memory: OneLine | None = None
    """Memory of a point, such as 32G."""
    gres: OneLine | None = None
    """Generic resources of a point, such as gpu:1; a point uses one GPU."""
    at_once: int | None = Field(default=None, ge=1)
    """Maximum points at the same time."""
    options: tuple[OneLine, ...] = ()
    """Further options of sbatch for all jobs, such as --qos=long."""
    setup: str = ""
    """Lines of bash before each command, such as module load cuda."""


class GridSettings(Command):
    """Train every point of a grid, rank them by held-out cross-entropy, and train the best again.

    Finished points are skipped, failed ones tried again. `palenka grid rank` only ranks finished points, `palenka grid
    point --name points/NAME` trains one point, `palenka grid finish` ranks and continues with the finalists.
    """

    output: Path
    """Directory of the grid: its points are runs in points/ and finalists/."""
    student: Path
    """File with the settings of the student's training, relative to this one."""
    product: dict[str, tuple[Any, ...]] = Field(default={})
    """Values of the student's dotted options: each combination is trained with each seed."""
    overrides: dict[str, Any] = Field(default={})
    """Dotted options of the student for all points."""
    seeds: tuple[int, ...] = (0,)
    """Seeds that each combination is trained with."""
    finalists: FinalistSettings = FinalistSettings()
    """The best points, trained again."""
    ranking_split: str = "dev"
    """Split on which points are measured and ranked."""
    held_out_split: str = "test"
    """Split on which finalists are measured: text that was not used for any choice."""
    held_out_windows: int | None = Field(default=None, ge=2)
    """Number of windows to measure points on, a fixed sample; finalists are always measured on all."""
    suites: dict[SuiteName, Path] = Field(default={})
    """Folders of the data of further suites for all points, by suite."""
    protocol: Protocol = "babylm-2024"
    """How minimal pairs are read and scored."""
    rank_by: SuiteName = HELD_OUT
    """The suite that points are ranked by: held_out, or one of suites."""
    launcher: Literal["local", "slurm"] = "local"
    """Where points run."""
    local: LocalSettings = LocalSettings()
    """How they run on this machine."""
    slurm: SlurmSettings = SlurmSettings()
    """How they run through SLURM."""

    @model_validator(mode="after")
    def _options_are_the_students_own(self) -> Self:
        for option in chain(self.product, self.overrides, self.finalists.overrides):
            if option.split(".")[0] in _DECIDED:
                raise ValueError(f"{option} is varied, but the grid decides it (output, seeds); leave it out")
        for option in chain(self.product, self.finalists.overrides):
            if option.split(".")[0] in _SHARED:
                raise ValueError(f"{option} is varied, but points must share it to be ranked; set it under overrides")
        for option, values in self.product.items():
            if not values:
                raise ValueError(f"product.{option} has no values; name at least one, or leave it out")
            if option in self.overrides or option in self.finalists.overrides:
                raise ValueError(f"{option} is varied under product and set under overrides; leave it out of one")
        return self

    @model_validator(mode="after")
    def _points_can_be_counted(self) -> Self:
        count = math.prod(len(values) for values in self.product.values()) * len(self.seeds)
        if count > _MOST_POINTS:
            raise ValueError(
                f"product and seeds make {count:,} points, but a grid has at most {_MOST_POINTS:,}; vary less"
            )
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds is {list(self.seeds)}, but it should name at least one seed, and each of them once"
            )
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seeds has {seed}, but a seed is from 0 to {2**32 - 1}; choose another")
        return self

    @model_validator(mode="after")
    def _rank_is_measured(self) -> Self:
        if self.rank_by not in (HELD_OUT, *self.suites):
            raise ValueError(f"rank_by is {self.rank_by}, but suites has no folder for it; name one there")
        return self


class PointSettings(GridSettings):
    """Train and measure one point of a grid: a task of a SLURM array, for instance."""

    name: str
    """The point: points/NAME or finalists/NAME, as in the grid's output."""
    parent: int | None = None
    """Id of the process that starts it: once that is gone, the point keeps its last step and ends."""
