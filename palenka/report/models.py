"""The models of a report: runs and evaluation results joined by the hash of the weights."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from palenka.eval.results import Results, SuiteResult
from palenka.report.results import Estimate, Measure
from palenka.report.sources import Sources
from palenka.train_student.run import FinishedRun

Role = Literal["teacher", "control", "student", "model"]

_ROLES: tuple[Role, ...] = ("teacher", "control", "student", "model")
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Model:
    """A row of the report.

    Attributes:
        name: shortest name that tells it from the others.
        role: a control is a run without teachers beside students; a model was evaluated, but its run is not there.
        parameters: trained numbers, counted; None where nothing says it.
        run: its training run; None where only its results are there.
        results: what was measured of it.
    """

    name: str
    role: Role
    parameters: int | None
    run: FinishedRun | None
    results: Mapping[Measure, SuiteResult]

    def estimate(self, measure: Measure) -> Estimate | None:
        """Its figure of a measure; None if it was not measured."""
        result = self.results.get(measure)
        return Estimate.of(result.main, measure.unit) if result else None

    def level(self, measure: Measure) -> float:
        """The value of a measure that it was measured by."""
        estimate = self.estimate(measure)
        assert estimate is not None
        return estimate.value


def join_models(sources: Sources) -> tuple[Model, ...]:
    """All runs, and all evaluated models that are none of them: teachers, controls, students, others, by name."""
    by_weights: dict[str, dict[Measure, SuiteResult]] = {}
    files: dict[str, Results] = {}
    for _, results in sources.results:
        for result in results.suites:
            by_weights.setdefault(results.model.weights, {}).setdefault(Measure.of(result), result)
        files.setdefault(results.model.weights, results)
    names = distinct_names(run.directory for run in sources.runs)
    captured = {teacher.weights for cache in sources.caches for teacher in cache.manifest.teachers.values()}
    teachers = captured.union(*(run.inputs.teacher_weights for run in sources.runs))
    models = []
    for run in sources.runs:
        role: Role = "student" if run.settings.teachers else "teacher" if run.weights in teachers else "control"
        measured = by_weights.get(run.weights or "", {})
        models.append(Model(names[run.directory], role, run.result.parameters, run, measured))
    known = {run.weights for run in sources.runs}
    for weights, measured in by_weights.items():
        if weights not in known:
            models.append(Model(files[weights].name, "model", files[weights].parameters, None, measured))
    return _apart(sorted(models, key=lambda model: (_ROLES.index(model.role), model.name)))


def measures_of(models: Iterable[Model]) -> list[Measure]:
    """Everything that was measured of any of these models, the most often measured first."""
    counts = Counter(measure for model in models for measure in model.results if model.estimate(measure))
    return sorted(counts, key=lambda measure: (-counts[measure], measure))


def distinct_names(paths: Iterable[Path]) -> dict[Path, str]:
    """For each path the fewest last parts that no other path ends with."""
    everything = list(dict.fromkeys(paths))
    names: dict[Path, str] = {}
    for path in everything:
        resolved = path.resolve()
        depth = 1
        while depth < len(resolved.parts) and any(
            other != path and other.resolve().parts[-depth:] == resolved.parts[-depth:] for other in everything
        ):
            depth += 1
        names[path] = "/".join(resolved.parts[-depth:])
    return names


def recipe(run: FinishedRun) -> str:
    """A run's objective, and its teachers with their weights; empty for one that was trained without teachers."""
    if not run.settings.teachers:
        return ""
    objective = run.settings.objective
    terms = " + ".join(f"{term.weight:g}{_NO_BREAK}{name}" for name, term in objective.active.items())
    teachers = ", ".join(f"{teacher.weight}{_NO_BREAK}{name}" for name, teacher in run.settings.teachers.items())
    return f"{terms}, T{_NO_BREAK}={_NO_BREAK}{objective.temperature:g}; {teachers}"


def _apart(models: Sequence[Model]) -> tuple[Model, ...]:
    """The same models under names that differ: a result may call its model like a run."""
    counts: Counter[str] = Counter()
    named = []
    for model in models:
        counts[model.name] += 1
        number = counts[model.name]
        named.append(model if number == 1 else replace(model, name=f"{model.name} ({number})"))
    return tuple(named)
