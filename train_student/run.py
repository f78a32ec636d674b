"""A run on disk: resolved settings, the best model in Hugging Face format, metrics, and the result, written last.

config.yaml            resolved settings
inputs.json            fingerprints of the corpus and of the teachers
config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
projections.safetensors  projections and heads, what was trained beside the model; not there without any
model.commit.json      checksums of these model files, the step that they are of, and the run
metrics.jsonl          a line for every logged step and every validation
calls.jsonl            a line for every call that trained it: when, by which command, on what, with which versions
revisions/             models on the way, where they were asked for (`revisions.py`)
checkpoints/           what an interrupted run goes on from, each with checksums and the run that it is of
result.json            what came of it, and checksums of all but the checkpoints: there once the run is whole

`Run` writes them; `Run.read` gives all that a finished one says.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.data.model_files import MODEL_RECORD, commit_model, identity_of, require_untouched, write_model
from palenka.ground.call import Call
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import directory_aside, disk_errors, read_text, remove_leftovers, write_whole
from palenka.ground.records import (
    commit,
    committed_files,
    damage_of,
    damages_of,
    load_json,
    read_commit,
    read_sealed,
    write_sealed,
)
from palenka.ground.settings import path_of, read_as, read_yaml
from palenka.train_student.checkpoint import Checkpoints
from palenka.train_student.going_on import require_going_on
from palenka.train_student.revisions import Revisions
from palenka.train_student.run_facts import BegunRun, Best, FinishedRun, Logged, RunInputs, RunResult, Series
from palenka.train_student.settings import TrainSettings

_LAST = "model.safetensors"
_CONFIG, _INPUTS, _METRICS, _RESULT = "config.yaml", "inputs.json", "metrics.jsonl", "result.json"
_CALLS = "calls.jsonl"
_REMEDY = "delete it or choose another output"


class Run:
    """The directory of a training run.

    Args:
        directory: of the run.
        identity: what `identity_of_run` says of it; not needed to read a finished one.
    """

    def __init__(self, directory: Path, identity: str = "") -> None:
        self.directory = directory
        self.identity = identity

    @classmethod
    def open(cls, directory: str | Path) -> FinishedRun:
        """All that a finished run says. Reads its weights once, about 1 s a gigabyte.

        Raises:
            UserError: if there is no run, it is not finished, or a file of it is not as it was recorded.
        """
        run = cls(path_of(directory))
        if not run.is_begun():
            raise UserError(f"{run.directory} is not a run: it has no {_CONFIG} and {_METRICS}; give a run's directory")
        if (finished := run.read()) is None:
            raise UserError(f"run {run.directory} is not finished; train it to its end, or look at Run.so_far()")
        return finished

    def is_begun(self) -> bool:
        """Whether the directory holds a run, finished or not."""
        return all((self.directory / name).is_file() for name in (_CONFIG, _METRICS))

    def result(self) -> RunResult | None:
        """What `finish` recorded; None while the run is not whole.

        Raises:
            UserError: if the record is damaged.
        """
        path = self.directory / _RESULT
        if not path.is_file():
            return None
        return read_as(RunResult, read_commit(self.directory, _RESULT, f"restore it, or {_REMEDY}"), path)

    def require_whole(self) -> None:
        """Refuse a finished run of which a file is not as it was recorded. Reads all weights once, of revisions too.

        Raises:
            UserError: naming the file.
        """
        if damage := damage_of(self.directory, _RESULT):
            raise UserError(f"run {self.directory} is damaged: {damage}; restore that file, or {_REMEDY}")
        for place in Revisions(self.directory).places():
            require_untouched(place)

    def read(self) -> FinishedRun | None:
        """All that the run says; None while it is not whole. Reads its weights once, about 1 s a gigabyte.

        Raises:
            UserError: if a file of it cannot be read, or is not as it was recorded; its weights may be gone.
        """
        result = self.result()
        if result is None:
            return None
        has_weights = any(self.directory.glob("model*.safetensors"))
        for name, damage in damages_of(self.directory, _RESULT):
            if has_weights or name != _LAST:
                raise UserError(f"run {self.directory} is damaged: {damage}; restore that file, or {_REMEDY}")
        config, inputs = self.directory / _CONFIG, self.directory / _INPUTS
        return FinishedRun(
            directory=self.directory,
            settings=read_as(TrainSettings, read_yaml(config), config),
            inputs=read_as(RunInputs, read_sealed(inputs), inputs),
            result=result,
            weights=identity_of(self.directory, "float32").weights if has_weights else None,
            metrics=self.metrics(),
            calls=self.calls(),
        )

    def so_far(self) -> BegunRun:
        """What a run says that is not finished: running, or interrupted.

        Raises:
            UserError: if a file of it cannot be read.
        """
        config = self.directory / _CONFIG
        metrics = self.metrics() if (self.directory / _METRICS).is_file() else {}
        checkpoints = Checkpoints(self.directory / "checkpoints", self.identity)
        return BegunRun(
            directory=self.directory,
            settings=read_as(TrainSettings, read_yaml(config), config),
            step=int(max((steps[-1] for steps, _ in metrics.values()), default=0)),
            checkpoint=checkpoints.last_step(),
            metrics=metrics,
            calls=self.calls(),
        )

    def metrics(self) -> dict[str, Series]:
        """Every logged number by its name; those that were not finite are left out.

        A last line that is not at its end is being written, or was when its process was killed: it does not count yet.

        Raises:
            UserError: if another line is damaged.
        """
        path = self.directory / _METRICS
        points: dict[str, list[tuple[float, float]]] = {}
        whole, _, _ = read_text(path).rpartition("\n")
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                values = load_json(line)
                step = float(values.pop("step"))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{path} is damaged: line {number} is not a JSON object with a step; fix it") from None
            for name, value in values.items():
                if isinstance(value, int | float):
                    points.setdefault(name, []).append((step, float(value)))
        return {name: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]) for name, pairs in points.items()}

    def note(self, call: Call) -> None:
        """Add a call to those that trained the run."""
        calls = (*self.calls(), call)
        write_whole(self.directory / _CALLS, "".join(f"{json.dumps(each.as_plain())}\n" for each in calls))

    def calls(self) -> tuple[Call, ...]:
        """The calls that trained the run, the first one first; none where that was not noted.

        Raises:
            UserError: if the file is damaged.
        """
        path = self.directory / _CALLS
        if not path.is_file():
            return ()
        try:
            lines = [load_json(line) for line in read_text(path).splitlines()]
        except ValueError:
            raise UserError(f"{path} is damaged: it has a line that is no JSON; delete it") from None
        return tuple(read_as(Call, line, path) for line in lines)

    def finished(self, settings: TrainSettings, inputs: RunInputs) -> RunResult | None:
        """What came of the run, if it is whole with these settings and inputs; None if it is not. Nothing is written.

        Raises:
            UserError: if it is whole with others.
        """
        result = self.result()
        if result is None or self._grows(settings):
            return None
        self.require_settings(settings)
        self._require_inputs(inputs)
        return result

    def begin(self, settings: TrainSettings, inputs: RunInputs) -> None:
        """Make the directory, or make sure that what it holds can go on with these settings and inputs.

        Args:
            settings: of the run; they name its inputs by path.
            inputs: what is at these paths.

        Raises:
            UserError: if it holds a run with other settings or inputs, or something else.
        """
        path = self.directory / _CONFIG
        remove_leftovers(self.directory)
        has_inputs = self.require_fit(settings, inputs)
        if path.is_file():
            if self._grows(settings):
                # First: with the new settings it would be the result of these.
                (self.directory / _RESULT).unlink(missing_ok=True)
            if self.result() is None:
                settings.write_yaml(path)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            settings.write_yaml(path)
        if not has_inputs:
            write_sealed(self.directory / _INPUTS, inputs.as_plain())

    def require_fit(self, settings: TrainSettings, inputs: RunInputs) -> bool:
        """Refuse a directory that cannot go on with these settings and inputs; returns whether it says its inputs.

        Nothing is written.

        Raises:
            UserError: if it holds a run with others, or something else.
        """
        is_run = (self.directory / _CONFIG).is_file()
        if not is_run and self.directory.exists() and any(self.directory.iterdir()):
            raise UserError(f"{self.directory} is not empty and not a run; choose another output")
        self.require_settings(settings)
        return self._require_inputs(inputs)

    def _require_inputs(self, inputs: RunInputs) -> bool:
        """Make sure that the run, if it has said so yet, was begun with these inputs; returns whether it has."""
        path = self.directory / _INPUTS
        if path.is_file():
            found = read_sealed(path, f"restore it, or {_REMEDY}")
            refuse_difference(f"run {self.directory}", inputs.as_plain(), found, _REMEDY)
        return path.is_file()

    def require_settings(self, settings: TrainSettings) -> None:
        """Make sure that what the directory holds, if anything, was begun with settings that it can go on with.

        These are the same, but for what changes no step; and more epochs where the schedule allows that.

        Raises:
            UserError: if it was begun with others.
        """
        path = self.directory / _CONFIG
        if path.is_file():
            require_going_on(f"run {self.directory}", settings, read_yaml(path), _REMEDY)

    def _grows(self, settings: TrainSettings) -> bool:
        """Whether the run was begun for another number of epochs."""
        path = self.directory / _CONFIG
        return path.is_file() and read_yaml(path).get("epochs") != settings.epochs

    def metrics_so_far(self) -> Logged:
        """How far the metrics are written."""
        path = self.directory / _METRICS
        content = path.read_bytes() if path.is_file() else b""
        return Logged(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def cut_metrics(self, logged: Logged) -> None:
        """Remove what was logged after the checkpoint that a run goes on from.

        Raises:
            UserError: if what was logged before is not there, or was changed.
        """
        path = self.directory / _METRICS
        content = path.read_bytes()[: logged.bytes] if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != logged.sha256:
            raise UserError(
                f"{path} is damaged: it is not what the checkpoint was made beside; restore it, or delete "
                f"{self.directory} to train from the beginning"
            )
        if path.is_file():
            os.truncate(path, logged.bytes)

    def log(self, line: Mapping[str, float]) -> None:
        """Append a line to the metrics."""
        with (self.directory / _METRICS).open("a", encoding="utf-8") as file:
            # A gradient may overflow in fp16: the step is skipped then, and JSON has no infinity.
            finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
            file.write(json.dumps(finite, allow_nan=False) + "\n")

    def save_model(self, model: PreTrainedModel, beside: Mapping[str, Tensor], corpus: Corpus, best: Best) -> None:
        """Keep a model, and the corpus's tokenizer as it is, so that both load with `from_pretrained`.

        What was trained beside it lies beside it. Written aside first; the weights replace the old ones last, and then
        their record is written. The old record goes first, so one that does not fit its files is damage, not a kill.
        """
        with directory_aside(self.directory / "model") as aside, disk_errors():
            if beside:
                weights = {name: weight.detach().contiguous() for name, weight in beside.items()}
                save_file(weights, aside / "projections.safetensors")
            write_model(model, corpus, aside)
            files = sorted(aside.iterdir(), key=lambda path: path.name == _LAST)
            (self.directory / MODEL_RECORD).unlink(missing_ok=True)
            for path in files:
                path.replace(self.directory / path.name)
        commit_model(self.directory, sorted(path.name for path in files), run=self.identity, **best.as_plain())

    def best(self) -> Best | None:
        """The model that is kept; None without one, or if the process was killed while one took its place.

        Raises:
            UserError: if it is damaged, or of another run.
        """
        path = self.directory / MODEL_RECORD
        if not path.is_file():
            return None
        if damage := damage_of(self.directory, MODEL_RECORD, run=self.identity):
            raise UserError(f"run {self.directory} is damaged: {damage}; restore that file, or {_REMEDY}")
        facts = read_commit(self.directory, MODEL_RECORD)
        return read_as(Best, {name: facts[name] for name in Best.model_fields}, path)

    def finish(self, result: RunResult) -> None:
        """Record what came of the run, and checksums of its files; from here on it is whole.

        Raises:
            UserError: if the model on disk is not that of the best step.
        """
        best = self.best()
        if best is None or best.step != result.best_step:
            raise UserError(
                f"run {self.directory} lost the model of its best step, {result.best_step}; delete the run and train "
                "it again"
            )
        files = [_CONFIG, _INPUTS, _METRICS, _CALLS, MODEL_RECORD, *committed_files(self.directory, MODEL_RECORD)]
        files += Revisions(self.directory).records()
        commit(self.directory, _RESULT, files, **result.as_plain())
