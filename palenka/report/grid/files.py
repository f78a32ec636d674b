"""What the report reads of a grid: its ranking in grid.json, and where the measures of its runs lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from palenka.ground.errors import UserError
from palenka.ground.files import read_record
from palenka.report.run_files import Lenient, read_as

OF_POINTS = ("points", "measures/points")
"""Folders of a grid with its points: there are too many of them to stand among the models."""
_RANKING = "grid.json"
_AGAIN = "write it again with `palenka grid rank --config FILE.yaml`, or leave its folder out"


class GridMeasure(Lenient):
    """A measure of a variant over its seeds; differences are from its control."""

    mean: float
    deviation: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None


class GridRow(Lenient):
    """A variant in its place in the ranking."""

    rank: int | None
    variant: str
    role: Literal["control", "point"]
    control: str
    values: Mapping[str, Any]
    seeds: tuple[int, ...]
    lacking: tuple[int, ...]
    measures: Mapping[str, GridMeasure]

    @property
    def is_control(self) -> bool:
        """Whether it is trained on the text alone."""
        return self.role == "control"


class HeldOut(Lenient):
    """A run's held-out cross-entropy."""

    value: float
    interval: tuple[float, float]


class GridRun(Lenient):
    """A finished run of a grid, and the main figure of each suite."""

    variant: str
    seed: int
    measures: Mapping[str, Mapping[str, Any]]

    @property
    def held_out(self) -> HeldOut:
        """Its held-out cross-entropy."""
        return HeldOut.model_validate(self.measures["held_out"])


class GridStage(Lenient):
    """What came of the points of a grid, or of its finalists."""

    ranking: tuple[GridRow, ...]
    runs: Mapping[str, GridRun]
    failures: Mapping[str, str]
    untried: tuple[str, ...]

    @model_validator(mode="after")
    def _runs_are_of_variants(self) -> Self:
        variants = {row.variant for row in self.ranking}
        for name in [*(run.variant for run in self.runs.values()), *(row.control for row in self.ranking)]:
            if name not in variants:
                raise ValueError(f"{name} is not in the ranking")
        return self

    @property
    def rows(self) -> dict[str, GridRow]:
        """Its variants by name."""
        return {row.variant: row for row in self.ranking}

    @property
    def by_variant(self) -> dict[tuple[str, int], GridRun]:
        """Its runs by variant and seed."""
        return {(run.variant, run.seed): run for run in self.runs.values()}

    @property
    def seeds(self) -> list[int]:
        """Every seed that it was to be trained with."""
        return sorted({seed for row in self.ranking for seed in (*row.seeds, *row.lacking)})

    @property
    def planned(self) -> int:
        """How many runs there are to be."""
        return sum(len(row.seeds) + len(row.lacking) for row in self.ranking)


class GridRecord(Lenient):
    """What the report reads of a grid's grid.json."""

    rank_by: str
    points: GridStage
    finalists: GridStage | None


@dataclass(frozen=True)
class Grid:
    """A grid's output folder, and its ranking."""

    directory: Path
    record: GridRecord

    def measures_file(self, variant: str, seed: int) -> Path:
        """Where what was measured of a finalist is."""
        return self.directory / "measures" / "finalists" / f"{variant}-seed{seed}.json"


def is_grid(directory: Path) -> bool:
    """Whether a folder is the output of a grid, ranked or not."""
    begun = (directory / "points").glob("*-seed*")
    return is_ranked(directory) or any(path.is_dir() or path.name.endswith(".failure.json") for path in begun)


def is_ranked(directory: Path) -> bool:
    """Whether a folder holds the ranking of a grid."""
    return (directory / _RANKING).is_file()


def read_grid(directory: Path) -> Grid:
    """The grid in a folder.

    Raises:
        UserError: if its ranking is missing or damaged.
    """
    path = directory / _RANKING
    try:
        content = read_record(path)
    except FileNotFoundError:
        raise UserError(
            f"{directory} holds points of a grid, but no {_RANKING} with their ranking; write it with `palenka grid "
            "rank --config FILE.yaml`, or leave the folder out"
        ) from None
    except UserError:
        raise UserError(f"{path} is damaged: it is not a JSON object; {_AGAIN}") from None
    return Grid(directory, read_as(GridRecord, content, path))
