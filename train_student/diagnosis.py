"""Diagnosis of numbers that are not finite: step, term, windows, and whether student or teacher caused them."""

from collections.abc import Callable, Sequence

from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.stream import Batch, ReadingOrder
from palenka.ground.errors import UserError
from palenka.train_student.meter import GRADIENT
from palenka.train_student.settings import TrainSettings

_NAMED_WINDOWS = 4


def not_finite_error(
    settings: TrainSettings,
    name: str,
    step: int,
    positions: range,
    order: ReadingOrder,
    read: Callable[[int, int], Batch],
) -> UserError:
    """The error for a value that is not finite; runs the teachers again, window by window.

    Args:
        settings: of the run.
        name: of the term, ``loss`` or `GRADIENT`.
        step: in which it occurred.
        positions: of its windows in the reading order.
        order: the reading order.
        read: the batch of some positions, with the teachers' signals.
    """
    what = "the gradient" if name == GRADIENT else f"the {name}" if name == "loss" else f"term {name}"
    concerned = [name.split("/", 1)[1]] if "/" in name else list(settings.teachers)
    for position in positions:
        signals = read(position, position + 1).signals
        for teacher in concerned:
            if teacher in signals and not _is_finite(signals[teacher], settings.objective.temperature):
                windows = _named(order, [position])
                return UserError(
                    f"{what} is not finite at step {step:,}, and it came from the teacher's side: {teacher} gives "
                    f"numbers that are not finite for {windows}; {_remedy(settings, teacher)}"
                )
    return UserError(
        f"{what} is not finite at step {step:,}, in {_named(order, positions)}, and it came from the student's side; "
        f"{_remedy_of_student(settings, step)}"
    )


def _is_finite(signal: TeacherSignal, temperature: float) -> bool:
    """Whether a teacher's signal is finite; a probability may be 0, and its logarithm −inf."""
    parts = []
    if signal.arrays and temperature in signal.encoding.temperatures:
        said = signal.at(temperature)
        parts = [said.log_kept, said.log_tail, *([said.others.logits()] if said.others else [])]
    possible = all(bool((part < float("inf")).all()) for part in parts)
    return possible and all(bool(states.isfinite().all()) for states in signal.hidden.values())


def _named(order: ReadingOrder, positions: Sequence[int]) -> str:
    """The windows at some positions, by their addresses: window 17 of view 0."""
    names = []
    for view, _, indices in order.pieces(positions[0], positions[-1] + 1):
        shown = ", ".join(str(index) for index in indices[:_NAMED_WINDOWS])
        more = f" and {len(indices) - _NAMED_WINDOWS} more" if len(indices) > _NAMED_WINDOWS else ""
        names.append(f"window{'s' * (len(indices) > 1)} {shown}{more} of view {view}")
    return " and ".join(names)


def _remedy(settings: TrainSettings, teacher: str) -> str:
    source = settings.teachers[teacher]
    if source.source == "cache":
        return f"capture {source.cache} again, or take the teacher out"
    return f"compute it in precision float32 (now {source.precision}), or look for such numbers in its weights"


def _remedy_of_student(settings: TrainSettings, step: int) -> str:
    ways = []
    if step > 1:  # no optimizer step precedes the first
        ways = [
            f"lower optimizer.learning_rate ({settings.optimizer.learning_rate})",
            "lengthen optimizer.warmup_steps",
        ]
    if settings.precision != "float32":
        ways.append(f"use precision float32 (now {settings.precision})")
    return ", or ".join(ways) or "look at the weights that it began with, and at those of the terms"
