"""Plan: the cost of a run in memory, disk and hours, estimated from a few timed micro-batches.

`palenka train FILE.yaml --dry_run`
"""

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from palenka.cache_teachers.capture import free_bytes
from palenka.data.held_out import window_losses
from palenka.ground.console import facts
from palenka.ground.progress import progress_bar
from palenka.ground.quantities import duration, size
from palenka.train_student.model.student import count_parameters
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import BYTES_PER_PARAMETER, Ready, memory_errors, memory_of, opened
from palenka.train_student.trainer import Trainer

_SECONDS, _MOST = 10.0, 8
"""Approximate seconds of timing, and maximum number of timed micro-batches; at least one, after one to warm up."""
_BYTES_ON_DISK = 4 + 3 * 12
"""Per trained number: in the best model, and with two moments in two checkpoints and one being written."""
_BYTES_IN_REVISION = 4
"""Per number of the student, in each revision; none is ever removed."""


def plan(settings: TrainSettings) -> dict[str, Any]:
    """The cost of a run with these settings, or of the rest of it; writes nothing. Every process must call it.

    Returns:
        ``output``, ``model``, ``parameters``; ``trained_beside``: projections and heads; ``device``, ``processes``,
        ``epochs``, ``length``, ``windows``, ``tokens``, ``global_batch``, ``micro_batch``, ``steps``, ``done_steps`` so
        far; remaining ``validations``; ``peak_memory_bytes`` of a process during training, ``weights_bytes``: its part
        for weights, gradients and moments, and ``memory_bytes`` of the device; ``revisions``: number of models kept
        during training; ``disk_bytes``, including these, and ``free_bytes``; ``step_seconds``, ``validation_seconds``
        of one validation, ``tokens_per_second``, remaining ``seconds``; and ``timed_micro_batches``.

    Raises:
        UserError: as training would.
    """
    with opened(settings) as ready, memory_errors(settings, ready.accelerator.device):
        finished = ready.run.finished(settings, ready.inputs) is not None
        if not finished:
            ready.run.require_fit(settings, ready.inputs)
        trainer = ready.trainer()
        timed = _time(trainer, ready)
        return _costs(trainer, ready, timed, trainer.num_steps if finished else trainer.done_steps())


@dataclass(frozen=True)
class _Timed:
    """Seconds of a micro-batch, of an update of the weights and of a validation window; timed micro-batches."""

    micro_batch: float
    update: float
    validation_window: float
    num_micro_batches: int


def _time(trainer: Trainer, ready: Ready) -> _Timed:
    """Train on the first micro-batches, each as its own step."""
    device = ready.accelerator.device
    weights = ready.settings.weights(1, trainer.num_steps)
    known = trainer.num_steps * trainer.reading.num_micro_batches
    passes: list[float] = []
    updates: list[float] = []
    count = 1
    trainer.wrapped.train()
    with (
        contextlib.closing(trainer.reading.batches(1)) as batches,
        progress_bar("time a few steps", _MOST + 1, "micro-batches", ready.accelerator.is_main_process) as advance,
    ):
        while len(passes) < count:
            began = time.perf_counter()
            trainer.learn(next(batches), weights, is_last=True)
            _wait_for(device)
            learnt = time.perf_counter()
            trainer.update(1)
            _wait_for(device)
            passes.append(learnt - began)
            updates.append(time.perf_counter() - learnt)
            if len(passes) == 1:
                # The same number on all processes, which wait for each other in every backward pass.
                mine = torch.tensor(time.perf_counter() - began, device=device, dtype=torch.float32)
                slowest = float(ready.accelerator.gather(mine.reshape(1)).max())
                count = min(known, 1 + max(1, min(_MOST, int(_SECONDS / slowest))))
            advance(1)
        advance(_MOST + 1 - count)
    few = ready.validation_windows[: trainer.reading.micro_batch]
    seconds = 0.0
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        with ready.accelerator.autocast():
            list(window_losses(trainer.student, few, ready.corpus.vocabulary_size, len(few)))
        seconds = time.perf_counter() - began
    return _Timed(
        statistics.median(passes[1:] or passes),
        statistics.median(updates[1:] or updates),
        seconds / len(few),
        max(1, len(passes) - 1),
    )


def _costs(trainer: Trainer, ready: Ready, timed: _Timed, done: int) -> dict[str, Any]:
    settings, accelerator, reading = ready.settings, ready.accelerator, trainer.reading
    left = range(done + 1, trainer.num_steps + 1)
    validations = sum(trainer.validates(step) for step in left)
    step_seconds = reading.num_micro_batches * timed.micro_batch + timed.update
    validation_seconds = timed.validation_window * len(ready.validation_windows) / accelerator.num_processes
    terms = len(settings.weights(1, trainer.num_steps))
    ratios = terms * sum(trainer.measures_ratios(step) for step in left)
    parameters = count_parameters(trainer.student)
    beside = sum(weight.numel() for weight in trainer.objective.trained_beside().values())
    revisions = sum(map(len, trainer.planned.values()))
    shape = trainer.student.config.get_text_config()
    windows = trainer.num_steps * settings.global_batch
    return {
        "output": str(settings.output),
        "model": f"{shape.model_type} {shape.num_hidden_layers} × {shape.hidden_size}",
        "parameters": parameters,
        "trained_beside": beside,
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "epochs": settings.epochs,
        "length": settings.windows.length,
        "windows": windows,
        "tokens": windows * settings.windows.length,
        "global_batch": settings.global_batch,
        "micro_batch": reading.micro_batch,
        "steps": trainer.num_steps,
        "done_steps": done,
        "validations": validations,
        "peak_memory_bytes": _peak_memory(accelerator.device),
        "weights_bytes": BYTES_PER_PARAMETER * (parameters + beside),
        "memory_bytes": memory_of(accelerator.device),
        "revisions": revisions,
        "disk_bytes": _BYTES_ON_DISK * (parameters + beside) + _BYTES_IN_REVISION * revisions * parameters,
        "free_bytes": free_bytes(settings.output),
        "step_seconds": step_seconds,
        "validation_seconds": validation_seconds,
        "tokens_per_second": settings.global_batch * settings.windows.length / step_seconds,
        "seconds": (len(left) + ratios) * step_seconds + validations * validation_seconds,
        "timed_micro_batches": timed.num_micro_batches,
    }


def table(found: Mapping[str, Any]) -> Table:
    """A plan as a table."""
    beside = f", and {found['trained_beside']:,} in projections and heads" if found["trained_beside"] else ""
    done, steps = found["done_steps"], found["steps"]
    processes = f"{found['processes']} processes" if found["processes"] > 1 else "one process"
    rows = [
        ("model", f"{found['model']}, {found['parameters']:,} parameters{beside}"),
        ("reads", f"{found['windows']:,} windows of {found['length']:,} tokens, {found['epochs']:,} epoch(s)"),
        ("", f"{found['tokens']:,} tokens"),
        ("steps", f"{steps:,} of {found['global_batch']:,} windows, {found['micro_batch']:,} at once"),
    ]
    if done:
        rows.append(("", "finished already" if done == steps else f"{done:,} are done, {steps - done:,} are left"))
    rows += [
        ("device", f"{found['device']}, {processes}"),
        ("memory", f"{size(found['peak_memory_bytes'])} of {size(found['memory_bytes'])} at the peak"),
        ("", f"{size(found['weights_bytes'])} are weights, gradients and moments"),
        ("disk", f"{size(found['disk_bytes'])} at most, of {size(found['free_bytes'])} that are free"),
    ]
    if found["revisions"]:
        rows.append(("", f"{found['revisions']:,} revision(s) among them, which stay"))
    rows += [
        ("time", f"{duration(found['seconds'])}, {found['tokens_per_second']:,.0f} tokens/s"),
        ("", f"{duration(found['step_seconds'])} a step, timed on {found['timed_micro_batches']} micro-batches"),
        ("", f"{found['validations']:,} validation(s) of {duration(found['validation_seconds'])}"),
    ]
    return facts(f"What {found['output']} would cost; nothing was written", rows)


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of this process on a device; on a CPU including its libraries."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
