"""What a run says of itself: what it was made from, what came of it, and all of both that a reader may ask for.

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
"""Steps, and a metric's value at each of them."""


class RunInputs(Settings):
    """What a run was made from, whatever path it lay at."""

    corpus: str
    """Fingerprint of the text."""
    validation: str
    """Fingerprint of the validation text."""
    tokenizer: str
    """Hash of the tokenizer."""
    origin: TeacherIdentity | None = None
    """The model whose weights it went on from; None for random ones."""
    teachers: dict[str, dict[str, Any]]
    """What each teacher was by name: a cache's manifest, or the identities of a live teacher's models."""

    @property
    def teacher_weights(self) -> set[str]:
        """The hashes of the teachers' weights."""
        # A manifest has its models in a field of its own; of a live teacher they are all there is.
        models = (said.get("teachers", said) for said in self.teachers.values())
        return {identity["weights"] for named in models for identity in named.values()}


def identity_of_run(settings: TrainSettings, inputs: RunInputs) -> str:
    """What makes a run the same run: a hash of the settings that decide its weights, and of its inputs."""
    decides: dict[str, object] = {"settings": compared(settings.as_plain(), settings), "inputs": inputs.as_plain()}
    if settings.optimizer.schedule == "cosine":  # other schedules' first steps do not know how many there will be
        decides["epochs"] = settings.epochs
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


class RunResult(Settings):
    """What came of a run."""

    parameters: int
    """Trained numbers of the model."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens read, over all epochs."""
    words: WordsRead
    """Words read, and those of the text that they are of."""
    learnt_from: dict[str, WordsRead | None]
    """Words that its teachers, and the model it went on from, have read (`palenka.train_student.learnt_from`)."""
    best_step: int
    """After which the model that is kept was validated."""
    validation_cross_entropy: float
    """Of that model, in nats per token."""
    seconds: float
    """Of the training, over all its calls."""
    tokens_per_second: float
    """Tokens read in one of them."""


class Best(Settings):
    """The model that a run keeps."""

    step: int
    """After which it was validated."""
    validation_cross_entropy: float
    """In nats per token."""


class Logged(Settings):
    """How far the metrics were written, and what they were."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class FinishedRun:
    """All that a finished run says.

    Attributes:
        directory: where it lies.
        settings: of its training.
        inputs: what it was made from.
        result: what came of it.
        weights: the hash of its tensors; None where they were deleted.
        metrics: every logged number by its name.
        calls: that trained it, the first one first.
    """

    directory: Path
    settings: TrainSettings
    inputs: RunInputs
    result: RunResult
    weights: str | None
    metrics: Mapping[str, Series]
    calls: tuple[Call, ...]

    @property
    def shape(self) -> str:
        """Family, depth and width of the model, such as ``llama 6 × 256``; how it was begun where it was deleted."""
        if not (self.directory / "config.json").is_file():
            return self.settings.model.summary()
        config = config_of(self.directory).get_text_config()
        return f"{config.model_type} {config.num_hidden_layers} × {config.hidden_size}"

    def tokens_at(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens that were read up to some steps."""
        return steps * self.settings.global_batch * self.settings.windows.length

    def reads_like(self, other: "FinishedRun") -> bool:
        """Whether both runs read the same windows in the same order."""
        return self._reading() == other._reading()

    def _reading(self) -> tuple[object, ...]:
        settings = self.settings
        windows = (settings.windows, settings.fraction, settings.epochs, settings.global_batch, settings.seed)
        return (self.inputs.corpus, *windows)


@dataclass(frozen=True)
class BegunRun:
    """What a run says that is not finished.

    Attributes:
        directory: where it lies.
        settings: of its training.
        step: the last one that it logged; 0 before the first.
        checkpoint: the step that it goes on from; 0 for the beginning.
        metrics: every logged number by its name.
        calls: that trained it, the first one first.
    """

    directory: Path
    settings: TrainSettings
    step: int
    checkpoint: int
    metrics: Mapping[str, Series]
    calls: tuple[Call, ...]
