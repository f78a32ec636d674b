"""The trainer: one loop on accelerate for baselines, teachers and students.

`accelerate launch -m train_student --config configs/students/NAME.yaml` (or `palenka train` on one device).
"""

import contextlib
import importlib.util
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor

from configs.errors import UserError
from data.cache import TeacherCache
from data.corpus import Corpus
from data.model_files import require_positions
from data.processes import require_all_processes
from data.progress import notice, progress_bar
from data.stream import Batch, ReadingOrder, stream
from eval.held_out import fixed_windows, window_losses
from train_student.meter import Meter
from train_student.objective import Objective
from train_student.optimizer import adamw, cosine_schedule
from train_student.run import Run
from train_student.settings import TrainSettings
from train_student.shapes import count_parameters
from train_student.teachers import open_caches

_ACCELERATE_PRECISION = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train a model and return what came of it: parameters, steps, tokens, validation cross-entropy, seconds.

    A run that is whole is not trained again. Beside the model, memory is some 32 bytes for each window of a view.

    Raises:
        UserError: if corpus, caches, model and settings do not fit each other, or the loss stops being finite.
    """
    run = Run(settings.output)
    accelerator = _accelerator(settings)
    try:
        corpus = Corpus.open(settings.corpus, settings.split)
        order = _reading_order(settings, corpus)
        caches = _open_caches(settings, corpus)
        validation = Corpus.open(settings.corpus, settings.validation.split)
        windows = fixed_windows(validation, settings.windows.length, settings.validation.windows)
        if accelerator.is_main_process:
            run.begin(settings, _inputs(corpus, validation, caches))
        accelerator.wait_for_everyone()
        if (result := run.result()) is not None:
            if accelerator.is_main_process:
                notice(f"{settings.output} is finished already; delete it to train it again")
            return result
        names = {"wandb": {"name": run.directory.name}}
        accelerator.init_trackers("palenka", config=_flat(settings.as_plain()), init_kwargs=names)
        return _Trainer(settings, run, accelerator, corpus, order, caches, windows).fit()
    except OSError as error:
        raise UserError(
            f"cannot train {settings.output}: {error.strerror or error} {error.filename or ''}; "
            "mend that and run it again"
        ) from error
    finally:
        accelerator.end_training()
        # The next run in this process may compute in another precision.
        AcceleratorState._reset_state()


class _Trainer:
    """What one run holds while it trains."""

    def __init__(
        self,
        settings: TrainSettings,
        run: Run,
        accelerator: Accelerator,
        corpus: Corpus,
        order: ReadingOrder,
        caches: Mapping[str, TeacherCache],
        validation_windows: NDArray[np.int64],
    ) -> None:
        # Dropout draws other masks in every process; the initial weights have a seed of their own.
        set_seed(settings.seed, device_specific=True)
        self.settings, self.run, self.accelerator = settings, run, accelerator
        self.corpus, self.order, self.caches = corpus, order, caches
        self.student = settings.model.build(corpus.tokenizer(), settings.seed)
        teacher_weights = {name: settings.teachers[name].weight for name in caches}
        objective = Objective(self.student, settings.objective, teacher_weights)
        self.num_steps = len(order) // settings.global_batch
        optimizer = adamw(objective, settings.optimizer)
        self.schedule = cosine_schedule(optimizer, settings.optimizer, self.num_steps)
        self.objective, self.optimizer = accelerator.prepare(objective, optimizer)
        self.validation_windows = validation_windows
        self.best = math.inf
        self.best_step = 0
        self.learning_rate = 0.0

    def fit(self) -> dict[str, Any]:
        """Train from the first step to the last, and record the result; what `train` returns."""
        settings, started = self.settings, time.perf_counter()
        tokens_per_step = settings.global_batch * settings.windows.length
        meter = Meter(self.accelerator)
        batches = self._batches()
        self._announce()
        with progress_bar(
            f"train {settings.output.name}", self.num_steps * tokens_per_step, shown=self.accelerator.is_main_process
        ) as advance:
            for step in range(1, self.num_steps + 1):
                gradient_norm = self._step(batches, meter)
                advance(tokens_per_step)
                if step % settings.log_every == 0 or step == self.num_steps:
                    self._log(step, meter.read() | {"gradient_norm": float(gradient_norm)})
                if self._validates(step):
                    with meter.paused():
                        self._validate(step)
        seconds = time.perf_counter() - started
        return self._finish(seconds)

    def _step(self, batches: Iterator[Batch], meter: Meter) -> Tensor:
        """One optimizer step over a global batch; returns the gradient's norm before clipping."""
        self.objective.train()
        micro_batches = self._per_process() // self._micro_batch()
        for number in range(micro_batches):
            batch = next(batches).to(self.accelerator.device)
            last = number == micro_batches - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss, terms = self.objective(batch.tokens, batch.signals)
                self.accelerator.backward(loss / micro_batches)
            meter.add({"loss": loss.detach(), **terms}, batch.tokens.numel())
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.settings.optimizer.max_grad_norm)
        self.learning_rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        assert isinstance(norm, Tensor)
        return norm

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
                self.run.save_model(self.student, self.corpus)

    def _log(self, step: int, measured: dict[str, float]) -> None:
        self._require_finite(step, measured["loss"])
        windows = step * self.settings.global_batch
        self._record(
            step,
            {
                "epoch": self.order.epoch_at(windows - 1),
                "tokens": windows * self.settings.windows.length,
                "learning_rate": self.learning_rate,
                **measured,
            },
        )

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

    def _announce(self) -> None:
        if self.accelerator.is_main_process:
            notice(
                f"{self.settings.output}: {self.settings.model.architecture}, "
                f"{count_parameters(self.student):,} parameters, "
                f"{self.num_steps:,} steps of {self.settings.global_batch} windows, "
                f"{self.accelerator.num_processes} process(es)"
            )

    def _finish(self, seconds: float) -> dict[str, Any]:
        tokens = self.num_steps * self.settings.global_batch * self.settings.windows.length
        result = {
            "parameters": count_parameters(self.student),
            "steps": self.num_steps,
            "tokens": tokens,
            "best_step": self.best_step,
            "validation_cross_entropy": self.best,
            "seconds": round(seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        if self.accelerator.is_main_process:
            self.run.finish(result)
        return result

    def _batches(self) -> Iterator[Batch]:
        return stream(
            self.corpus,
            self.order,
            self.caches if self.settings.objective.logit else {},
            self._slices(),
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def _slices(self) -> Iterator[tuple[int, int]]:
        """This process's part of every global batch, micro-batch by micro-batch."""
        per_process, micro_batch = self._per_process(), self._micro_batch()
        for step in range(self.num_steps):
            first = step * self.settings.global_batch + self.accelerator.process_index * per_process
            for start in range(first, first + per_process, micro_batch):
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


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, int | float | str | bool]:
    """Nested settings by dotted name, with values that trackers take."""
    flat: dict[str, int | float | str | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def _accelerator(settings: TrainSettings) -> Accelerator:
    for package in settings.trackers:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"tracker {package} is not installed; pip install {package}, or take it out of trackers")
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision fp16 needs a GPU; choose bf16 or float32 on this machine")
    accelerator = Accelerator(
        mixed_precision=_ACCELERATE_PRECISION[settings.precision],
        log_with=list(settings.trackers) or None,
        project_dir=settings.output,
    )
    require_all_processes(accelerator.num_processes)
    if settings.global_batch % accelerator.num_processes:
        raise UserError(
            f"global_batch is {settings.global_batch}, but there are {accelerator.num_processes} processes; "
            "make it a multiple of their number"
        )
    return accelerator


def _reading_order(settings: TrainSettings, corpus: Corpus) -> ReadingOrder:
    require_positions("model", settings.model.max_position_embeddings, settings.windows.length)
    order = ReadingOrder(settings.windows, len(corpus.tokens), settings.seed, settings.epochs, settings.fraction)
    if len(order) < settings.global_batch:
        raise UserError(
            f"{settings.epochs} epoch(s) of {corpus.directory} are {len(order)} windows of {settings.windows.length} "
            f"tokens, but global_batch is {settings.global_batch}; lower it, add epochs or add text"
        )
    return order


def _open_caches(settings: TrainSettings, corpus: Corpus) -> dict[str, TeacherCache]:
    temperature = settings.objective.temperature if settings.objective.logit else None
    return open_caches(settings.teachers, corpus, settings.windows, settings.fraction, temperature)


def _inputs(corpus: Corpus, validation: Corpus, caches: Mapping[str, TeacherCache]) -> dict[str, Any]:
    """What a run is made from, whatever path it lies at."""
    return {
        "corpus": corpus.fingerprint,
        "validation": validation.fingerprint,
        "tokenizer": corpus.tokenizer_hash,
        "teachers": {name: cache.manifest.as_plain() for name, cache in caches.items()},
    }
