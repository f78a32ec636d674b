"""Runs that were interrupted, and teachers of two tokens."""

import math
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from palenka.data.signals.distribution import Distribution, log1mexp
from palenka.train_student.settings import TrainSettings


@pytest.fixture
def interrupted() -> Callable[..., TrainSettings]:
    """Makes a copy of a finished run as a kill after a step's checkpoint leaves it; after the last one without a step.

    Later lines stand in its log, it holds a later model, and no result.
    """

    def make(settings: TrainSettings, name: str, step: float = math.inf) -> TrainSettings:
        copy = settings.model_copy(update={"output": settings.output.with_name(name)})
        shutil.copytree(settings.output, copy.output)
        (copy.output / "result.json").unlink()
        for place in (copy.output / "checkpoints").iterdir():
            if int(place.name.removeprefix("step-")) > step:
                shutil.rmtree(place)
        return copy

    return make


@pytest.fixture(scope="session")
def spoken_of() -> Callable[[Tensor, Tensor], Distribution]:
    """What a teacher says of two tokens [B, L, 2] beside a tail [B, L] of any mass."""

    def speak(ids: Tensor, log_tail: Tensor) -> Distribution:
        shares = torch.tensor([-0.5, -1.0]).log_softmax(-1).expand(ids.shape)
        return Distribution(ids, shares + log1mexp(log_tail).unsqueeze(-1), log_tail)

    return speak
