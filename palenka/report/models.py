"""The models of a report: runs and evaluation results joined by the hash of the weights."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from palenka.eval.results import Results, SuiteResult
from palenka.report.names import distinct_names
from palenka.report.results import Estimate, Measure
from palenka.report.sources import Sources
from palenka.train_student.run_facts import FinishedRun

Role = Literal["teacher", "control", "student", "model"]

_ROLES: tuple[Role, ...] = ("teacher", "control", "student", "model")
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Model:
    """A row of the report.

    Attributes:
        name: the shortest unique one.
        role: a control is a run without teachers beside students; a model was evaluated, but has no run here.
        parameters: number of trained numbers; None if unknown.
        run: its training run; None if only results exist.
        results: of evaluations.
        files: of the results.
        weights: hash of its tensors; None if they were deleted.
    """

    name: str
    role: Role
    parameters: int | None
    run: FinishedRun | None
    results: Mapping[Measure, SuiteResult]
    files: Mapping[Measure, Path] = field(default_factory=dict)
    weights: str | None = None

    def estimate(self, measure: Measure) -> Estimate | None:
        """Its figure of a measure; None if it was not measured."""
        result = self.results.get(measure)
        return Estimate.of(result.main, measure.unit) if result else None

    def level(self, measure: Measure) -> float:
        """The value of a measure, which it must have."""
        estimate = self.estimate(measure)
        assert estimate is not None
        return estimate.value


def join_models(sources: Sources) -> tuple[Model, ...]:
    """All runs, and all other evaluated models: teachers, controls, students, others, by name."""
    measured: dict[str, dict[Measure, tuple[Path, SuiteResult]]] = {}
    said: dict[str, Results] = {}
    for path, results in sources.results:
        weights = results.model.weights
        for result in results.suites:
            measured.setdefault(weights, {}).setdefault(Measure.of(result), (path, result))
        said.setdefault(weights, results)
    names = distinct_names(run.directory for run in sources.runs)
    captured = {teacher.weights for cache in sources.caches for teacher in cache.manifest.teachers.values()}
    teachers = captured.union(*(run.inputs.teacher_weights for run in sources.runs))

    def model(name: str, role: Role, weights: str | None, parameters: int, run: FinishedRun | None) -> Model:
        found = measured.get(weights or "", {})
        results = {measure: result for measure, (_, result) in found.items()}
        files = {measure: path for measure, (path, _) in found.items()}
        return Model(name, role, parameters, run, results, files, weights)

    models = []
    for run in sources.runs:
        role: Role = "student" if run.settings.teachers else "teacher" if run.weights in teachers else "control"
        models.append(model(names[run.directory], role, run.weights, run.result.parameters, run))
    # Revisions of a run appear in its learning curve, not among the models.
    known = {run.weights for run in sources.runs}
    known |= {point.weights for curve in sources.curves for point in curve.revisions}
    for weights, results in said.items():
        if weights not in known:
            models.append(model(results.name, "model", weights, results.parameters, None))
    return _apart(sorted(models, key=lambda each: (_ROLES.index(each.role), each.name)))


def measures_of(models: Iterable[Model]) -> list[Measure]:
    """All measures of any of these models, the most frequent first."""
    counts = Counter(measure for model in models for measure in model.results if model.estimate(measure))
    return sorted(counts, key=lambda measure: (-counts[measure], measure))


def best(models: Iterable[Model], measure: Measure) -> Model | None:
    """The best model by a measure; None if no model has it."""
    sign = 1 if measure.is_loss else -1
    measured = (model for model in models if model.estimate(measure))
    return min(measured, key=lambda model: sign * model.level(measure), default=None)


def recipe(run: FinishedRun) -> str:
    """A run's objective, and its teachers with their weights; empty without teachers."""
    if not run.settings.teachers:
        return ""
    objective = run.settings.objective
    terms = " + ".join(f"{term.weight:g}{_NO_BREAK}{name}" for name, term in objective.active.items())
    teachers = ", ".join(f"{teacher.weight}{_NO_BREAK}{name}" for name, teacher in run.settings.teachers.items())
    return f"{terms}, T{_NO_BREAK}={_NO_BREAK}{objective.temperature:g}; {teachers}"


def _apart(models: Sequence[Model]) -> tuple[Model, ...]:
    """The same models under distinct names: a result's model may have the name of a run."""
    counts: Counter[str] = Counter()
    named = []
    for model in models:
        counts[model.name] += 1
        number = counts[model.name]
        named.append(model if number == 1 else replace(model, name=f"{model.name} ({number})"))
    return tuple(named)
