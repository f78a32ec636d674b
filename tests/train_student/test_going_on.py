"""Going on with other settings: what changes no step may change; more epochs need a schedule with an open end."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from palenka.data.corpus import Corpus
from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.optimizer import LearningRate
from palenka.train_student.run import Run
from palenka.train_student.settings import OptimizerSettings, TrainSettings
from palenka.train_student.train import train

Contents = Callable[[Path], dict[str, bytes]]

MakeSettings = Callable[..., TrainSettings]


@pytest.fixture
def make_settings(student_of_text: MakeSettings, tmp_path: Path) -> MakeSettings:
    """Settings of a run of 20 steps an epoch; changes replace whole groups."""

    def make(name: str = "run", **changes: object) -> TrainSettings:
        fields: dict[str, object] = {
            "output": tmp_path / name,
            "fraction": 0.3,
            "micro_batch": 8,
            "optimizer": {"learning_rate": 1e-2},
            "checkpoint_every": 6,
        }
        return student_of_text(**(fields | changes))

    return make


def interrupt(settings: TrainSettings) -> None:
    """Leave a finished run as a kill after its checkpoint of step 12 would."""
    (settings.output / "result.json").unlink()
    shutil.rmtree(settings.output / "checkpoints" / "step-00000018")


def weights(settings: TrainSettings) -> bytes:
    return (settings.output / "model.safetensors").read_bytes()


def test_what_changes_no_step_may_change_and_is_recorded(make_settings: MakeSettings) -> None:
    settings = make_settings()
    train(settings)
    expected = weights(settings)
    interrupt(settings)
    for name in ("model.commit.json", "model.safetensors"):
        (settings.output / name).unlink()
    changed = make_settings(log_every=3, checkpoint_every="1h", trackers=["tensorboard"], validation={"every": 20})
    train(changed)
    assert weights(settings) == expected
    recorded = yaml.safe_load((settings.output / "config.yaml").read_text())
    assert (recorded["log_every"], recorded["checkpoint_every"], recorded["trackers"]) == (3, "1h", ["tensorboard"])
    steps = [json.loads(line)["step"] for line in (settings.output / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 10, 15, 18, 20, 20]
    # A finished run says so whatever of these is asked for, and stays as it is.
    before = (settings.output / "config.yaml").read_bytes()
    train(settings)
    assert (settings.output / "config.yaml").read_bytes() == before


def test_micro_batches_may_change_where_nothing_depends_on_them(
    make_settings: MakeSettings, make_shape: Callable[..., ModelShape]
) -> None:
    settings = make_settings()
    train(settings)
    expected = load_file(settings.output / "model.safetensors")
    interrupt(settings)
    train(make_settings(micro_batch=4))
    for name, tensor in load_file(settings.output / "model.safetensors").items():
        assert (tensor - expected[name]).abs().max() < 1e-3
    dropped = make_settings("dropped", model=make_shape("gpt2", dropout=0.1), fraction=0.05)
    train(dropped)
    with pytest.raises(UserError, match="micro_batch is 8 there, but 4 is expected"):
        train(dropped.model_copy(update={"micro_batch": 4}))
    contrast = {"teachers": {"t": {"cache": "x"}}, "objective": {"contrastive": 1.0}}
    assert make_settings(**contrast).needs_its_micro_batch
    assert make_settings(**contrast | {"objective": {"auxiliary": 1.0}}).needs_its_micro_batch
    assert not make_settings(**contrast | {"objective": {"logit": 1.0, "hidden": 1.0}}).needs_its_micro_batch


def test_more_epochs_are_refused_with_the_reason(make_settings: MakeSettings, contents: Contents) -> None:
    settings = make_settings()
    train(settings)
    before = contents(settings.output)
    told = "was begun with epochs 1, and 3 are asked for, but its learning rate follows a cosine over the whole run"
    with pytest.raises(UserError, match=rf"{told}.*optimizer\.schedule wsd or constant"):
        train(make_settings(epochs=3))
    assert contents(settings.output) == before
    moving = {"hard": {"weight": 1.0, "schedule": {"start": 0.5}}}
    constant = {"optimizer": {"schedule": "constant"}, "objective": moving, "fraction": 0.05}
    train(make_settings("moving", **constant))
    with pytest.raises(UserError, match=r"weight of term hard moves over .* objective\.hard\.schedule\.steps"):
        train(make_settings("moving", epochs=2, **constant))
    train(make_settings("two", fraction=0.05, epochs=2))
    with pytest.raises(UserError, match="was begun with epochs 2, and 1 are asked for, but steps are not taken back"):
        train(make_settings("two", fraction=0.05))


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_run_that_is_open_at_its_end_goes_on_to_the_bits_of_a_longer_one(
    make_settings: MakeSettings, schedule: str, interrupted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = {"learning_rate": 1e-2, "schedule": schedule, "decay_fraction": 0.25}
    longer = make_settings("longer", optimizer=optimizer, epochs=2, checkpoint_every=3)
    train(longer)
    first = make_settings("first", optimizer=optimizer, checkpoint_every=3)
    assert train(first).steps == 20
    if interrupted:
        (first.output / "result.json").unlink()
    capsys.readouterr()
    more = first.model_copy(update={"epochs": 2})
    result = train(more)
    said = re.search(r"going on after step (\d+)", capsys.readouterr().err)
    assert said is not None
    assert int(said[1]) == (15 if schedule == "wsd" else 20)
    assert result.steps > 38
    assert weights(more) == weights(longer)
    assert Run(first.output).result() == result
    with pytest.raises(UserError, match="steps are not taken back"):
        train(first)


def test_the_last_step_of_an_epoch_is_logged_with_it(make_settings: MakeSettings) -> None:
    settings = make_settings(fraction=0.05, epochs=3, global_batch=4, micro_batch=4, log_every=1)
    train(settings)
    lines = [json.loads(line) for line in (settings.output / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["epoch"] for line in lines if "epoch" in line]
    of_one = Corpus.open(settings.corpus, "train").tokens
    windows = round(len(of_one) // settings.windows.length * 0.05)
    assert epochs == [(4 * step - 1) // windows for step in range(1, len(epochs) + 1)]


@given(
    st.sampled_from(["cosine", "constant", "wsd"]),
    st.integers(8, 400),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 1)),
    st.floats(0.01, 0.8),
)
def test_rates_are_never_0_and_those_of_an_open_run_are_those_of_a_longer_one(
    schedule: str, epoch_steps: int, epochs: int, warmup: int | None, decay: float
) -> None:
    settings = OptimizerSettings.model_validate(
        {"schedule": schedule, "learning_rate": 0.5, "warmup_steps": warmup, "decay_fraction": decay}
    )
    num_steps = epoch_steps * epochs
    rate, longer = LearningRate(settings, num_steps, epoch_steps), LearningRate(settings, 2 * num_steps, epoch_steps)
    rates = [rate.at(step) for step in range(1, num_steps + 1)]
    assert all(0 < each <= 0.5 for each in rates)
    assert schedule == "cosine" or max(rates) == 0.5 or rate.open_until == 0
    assert [longer.at(step) for step in range(1, rate.open_until + 1)] == rates[: rate.open_until]
    assert rate.open_until == {"cosine": 0, "constant": num_steps}.get(schedule, rate.open_until)


def test_wsd_falls_in_a_line_to_0_just_after_the_last_step() -> None:
    settings = OptimizerSettings(schedule="wsd", learning_rate=1.0, warmup_steps=2, decay_fraction=0.4)
    rate = LearningRate(settings, 10, 10)
    assert [rate.at(step) for step in range(1, 11)] == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert rate.open_until == 6
    with pytest.raises(UserError, match="warmup_steps is 8, but the run has 6 steps before its learning rate falls"):
        LearningRate(settings.model_copy(update={"warmup_steps": 8}), 10, 10)


def test_who_may_only_read_is_told_that_a_run_is_finished(
    make_settings: MakeSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(fraction=0.05)
    result = train(settings)
    capsys.readouterr()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, whom no permission keeps out.
    monkeypatch.setattr("palenka.ground.lock.os.open", refuse)
    assert train(settings) == result
    assert "finished already" in capsys.readouterr().err
