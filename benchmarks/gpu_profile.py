"""Where the time of a training step on a GPU goes: how long the device is busy, its launches, its longest kernels.

Without a GPU: how many operations the host hands over.
"""

import time
from typing import Any

import torch
from torch._C._autograd import DeviceType

from benchmarks.operations import counted
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import opened

WARMED, PROFILED, KERNELS = 5, 5, 16
"""Steps that compile and warm, steps that are looked at, and the kernels that are told."""


def profile(settings: TrainSettings) -> dict[str, Any]:
    """A mean over some steps of a run, of which nothing is kept: milliseconds, the busy share, kernels."""
    with opened(settings) as ready:
        trainer = ready.trainer()
        batches, weights = trainer.reading.batches(1), settings.weights(1, trainer.num_steps)

        def train(first: int, count: int) -> None:
            trainer.wrapped.train()
            for step in range(first, first + count):
                trainer.learn(next(batches), weights, is_last=True)
                trainer.update(step)
            torch.cuda.synchronize()

        train(1, WARMED)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorder:
            started = time.perf_counter()
            train(1 + WARMED, PROFILED)
            seconds = time.perf_counter() - started
    # Without the calls that launched them, which are events too.
    on_device = [each for each in recorder.key_averages() if each.device_type == DeviceType.CUDA]
    kernels = sorted(on_device, key=lambda each: -each.self_device_time_total)
    busy = sum(each.self_device_time_total for each in kernels) / 1e6
    told: dict[str, Any] = {
        "milliseconds": round(1e3 * seconds / PROFILED, 2),
        "busy": round(busy / seconds, 3),
        "kernels": sum(each.count for each in kernels) // PROFILED,
    }
    for each in kernels[:KERNELS]:
        milliseconds, times = each.self_device_time_total / 1e3 / PROFILED, each.count / PROFILED
        told[each.key[:60]] = f"{milliseconds:.2f} ms, {times:.0f} times"
    return told


def operations_of(settings: TrainSettings) -> int:
    """The operations that the host hands over for a forward and a backward pass of a run, on the CPU."""
    with opened(settings) as ready:
        trainer = ready.trainer()
        batches, weights = trainer.reading.batches(1), settings.weights(1, trainer.num_steps)
        trainer.wrapped.train()
        for step in (1, 2):  # compile, and make room
            trainer.learn(next(batches), weights, is_last=True)
            trainer.update(step)
        with counted() as found:
            trainer.learn(next(batches), weights, is_last=True)
        batches.close()
    return found.total()
