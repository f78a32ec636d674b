"""The records of a run: its inputs, its result, and the views of both for readers.

`palenka.train_student.run` writes and reads these.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palenka.data.model_files import config_of
from palenka.data.signals.manifest import TeacherIdentity
from palenka.ground.call import Call
from palenka.ground.settings import Settings
from palenka.train_student.going_on import compared
from palenka.train_student.settings import TrainSettings
from palenka.train_student.words import WordsRead

Series = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps, and a metric's value at each."""


class RunInputs(Settings):
    """The inputs of a run by fingerprint, independent of their paths."""

    corpus: str
    """Fingerprint of the text."""
    validation: str
    """Fingerprint of the validation text."""
    tokenizer: str
    """Hash of the tokenizer."""
    origin: TeacherIdentity | None = None
    """The model whose weights it started from; None for random ones."""
    teachers: dict[str, dict[str, Any]]
    """Each teacher by name: a cache's manifest, or the identities of a live teacher's models."""

    @property
    def teacher_weights(self) -> set[str]:
        """The hashes of the teachers' weights."""
        # A manifest has its models in one field; a live teacher's entry has only its models.
        models = (said.get("teachers", said) for said in self.teachers.values())
        return {identity["weights"] for named in models for identity in named.values()}


def identity_of_run(settings: TrainSettings, inputs: RunInputs) -> str:
    """The identity of a run: a hash of the settings that decide its weights, and of its inputs."""
    decides: dict[str, object] = {"settings": compared(settings.as_plain(), settings), "inputs": inputs.as_plain()}
    if settings.optimizer.schedule == "cosine":  # only its first steps depend on the epochs
        decides["epochs"] = settings.epochs
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class RunResult(Settings):
    """The result of a run."""

    parameters: int
    """Trained numbers of the model."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens read, over all epochs."""
    words: WordsRead
    """Words read, and the words of their corpus."""
    learnt_from: dict[str, WordsRead | None]
    """Words read by its teachers, and by the model that it started from (`palenka.train_student.learnt_from`)."""
    best_step: int
    """The step of the best model."""
    validation_cross_entropy: float
    """Validation cross-entropy of that model, in nats per token."""
    seconds: float
    """Seconds of training, over all calls."""
    tokens_per_second: float
    """Tokens read per second of training."""


class Best(Settings):
    """The best model of a run so far."""

    step: int
    """The step at which it was validated."""
    validation_cross_entropy: float
    """Its validation cross-entropy, in nats per token."""


class Logged(Settings):
    """The length and the checksum of the metrics so far."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class _AnyRun:
    """The contents of a run, finished or not.

    Attributes:
        directory: where it lies.
        settings: of its training.
        metrics: every logged number by its name.
        calls: that trained it, in order.
    """

    directory: Path
    settings: TrainSettings
    metrics: Mapping[str, Series]
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class FinishedRun(_AnyRun):
    """The contents of a finished run: those of any, and what came of it.

    Attributes:
        inputs: their fingerprints.
        result: of the training.
        weights: the hash of its tensors; None if they were deleted.
    """

    inputs: RunInputs
    result: RunResult
    weights: str | None

    @property
    def shape(self) -> str:
        """Family, depth and width of the model, such as ``llama 6 × 256``; its settings if the model was deleted."""
        if not (self.directory / "config.json").is_file():
            return self.settings.model.summary()
        config = config_of(self.directory).get_text_config()
        return f"{config.model_type} {config.num_hidden_layers} × {config.hidden_size}"

    def tokens_at(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens read up to given steps."""
        return steps * self.settings.global_batch * self.settings.windows.length

    def reads_like(self, other: "FinishedRun") -> bool:
        """Whether both runs read the same windows in the same order."""
        return self._reading() == other._reading()

    def _reading(self) -> tuple[object, ...]:
        settings = self.settings
        windows = (settings.windows, settings.fraction, settings.epochs, settings.global_batch, settings.seed)
        return (self.inputs.corpus, *windows)


@dataclass(frozen=True)
class BegunRun(_AnyRun):
    """The contents of an unfinished run: those of any, and how far it is.

    Attributes:
        step: the last one that it logged; 0 before the first.
        checkpoint: the step at which it resumes; 0 for the beginning.
    """

    step: int
    checkpoint: int
