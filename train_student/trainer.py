"""The trainer: one loop on accelerate for baselines, teachers and students, from any step on.

Nothing of a step depends on how the run came there: its windows follow from the reading order, its random numbers from
(seed, step, process). So a checkpoint needs no random states, and an interrupted run ends as an undisturbed one.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from numpy.random import SeedSequence
from numpy.typing import NDArray
from torch.nn.utils import clip_grad_norm_

from palenka.data.corpus import Corpus
from palenka.data.held_out import window_losses
from palenka.data.signals.stream import Batch, EncodedBatch, ReadingOrder, stream
from palenka.ground.errors import UserError
from palenka.ground.progress import info, progress_bar
from palenka.train_student.checkpoint import Checkpoints
from palenka.train_student.gradients import gradient_ratios
from palenka.train_student.meter import Meter
from palenka.train_student.model.shapes import count_parameters
from palenka.train_student.objective.objective import Objective
from palenka.train_student.optimizer import adamw, cosine_schedule
from palenka.train_student.run import Best, Logged, Run, RunResult
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import Teachers


class Trainer:
    """What one run holds while it trains.

    Args:
        settings: of the run.
        run: its directory.
        accelerator: its processes and device.
        corpus: what it reads.
        order: the sequence of windows.
        teachers: what its terms need.
        validation_windows: on which it is measured, [n, L].
    """

    def __init__(
        self,
        settings: TrainSettings,
        run: Run,
        accelerator: Accelerator,
        corpus: Corpus,
        order: ReadingOrder,
        teachers: Teachers,
        validation_windows: NDArray[np.int64],
    ) -> None:
        self.settings, self.run, self.accelerator = settings, run, accelerator
        self.corpus, self.order, self.teachers = corpus, order, teachers
        self.student = settings.model.build(corpus.tokenizer(), settings.seed)
        self.objective = Objective(self.student, settings.objective, teachers.pairs, settings.seed)
        self.num_steps = len(order) // settings.global_batch
        self.adamw = adamw(self.objective, settings.optimizer)
        self.schedule = cosine_schedule(self.adamw, settings.optimizer, self.num_steps)
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, self.adamw)
        self.validation_windows = validation_windows
        self.checkpoints = Checkpoints(run.directory / "checkpoints", run.identity)
        self.best, self.best_step = math.inf, 0
        self.learning_rate = 0.0
        self.seconds = 0.0

    def fit(self) -> RunResult:
        """Train from the last checkpoint, or the first step, to the last step, and record the result."""
        settings = self.settings
        tokens_per_step = settings.global_batch * settings.windows.length
        first = self._resume() + 1
        started = time.perf_counter() - self.seconds
        batches = self._batches(first)
        meter = Meter(self.accelerator)
        self._announce(first)
        with progress_bar(
            f"train {settings.output.name}", self.num_steps * tokens_per_step, verbose=self.accelerator.is_main_process
        ) as advance:
            advance((first - 1) * tokens_per_step)
            for step in range(first, self.num_steps + 1):
                self._step(step, batches, meter)
                advance(tokens_per_step)
                with meter.paused():
                    if self._validates(step):
                        self._validate(step)
                    if step % settings.checkpoint_every == 0:
                        self._checkpoint(step, time.perf_counter() - started)
        return self._finish(time.perf_counter() - started)

    def _step(self, step: int, batches: Iterator[EncodedBatch], meter: Meter) -> None:
        """One optimizer step over a global batch, and its line in the log if it has one."""
        count = self._per_process() // self._micro_batch()
        micro_batches: Iterable[EncodedBatch] = islice(meter.awaited(batches), count)
        weights = self.settings.weights(step, self.num_steps)
        measured: dict[str, float] = {}
        if len(weights) > 1 and (step - 1) % self.settings.gradient_ratios_every == 0:
            micro_batches = kept = list(micro_batches)
            with meter.paused():
                measured = self._gradient_ratios(step, kept, weights)
        self.wrapped.train()
        self._seed(step)
        for number, batch in enumerate(micro_batches, start=1):
            complete = self._complete(batch)
            last = number == count
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, terms = self.wrapped(complete, weights)
                self.accelerator.backward(loss / count)
            meter.add({"loss": loss.detach(), **terms}, batch.tokens.numel())
        norm = self._clip()
        self.learning_rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        if self._logs(step):
            self._log(step, meter.read() | {"gradient_norm": float(norm)} | measured)
        elif measured:
            self._record(step, measured)

    def _clip(self) -> torch.Tensor:
        """Clip the student's gradient, and apart from it that of projections and heads; returns the student's norm.

        Together, a large gradient of a head would shrink the student's step, which a control never feels.
        """
        self.accelerator.unscale_gradients()
        most = self.settings.optimizer.max_grad_norm
        norm = clip_grad_norm_(self.student.parameters(), most)
        clip_grad_norm_(self.objective.trained_beside().values(), most)
        return norm

    def _complete(self, batch: EncodedBatch) -> Batch:
        return self.teachers.complete(batch.to(self.accelerator.device))

    def _gradient_ratios(
        self, step: int, micro_batches: list[EncodedBatch], weights: Mapping[str, float]
    ) -> dict[str, float]:
        self.objective.train()

        def complete() -> Iterator[Batch]:
            self._seed(step)  # the same dropout for every term
            return map(self._complete, micro_batches)

        return gradient_ratios(self.objective, self.accelerator, complete, weights)

    def _seed(self, step: int) -> None:
        """Random numbers that only seed, step and process decide: dropout draws other masks in every process."""
        entropy = (self.settings.seed, step, self.accelerator.process_index)
        torch.manual_seed(int(SeedSequence(entropy).generate_state(1)[0]))

    def _validates(self, step: int) -> bool:
        if step == self.num_steps:
            return True
        if every := self.settings.validation.every:
            return step % every == 0
        windows = step * self.settings.global_batch
        return self.order.epoch_at(windows) > self.order.epoch_at(windows - self.settings.global_batch)

    def _validate(self, step: int) -> None:
        """Measure the student on the fixed windows, shared out over the processes, and keep it if it is the best."""
        accelerator = self.accelerator
        mine = self.validation_windows[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():
            total = sum((losses.sum() for losses in window_losses(self.student, mine, self._micro_batch())), 0.0)
        summed = accelerator.reduce(torch.tensor(total, device=accelerator.device, dtype=torch.float32), "sum")
        cross_entropy = float(summed) / len(self.validation_windows)
        self._require_finite(step, cross_entropy)
        self._record(step, {"validation_cross_entropy": cross_entropy})
        if cross_entropy < self.best:
            self.best, self.best_step = cross_entropy, step
            if accelerator.is_main_process:
                best = Best(step=step, validation_cross_entropy=cross_entropy)
                self.run.save_model(self.student, self.objective.trained_beside(), self.corpus, best)

    def _logs(self, step: int) -> bool:
        # A checkpoint closes a line of the log, so that no sums need to be kept with it.
        every = (self.settings.log_every, self.settings.checkpoint_every)
        return step == self.num_steps or any(step % steps == 0 for steps in every)

    def _log(self, step: int, measured: dict[str, float]) -> None:
        self._require_finite(step, measured["loss"])
        windows = step * self.settings.global_batch
        self._record(
            step,
            {
                "epoch": self.order.epoch_at(windows - 1),
                "tokens": windows * self.settings.windows.length,
                "learning_rate": self.learning_rate,
                **self._scheduled_weights(step),
                **measured,
            },
        )

    def _scheduled_weights(self, step: int) -> dict[str, float]:
        terms = self.settings.objective.terms
        return {f"weight/{name}": term.weight_at(step, self.num_steps) for name, term in terms.items() if term.schedule}

    def _record(self, step: int, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            self.run.log({"step": step, **values})
        self.accelerator.log(values, step=step)

    def _require_finite(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {step}; lower optimizer.learning_rate "
                f"({self.settings.optimizer.learning_rate}), lengthen warmup_steps or use precision float32"
            )

    def _checkpoint(self, step: int, seconds: float) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "schedule": self.schedule.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "best": self.best if math.isfinite(self.best) else None,
            "best_step": self.best_step,
            "metrics": self.run.metrics_so_far().as_plain(),
            "seconds": seconds,
        }
        self.checkpoints.save(step, self.objective, self.adamw, state)

    def _resume(self) -> int:
        """Go back to the last checkpoint; returns its step, or 0 without one."""
        state = self.checkpoints.load(self.objective, self.adamw)
        best = self.run.best() if state else None
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run.cut_metrics(Logged.model_validate(state["metrics"]) if state else Logged())
        if state is None:
            return 0
        self.schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self.adamw.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.best = state["best"] if state["best"] is not None else math.inf
        self.best_step, self.seconds = state["best_step"], state["seconds"]
        if best is not None and best.step > self.best_step:
            # It was kept after the checkpoint: the steps to it are done again, and come to the same.
            self.best, self.best_step = best.validation_cross_entropy, best.step
        return int(state["step"])

    def _announce(self, first: int) -> None:
        if self.accelerator.is_main_process:
            going_on = f", going on after step {first - 1:,}" if first > 1 else ""
            info(
                f"{self.settings.output}: {self.settings.model.architecture}, "
                f"{count_parameters(self.student):,} parameters, "
                f"{self.num_steps:,} steps of {self.settings.global_batch} windows, "
                f"{self.accelerator.num_processes} process(es){going_on}"
            )

    def _finish(self, seconds: float) -> RunResult:
        tokens = self.num_steps * self.settings.global_batch * self.settings.windows.length
        result = RunResult(
            parameters=count_parameters(self.student),
            steps=self.num_steps,
            tokens=tokens,
            best_step=self.best_step,
            validation_cross_entropy=self.best,
            seconds=round(seconds, 2),
            tokens_per_second=round(tokens / seconds, 1),
        )
        if self.accelerator.is_main_process:
            self.run.finish(result)
        return result

    def _batches(self, first: int) -> Iterator[EncodedBatch]:
        return stream(
            self.corpus,
            self.order,
            self.teachers.caches,
            self._slices(first),
            self.teachers.num_positions,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _slices(self, first: int) -> Iterator[tuple[int, int]]:
        """This process's part of every global batch, micro-batch by micro-batch, from a step on."""
        per_process, micro_batch = self._per_process(), self._micro_batch()
        for step in range(first - 1, self.num_steps):
            begin = step * self.settings.global_batch + self.accelerator.process_index * per_process
            for start in range(begin, begin + per_process, micro_batch):
                yield start, start + micro_batch

    def _per_process(self) -> int:
        """Windows of a global batch that each process reads."""
        num_processes: int = self.accelerator.num_processes
        return self.settings.global_batch // num_processes

    def _micro_batch(self) -> int:
        """The largest equal part of a process's windows that `settings.micro_batch` allows."""
        per_process = self._per_process()
        size = min(self.settings.micro_batch, per_process)
        while per_process % size:
            size -= 1
        return size
