"""The base class of a term's settings: its name, weight and needs. Its forward pass is a separate module.

A term is a settings class that registers itself in `TERMS`; the objective is a loop over them. Nothing here imports
torch: a term imports its module when a student is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from palenka.ground.registry import Registry
from palenka.ground.settings import Settings
from palenka.train_student.objective.schedule import WeightSchedule

if TYPE_CHECKING:
    from palenka.train_student.objective.module import TermFit, TermModule

Need = Literal["labels", "distributions", "states"]
"""What a term reads: the text's next tokens, the teachers' distributions, or the hidden states of both sides."""


class Term(Settings):
    """A term of the objective; a bare number sets its weight."""

    shorthand: ClassVar[str | None] = "weight"
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What it reads."""
    has_teachers: ClassVar[bool] = True
    """Whether it is computed once per teacher; its name in the log is then NAME/TEACHER."""
    trains_all: ClassVar[bool] = False
    """Whether its gradient reaches every weight of the student, including those of the last layers and the head."""

    sees_micro_batch: ClassVar[bool] = False
    """Whether its value depends on the windows in the same forward pass, or on draws per pass."""

    weight: float = Field(default=0.0, ge=0)
    """Weight of the term, at the end of the run if it has a schedule."""
    schedule: WeightSchedule | None = None
    """How the weight changes over the run; default: constant."""

    def module(self) -> type[TermModule]:
        """The class of its forward pass; terms with the same class are computed together."""
        raise NotImplementedError

    def require_fit(self, fit: TermFit) -> None:
        """Refuse a student or teachers that the term does not support, before a run begins.

        Raises:
            UserError: with both sides.
        """

    @property
    def is_active(self) -> bool:
        """Whether it has a weight at any step of the run."""
        return self.weight > 0 or (self.schedule is not None and self.schedule.start > 0)

    def weight_at(self, step: int | None, num_steps: int) -> float:
        """The weight at a step, counted from 1, of `num_steps`; None for the end."""
        if step is None or self.schedule is None:
            return self.weight
        return self.schedule.weight(self.weight, step, num_steps)


TERMS: Registry[type[Term]] = Registry("term")
