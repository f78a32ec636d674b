"""A run on disk: resolved settings, the best model in Hugging Face format, metrics, and the result, written last.

config.yaml            resolved settings
inputs.json            fingerprints of the corpus and of the teachers
config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
projections.safetensors  projections and heads, what was trained beside the model; not there without any
metrics.jsonl          a line for every logged step and every validation
checkpoints/           what an interrupted run goes on from
result.json            what came of it: there once the run is whole

`Run` writes them; `Run.read` gives all that a finished one says.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.data.model_files import identity_of
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import directory_aside, read_record, remove_leftovers, write_record
from palenka.ground.settings import Settings, read_as, read_yaml
from palenka.train_student.settings import TrainSettings

_LAST = "model.safetensors"
_METRICS = "metrics.jsonl"
_REMEDY = "delete it or choose another output"

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
    teachers: dict[str, dict[str, Any]]
    """What each teacher was by name: a cache's manifest, or the identities of a live teacher's models."""

    @property
    def teacher_weights(self) -> set[str]:
        """The hashes of the teachers' weights."""
        # A manifest has its models in a field of its own; of a live teacher they are all there is.
        models = (said.get("teachers", said) for said in self.teachers.values())
        return {identity["weights"] for named in models for identity in named.values()}


class RunResult(Settings):
    """What came of a run."""

    parameters: int
    """Trained numbers of the model."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens read, over all epochs."""
    best_step: int
    """After which the model that is kept was validated."""
    validation_cross_entropy: float
    """Of that model, in nats per token."""
    seconds: float
    """Of the training, over all its calls."""
    tokens_per_second: float
    """Tokens read in one of them."""


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
    """

    directory: Path
    settings: TrainSettings
    inputs: RunInputs
    result: RunResult
    weights: str | None
    metrics: Mapping[str, Series]

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


class Run:
    """The directory of a training run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def is_begun(self) -> bool:
        """Whether the directory holds a run, finished or not."""
        return all((self.directory / name).is_file() for name in ("config.yaml", _METRICS))

    def result(self) -> RunResult | None:
        """What `finish` recorded; None while the run is not whole."""
        path = self.directory / "result.json"
        return read_as(RunResult, read_record(path), path) if path.is_file() else None

    def read(self) -> FinishedRun | None:
        """All that the run says; None while it is not whole. Reads its weights once, about 1 s a gigabyte.

        Raises:
            UserError: if a file of it cannot be read.
        """
        result = self.result()
        if result is None:
            return None
        config, inputs = self.directory / "config.yaml", self.directory / "inputs.json"
        has_weights = any(self.directory.glob("model*.safetensors"))
        return FinishedRun(
            directory=self.directory,
            settings=read_as(TrainSettings, read_yaml(config), config),
            inputs=read_as(RunInputs, read_record(inputs), inputs),
            result=result,
            weights=identity_of(self.directory, "float32").weights if has_weights else None,
            metrics=self.metrics(),
        )

    def metrics(self) -> dict[str, Series]:
        """Every logged number by its name; those that were not finite are left out.

        Raises:
            UserError: if a line is damaged.
        """
        path = self.directory / _METRICS
        points: dict[str, list[tuple[float, float]]] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                values = json.loads(line)
                step = float(values.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{path} is damaged: line {number} is not a JSON object with a step; fix it") from None
            for name, value in values.items():
                if isinstance(value, int | float):
                    points.setdefault(name, []).append((step, float(value)))
        return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}

    def begin(self, settings: TrainSettings, inputs: RunInputs) -> None:
        """Make the directory, or make sure that what it holds was begun with the same settings and inputs.

        Args:
            settings: of the run; they name its inputs by path.
            inputs: what is at these paths.

        Raises:
            UserError: if it holds a run with other settings or inputs, or something else.
        """
        path = self.directory / "config.yaml"
        remove_leftovers(self.directory)
        if path.is_file():
            self.require_settings(settings)
        elif self.directory.exists() and any(self.directory.iterdir()):
            raise UserError(f"{self.directory} is not empty and not a run; choose another output")
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            settings.write_yaml(path)
        recorded = self.directory / "inputs.json"
        if recorded.is_file():
            refuse_difference(f"run {self.directory}", inputs.as_plain(), read_record(recorded), _REMEDY)
        else:
            write_record(recorded, inputs.as_plain())

    def require_settings(self, settings: TrainSettings) -> None:
        """Make sure that what the directory holds, if anything, was begun with these settings.

        Raises:
            UserError: if it was begun with others.
        """
        path = self.directory / "config.yaml"
        if path.is_file():
            refuse_difference(
                f"run {self.directory}", _compared(settings.as_plain()), _compared(read_yaml(path)), _REMEDY
            )

    def metrics_bytes(self) -> int:
        """How long the metrics are."""
        path = self.directory / _METRICS
        return path.stat().st_size if path.is_file() else 0

    def cut_metrics(self, num_bytes: int) -> None:
        """Remove the metrics after so many bytes: what was logged after the checkpoint that a run goes on from."""
        if self.metrics_bytes() > num_bytes:
            os.truncate(self.directory / _METRICS, num_bytes)

    def log(self, line: Mapping[str, float]) -> None:
        """Append a line to the metrics."""
        with (self.directory / _METRICS).open("a", encoding="utf-8") as file:
            # A gradient may overflow in fp16: the step is skipped then, and JSON has no infinity.
            finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
            file.write(json.dumps(finite, allow_nan=False) + "\n")

    def save_model(self, model: PreTrainedModel, beside: Mapping[str, Tensor], corpus: Corpus) -> None:
        """Keep a model, and the corpus's tokenizer as it is, so that both load with `from_pretrained`.

        What was trained beside it lies beside it. Written aside first; the weights replace the old ones last.
        """
        with directory_aside(self.directory / "model") as aside:
            model.save_pretrained(aside)
            if beside:
                weights = {name: weight.detach().contiguous() for name, weight in beside.items()}
                save_file(weights, aside / "projections.safetensors")
            for path in (corpus.directory / "tokenizer").iterdir():
                shutil.copyfile(path, aside / path.name)
            for path in sorted(aside.iterdir(), key=lambda path: path.name == _LAST):
                path.replace(self.directory / path.name)

    def finish(self, result: RunResult) -> None:
        """Record what came of the run; from here on it is whole."""
        write_record(self.directory / "result.json", result.as_plain())


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that change no weight: a run may be moved, and go on on another device."""
    return {name: value for name, value in settings.items() if name not in ("output", "device", "plugins")}
