"""Signals: a run that is stopped keeps its last step, and ends like one that was not, in its log and in its weights."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from signal import Signals
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from palenka.ground.stopping import Stopped, StopRequest, stopped_when_ready
from palenka.train_student import agreement as agreement_module
from palenka.train_student.agreement import Agreement
from palenka.train_student.meter import Meter
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train


@pytest.fixture(autouse=True)
def heeds_ctrl_c() -> None:
    """A background job of a shell ignores SIGINT, and so would these tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def settings(student_of_text: Callable[..., TrainSettings], make_shape: Callable[..., ModelShape]) -> TrainSettings:
    """68 steps, some of which are slow enough to be met by a signal."""
    return student_of_text(
        model=make_shape("gpt2", dropout=0.2),
        micro_batch=8,
        optimizer={"learning_rate": 1e-2},
        validation={"every": 20, "windows": 40},
        log_every=7,
    )


@pytest.mark.parametrize(("by", "status"), [(Signals.SIGTERM, 143), (Signals.SIGINT, 130)])
def test_a_run_that_is_stopped_ends_as_an_undisturbed_one(
    settings: TrainSettings,
    by: Signals,
    status: int,
    log_of: Callable[..., list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings.model_copy(update={"checkpoint_every": 20})
    train(settings)
    stopped = settings.model_copy(update={"output": settings.output.with_name("stopped")})
    log = stopped.output / "metrics.jsonl"
    for lines in (2, 5, 9):  # the last one after step 42

        def send(lines: int = lines) -> None:
            while not log.is_file() or log.read_bytes().count(b"\n") < lines:
                time.sleep(0.001)
            os.kill(os.getpid(), by)

        threading.Thread(target=send).start()
        with pytest.raises(Stopped, match=r"stopped is kept as it is after step \d+ of") as stop:
            train(stopped)
        assert stop.value.status == status
        assert not (stopped.output / "result.json").exists()
    capsys.readouterr()
    train(stopped)
    assert "going on after step" in capsys.readouterr().err
    assert log_of(stopped) == log_of(settings)
    weights = [(run.output / "model.safetensors").read_bytes() for run in (stopped, settings)]
    assert weights[0] == weights[1]
    for run in (stopped, settings):
        checkpoints = sorted(place.name for place in (run.output / "checkpoints").iterdir())
        assert checkpoints == ["step-00000040", "step-00000060"]


def test_a_signal_after_the_work_is_done_is_heeded_and_one_that_is_ignored_stays_so() -> None:
    def work() -> None:
        with stopped_when_ready() as request:
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.by == signal.SIGTERM

    with pytest.raises(Stopped, match="what is finished is kept"):
        work()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_when_ready() as request:
            os.kill(os.getpid(), signal.SIGINT)
            assert request.by is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_at_once_but_not_the_echo_of_the_first() -> None:
    came = []

    def work() -> None:
        with stopped_when_ready() as request:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            came.append(request.by)
            time.sleep(1.1)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert came == [signal.SIGINT]


def test_checkpoints_come_by_steps_or_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(agreement_module, "time", clock)
    accelerator = Accelerator(cpu=True)
    by_steps = Agreement(accelerator, 3, StopRequest())
    assert [by_steps.after(step) for step in (1, 3, 4, 6)] == [(False, None), (True, None), (False, None), (True, None)]
    by_time = Agreement(accelerator, "2m", StopRequest(Signals.SIGTERM))
    found = []
    for now in (0, 119, 120, 130, 239, 240):
        clock.now = now
        found.append(by_time.after(1))
        if found[-1][0]:
            by_time.checkpointed()
    assert found == [(due, Signals.SIGTERM) for due in (False, False, True, False, False, True)]


@pytest.mark.parametrize("given", ["0s", "m", "-1m", "1d", True, 0])
def test_what_is_no_time_and_no_number_of_steps_is_refused(
    settings_of_run: Callable[..., TrainSettings], given: object
) -> None:
    with pytest.raises(ValueError, match="checkpoint_every"):
        settings_of_run(checkpoint_every=given)


def test_a_number_in_quotes_is_a_number_of_steps(settings_of_run: Callable[..., TrainSettings]) -> None:
    assert settings_of_run(checkpoint_every="10").checkpoint_every == 10


def test_the_sums_of_a_meter_are_restored_to_the_bit() -> None:
    accelerator = Accelerator(cpu=True)
    values = [{"loss": torch.tensor(value), "hard": torch.tensor(value / 3)} for value in (0.1, 2.7, 1e-8, 5.3)]
    whole, first, second = Meter(accelerator), Meter(accelerator), Meter(accelerator)
    for number, value in enumerate(values):
        whole.add(value, 48)
        if number == 2:
            second.restore(json.loads(json.dumps(first.state())))
        (first if number < 2 else second).add(value, 48)
    of_time = ("tokens_per_second", "data_wait")
    found = [{name: value for name, value in meter.read().items() if name not in of_time} for meter in (whole, second)]
    assert found[0] == found[1]
    assert found[0]["loss"] == pytest.approx(8.1 / 4)


def test_the_sums_of_two_processes_are_shared_out_to_one() -> None:
    meter = Meter(Accelerator(cpu=True))
    sums = [[30.0, 3.0], [50.0, 5.0]]
    meter.restore(
        {"names": ["loss", "hard"], "sums_by_process": sums, "tokens": 10, "waited": 0.0, "seconds": 1.0, "skipped": 0}
    )
    meter.add({"loss": torch.tensor(7.0), "hard": torch.tensor(1.0)}, 20)
    # 40 tokens in all: 10 of mean 3, 10 of mean 5, 20 of mean 7.
    measured = meter.read()
    assert (measured["loss"], measured["hard"]) == pytest.approx((5.5, 0.7))
