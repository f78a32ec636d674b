"""What stands in the shell, or in a user's configuration of accelerate, changes nothing of a run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.state import GradientState

from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

# What `accelerate launch` sets for a configuration with these options, and people for scripts of their own.
ENVIRONMENT = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    "ACCELERATE_DYNAMO_MODE": "reduce-overhead",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "True",
    "ACCELERATE_BYPASS_DEVICE_MAP": "true",
    "ACCELERATE_USE_FSDP": "false",
}


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """accelerate keeps what it read for as long as the process lives."""
    yield
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture
def measured(
    student_of_text: Callable[..., TrainSettings], tmp_path: Path, log_of: Callable[..., list[dict[str, Any]]]
) -> Callable[[str], list[dict[str, Any]]]:
    """Trains for 6 steps of two micro-batches in a fresh state; the log."""

    def measure(name: str) -> list[dict[str, Any]]:
        PartialState._reset_state()
        GradientState._reset_state()
        settings = student_of_text(output=tmp_path / name, fraction=0.1, micro_batch=8, log_every=1, device="cpu")
        train(settings)
        return log_of(settings)

    return measure


def test_a_run_is_the_same_whatever_stands_in_the_environment(
    measured: Callable[[str], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    expected = measured("plain")
    assert any(line.get("gradient_norm", 0) > 0 for line in expected)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert measured("surrounded") == expected
