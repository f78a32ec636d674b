"""Resuming with changed settings: which settings may differ, and when a run may get more epochs."""

from collections.abc import Mapping, Sequence
from typing import Any

from palenka.ground.errors import UserError, refuse_difference
from palenka.train_student.settings import TrainSettings

_FREE = (
    *("output", "corpus", "plugins", "device", "compile", "cuda_graphs"),
    *("epochs", "log_every", "checkpoint_every", "trackers"),
)
"""Options that change no step: paths, devices, logging. The epochs have their own rule.

The content of a path has a fingerprint among the inputs, so a corpus, a cache or a run may be moved.
"""
_FREE_OF_TEACHER = ("cache", "model", "ensemble")
_FREE_OF_VALIDATION = ("every",)


def require_going_on(what: str, settings: TrainSettings, recorded: Mapping[str, Any], remedy: str) -> None:
    """Require that a run can resume with some settings: only options that change no step may differ.

    More epochs are allowed if the schedule's first steps do not depend on their number.

    Args:
        what: the run, as the sentence's subject.
        settings: requested now.
        recorded: settings that it was begun with, as written.
        remedy: for another run.

    Raises:
        UserError: with the first option that differs, and both sides.
    """
    refuse_difference(what, compared(settings.as_plain(), settings), compared(recorded, settings), remedy)
    if (epochs := recorded.get("epochs")) != settings.epochs:
        _require_open(f"{what} was begun with epochs {epochs}, and {settings.epochs} are asked for", settings, epochs)


def compared(plain: Mapping[str, Any], settings: TrainSettings) -> dict[str, Any]:
    """The options, as written, without those that change no step.

    Args:
        plain: the options.
        settings: of the run; they decide whether the micro-batch changes steps.
    """
    without = dict(plain)
    for name in _FREE if settings.needs_its_micro_batch else (*_FREE, "micro_batch"):
        without.pop(name, None)
    if isinstance(teachers := without.get("teachers"), Mapping):
        without["teachers"] = {name: _without(teacher, _FREE_OF_TEACHER) for name, teacher in teachers.items()}
    return without | {"validation": _without(without.get("validation"), _FREE_OF_VALIDATION)}


def _without(group: Any, names: Sequence[str]) -> Any:  # noqa: ANN401 - whatever a file has in place of a group
    return {key: value for key, value in group.items() if key not in names} if isinstance(group, Mapping) else group


def _require_open(told: str, settings: TrainSettings, epochs: object) -> None:
    """Refuse another number of epochs if it would have changed earlier steps."""
    if not isinstance(epochs, int) or epochs > settings.epochs:
        raise UserError(f"{told}, but steps are not taken back; choose another output")
    if settings.optimizer.schedule == "cosine":
        raise UserError(
            f"{told}, but its learning rate follows a cosine over the whole run, so a longer one differs from its "
            "first steps on; train it in another output, with optimizer.schedule wsd or constant if it may go on later"
        )
    for name, term in settings.objective.active.items():
        if term.schedule and term.schedule.steps is None:
            raise UserError(
                f"{told}, but the weight of term {name} moves over a part of the whole run; train it in another "
                f"output, with objective.{name}.schedule.steps"
            )
