"""Going on: what an interrupted run ends with is what an undisturbed one does, bit for bit."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from safetensors.torch import load_file

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

LogOf = Callable[..., list[dict[str, Any]]]
Interrupted = Callable[..., TrainSettings]


@pytest.fixture
def settings(
    capture_settings: CaptureSettings,
    changed: Callable[..., CaptureSettings],
    student_of_cache: Callable[..., TrainSettings],
    make_shape: Callable[..., ModelShape],
) -> TrainSettings:
    """Logits and hidden states of a cached teacher, dropout, three epochs of 6 or 7 steps over two views."""
    windows = {"length": 16, "views": 2}
    capture(changed(capture_settings, windows=windows, hidden={"positions": 3, "sample_windows": 40}))
    return student_of_cache(
        model=make_shape("gpt2", dropout=0.2),
        windows=windows,
        fraction=0.1,
        epochs=3,
        objective={"hard": 1.0, "logit": 0.5, "hidden": 0.3},
        micro_batch=8,
        optimizer={"learning_rate": 1e-2, "warmup_steps": 3},
        validation={"every": 4, "windows": 40},
        log_every=3,
        gradient_ratios_every=5,
        checkpoint_every=4,
    )


def test_a_run_goes_on_at_its_last_checkpoint_and_ends_with_the_same_bits(
    settings: TrainSettings, interrupted: Interrupted, log_of: LogOf, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(settings)
    assert result.steps == 21
    checkpoints = settings.output / "checkpoints"
    assert sorted(place.name for place in checkpoints.iterdir()) == ["step-00000016", "step-00000020"]
    for step in (20, 16, 0):
        again = interrupted(settings, f"from-{step}", step)
        ended = train(again)
        assert ("going on after step" in capsys.readouterr().err) == (step > 0)
        of_time = {"seconds", "tokens_per_second"}
        assert ended.model_dump(exclude=of_time) == result.model_dump(exclude=of_time)
        for name in ("model.safetensors", "projections.safetensors"):
            assert (again.output / name).read_bytes() == (settings.output / name).read_bytes()
        ours, theirs = (
            load_file(run.output / "checkpoints/step-00000020/optimizer.safetensors") for run in (again, settings)
        )
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
        assert log_of(again) == log_of(settings)


def test_seconds_are_those_of_all_attempts(settings: TrainSettings, interrupted: Interrupted) -> None:
    began = time.perf_counter()
    train(settings)
    again = interrupted(settings, "again", 16)
    before = json.loads((again.output / "checkpoints/step-00000016/state.json").read_text())["seconds"]
    assert 0 < before < train(again).seconds < time.perf_counter() - began


def test_a_checkpoint_is_safetensors_and_json(settings: TrainSettings) -> None:
    train(settings)
    for place in (settings.output / "checkpoints").iterdir():
        assert {path.name for path in place.iterdir()} == {
            *("objective.safetensors", "optimizer.safetensors", "state.json", "commit.json")
        }
        weights = load_file(place / "objective.safetensors")
        moments = load_file(place / "optimizer.safetensors")
        assert any(name.startswith("terms.hidden.") for name in weights)
        assert moments.keys() == {f"{name}:{key}" for name in weights for key in ("step", "exp_avg", "exp_avg_sq")}


def test_a_damaged_checkpoint_is_passed_over(
    settings: TrainSettings, interrupted: Interrupted, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings)
    again = interrupted(settings, "damaged", 20)
    path = again.output / "checkpoints/step-00000020/optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    train(again)
    told = " ".join(capsys.readouterr().err.split())
    assert "step-00000020 is not used: optimizer.safetensors has" in told
    assert "going on after step 16" in told
    assert (again.output / "model.safetensors").read_bytes() == (settings.output / "model.safetensors").read_bytes()


def test_two_processes_on_one_output_are_refused(settings: TrainSettings, capture_settings: CaptureSettings) -> None:
    for stage, output in (
        (lambda: train(settings), settings.output),
        (lambda: capture(capture_settings), capture_settings.output),
    ):
        with (
            sole_writer(output),
            pytest.raises(UserError, match=rf"{output} is being written by process \d+ on \S+; wait"),
        ):
            stage()
        assert not output.with_name(f"{output.name}.lock").exists()
    train(settings)
