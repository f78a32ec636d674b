"""The finding: the best student against its control, in a sentence that claims no more than the intervals do."""

from collections.abc import Sequence
from dataclasses import dataclass

from palenka.report.models import Model, measures_of
from palenka.report.results import Estimate, Measure


@dataclass(frozen=True)
class Finding:
    """The page's first sentence, and what stands beneath it."""

    headline: str
    details: tuple[str, ...]


def find(models: Sequence[Model]) -> Finding:
    """What the models show."""
    students = [model for model in models if model.role == "student"]
    controls = [model for model in models if model.role == "control"]
    if not students:
        return Finding("No distilled student is among these models", ("What follows describes the models one by one.",))
    for measure in measures_of([*students, *controls]):
        measured = [model for model in students if model.estimate(measure)]
        rivals = [model for model in controls if model.estimate(measure)]
        if measure.is_loss and measured and rivals:
            return _held_out_finding(measured, rivals, measure, measures_of(models))
    if not controls:
        return Finding(
            f"No control stands beside the {count(len(students), 'student')}",
            ("What distillation adds shows only against a model that is trained alike without teachers.",),
        )
    return Finding(
        f"Held-out text was not measured for {count(len(students), 'student')} and a control",
        ("The runs' own validation stands in the table; `palenka eval` with the suite held_out gives intervals.",),
    )


def control_for(student: Model, controls: Sequence[Model], measure: Measure) -> Model:
    """The best of the controls that are most like a student: as many parameters, then as many tokens."""

    def unlikeness(control: Model) -> tuple[bool, bool, float]:
        assert control.run is not None
        assert student.run is not None
        other_tokens = control.run.result.tokens != student.run.result.tokens
        return control.parameters != student.parameters, other_tokens, control.level(measure)

    return min(controls, key=unlikeness)


def _held_out_finding(
    students: Sequence[Model], controls: Sequence[Model], measure: Measure, measures: Sequence[Measure]
) -> Finding:
    student = min(students, key=lambda model: model.level(measure))
    control = control_for(student, controls, measure)
    ours, theirs = student.estimate(measure), control.estimate(measure)
    assert ours is not None
    assert theirs is not None
    separated = ours.separated_from(theirs)
    difference = ours.value - theirs.value
    side = "below" if difference < 0 else "above"
    headline = (
        f"{student.name} ends {abs(difference):.3f} {measure.unit} {side} its control: "
        f"{'separated' if separated else 'not separated'}"
    )
    chosen = f", the best of {len(students)} students," if len(students) > 1 else ""
    details = [
        f"On held-out text {student.name}{chosen} has a cross-entropy of {_said(ours, measure)}, "
        f"{control.name} {_said(theirs, measure)}. These 95 % intervals {'do not overlap' if separated else 'overlap'}."
    ]
    if control.parameters != student.parameters:
        details.append(
            f"The two differ in size: {student.parameters or 0:,} and {control.parameters or 0:,} parameters."
        )
    details += [sentence for other in measures if (sentence := _accuracy_sentence(student, control, other)) is not None]
    if len(students) > 1:
        details.append(f"{student.name} was picked after measuring, which favours it.")
    details.append(
        "An interval says how well each level is known. Both models read the same text, so a paired test (`palenka "
        "eval compare`) and several seeds would tell smaller differences apart."
    )
    return Finding(headline, tuple(details))


def _accuracy_sentence(student: Model, control: Model, measure: Measure) -> str | None:
    ours, theirs = student.estimate(measure), control.estimate(measure)
    if measure.is_loss or ours is None or theirs is None:
        return None
    verdict = "separated" if ours.separated_from(theirs) else "not separated"
    protocol = f" ({measure.protocol})" if measure.protocol else ""
    return f"{measure.title}{protocol}: {_said(ours, measure)} against {_said(theirs, measure)}, {verdict}."


def _said(estimate: Estimate, measure: Measure) -> str:
    digits = 4 if measure.unit else 1
    value, low, high = (f"{part:.{digits}f}" for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} {measure.unit or '%'} ({low} to {high})"


def count(number: int, noun: str) -> str:
    """A number and what it counts, such as 3 seeds."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
