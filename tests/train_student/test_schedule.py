"""Schedules of weights: their closed forms, from files and overrides, and the weights in force while a run trains."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from palenka.ground.command_line import parse
from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.objective.schedule import WeightSchedule
from palenka.train_student.objective.settings import ObjectiveSettings
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


def test_shapes_are_their_closed_forms() -> None:
    def way(**changes: object) -> list[float]:
        schedule = WeightSchedule.model_validate({"start": 0.2, "steps": 4} | changes)
        return [schedule.weight(1.0, step, 10) for step in range(1, 7)]

    assert way(steps=5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert way(shape="constant") == [0.2, 0.2, 0.2, 0.2, 1.0, 1.0]
    expected = [0.6 - 0.4 * math.cos(math.pi * step / 4) for step in range(5)]
    assert way(steps=5, shape="cosine") == pytest.approx([*expected, 1.0])
    assert way(steps=None, fraction=0.5) == pytest.approx(way(steps=5))
    assert way(steps=None)[-1] == pytest.approx(0.2 + 0.8 * 5 / 9)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_over_the_whole_run_the_last_step_has_the_ends_weight(shape: str) -> None:
    schedule = WeightSchedule.model_validate({"start": 0.2, "shape": shape})
    assert schedule.weight(1.0, 10, 10) == 1.0
    assert schedule.weight(1.0, 9, 10) < 1.0


@given(
    st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 9), st.floats(0, 9), st.floats(0.01, 1), st.data()
)
def test_a_weight_stays_between_start_and_end_and_never_turns_back(
    shape: str, start: float, end: float, fraction: float, data: st.DataObject
) -> None:
    schedule = WeightSchedule.model_validate({"start": start, "shape": shape, "fraction": fraction})
    num_steps = data.draw(st.integers(1, 60))
    way = [schedule.weight(end, step, num_steps) for step in range(1, num_steps + 2)]
    # A way of a single step is over at once.
    assert way[0] == pytest.approx(start if fraction * num_steps > 1 else (way[0] if shape == "constant" else end))
    assert way[-1] == pytest.approx(end)
    upward = [b - a if end >= start else a - b for a, b in itertools.pairwise(way)]
    assert all(move >= -1e-12 for move in upward)


def test_a_schedule_comes_from_a_file_and_from_overrides(tmp_path: Path, make_shape: Callable[..., ModelShape]) -> None:
    fields = {
        "corpus": "c",
        "output": "o",
        "model": make_shape().as_plain(),
        "teachers": {"t": {"cache": "x"}},
        "objective": {"logit": {"weight": 0.5, "schedule": {"start": 0.1, "shape": "cosine"}}},
    }
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(fields))
    given = ["--config", str(tmp_path / "file.yaml")]
    read = parse(TrainSettings, given, "palenka train").objective.terms
    assert read["logit"].schedule == WeightSchedule(start=0.1, shape="cosine")
    assert read["hard"].schedule is None
    more = ["--objective.logit.schedule.steps", "7", "--objective.hard.schedule.start", "2.0"]
    changed = parse(TrainSettings, [*given, *more], "palenka train")
    assert changed.objective.terms["logit"].weight == 0.5
    assert changed.objective.terms["logit"].schedule == WeightSchedule(start=0.1, shape="cosine", steps=7)
    assert changed.objective.terms["hard"].weight == 1.0
    assert changed.objective.terms["hard"].schedule == WeightSchedule(start=2.0)
    changed.write_yaml(tmp_path / "resolved.yaml")
    assert parse(TrainSettings, ["--config", str(tmp_path / "resolved.yaml")], "palenka train") == changed
    for wrong, message in (
        (["--objective.loggit.schedule.start", "0.1"], "objective.loggit"),
        (["--objective.logit.schedule.shape", "square"], "shape is square, but it should be 'constant', 'linear'"),
        (["--objective.logit.schedule", "{steps: 5, fraction: 0.5}"], "steps is 5 and fraction 0.5, but there is one"),
    ):
        with pytest.raises(UserError, match=message):
            parse(TrainSettings, [*given, *wrong], "palenka train")


def test_a_term_is_active_if_it_has_a_weight_at_any_step() -> None:
    def weights(logit: dict[str, object], *at: int, **teachers: float) -> dict[str, float]:
        return ObjectiveSettings.model_validate({"logit": logit}).weights(teachers, *at)

    fading = {"weight": 0.0, "schedule": {"start": 0.6}}
    assert weights(fading, 1, 4, t=0.5) == pytest.approx({"hard": 1.0, "logit/t": 0.3})
    assert weights(fading, t=0.5, unheard=0.0) == {"hard": 1.0, "logit/t": 0.0}
    assert weights({"weight": 0.0, "schedule": {}}, t=0.5) == {"hard": 1.0}


def test_the_weights_in_force_are_those_of_the_step_and_stand_in_the_log(
    cache_directory: Path, student_of_cache: Callable[..., TrainSettings], log_of: Callable[..., list[dict[str, Any]]]
) -> None:
    settings = student_of_cache(
        fraction=0.2,
        teachers={"t": {"cache": cache_directory, "weight": 0.5}},
        objective={
            "hard": {"weight": 0.0, "schedule": {"start": 1.0, "fraction": 0.5}},
            "logit": {"weight": 0.8, "schedule": {"shape": "cosine", "steps": 10}},
        },
        log_every=1,
        gradient_ratios_every=5,
    )
    steps = train(settings).steps
    logged = log_of(settings, "loss")
    assert len(logged) == steps > 10
    for line in logged:
        done = line["step"] - 1
        hard = max(0.0, 1 - done / (steps / 2 - 1))
        logit = 0.8 * (1 - math.cos(math.pi * min(1, done / 9))) / 2
        assert (line["weight/hard"], line["weight/logit"]) == pytest.approx((hard, logit))
        assert line["loss"] == pytest.approx(hard * line["hard"] + 0.5 * logit * line["logit/t"], rel=1e-5)
    norms = [line["gradient_norm/logit/t"] for line in log_of(settings, "gradient_norm/logit/t")]
    assert norms[0] == 0
    assert all(norm > 0 for norm in norms[1:])
    assert torch.isfinite(torch.tensor(norms)).all()
