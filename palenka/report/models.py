"""The models of a report: runs and evaluation results joined by the hash of the weights."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from palenka.report.run_files import Run
from palenka.report.sources import Sources, SuiteResult

Role = Literal["teacher", "control", "student", "model"]

_ROLES: tuple[Role, ...] = ("teacher", "control", "student", "model")
_PROPER_NAMES = {"blimp": "BLiMP", "ewok": "EWoK", "glue": "GLUE", "held": "held-out", "out": "cross-entropy"}


@dataclass(frozen=True, order=True)
class Measure:
    """What makes two results comparable.

    Attributes:
        suite: its name.
        protocol: of minimal pairs; empty for text.
        source: fingerprint of the text or of the pairs.
        length: tokens in a window of text; 0 for minimal pairs.
        precision: that the model computed in.
    """

    suite: str
    protocol: str = ""
    source: str = ""
    length: int = 0
    precision: str = "float32"

    @staticmethod
    def of(result: SuiteResult) -> "Measure":
        """What a result measured."""
        source = result.corpus or result.data or ""
        return Measure(result.suite, result.protocol or "", source, result.length or 0, result.model.precision)

    @property
    def title(self) -> str:
        """The suite's name as a heading."""
        return " ".join(_PROPER_NAMES.get(word, word) for word in self.suite.split("_"))

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
    run: Run | None
    results: Mapping[Measure, SuiteResult]


def join_models(sources: Sources) -> tuple[Model, ...]:
    """All runs, and all evaluated models that are none of them: teachers, controls, students, others, by name."""
    by_weights: dict[str, dict[Measure, SuiteResult]] = {}
    files: dict[str, Path] = {}
    for path, result in sources.results:
        by_weights.setdefault(result.model.weights, {}).setdefault(Measure.of(result), result)
        files.setdefault(result.model.weights, path)
    names = distinct_names(run.directory for run in sources.runs)
    teachers = _teacher_weights(sources)
    models = [
        Model(
            name=names[run.directory],
            role=_role(run, teachers),
            parameters=run.result.parameters,
            run=run,
            results=by_weights.get(run.weights or "", {}),
        )
        for run in sources.runs
    ]
    known = {run.weights for run in sources.runs}
    others = {weights: path for weights, path in files.items() if weights not in known}
    other_names = distinct_names(path.with_suffix("") for path in others.values())
    for weights, path in others.items():
        results = by_weights[weights]
        told = [result.name for result in results.values() if result.name]
        counts = [result.parameters for result in results.values() if result.parameters is not None]
        name = told[0] if told else other_names[path.with_suffix("")]
        models.append(Model(name, "model", counts[0] if counts else None, None, results))
    return _apart(sorted(models, key=lambda model: (_ROLES.index(model.role), model.name)))


def measures_of(models: Iterable[Model]) -> tuple[Measure, ...]:
    """Everything that was measured of any of these models, the most often measured first."""
    counts = Counter(measure for model in models for measure in model.results)
    return tuple(sorted(counts, key=lambda measure: (-counts[measure], measure)))


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


def _apart(models: Sequence[Model]) -> tuple[Model, ...]:
    """The same models under names that differ: a result may call its model like a run."""
    counts: Counter[str] = Counter()
    named = []
    for model in models:
        counts[model.name] += 1
        number = counts[model.name]
        named.append(model if number == 1 else replace(model, name=f"{model.name} ({number})"))
    return tuple(named)


def _teacher_weights(sources: Sources) -> set[str]:
    """The weights of every model that a cache was captured from."""
    captured = {teacher.weights for cache in sources.caches for teacher in cache.manifest.teachers.values()}
    return captured.union(*(run.teacher_weights for run in sources.runs))


def _role(run: Run, teacher_weights: set[str]) -> Role:
    if run.settings.teachers:
        return "student"
    return "teacher" if run.weights in teacher_weights else "control"
