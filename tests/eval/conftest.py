"""Runs with revisions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


@pytest.fixture
def train_with_revisions(settings_of_run: Callable[..., TrainSettings], tmp_path: Path) -> Callable[..., Path]:
    """Trains a short run, called by its name in `tmp_path`, the numbers of words of its revisions, and a fraction."""

    def make(name: str, revisions: list[int], fraction: float) -> Path:
        train(settings_of_run(output=tmp_path / name, fraction=fraction, revisions=revisions))
        return tmp_path / name

    return make
