"""A dry run: what a run would cost, told beforehand, and nothing written; what training refuses is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from palenka.__main__ import main
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.ground.errors import UserError
from palenka.train_student.plan import plan
from palenka.train_student.run_facts import RunResult
from palenka.train_student.settings import TrainCommand, TrainSettings
from palenka.train_student.train import train

MakeSettings = Callable[..., TrainSettings]
HIDDEN = {"hard": 0.5, "logit": 0.5, "hidden": 0.5}


@pytest.fixture
def student(hidden_capture: CaptureSettings, student_of_cache: MakeSettings) -> MakeSettings:
    """Makes settings of a student whose cache with hidden states is captured."""
    capture(hidden_capture)

    def make(**changes: object) -> TrainSettings:
        return student_of_cache(**({"objective": HIDDEN, "fraction": 0.3, "micro_batch": 4, "epochs": 2} | changes))

    return make


def everything(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


@dataclass(frozen=True)
class Planned:
    """What was said of a run beforehand, the run's result and its directory."""

    found: dict[str, Any]
    result: RunResult
    output: Path


@pytest.fixture(scope="module")
def planned(
    settings_of_capture: Callable[..., CaptureSettings],
    settings_of_run: MakeSettings,
    tmp_path_factory: pytest.TempPathFactory,
) -> Planned:
    """A run of two epochs with a cached teacher that was planned, then trained."""
    folder = tmp_path_factory.mktemp("planned")
    capture(
        settings_of_capture(output=folder / "cache", hidden={"positions": 5, "components": None, "sample_windows": 40})
    )
    settings = settings_of_run(
        output=folder / "run",
        teachers={"t": {"cache": folder / "cache"}},
        objective=HIDDEN,
        fraction=0.3,
        epochs=2,
        global_batch=16,
        micro_batch=4,
        trackers=["tensorboard"],
    )
    found = plan(settings)
    return Planned(found, train(settings), settings.output)


def test_nothing_is_written(student: MakeSettings, tmp_path: Path) -> None:
    settings = student(trackers=["tensorboard"])
    before = everything(tmp_path)
    plan(settings)
    assert everything(tmp_path) == before


def test_it_counts_what_the_run_comes_to(planned: Planned) -> None:
    found, result = planned.found, planned.result
    assert (found["parameters"], found["steps"], found["tokens"]) == (result.parameters, result.steps, result.tokens)
    assert found["windows"] == result.steps * 16
    assert found["validations"] == 2
    assert found["done_steps"] == 0


def test_it_counts_what_is_trained_beside_the_student(planned: Planned) -> None:
    projections = load_file(planned.output / "projections.safetensors")
    assert planned.found["trained_beside"] == sum(weight.numel() for weight in projections.values())


def test_its_seconds_are_those_of_the_micro_batches_that_it_timed(planned: Planned) -> None:
    found = planned.found
    assert found["micro_batch"] == 4
    assert 1 <= found["timed_micro_batches"] <= 8
    every_step = found["steps"] * found["step_seconds"]
    # The terms' gradients are measured once, at the price of a step for each of the three.
    assert found["seconds"] == pytest.approx(
        every_step + 3 * found["step_seconds"] + 2 * found["validation_seconds"], rel=1e-6
    )


def test_it_knows_the_disk_and_the_memory_that_a_run_needs(planned: Planned) -> None:
    model = sum(path.stat().st_size for path in planned.output.glob("*.safetensors"))
    found = planned.found
    assert model < found["disk_bytes"] < 20 * model
    assert found["weights_bytes"] < found["peak_memory_bytes"] < found["memory_bytes"]


def test_a_run_after_it_is_the_same(student: MakeSettings, tmp_path: Path) -> None:
    plan(student())
    train(student())
    train(student(output=tmp_path / "other"))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "other")]
    assert weights[0] == weights[1]


def test_of_a_run_that_was_begun_it_says_what_is_left(student: MakeSettings) -> None:
    settings = student(checkpoint_every=3)
    train(settings)
    finished = plan(settings)
    assert (finished["done_steps"], finished["seconds"]) == (finished["steps"], 0)
    (settings.output / "result.json").unlink()
    before = everything(settings.output)
    found = plan(settings)
    assert everything(settings.output) == before
    assert 0 < found["steps"] - found["done_steps"] <= 3
    assert found["validations"] == 1


def test_it_goes_on_after_the_checkpoint_that_training_goes_on_after(student: MakeSettings) -> None:
    settings = student(checkpoint_every=3)
    train(settings)
    (settings.output / "result.json").unlink()
    *_, earlier, last = sorted((settings.output / "checkpoints").iterdir())
    (last / "objective.safetensors").write_bytes(b"damaged")
    assert plan(settings)["done_steps"] == int(earlier.name.removeprefix("step-"))
    assert last.is_dir()


def test_of_a_run_that_is_to_be_longer_it_says_what_is_done_again(
    student: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, object] = {"optimizer": {"schedule": "wsd"}, "checkpoint_every": 19}
    settings = student(**changes, epochs=1)
    train(settings)
    assert (settings.output / "checkpoints" / "step-00000019").is_dir()
    # There the learning rate had begun to fall, which it no longer does: that step is done again.
    assert plan(student(**changes))["done_steps"] == 18
    capsys.readouterr()
    train(student(**changes))
    assert "going on after step 18" in " ".join(capsys.readouterr().err.split())


def test_revisions_stay_on_disk_beside_all_else(student: MakeSettings) -> None:
    none, some = plan(student()), plan(student(revisions=[100, 300]))
    assert (none["revisions"], some["revisions"]) == (0, 2)
    assert some["disk_bytes"] - none["disk_bytes"] == 2 * 4 * some["parameters"]
    settings = student(revisions=[100, 300, 10**9])
    train(settings)
    kept = sum(path.stat().st_size for path in (settings.output / "revisions").glob("*/model.safetensors"))
    headers = 2 * 8_192
    assert 0 <= kept - (some["disk_bytes"] - none["disk_bytes"]) < headers


def test_what_training_refuses_is_refused(student: MakeSettings, tmp_path: Path) -> None:
    train(student())
    with pytest.raises(UserError, match="seed is 0 there, but 1 is expected"):
        plan(student(seed=1))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine").write_text("")
    with pytest.raises(UserError, match="is not empty and not a run"):
        plan(student(output=tmp_path / "text"))
    with pytest.raises(UserError, match="which it does not divide; choose"):
        plan(student(output=tmp_path / "new", micro_batch=3))
    with pytest.raises(ValueError, match="json prints what a dry run finds"):
        TrainCommand.model_validate(student().as_plain() | {"json": True})


def test_the_command_prints_it_in_eighty_columns_or_as_json(
    student: MakeSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    settings = student()
    settings.write_yaml(tmp_path / "student.yaml")
    before = everything(tmp_path)

    def told(*words: str) -> str:
        capsys.readouterr()
        assert main(["train", str(tmp_path / "student.yaml"), *words]) == 0
        return capsys.readouterr().out

    assert "2 revision(s) among them, which stay" in told("--dry_run", "--revisions", "100", "300")
    shown = told("--dry_run")
    assert "revision" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("parameters", "windows of 16 tokens", "steps", " of 16 windows, 4 at once", "memory", "tokens/s"):
        assert word in shown, word
    found: dict[str, Any] = json.loads(told("--dry_run", "--json"))
    assert found["steps"] == plan(settings)["steps"]
    assert everything(tmp_path) == before
    told()
    assert "finished already" in told("--dry_run")
    assert json.loads(told("--dry_run", "--json", "--epochs", "2"))["done_steps"] == found["steps"]
