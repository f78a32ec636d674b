"""Runs that were interrupted."""

import math
import shutil
from collections.abc import Callable

import pytest

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
