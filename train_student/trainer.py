"""The trainer: one loop on accelerate for baselines, teachers and students, from any step on.

A step does not depend on earlier interruptions: its windows follow from the reading order, its random numbers from
(seed, step, process). So a checkpoint needs no random states, and an interrupted run ends like an uninterrupted one.
"""

import contextlib
import gc
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.random import SeedSequence
from numpy.typing import NDArray
from torch.nn.utils import clip_grad_norm_

from palenka.data.blocks import compile_blocks
from palenka.data.corpus import Corpus
from palenka.data.held_out import window_losses
from palenka.data.signals.stream import Batch, EncodedBatch, ReadingOrder
from palenka.data.unpadded import leave_out_masks
from palenka.ground.errors import UserError
from palenka.ground.processes import is_alone_on_gpu, is_compiled
from palenka.ground.progress import info
from palenka.ground.stopping import Stopped, stopped_when_ready
from palenka.train_student.agreement import Agreement
from palenka.train_student.checkpoint import Checkpoints, step_of
from palenka.train_student.cuda_graph import Graphed
from palenka.train_student.diagnosis import not_finite_error
from palenka.train_student.display import display, tell_result
from palenka.train_student.gradients import gradient_ratios
from palenka.train_student.learnt_from import words_of_others
from palenka.train_student.meter import GRADIENT, Meter
from palenka.train_student.model.probe import require_causal
from palenka.train_student.model.student import count_parameters
from palenka.train_student.objective.objective import Objective
from palenka.train_student.optimizer import LearningRate, adamw, gradients_added
from palenka.train_student.reading import Reading
from palenka.train_student.revisions import Revisions, planned_revisions, unreached_revisions
from palenka.train_student.run import Run
from palenka.train_student.run_facts import Best, Logged, RunResult
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import Teachers
from palenka.train_student.words import WordsRead, words_after_steps


@contextlib.contextmanager
def collector_frozen() -> Iterator[None]:
    """Inside, the garbage collector ignores the existing objects: scanning all of them would pause each process."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Trainer:
    """The training of one run.

    Args:
        settings: of the run.
        run: its directory.
        accelerator: its processes and device.
        corpus: that it reads.
        order: the sequence of windows.
        teachers: that its terms need.
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
        self.corpus, self.order = corpus, order
        self.reading = Reading(settings, accelerator, corpus, order, teachers)
        self.student = settings.model.build(corpus, settings.seed)
        require_causal(self.student, settings.model.summary())
        leave_out_masks(self.student, settings.windows.length)
        compiled = is_compiled(settings.compile, accelerator.device)
        self.objective = Objective(self.student, settings.objective, teachers.pairs, settings.seed, compiled=compiled)
        if compiled:
            compile_blocks(self.student)  # after all probes, which would otherwise be compiled too, for the CPU
        self.num_steps = self.reading.num_steps
        self.adamw = adamw(self.objective, settings.optimizer, accelerator.device)
        self.rate = self._rate(self.num_steps)
        self.wrapped, self.optimizer = accelerator.prepare(self.objective, self.adamw)
        self.validation_windows = validation_windows
        every = settings.checkpoint_every if isinstance(settings.checkpoint_every, int) else None
        self.checkpoints = Checkpoints(run.directory / "checkpoints", run.identity, self.rate.open_until, every)
        self.words_after = words_after_steps(corpus, order, settings.global_batch, self.num_steps)
        self.planned = planned_revisions(settings.revisions, self.words_after)
        self.revisions = Revisions(run.directory, run.identity)
        self.learnt_from = words_of_others(settings)
        self.best, self.best_step = math.inf, 0
        self.seconds = 0.0
        self._graphed: Graphed | None = None
        if settings.cuda_graphs:
            self._graphed = Graphed([*self.objective.parameters()], self.reading.num_micro_batches)
        self.meter = Meter(accelerator)  # last, since its clock starts here

    def done_steps(self) -> int:
        """The step after which `fit` would resume; 0 if it would start."""
        place = self.checkpoints.last_serving(self._serves)
        return 0 if place is None else step_of(place)

    def fit(self) -> RunResult:
        """Train from the last checkpoint, or the first step, to the last step, and record the result.

        Raises:
            UserError: if a number is not finite.
            Stopped: after a signal, once a checkpoint is written.
        """
        first = self._resume() + 1
        self._started = time.perf_counter() - self.seconds
        batches = self.reading.batches(first)
        self._announce(first)
        speaks = self.accelerator.is_main_process
        with (
            stopped_when_ready() as request,
            display(self.settings, self.num_steps, first, speaks) as self.display,
            collector_frozen(),
        ):
            agreement = Agreement(self.accelerator, self.settings.checkpoint_every, request)
            for step in range(first, self.num_steps + 1):
                self._step(step, batches)
                with self.meter.paused():
                    if self.validates(step):
                        self._validate(step)
                    if step in self.planned:
                        self._keep_revisions(step)
                    is_due, signal = agreement.after(step)
                    is_last = step == self.num_steps
                    if is_due or step == self.rate.open_until or (signal and not is_last):
                        self._checkpoint(step)
                        agreement.checkpointed()
                    if signal and not is_last:
                        raise Stopped(signal, self._kept(step))
            return self._finish()

    def _step(self, step: int, batches: Iterator[EncodedBatch]) -> None:
        """One optimizer step over a global batch, and its line in the log if it has one."""
        meter, count = self.meter, self.reading.num_micro_batches
        micro_batches: Iterable[EncodedBatch] = islice(meter.awaited(batches), count)
        weights = self.settings.weights(step, self.num_steps)
        measured: dict[str, float] = {}
        if self.measures_ratios(step):
            micro_batches = kept = list(micro_batches)
            with meter.paused():
                measured = self._gradient_ratios(step, kept, weights)
        self.wrapped.train()
        self._seed(step)
        for number, batch in enumerate(micro_batches, start=1):
            values = self.learn(batch, weights, is_last=number == count)
            meter.add(values, batch.tokens.numel(), (step - 1) * count + number - 1)
            self.display.advance(batch.tokens.numel() * self.accelerator.num_processes)
        norm = self.update(step)
        if self.accelerator.scaler is None:
            meter.add_gradient(norm, step * count - 1)
        if self._logs(step):
            self._log(step, meter.read() | {"gradient_norm": float(norm)} | measured)
        elif measured:
            self._record(step, measured)

    def learn(self, batch: EncodedBatch, weights: Mapping[str, float], is_last: bool) -> dict[str, torch.Tensor]:
        """Forward and backward pass of a micro-batch; returns its loss and terms.

        Args:
            batch: as it was read.
            weights: of the terms.
            is_last: whether it is the last of its step, in which the processes average their gradients.
        """
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
            return self._graphed(self._passes, batch, weights) if self._graphed else self._passes(batch, weights)

    def _passes(self, batch: EncodedBatch, weights: Mapping[str, float]) -> dict[str, torch.Tensor]:
        # Several processes leave adding to DistributedDataParallel, which averages the sums.
        adds_all_at_once = is_alone_on_gpu(self.accelerator)
        with gradients_added(self.objective.parameters()) if adds_all_at_once else contextlib.nullcontext():
            loss, terms = self.wrapped(self.reading.complete(batch), weights)
            self.accelerator.backward(loss / self.reading.num_micro_batches)
        return {"loss": loss.detach(), **terms}

    def update(self, step: int) -> torch.Tensor:
        """Update the weights with a step's gradient; returns the norm of the student's gradient before clipping."""
        norm, beside = self._clip()
        if self.accelerator.scaler is not None:
            # As the scaler itself does; asking it would wait for the device.
            self.meter.skipped = self.meter.skipped + ~(norm + beside).isfinite()
        for group in self.adamw.param_groups:
            group["lr"] = self.rate.at(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _clip(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip the student's gradient, and separately that of projections and heads; returns both norms.

        Clipped together, a head's large gradient would shrink the student's step, which never happens to a control.
        """
        self.accelerator.unscale_gradients()
        most = self.settings.optimizer.max_grad_norm
        norm = clip_grad_norm_(self.student.parameters(), most)
        return norm, clip_grad_norm_(self.objective.trained_beside().values(), most)

    def _gradient_ratios(
        self, step: int, micro_batches: list[EncodedBatch], weights: Mapping[str, float]
    ) -> dict[str, float]:
        self.objective.train()
        if self._graphed:
            self._graphed.forget()  # these passes are plain, and would need its memory a second time

        def complete() -> Iterator[Batch]:
            self._seed(step)  # the same dropout for every term
            return map(self.reading.complete, micro_batches)

        return gradient_ratios(self.objective, self.accelerator, complete, weights)

    def measures_ratios(self, step: int) -> bool:
        """Whether the gradients of all terms are measured at a step, which costs a step for each of them."""
        return (step - 1) % self.settings.gradient_ratios_every == 0 and len(self.settings.weights()) > 1

    def _seed(self, step: int) -> None:
        """Seed a step's random numbers from seed, step and process; each process has different dropout masks."""
        entropy = (self.settings.seed, step, self.accelerator.process_index)
        torch.manual_seed(int(SeedSequence(entropy).generate_state(1)[0]))

    def validates(self, step: int) -> bool:
        """Whether a step is followed by a validation."""
        if step == self.num_steps:
            return True
        if every := self.settings.validation.every:
            return step % every == 0
        windows = step * self.settings.global_batch
        return self.order.epoch_at(windows) > self.order.epoch_at(windows - self.settings.global_batch)

    def _validate(self, step: int) -> None:
        """Measure the student on the fixed windows, divided among the processes, and keep it if it is the best."""
        self._require_finite()
        accelerator = self.accelerator
        mine = self.validation_windows[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():
            losses = window_losses(self.student, mine, self.corpus.vocabulary_size, self.reading.micro_batch)
            total = sum((part.sum() for part in losses), 0.0)
        summed = accelerator.reduce(torch.tensor(total, device=accelerator.device, dtype=torch.float32), "sum")
        cross_entropy = float(summed) / len(self.validation_windows)
        if not math.isfinite(cross_entropy):
            raise UserError(
                f"the cross-entropy on the validation windows is {cross_entropy} after step {step:,}; lower "
                f"optimizer.learning_rate ({self.settings.optimizer.learning_rate}) or use precision float32"
            )
        self._record(step, {"validation_cross_entropy": cross_entropy})
        self.display.validated(step, cross_entropy, self.best)
        if cross_entropy < self.best:
            self.best, self.best_step = cross_entropy, step
            if accelerator.is_main_process:
                best = Best(step=step, validation_cross_entropy=cross_entropy)
                self.run.save_model(self.student, self.objective.trained_beside(), self.corpus, best)

    def _keep_revisions(self, step: int) -> None:
        """Keep the current student; before the checkpoint, so that every checkpoint has all earlier revisions."""
        self._require_finite()
        if self.accelerator.is_main_process:
            for revision in self.planned[step]:
                self.revisions.save(revision, self.student, self.corpus)

    def _logs(self, step: int) -> bool:
        return step in (1, self.num_steps) or step % self.settings.log_every == 0

    def _log(self, step: int, measured: dict[str, float]) -> None:
        self._require_finite()
        self.display.logged(step, measured["loss"])
        windows = step * self.settings.global_batch
        self._record(
            step,
            {
                "epoch": self.order.epoch_at(windows - 1),
                "tokens": windows * self.settings.windows.length,
                "words": round(self.words_after[step]),
                "learning_rate": self.rate.at(step),
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

    def _require_finite(self) -> None:
        """Raise an error if any loss, term or gradient since the last line of the log was not finite.

        All processes must call it together; the first one with such a value reports its origin.
        """
        found = self.meter.not_finite()
        if found is None:
            return
        step, number = divmod(found.micro_batch, self.reading.num_micro_batches)
        if found.process != self.accelerator.process_index:
            raise UserError(
                f"{found.name} is not finite at step {step + 1:,} in process {found.process}; see its error"
            )
        positions = self.reading.positions(step + 1, number)
        if found.name == GRADIENT:
            positions = range(self.reading.positions(step + 1, 0).start, positions.stop)
        raise not_finite_error(self.settings, found.name, step + 1, positions, self.order, self.reading.at)

    def _checkpoint(self, step: int) -> None:
        self._require_finite()
        meter = self.meter.state()
        if not self.accelerator.is_main_process:
            return
        state = {
            "num_steps": self.num_steps,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "best": self.best if math.isfinite(self.best) else None,
            "best_step": self.best_step,
            "metrics": self.run.metrics_so_far().as_plain(),
            "seconds": self._elapsed(),
            "meter": meter,
        }
        self.checkpoints.save(step, self.objective, self.adamw, state)

    def _kept(self, step: int) -> str:
        """A sentence about what is kept after a signal, for the first process to print."""
        if not self.accelerator.is_main_process:
            return ""
        return (
            f"{self.settings.output} is kept as it is after step {step:,} of {self.num_steps:,}; "
            "run the same command again to go on"
        )

    def _resume(self) -> int:
        """Go back to the last checkpoint; returns its step, or 0 without one."""
        state = self.checkpoints.load(self.objective, self.adamw, self._serves)
        kept = self.run.best() if state else None
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run.cut_metrics(Logged.model_validate(state["metrics"]) if state else Logged())
            self.checkpoints.remove_after(state["step"] if state else 0)
            self.revisions.go_back(self.planned, state["step"] if state else 0)
        if state is None:
            return 0
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.meter.restore(state["meter"])
        # The model of a previous attempt may be better than the best before the checkpoint, and must still be replaced.
        if self.num_steps in (state["num_steps"], self.rate.open_until):
            self.best = state["best"] if state["best"] is not None else math.inf
            self.best_step = state["best_step"]
            if kept is not None and kept.step > self.best_step:
                # It was kept after the checkpoint: the steps up to it are repeated with the same result.
                self.best, self.best_step = kept.validation_cross_entropy, kept.step
        self.seconds = state["seconds"]
        return int(state["step"])

    def _serves(self, state: Mapping[str, Any]) -> bool:
        """Whether a checkpoint belongs to this run, or to a shorter one that this run extends."""
        return bool(state["num_steps"] == self.num_steps or state["step"] <= self._rate(state["num_steps"]).open_until)

    def _rate(self, num_steps: int) -> LearningRate:
        """The learning rate of a run of `num_steps` steps."""
        epoch_steps = self.order.end(0) // self.settings.global_batch
        return LearningRate(self.settings.optimizer, num_steps, epoch_steps)

    def _elapsed(self) -> float:
        """Seconds of training, over all calls."""
        return time.perf_counter() - self._started

    def _announce(self, first: int) -> None:
        if self.accelerator.is_main_process:
            going_on = f", going on after step {first - 1:,}" if first > 1 else ""
            info(
                f"{self.settings.output}: {self.settings.model.summary()}, "
                f"{count_parameters(self.student):,} parameters, "
                f"{self.num_steps:,} steps of {self.settings.global_batch} windows, "
                f"{self.accelerator.num_processes} process(es){going_on}"
            )
            if unreached := unreached_revisions(self.settings.revisions, self.planned):
                words = f"{self.words_after[-1]:,.0f}"
                info(f"not kept, because the run ends after {words} words: revision(s) {', '.join(unreached)}")
            if not self.objective.has_linear_head:
                info(
                    "its logits are no linear map of its last states: they are the model's own, and all those of a "
                    "micro-batch are held at once"
                )

    def _finish(self) -> RunResult:
        seconds = self._elapsed()
        tokens = self.num_steps * self.settings.global_batch * self.settings.windows.length
        result = RunResult(
            parameters=count_parameters(self.student),
            steps=self.num_steps,
            tokens=tokens,
            words=WordsRead(
                corpus=self.corpus.fingerprint,
                corpus_words=self.corpus.counts.words,
                read=round(self.words_after[-1]),
            ),
            learnt_from=self.learnt_from,
            best_step=self.best_step,
            validation_cross_entropy=self.best,
            seconds=round(seconds, 2),
            tokens_per_second=round(tokens / seconds, 1),
        )
        if self.accelerator.is_main_process:
            self.revisions.go_back(self.planned, self.num_steps)
            self.checkpoints.end()
            self.run.finish(result)
            tell_result(self.settings, result)
        return result
