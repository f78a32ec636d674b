"""The points of a grid: every combination of values with every seed, and their controls.

A control is the student without teachers that minimises the cross-entropy alone. It reads the same windows in the same
order as its points. If the product also varies other options than the teachers' and the objective's (a learning rate,
for instance), each combination of those has its own control.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from palenka.grid.record import Stage, run_name
from palenka.grid.settings import GridSettings
from palenka.ground.command_line import parse
from palenka.ground.errors import UserError
from palenka.train_student.objective.settings import ObjectiveSettings
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings

CONTROL = "control"
_STUDENT = "student"
_OF_TEACHERS = ("teachers", "objective")
"""Options of a student that its control lacks."""


@dataclass(frozen=True)
class Variant:
    """A combination of values, trained once with each seed.

    Attributes:
        name: of labels and values, such as logit0.1-hidden0.3.
        values: the varied options by dotted name.
        control: name of the variant's control; its own name for a control.
    """

    name: str
    values: Mapping[str, Any]
    control: str

    @property
    def is_control(self) -> bool:
        """Whether it is trained without teachers."""
        return self.name == self.control


@dataclass(frozen=True)
class Point:
    """One training run of a grid.

    Attributes:
        stage: of the grid.
        variant: of the point.
        settings: of its training.
    """

    stage: Stage
    variant: Variant
    settings: TrainSettings

    @property
    def name(self) -> str:
        """Its path in the grid's output."""
        return run_name(self.stage, self.variant.name, self.settings.seed)

    @property
    def failure(self) -> Path:
        """The record beside its run from its start on, removed when it succeeds."""
        return self.settings.output.with_name(f"{self.settings.output.name}.failure.json")


class Grid:
    """A grid's settings and its points, all checked.

    Args:
        settings: of the grid.
        file: of the settings; the student's file is relative to it.

    Raises:
        UserError: before anything runs, if any point or finalist would be refused, or a finalist would be the same run
            as its point.
    """

    def __init__(self, settings: GridSettings, file: Path) -> None:
        self.settings = settings
        self._student = file.parent / settings.student
        self.variants = list(_variants(settings.product))
        names = [variant.name for variant in self.variants]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two points of the grid would have the name {twice}; give each value in product once")
        self.points = self._points("points", self.variants, settings.overrides)
        may_win = self.variants if settings.finalists.count else []
        self._candidates = self._points("finalists", may_win, settings.overrides | settings.finalists.overrides)
        self._require_finalists_to_differ()

    def finalists(self, names: Collection[str]) -> list[Point]:
        """These variants as finalists, with every seed."""
        return [point for point in self._candidates if point.variant.name in names]

    def point(self, name: str) -> Point:
        """The point or finalist of a name.

        Raises:
            UserError: if there is none.
        """
        for point in [*self.points, *self._candidates]:
            if point.name == name:
                return point
        raise UserError(f"the grid has no point {name}; its first is {self.points[0].name}")

    def _require_finalists_to_differ(self) -> None:
        """Refuse finalists with their points' settings: with the same seeds they would be the same runs again."""
        for point, finalist in zip(self.points, self._candidates, strict=False):
            same = {"output": point.settings.output}
            if not point.variant.is_control and finalist.settings.model_copy(update=same) == point.settings:
                raise UserError(
                    f"finalists.overrides is {json.dumps(self.settings.finalists.overrides)}, but finalist "
                    f"{point.variant.name} should differ from its point and would have all of its settings; let "
                    "overrides give points less text (fraction), or set finalists.count to 0"
                )

    def _points(self, stage: Stage, variants: Sequence[Variant], overrides: Mapping[str, Any]) -> list[Point]:
        """The points seed by seed, so that a grid that stops early has complete comparisons."""
        parsed = [(variant, self._settings_of(variant, overrides)) for variant in variants]
        points = []
        for seed in self.settings.seeds:
            for variant, settings in parsed:
                output = self.settings.output / run_name(stage, variant.name, seed)
                changes: dict[str, object] = {"output": output, "seed": seed}
                points.append(Point(stage, variant, settings.model_copy(update=changes)))
        return points

    def _settings_of(self, variant: Variant, overrides: Mapping[str, Any]) -> TrainSettings:
        """The settings of a variant without output and seed, with the same checks and hints as on a command line."""
        given = {**overrides, **variant.values, "output": str(self.settings.output)}
        if self.settings.plugins:
            given["plugins"] = self.settings.plugins
        options = [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()
        ]
        settings = parse(TrainSettings, ["--config", str(self._student), *options], "palenka train")
        alone = TrainSettings.model_validate(
            settings.as_plain() | {"teachers": {}, "objective": ObjectiveSettings().as_plain()}
        )
        if variant.is_control:
            return alone
        if settings == alone:
            raise UserError(
                f"{self._student} has no teachers and no term but the hard one, so point {variant.name} would be its "
                "own control; name teachers or terms in it"
            )
        return settings


def require_same_settings(points: Sequence[Point]) -> None:
    """Require that existing runs of the points were begun with the points' settings.

    Raises:
        UserError: for a run with other settings.
    """
    for point in points:
        Run(point.settings.output).require_settings(point.settings)


def _variants(values: Mapping[str, Sequence[Any]]) -> Iterator[Variant]:
    """The controls first, then every combination in the order of the product."""
    labels = _labels(list(values))
    shared = [option for option in values if option.split(".")[0] not in _OF_TEACHERS]

    def named(chosen: Mapping[str, Any], empty: str) -> str:
        return "-".join(f"{_as_text(labels[option])}{_as_text(value)}" for option, value in chosen.items()) or empty

    def control_name(chosen: Mapping[str, Any]) -> str:
        rest = named({option: chosen[option] for option in shared}, "")
        return f"{CONTROL}-{rest}" if rest else CONTROL

    for combination in product(*(values[option] for option in shared)):
        chosen = dict(zip(shared, combination, strict=True))
        yield Variant(control_name(chosen), chosen, control_name(chosen))
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        yield Variant(named(chosen, _STUDENT), chosen, control_name(chosen))


def _labels(options: Sequence[str]) -> dict[str, str]:
    """For every dotted option its shortest unique suffix."""
    labels = {}
    for option in options:
        parts = option.split(".")
        ends = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
        others = [f".{other}" for other in options if other != option]
        labels[option] = next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), option)
    return labels


def _as_text(value: object) -> str:
    """A value as part of a file name."""
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text).strip("_")
