"""The meter: what counts as waiting for data, and what does not count at all."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator

from palenka.data.signals.stream import EncodedBatch
from palenka.train_student import meter as meter_module
from palenka.train_student.meter import Meter


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    return clock


def test_the_time_until_a_batch_is_there_counts_as_waiting_and_each_line_begins_anew(clock: Clock) -> None:
    empty = torch.zeros(1, 4, dtype=torch.int64)

    def batches() -> Iterator[EncodedBatch]:
        for seconds in (1.0, 3.0, 0.5):
            clock.now += seconds
            yield EncodedBatch(empty, empty, {})

    meter = Meter(Accelerator(cpu=True), since=0.0)
    arriving = meter.awaited(batches())
    for _ in range(2):
        next(arriving)
        clock.now += 2.0
        meter.add({"loss": torch.tensor(3.0)}, 100)
    with meter.paused():
        clock.now += 50.0
    assert meter.read() == {"loss": 3.0, "tokens_per_second": 25.0, "data_wait": 0.5}
    next(arriving)
    clock.now += 1.5
    meter.add({"loss": torch.tensor(1.0)}, 100)
    assert meter.read() == {"loss": 1.0, "tokens_per_second": 50.0, "data_wait": 0.25}
    assert next(arriving, None) is None
