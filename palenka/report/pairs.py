"""Suites with tasks: shares per phenomenon and per paradigm, for every model that was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from palenka.eval.decisions import mean_of_tasks
from palenka.eval.suite import Score
from palenka.report.models import Model
from palenka.report.phenomena import PHENOMENON_OF
from palenka.report.results import Measure

Scores = Mapping[str, Score]
"""The scores of models that have one, by the model's name."""


@dataclass(frozen=True)
class PairSuite:
    """A suite with tasks, such as minimal pairs.

    Attributes:
        measure: the suite, under a protocol and on its data.
        condition: that distinguishes it from others of the same name.
        models: that were measured on it.
        phenomena: the scores on each paradigm by phenomenon; tasks outside BLiMP form one, named after the suite.
    """

    measure: Measure
    condition: str
    models: tuple[Model, ...]
    phenomena: Mapping[str, Mapping[str, Scores]]

    @property
    def is_grouped(self) -> bool:
        """Whether its paradigms belong to more than one phenomenon."""
        return len(self.phenomena) > 1

    @property
    def rows(self) -> list[tuple[str, Scores]]:
        """Its summary with every model's score: its phenomena, or its tasks if they belong to one."""
        if self.is_grouped:
            return [(phenomenon, self._means(paradigms)) for phenomenon, paradigms in self.phenomena.items()]
        return [(task.replace("_", " "), scores) for tasks in self.phenomena.values() for task, scores in tasks.items()]

    @property
    def chance(self) -> float | None:
        """The value of guessing in %, if known."""
        chance = self.models[0].results[self.measure].main.chance
        return None if chance is None else 100 * chance

    @property
    def ties(self) -> list[tuple[str, list[float | None]]]:
        """Figures of ties: names and a share for each model."""
        found = [model.results[self.measure] for model in self.models]
        rows = [
            ("all, ties as one half", [result.facts.get("tie_half_accuracy") for result in found]),
            ("tied pairs", [result.facts.get("tie_rate") for result in found]),
        ]
        return [(name, shares) for name, shares in rows if any(share is not None for share in shares)]

    def _means(self, paradigms: Mapping[str, Scores]) -> Scores:
        """The mean over some paradigms, for models that have all of them: a mean over a part would not compare."""
        by_model = {
            model.name: {task: scores[model.name] for task, scores in paradigms.items() if model.name in scores}
            for model in self.models
        }
        return {name: mean_of_tasks(scores) for name, scores in by_model.items() if len(scores) == len(paradigms)}


def pair_suites(models: Sequence[Model]) -> list[PairSuite]:
    """Every suite with accuracies per task."""
    results = [pair for model in models for pair in model.results.items()]
    measures = sorted({measure for measure, result in results if result.main.tasks and not measure.unit})
    suites = []
    for measure in measures:
        measured = tuple(model for model in models if measure in model.results)
        tasks = sorted({task for model in measured for task in model.results[measure].main.tasks})
        phenomena: dict[str, dict[str, Scores]] = {}
        for task in tasks:
            scored = {model.name: model.results[measure].main.tasks.get(task) for model in measured}
            scores = {name: score for name, score in scored.items() if score}
            phenomena.setdefault(PHENOMENON_OF.get(task, measure.title), {})[task] = scores
        by_name = dict(sorted(phenomena.items(), key=lambda group: group[0].casefold()))
        suites.append(PairSuite(measure, measure.condition(measures), measured, by_name))
    return suites
