"""The finding: the best student against its control, in sentences that claim no more than a paired test does.

Only runs of one corpus and one tokenizer are compared; if there are several of these, each has its sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palenka.ground.quantities import count
from palenka.report.models import Model, best, measures_of
from palenka.report.results import Measure, compare_measure, signed
from palenka.report.texts import LossBasis, name_texts

_LEVEL = 0.05
"""Below this p-value two models are called separated, after allowing for the choice of the best of several."""


@dataclass(frozen=True)
class Finding:
    """The page's first sentence, and the text beneath it."""

    headline: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class _Contest:
    """The best student and its control, by a measure of held-out text that both have.

    Attributes:
        student: the best one.
        control: the most similar one.
        measure: of held-out text.
        chosen: number of students among which it is the best.
        corpus: name of the best one's corpus.
    """

    student: Model
    control: Model
    measure: Measure
    chosen: int
    corpus: str


def find(models: Sequence[Model]) -> Finding:
    """The finding of some models."""
    students = [model for model in models if model.role == "student"]
    controls = [model for model in models if model.role == "control"]
    if not students:
        return Finding("No distilled student is among these models", ("What follows describes the models one by one.",))
    contests = _contests(students, controls)
    if not contests:
        if not any(_comparable(student, controls) for student in students):
            return Finding(
                f"No control stands beside the {count(len(students), 'student')}",
                (
                    "What distillation adds shows only against a model that is trained alike without teachers, on the "
                    "same corpus and with its tokenizer.",
                ),
            )
        return Finding(
            f"Held-out text was not measured for {count(len(students), 'student')} and a control",
            ("The runs' own validation stands in the table; `palenka eval` with the suite held_out gives intervals.",),
        )
    first, *others = contests
    headline, reason = _decided(first)
    details = [reason, *_other_measures(first, measures_of(models))]
    if others:
        details.append(f"That is about {first.corpus}. Others are not compared with it:")
        details += [f"{_decided(other)[0]} (on {other.corpus})." for other in others]
    details.append(
        "Intervals say how well a difference of these two runs is known on text of this kind; another seed makes other "
        "runs, which only several seeds would tell."
    )
    return Finding(headline, tuple(details))


def control_for(student: Model, controls: Sequence[Model], measure: Measure | None = None) -> Model | None:
    """The control most similar to a student: by parameters, by tokens, then the best by a measure.

    It must have read the same corpus with the same tokenizer; None if there is no such control.
    """

    def unlikeness(control: Model) -> tuple[bool, bool, float]:
        assert control.run is not None
        assert student.run is not None
        other_tokens = control.run.result.tokens != student.run.result.tokens
        level = control.run.result.validation_cross_entropy if measure is None else control.level(measure)
        return control.parameters != student.parameters, other_tokens, level

    return min(_comparable(student, controls), key=unlikeness, default=None)


def _comparable(student: Model, controls: Sequence[Model]) -> list[Model]:
    return [control for control in controls if _reads(control) == _reads(student)]


def _reads(model: Model) -> tuple[str, str]:
    assert model.run is not None
    return model.run.inputs.corpus, model.run.inputs.tokenizer


def _contests(students: Sequence[Model], controls: Sequence[Model]) -> list[_Contest]:
    """The best student of each corpus and tokenizer with its control; the corpus with most students first."""
    names = name_texts(model.run for model in students if model.run)
    contests = []
    for corpus in dict.fromkeys((text.corpus, text.tokenizer) for text in names):
        alike = [student for student in students if _reads(student) == corpus]
        for measure in (measure for measure in measures_of(alike) if measure.is_held_out):
            rivals = [control for control in controls if control.estimate(measure)]
            student = best(alike, measure)
            if student and student.run and (control := control_for(student, rivals, measure)):
                chosen = sum(model.estimate(measure) is not None for model in alike)
                contests.append(_Contest(student, control, measure, chosen, names[LossBasis.of(student.run)]))
                break
    return sorted(contests, key=lambda contest: -contest.chosen)


def _decided(contest: _Contest) -> tuple[str, str]:
    """The sentence about a contest, and its grounds."""
    student, control, measure = contest.student, contest.control, contest.measure
    levels = (
        f"On held-out text {student.name}{f', the best of {contest.chosen} students,' * (contest.chosen > 1)} has a "
        f"cross-entropy of {_level(student, measure)}, {control.name} {_level(control, measure)}."
    )
    if control.parameters != student.parameters:
        levels += f" They differ in size: {student.parameters or 0:,} and {control.parameters or 0:,} parameters."
    found = _paired(student, control, measure)
    difference = found["difference"] if found else student.level(measure) - control.level(measure)
    side = "below" if difference < 0 else "above"
    headline = f"{student.name} ends {abs(difference):.3f} {measure.unit} {side} its control"
    if found is None:
        ours, theirs = student.estimate(measure), control.estimate(measure)
        assert ours is not None
        assert theirs is not None
        verdict = "separated" if ours.separated_from(theirs) else "not separated"
        how = f"their 95 % intervals {'do not overlap' if verdict == 'separated' else 'overlap'}"
        reason = f"{levels} What they made of each window was not kept, so there is no paired test: {how}."
        return f"{headline}: {verdict}", reason
    if found["interval"] is None:
        return f"{headline}: whether by chance, one cannot tell", f"{levels} The text is too short for an interval."
    low, high = (signed(end, 4) for end in found["interval"])
    allowing = f", times {contest.chosen} for the choice" * (contest.chosen > 1)
    reason = (
        f"{levels} Both read the same text, so what is hard in it cancels: the paired 95 % interval of the difference "
        f"is {low} to {high} ({_chance(found['p_value'])}{allowing})."
    )
    return f"{headline}: {verdict_of(found, contest.chosen)}", reason


def verdict_of(found: Mapping[str, Any], chosen: int = 1) -> str:
    """The result of a paired test in words; the best of several had as many chances (Bonferroni)."""
    low, high = found["interval"]
    if low <= 0 <= high:
        return "not separated"
    p_value = found.get("p_value")
    if chosen > 1 and p_value is not None and p_value * chosen >= _LEVEL:
        return f"separated before allowing for the choice among {chosen}"
    return "separated"


def _other_measures(contest: _Contest, measures: Sequence[Measure]) -> list[str]:
    """A sentence for each suite that both were measured on, except held-out text."""
    student, control = contest.student, contest.control
    sentences = []
    for measure in measures:
        if measure.is_held_out or student.estimate(measure) is None or control.estimate(measure) is None:
            continue
        protocol = f" ({measure.protocol})" if measure.protocol else ""
        title = f"{measure.title[0].upper()}{measure.title[1:]}{protocol}"
        levels = f"{title}: {_level(student, measure)} against {_level(control, measure)}"
        found = _paired(student, control, measure)
        if found is None or found["interval"] is None:
            sentences.append(f"{levels}, without a paired test.")
            continue
        factor = 1 if measure.unit else 100
        low, high = (signed(factor * end, measure.digits) for end in found["interval"])
        sentences.append(f"{levels}, a difference of {low} to {high}: {verdict_of(found)}.")
    return sentences


def _paired(student: Model, control: Model, measure: Measure) -> Mapping[str, Any] | None:
    return compare_measure(student.files[measure], control.files[measure], measure.suite)


def _level(model: Model, measure: Measure) -> str:
    return f"{model.level(measure):.{measure.digits}f} {measure.unit or '%'}"


def _chance(p_value: float) -> str:
    return "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.2g}"
