"""A grid's files: its ranking in grid.json, and the paths of its runs' measures."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from palenka.eval.results import SuiteResult
from palenka.eval.statistics import mean_interval
from palenka.eval.suite import Figure
from palenka.ground.errors import UserError
from palenka.ground.files import require_own
from palenka.ground.records import load_json, read_sealed, write_sealed
from palenka.ground.settings import Settings, read_as

Stage = Literal["points", "finalists"]
HELD_OUT = "held_out"
"""The suite that every point is measured on, with the text of its corpus."""

_AGAIN = "write it again with `palenka grid rank --config FILE.yaml`, or leave its folder out"


class RunFigure(Figure):
    """The main figure of a run on a suite."""

    title: str
    """Its name in tables."""

    @staticmethod
    def of(result: SuiteResult) -> "RunFigure":
        """The main figure of a result, without its tasks."""
        return RunFigure(title=result.title, **dict(result.main.without_tasks()))


class GridRun(Settings):
    """A finished run of a grid, with its figures by suite."""

    variant: str
    seed: int
    measures: dict[str, RunFigure]

    @property
    def held_out(self) -> RunFigure:
        """Its cross-entropy in nats per token, with its interval over the text."""
        return self.measures[HELD_OUT]


class GridMeasure(Settings):
    """A measure of a variant over its seeds; differences are from its control, seed by seed.

    Deviations, and the 95 % interval of the difference, are over seeds; None for a single one.
    """

    title: str
    unit: str
    higher_is_better: bool
    mean: float
    deviation: float | None = None
    difference: float | None = None
    difference_deviation: float | None = None
    interval: tuple[float, float] | None = None

    @staticmethod
    def over(figures: Sequence[RunFigure], differences: Sequence[float]) -> "GridMeasure":
        """The measure of a figure per seed, and of a difference per seed that the control has too."""
        values = [figure.value for figure in figures]
        return GridMeasure(
            title=figures[0].title,
            unit=figures[0].unit,
            higher_is_better=figures[0].higher_is_better,
            mean=statistics.fmean(values),
            deviation=_deviation(values),
            difference=statistics.fmean(differences) if differences else None,
            difference_deviation=_deviation(differences),
            interval=mean_interval(differences),
        )

    @property
    def badness(self) -> float:
        """A sort key: lower is better."""
        return -self.mean if self.higher_is_better else self.mean


class GridRow(Settings):
    """A variant in the ranking; without a rank if it lacks seeds."""

    rank: int | None
    variant: str
    role: Literal["control", "point"]
    control: str
    values: dict[str, Any]
    seeds: tuple[int, ...]
    lacking: tuple[int, ...]
    measures: dict[str, GridMeasure]

    @property
    def is_control(self) -> bool:
        """Whether it is trained on the text alone."""
        return self.role == "control"

    @property
    def planned(self) -> int:
        """Planned number of its seeds."""
        return len(self.seeds) + len(self.lacking)


class GridStage(Settings):
    """The results of a grid's points, or of its finalists.

    Attributes:
        ranking: of the variants, the best first.
        runs: the finished ones, by name.
        failures: reasons of failed ones, by name.
        untried: the names of those that never began.
    """

    ranking: tuple[GridRow, ...]
    runs: dict[str, GridRun]
    failures: dict[str, str]
    untried: tuple[str, ...]

    @model_validator(mode="after")
    def _runs_are_of_variants(self) -> Self:
        for name in [*(run.variant for run in self.runs.values()), *(row.control for row in self.ranking)]:
            if name not in self.rows:
                raise ValueError(f"{name} is not in the ranking")
        return self

    @property
    def rows(self) -> dict[str, GridRow]:
        """Its variants by name."""
        return {row.variant: row for row in self.ranking}

    @property
    def whole(self) -> list[GridRow]:
        """The variants with every seed, without controls."""
        return [row for row in self.ranking if not row.is_control and not row.lacking]

    @property
    def by_variant(self) -> dict[tuple[str, int], GridRun]:
        """Its runs by variant and seed."""
        return {(run.variant, run.seed): run for run in self.runs.values()}

    @property
    def seeds(self) -> list[int]:
        """Every planned seed."""
        return sorted({seed for row in self.ranking for seed in (*row.seeds, *row.lacking)})

    @property
    def planned(self) -> int:
        """Planned number of runs."""
        return sum(row.planned for row in self.ranking)

    @property
    def is_whole(self) -> bool:
        """Whether every run is finished."""
        return len(self.runs) == self.planned


class GridRecord(Settings):
    """The contents of grid.json: the ranking suite, and the stages."""

    rank_by: str
    points: GridStage
    finalists: GridStage | None


@dataclass(frozen=True)
class GridFiles:
    """The output of a grid. A run is named by its stage, variant and seed (`run_name`)."""

    directory: Path

    @property
    def ranking(self) -> Path:
        """The path of the record."""
        return self.directory / "grid.json"

    @property
    def of_points(self) -> set[Path]:
        """The folders with the points and their measures."""
        return {self.directory / folder / "points" for folder in ("", "measures")}

    def measures(self, run: str) -> Path:
        """The path of a run's measures."""
        return self.directory / "measures" / f"{run}.json"

    def exist(self) -> bool:
        """Whether the folder is the output of a grid, ranked or not."""
        begun = (self.directory / "points").glob("*-seed*")
        return self.ranking.is_file() or any(path.is_dir() or path.name.endswith(".failure.json") for path in begun)

    def require_own(self) -> None:
        """Refuse a folder in which another file has the ranking's name.

        Raises:
            UserError: if there is one.
        """
        require_own(
            self.ranking,
            lambda text: set(GridRecord.model_fields) < set(load_json(text)),
            "ranking of a grid",
            "output",
        )

    def write(self, record: GridRecord) -> None:
        """Write the ranking."""
        write_sealed(self.ranking, record.as_plain())

    def read(self) -> GridRecord:
        """The ranking.

        Raises:
            UserError: if it is missing or damaged.
        """
        try:
            content: Mapping[str, Any] = read_sealed(self.ranking, _AGAIN)
        except FileNotFoundError:
            raise UserError(
                f"{self.directory} holds points of a grid, but no {self.ranking.name} with their ranking; write it "
                "with `palenka grid rank --config FILE.yaml`, or leave the folder out"
            ) from None
        return read_as(GridRecord, content, self.ranking)


def run_name(stage: Stage, variant: str, seed: int) -> str:
    """The path of a run in its grid's output, such as points/logit0.1-hidden0.3-seed0."""
    return f"{stage}/{variant}-seed{seed}"


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
