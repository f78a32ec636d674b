"""Evaluation results in the report: when two are comparable, their sizes, and comparisons of models."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palenka.eval.compare import compare, compare_suite
from palenka.eval.results import SuiteResult, has_items
from palenka.eval.statistics import normal_interval
from palenka.eval.suite import Score
from palenka.grid.record import HELD_OUT


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval, in its unit; a share in %."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(score: Score, unit: str = "") -> "Estimate":
        """A score with its interval, or the normal interval of its standard error."""
        factor = 1 if unit else 100
        low, high = score.interval or normal_interval(score.value, score.stderr or 0.0)
        return Estimate(factor * score.value, factor * low, factor * high)

    def separated_from(self, other: "Estimate") -> bool:
        """Whether the two intervals have no point in common."""
        return self.high < other.low or other.high < self.low


@dataclass(frozen=True, order=True)
class Measure:
    """The identity of a measure: two results with equal measures are comparable.

    Attributes:
        suite: its name.
        title: as a heading.
        data: fingerprint of the text or of the pairs.
        version: of the suite.
        conditions: that it was measured under, by name.
        unit: of its main figure; empty for a share.
        is_loss: whether lower is better.
    """

    suite: str
    title: str
    data: str
    version: int
    conditions: tuple[tuple[str, str | int], ...]
    unit: str
    is_loss: bool

    @staticmethod
    def of(result: SuiteResult) -> "Measure":
        """The measure of a result."""
        main = result.main
        return Measure(
            suite=result.suite,
            title=result.title,
            data=result.data,
            version=result.version,
            conditions=tuple(result.conditions.items()),
            unit=main.unit,
            is_loss=not main.higher_is_better,
        )

    @property
    def is_held_out(self) -> bool:
        """Whether it is the cross-entropy on held-out text, which a headline is about."""
        return self.suite == HELD_OUT

    @property
    def digits(self) -> int:
        """Digits of its values behind the point."""
        return 4 if self.is_loss else 2 if self.unit else 1

    @property
    def protocol(self) -> str:
        """How its items are read and scored; empty if there is only one way."""
        return str(dict(self.conditions).get("protocol", ""))

    def condition(self, among: Iterable["Measure"]) -> str:
        """The protocol, and other conditions that distinguish this measure from others of the same suite."""
        others = [other for other in among if other.suite == self.suite]
        parts = [self.protocol] if self.protocol else []
        if any(other.data != self.data for other in others):
            parts.append(f"data {self.data[:8]}")
        if any(other.version != self.version for other in others):
            parts.append(f"version {self.version}")
        for name, value in self.conditions:
            if name != "protocol" and any(dict(other.conditions).get(name) != value for other in others):
                parts.append(f"{name} {value}")
        return ", ".join(parts)


def signed(value: float, digits: int) -> str:
    """A difference with its sign, with a true minus sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


@dataclass(frozen=True)
class Comparison:
    """Two models on the same data.

    Attributes:
        windows: of held-out text; None if the items were not kept.
        suites: of the others, by suite.
    """

    windows: Mapping[str, Any] | None
    suites: Mapping[str, Mapping[str, Any]]


def compare_measures(first: Path, second: Path) -> Comparison:
    """Compare the first of two models with the second, from the files of their figures.

    Raises:
        UserError: if the two should have the same items and do not.
    """
    suites = compare(first, second)["suites"] if has_items(first) and has_items(second) else {}
    return Comparison(windows=suites.pop(HELD_OUT, None), suites=suites)


def compare_measure(first: Path, second: Path, suite: str) -> Mapping[str, Any] | None:
    """Compare the first of two models with the second on one suite; None if the items were not kept.

    Raises:
        UserError: if the two should have the same items and do not.
    """
    return compare_suite(first, second, suite) if has_items(first) and has_items(second) else None
