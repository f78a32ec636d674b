"""Schedules: how the weight of a term changes over a run."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from palenka.ground.settings import Settings


class WeightSchedule(Settings):
    """A term's weight moves from `start` to the weight that the objective gives the term, and stays there."""

    start: float = Field(default=0.0, ge=0)
    """Weight at the first step."""
    shape: Literal["constant", "linear", "cosine"] = "linear"
    """The transition: a straight line, half a cosine, or constant: start until its end, then at once."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Length of the transition, as a fraction of the run's steps."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the transition in steps, instead of fraction."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.fraction != 1.0:
            raise ValueError(
                f"steps is {self.steps} and fraction {self.fraction}, but there is one length; give one of them"
            )
        return self

    def weight(self, end: float, step: int, num_steps: int) -> float:
        """The weight at a step, counted from 1, of a run of `num_steps` steps, with the final weight `end`."""
        length = self.steps if self.steps is not None else self.fraction * num_steps
        if self.shape == "constant":
            return self.start if step <= length else end
        # The last step of the transition has the final weight; over the whole run, that is the last step of the run.
        if step >= length:
            return end
        progress = (step - 1) / (length - 1)
        passed = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + (end - self.start) * passed
