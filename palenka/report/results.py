"""Evaluation results as the report shows them: what was measured, how large it is, and how two models compare."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from palenka.eval.compare import compare, compare_held_out
from palenka.eval.results import has_window_losses, read_results, scores_file
from palenka.eval.statistics import suite_standard_error
from palenka.ground.errors import UserError
from palenka.ground.settings import read_as

_NORMAL_95 = 1.96
_PROPER_NAMES = {"blimp": "BLiMP", "ewok": "EWoK", "glue": "GLUE", "held": "held-out", "out": "cross-entropy"}


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval: nats per token, or an accuracy in %."""

    value: float
    low: float
    high: float

    @staticmethod
    def of_accuracy(accuracy: float, stderr: float) -> "Estimate":
        """An accuracy ± 1.96 standard errors, in %."""
        margin = _NORMAL_95 * stderr
        return Estimate(100 * accuracy, 100 * (accuracy - margin), 100 * (accuracy + margin))

    def separated_from(self, other: "Estimate") -> bool:
        """Whether the two intervals have no point in common."""
        return self.high < other.low or other.high < self.low


@dataclass(frozen=True, order=True)
class Measure:
    """What makes two results comparable.

    Attributes:
        suite: its name.
        protocol: of minimal pairs; empty for text.
        source: fingerprint of the text or of the pairs.
        length: tokens in a window of text; 0 for minimal pairs.
        precision: that the model computed in.
        is_loss: whether it is a cross-entropy, so that lower is better.
    """

    suite: str
    protocol: str
    source: str
    length: int
    precision: str
    is_loss: bool

    @property
    def title(self) -> str:
        """The suite's name as a heading."""
        return title_of(self.suite)

    def condition(self, among: Iterable["Measure"]) -> str:
        """The protocol, and whatever else tells this measure from others of the same suite."""
        others = [other for other in among if other.suite == self.suite]
        parts = {
            "source": f"data {self.source[:8]}",
            "length": f"windows of {self.length}",
            "precision": self.precision,
        }
        differing = [text for name, text in parts.items() if len({getattr(other, name) for other in others}) > 1]
        return ", ".join([*([self.protocol] if self.protocol else []), *differing])


class _Lenient(BaseModel):
    """What is read of a file that says more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class MeasuredModel(_Lenient):
    """Which model a result is about: the hash of its tensors, and what it computed in."""

    weights: str
    precision: str = "float32"


class TaskScore(_Lenient):
    """Accuracy on one task of a suite."""

    accuracy: float
    stderr: float
    n: int


class SuiteResult(_Lenient):
    """What the report shows of an evaluation result; a suite fills in what it measures."""

    suite: str
    name: str | None = None
    model: MeasuredModel
    parameters: int | None = None
    protocol: str = ""
    accuracy: float | None = None
    stderr: float | None = None
    tie_rate: float | None = None
    tie_half_accuracy: float | None = None
    data: str = ""
    tasks: Mapping[str, TaskScore] = {}
    corpus: str = ""
    length: int = 0
    cross_entropy: float | None = None
    interval: tuple[float, float] | None = None
    per_word: float | None = None
    per_byte: float | None = None

    @property
    def measure(self) -> Measure:
        """What it measured."""
        is_loss = self.cross_entropy is not None
        source = self.corpus or self.data
        return Measure(self.suite, self.protocol, source, self.length, self.model.precision, is_loss)

    @property
    def estimate(self) -> Estimate | None:
        """The figure that stands for it; None if it has none."""
        if self.cross_entropy is not None:
            return Estimate(self.cross_entropy, *(self.interval or (self.cross_entropy, self.cross_entropy)))
        return None if self.accuracy is None else Estimate.of_accuracy(self.accuracy, self.stderr or 0.0)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same data.

    Attributes:
        windows: of `compare_held_out`; None where the losses of windows were not kept.
        suites: of `compare`, by suite; empty without minimal pairs.
    """

    windows: Mapping[str, Any] | None
    suites: Mapping[str, Mapping[str, Any]]


def title_of(suite: str) -> str:
    """A suite's name as a heading."""
    return " ".join(_PROPER_NAMES.get(word, word) for word in suite.split("_"))


def read_suites(path: Path) -> list[SuiteResult]:
    """The evaluation results in a JSON file; none if it is about something else.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); mend it, or leave its folder out") from None
    # A comparison of two models has suites by name.
    if not isinstance(record, dict) or not ("suite" in record or isinstance(record.get("suites"), list)):
        return []
    return [read_as(SuiteResult, result, path) for result in read_results(path)]


def compare_measures(held_out: Sequence[Path], pairs: Sequence[Path]) -> Comparison:
    """How the first of two models compares with the second, by the files of their figures.

    Raises:
        UserError: if two files that should be of the same windows, or the same pairs, are not.
    """
    has_losses = all(map(has_window_losses, held_out))
    scores = [scores_file(path) for path in pairs]
    has_scores = all(path.is_file() for path in scores)
    return Comparison(
        windows=compare_held_out(*held_out) if has_losses else None,
        suites=compare(*scores)["suites"] if has_scores else {},
    )


def pooled(scores: Sequence[TaskScore]) -> TaskScore:
    """The unweighted mean accuracy of some tasks, with the standard error that the suites' protocol gives it."""
    counts = [score.n for score in scores]
    accuracy = sum(score.accuracy for score in scores) / len(scores)
    stderr = suite_standard_error([score.stderr for score in scores], counts)
    return TaskScore(accuracy=accuracy, stderr=stderr, n=sum(counts))
