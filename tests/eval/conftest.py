"""Runs with revisions."""

from collections.abc import Callable
from pathlib import Path

import pytest

from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


@pytest.fixture
def train_with_revisions(
    corpus_directory: Path, make_shape: Callable[..., ModelShape], tmp_path: Path
) -> Callable[..., Path]:
    """Trains a short run, called by its name in `tmp_path`, the numbers of words of its revisions, and a fraction."""

    def make(name: str, revisions: list[int], fraction: float) -> Path:
        settings = {
            "corpus": corpus_directory,
            "output": tmp_path / name,
            "model": make_shape(),
            "windows": {"length": 16},
            "fraction": fraction,
            "revisions": revisions,
        }
        train(TrainSettings.model_validate(settings))
        return tmp_path / name

    return make
