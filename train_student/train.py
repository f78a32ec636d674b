"""Training: what a run needs is opened and checked, then trained, by one process at a time for each output.

`accelerate launch -m palenka.train_student --config FILE.yaml` (or `palenka train` on one device).
"""

import contextlib
import importlib.util
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows
from palenka.data.model_files import require_positions
from palenka.data.signals.stream import ReadingOrder
from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer
from palenka.ground.processes import open_processes
from palenka.ground.progress import info
from palenka.train_student.objective.module import TermFit
from palenka.train_student.run import Run, RunInputs, RunResult, identity_of_run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.teachers import Teachers, open_teachers
from palenka.train_student.trainer import Trainer


def train(settings: TrainSettings) -> RunResult:
    """Train a model and return what came of it.

    A run that is whole is not trained again; one that was interrupted goes on at its last checkpoint, with any number
    of processes, and on a CPU ends with the same weights as if it had not been. Beside the model, memory is some 32
    bytes for each window of a view.

    Raises:
        UserError: if corpus, caches, model and settings do not fit each other, another process writes the same run, or
            the loss stops being finite.
    """
    accelerator = _accelerator(settings)
    try:
        corpus = Corpus.open(settings.corpus, settings.split)
        validation = Corpus.open(settings.corpus, settings.validation.split)
        order = _reading_order(settings, corpus)
        windows = fixed_windows(validation, settings.windows.length, settings.validation.windows)
        teachers = _open_teachers(settings, corpus, accelerator.device)
        inputs = _inputs(corpus, validation, teachers)
        run = Run(settings.output, identity_of_run(settings, inputs))
        with sole_writer(settings.output) if accelerator.is_main_process else contextlib.nullcontext():
            if accelerator.is_main_process:
                run.begin(settings, inputs)
            accelerator.wait_for_everyone()
            if (result := run.result()) is None:
                names = {"wandb": {"name": run.directory.name}}
                accelerator.init_trackers("palenka", config=_flat(settings.as_plain()), init_kwargs=names)
                result = Trainer(settings, run, accelerator, corpus, order, teachers, windows).fit()
            elif accelerator.is_main_process:
                run.require_whole()
                info(f"{settings.output} is finished already; delete it to train it again")
            accelerator.wait_for_everyone()
        return result
    except OSError as error:
        raise UserError(
            f"cannot train {settings.output}: {error.strerror or error} {error.filename or ''}; "
            "fix that and run it again"
        ) from error
    finally:
        accelerator.end_training()
        # The next run in this process may compute in another precision.
        AcceleratorState._reset_state()


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
    state = open_processes(settings.device)
    if settings.precision == "fp16" and state.device.type != "cuda":
        raise UserError(f"precision fp16 needs a CUDA GPU; choose bf16 or float32 on {state.device.type}")
    if settings.global_batch % state.num_processes:
        raise UserError(
            f"global_batch is {settings.global_batch}, but there are {state.num_processes} processes; "
            "make it a multiple of their number"
        )
    return Accelerator(
        # Said here, though they are accelerate's defaults: it would take them from the environment.
        mixed_precision="no" if settings.precision == "float32" else settings.precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        log_with=list(settings.trackers) or None,
        project_dir=settings.output,
        # Hidden states alone leave the last layers, and an untied head, without a gradient.
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                find_unused_parameters=_leaves_parameters_unused(settings), broadcast_buffers=False
            )
        ],
    )


def _leaves_parameters_unused(settings: TrainSettings) -> bool:
    return not any(term.trains_all for term in settings.objective.active.values())


def _reading_order(settings: TrainSettings, corpus: Corpus) -> ReadingOrder:
    require_positions("model", settings.model.max_position_embeddings, settings.windows.length)
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


def _open_teachers(settings: TrainSettings, corpus: Corpus, device: torch.device) -> Teachers:
    """The teachers whose terms have a weight, fit for the student."""
    teachers = open_teachers(settings, corpus, device)
    fit = TermFit(settings.model.hidden_size, teachers.pairs, settings.micro_batch, teachers.num_positions)
    for term in settings.objective.active.values():
        term.require_fit(fit)
    return teachers


def _inputs(corpus: Corpus, validation: Corpus, teachers: Teachers) -> RunInputs:
    return RunInputs.model_validate(
        {
            "corpus": corpus.fingerprint,
            "validation": validation.fingerprint,
            "tokenizer": corpus.tokenizer_hash,
            "teachers": teachers.identities,
        }
    )
