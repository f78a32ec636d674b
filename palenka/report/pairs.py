"""Minimal pairs: accuracy per phenomenon and per paradigm, for every model that was measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palenka.report.models import Measure, Model
from palenka.report.phenomena import PHENOMENON_OF
from palenka.report.sources import SuiteResult, TaskScore


@dataclass(frozen=True)
class Phenomenon:
    """A group of paradigms, and each model's score on it and on each of them."""

    name: str
    scores: Mapping[str, TaskScore]
    paradigms: Mapping[str, Mapping[str, TaskScore]]


@dataclass(frozen=True)
class PairSuite:
    """A suite of minimal pairs: the models that were measured on it, and their scores."""

    measure: Measure
    condition: str
    models: tuple[Model, ...]
    phenomena: tuple[Phenomenon, ...]

    def result(self, model: Model) -> SuiteResult:
        """What was measured of one of its models."""
        return model.results[self.measure]

    @property
    def rows(self) -> list[tuple[str, Mapping[str, TaskScore]]]:
        """What it is summed up by, with every model's score: its phenomena, or its tasks if they are all of one."""
        if self.is_grouped:
            return [(phenomenon.name, phenomenon.scores) for phenomenon in self.phenomena]
        return [(task.replace("_", " "), scores) for task, scores in self.phenomena[0].paradigms.items()]

    @property
    def ties(self) -> list[tuple[str, list[float | None]]]:
        """What is known of ties: names and a share for each model."""
        found = [self.result(model) for model in self.models]
        rows = [
            ("all, ties as one half", [result.tie_half_accuracy for result in found]),
            ("tied pairs", [result.tie_rate for result in found]),
        ]
        return [(name, shares) for name, shares in rows if any(share is not None for share in shares)]

    @property
    def is_grouped(self) -> bool:
        """Whether its paradigms belong to more than one phenomenon."""
        return len(self.phenomena) > 1


def pair_suites(models: Sequence[Model]) -> tuple[PairSuite, ...]:
    """Every suite with accuracies per task; tasks outside BLiMP make one phenomenon, the suite."""
    measures = sorted({measure for model in models for measure, result in model.results.items() if result.tasks})
    suites = []
    for measure in measures:
        measured = tuple(model for model in models if measure in model.results)
        suites.append(PairSuite(measure, measure.condition(measures), measured, _phenomena(measure, measured)))
    return tuple(suites)


def pooled(scores: Sequence[TaskScore]) -> TaskScore:
    """The unweighted mean accuracy of some tasks, with the standard error that the suites' protocol gives it.

    With n_i items and standard errors s_i over k tasks: sqrt(Σ (n_i − 1) n_i s_i² / (Σ n_i − k) / Σ n_i).
    """
    items = sum(score.n for score in scores)
    spread = sum((score.n - 1) * score.n * score.stderr**2 for score in scores)
    freedom = items - len(scores)
    stderr = math.sqrt(spread / freedom / items) if freedom > 0 else math.nan
    return TaskScore(accuracy=sum(score.accuracy for score in scores) / len(scores), stderr=stderr, n=items)


def _phenomena(measure: Measure, models: Sequence[Model]) -> tuple[Phenomenon, ...]:
    tasks = sorted({task for model in models for task in model.results[measure].tasks})
    grouped: dict[str, list[str]] = {}
    for task in tasks:
        grouped.setdefault(PHENOMENON_OF.get(task, measure.title), []).append(task)
    return tuple(_phenomenon(name, members, measure, models) for name, members in sorted(grouped.items(), key=_by_name))


def _by_name(group: tuple[str, Sequence[str]]) -> str:
    return group[0].casefold()


def _phenomenon(name: str, tasks: Sequence[str], measure: Measure, models: Sequence[Model]) -> Phenomenon:
    scores: dict[str, TaskScore] = {}
    paradigms: dict[str, dict[str, TaskScore]] = {task: {} for task in tasks}
    for model in models:
        measured = model.results[measure].tasks
        here = {task: measured[task] for task in tasks if task in measured}
        for task, score in here.items():
            paradigms[task][model.name] = score
        # A mean over some of the tasks would not compare with one over all of them.
        if len(here) == len(tasks):
            scores[model.name] = pooled(list(here.values()))
    return Phenomenon(name, scores, paradigms)
