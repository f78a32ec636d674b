"""Training: opens and checks the inputs of a run, then trains it; one process at a time per output.

`accelerate launch -m palenka.train_student --config FILE.yaml` (or `palenka train` on one device).
"""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from numpy.typing import NDArray

from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows
from palenka.data.signals.stream import ReadingOrder
from palenka.ground.call import this_call
from palenka.ground.errors import UserError, system_error
from palenka.ground.lock import sole_writer
from palenka.ground.processes import open_processes
from palenka.ground.progress import info
from palenka.train_student.cuda_graph import require_graphs
from palenka.train_student.objective.module import TermFit
from palenka.train_student.reading import windows_of_process
from palenka.train_student.run import Run
from palenka.train_student.run_facts import RunInputs, RunResult, identity_of_run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import Teachers, open_teachers
from palenka.train_student.trackers import require_trackers, start_trackers
from palenka.train_student.trainer import Trainer

BYTES_PER_PARAMETER = 16
"""A weight, its gradient and the two moments of AdamW, in float32."""


@dataclass(frozen=True)
class Ready:
    """The inputs of a run, opened and checked; nothing is written yet.

    Attributes:
        settings: of the run.
        accelerator: its processes and device.
        corpus: that it reads.
        order: the sequence of windows.
        teachers: that its terms need.
        inputs: their fingerprints.
        validation_windows: on which it is measured, [n, L].
    """

    settings: TrainSettings
    accelerator: Accelerator
    corpus: Corpus
    order: ReadingOrder
    teachers: Teachers
    inputs: RunInputs
    validation_windows: NDArray[np.int64]

    @property
    def run(self) -> Run:
        """The run's directory, which need not exist."""
        return Run(self.settings.output, identity_of_run(self.settings, self.inputs))

    def trainer(self) -> Trainer:
        """The trainer of the student."""
        return Trainer(
            self.settings,
            self.run,
            self.accelerator,
            self.corpus,
            self.order,
            self.teachers,
            self.validation_windows,
        )


def train(settings: TrainSettings) -> RunResult:
    """Train a model and return the result.

    A finished run is not trained again. An interrupted one resumes at its last checkpoint, with any number of
    processes, and on a CPU ends with the same weights as an uninterrupted one. Beside the model, memory is some 32
    bytes for each window of a view.

    Raises:
        UserError: if corpus, caches, model and settings do not fit together, another process writes the same run, or
            the loss stops being finite.
    """
    with opened(settings) as ready:
        accelerator, run, inputs = ready.accelerator, ready.run, ready.inputs
        # Before the lock, so that users without write permission see it too.
        if (result := run.finished(settings, inputs)) is not None:
            if accelerator.is_main_process:
                run.require_whole()
                info(f"{settings.output} is finished already; delete it to train it again")
            accelerator.wait_for_everyone()
            return result
        with sole_writer(settings.output) if accelerator.is_main_process else contextlib.nullcontext():
            if accelerator.is_main_process:
                run.begin(settings, inputs)
            accelerator.wait_for_everyone()
            if (result := run.result()) is None:
                if accelerator.is_main_process:
                    run.note(this_call(accelerator.device, accelerator.num_processes))
                start_trackers(settings, accelerator)
                with memory_errors(settings, accelerator.device):
                    result = ready.trainer().fit()
            accelerator.wait_for_everyone()
        return result


@contextlib.contextmanager
def opened(settings: TrainSettings) -> Iterator[Ready]:
    """Open the inputs of a run, and check that they fit together.

    Raises:
        UserError: if corpus, caches, model and settings do not fit together; or, from inside, if a file cannot be
            written.
    """
    accelerator = _accelerator(settings)
    try:
        corpus = Corpus.open(settings.corpus, settings.split)
        validation = Corpus.open(settings.corpus, settings.validation.split)
        settings.model.require_fit(corpus, settings.windows.length)
        order = _reading_order(settings, corpus)
        _require_memory(settings, corpus, accelerator.device)
        windows = fixed_windows(validation, settings.windows.length, settings.validation.windows)
        teachers = _open_teachers(settings, corpus, accelerator.device)
        inputs = _inputs(settings, corpus, validation, teachers)
        yield Ready(settings, accelerator, corpus, order, teachers, inputs, windows)
    except OSError as error:
        raise system_error(f"cannot train {settings.output}", error) from error
    finally:
        accelerator.end_training()
        # The next run in this process may have another precision.
        AcceleratorState._reset_state()


@contextlib.contextmanager
def memory_errors(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a sentence with a remedy.

    Raises:
        UserError: with the micro-batch that was too large.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_full = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not is_full and not re.search(r"out of memory|can't allocate memory", str(error)):
            raise
        fewer, same = max(1, settings.micro_batch // 2), "" if settings.needs_its_micro_batch else " (the same results)"
        raise UserError(
            f"the memory of {device.type} does not hold a forward and backward pass with micro_batch "
            f"{settings.micro_batch}, windows of {settings.windows.length} tokens and precision {settings.precision}; "
            f"try micro_batch {fewer}{same}, precision bf16, {'cuda_graphs false, ' if settings.cuda_graphs else ''}"
            "shorter windows or a smaller model"
        ) from error


def _accelerator(settings: TrainSettings) -> Accelerator:
    require_trackers(settings)
    state = open_processes(settings.device)
    if settings.precision == "fp16" and state.device.type != "cuda":
        raise UserError(f"precision fp16 needs a CUDA GPU; choose bf16 or float32 on {state.device.type}")
    if settings.cuda_graphs:
        require_graphs(state, settings.precision)
    windows_of_process(settings, state.num_processes)
    return Accelerator(
        # Given explicitly, though they are accelerate's defaults: otherwise it would read them from the environment.
        mixed_precision="no" if settings.precision == "float32" else settings.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        log_with=list(settings.trackers) or None,
        project_dir=settings.output,
        # With hidden states alone, the last layers and an untied head have no gradient.
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=_leaves_parameters_unused(settings), broadcast_buffers=False
            )
        ],
    )


def _leaves_parameters_unused(settings: TrainSettings) -> bool:
    return not any(term.trains_all for term in settings.objective.active.values())


def _reading_order(settings: TrainSettings, corpus: Corpus) -> ReadingOrder:
    order = ReadingOrder(
        settings.windows,
        len(corpus.tokens),
        settings.seed,
        settings.epochs,
        settings.fraction,
        batch=settings.global_batch,
    )
    if len(order) < settings.global_batch:
        raise UserError(
            f"{settings.epochs} epoch(s) of {corpus.directory} are {len(order)} windows of {settings.windows.length} "
            f"tokens, but global_batch is {settings.global_batch}; lower it, add epochs or add text"
        )
    return order


def _require_memory(settings: TrainSettings, corpus: Corpus, device: torch.device) -> None:
    """Refuse a model that cannot fit in memory, before the system kills the process.

    Raises:
        UserError: with both sizes.
    """
    there = memory_of(device)
    parameters = settings.model.num_parameters(corpus.vocabulary_size)
    if (needed := BYTES_PER_PARAMETER * parameters) > there:
        raise UserError(
            f"the model has {parameters:,} parameters, which take {needed / 2**30:,.1f} GB with gradients and moments, "
            f"but {device.type} has {there / 2**30:,.1f} GB; make the model smaller"
        )


def memory_of(device: torch.device) -> int:
    """Total bytes of memory of a device; for a CPU, of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _open_teachers(settings: TrainSettings, corpus: Corpus, device: torch.device) -> Teachers:
    """The teachers whose terms have a weight, checked against the student."""
    teachers = open_teachers(settings, corpus, device)
    width = settings.model.configured(corpus).get_text_config().hidden_size
    fit = TermFit(width, teachers.pairs, settings.micro_batch, teachers.num_positions)
    for term in settings.objective.active.values():
        term.require_fit(fit)
    return teachers


def _inputs(settings: TrainSettings, corpus: Corpus, validation: Corpus, teachers: Teachers) -> RunInputs:
    return RunInputs.model_validate(
        {
            "corpus": corpus.fingerprint,
            "validation": validation.fingerprint,
            "tokenizer": corpus.tokenizer_hash,
            "origin": settings.model.origin(),
            "teachers": teachers.identities,
        }
    )
