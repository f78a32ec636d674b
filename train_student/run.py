"""A run on disk: resolved settings, the best model in Hugging Face format, metrics, and the result, written last.

config.yaml            resolved settings
inputs.json            fingerprints of the corpus and of the teachers
config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
projections.safetensors  projections and heads, what was trained beside the model; not there without any
metrics.jsonl          a line for every logged step and every validation
checkpoints/           what an interrupted run goes on from
result.json            what came of it: there once the run is whole
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import directory_aside, read_record, remove_leftovers, write_record
from palenka.ground.settings import read_yaml
from palenka.train_student.settings import TrainSettings

_LAST = "model.safetensors"
_METRICS = "metrics.jsonl"
_REMEDY = "delete it or choose another output"


class Run:
    """The directory of a training run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def result(self) -> dict[str, Any] | None:
        """What `finish` recorded; None while the run is not whole."""
        path = self.directory / "result.json"
        return read_record(path) if path.is_file() else None

    def begin(self, settings: TrainSettings, inputs: dict[str, Any]) -> None:
        """Make the directory, or make sure that what it holds was begun with the same settings and inputs.

        Args:
            settings: of the run; they name its inputs by path.
            inputs: what is at these paths: fingerprints of the corpus and of the caches.

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
            refuse_difference(f"run {self.directory}", inputs, read_record(recorded), _REMEDY)
        else:
            write_record(recorded, inputs)

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

    def finish(self, result: dict[str, Any]) -> None:
        """Record what came of the run; from here on it is whole."""
        write_record(self.directory / "result.json", result)


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that change no weight: a run may be moved, and go on on another device."""
    return {name: value for name, value in settings.items() if name not in ("output", "device", "plugins")}
