"""A run on disk: resolved settings, the best model in Hugging Face format, metrics, and the result, written last.

config.yaml            resolved settings
inputs.json            fingerprints of the corpus and of the teachers
config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
projections.safetensors  projections and heads trained beside the model, if there are any
model.commit.json      checksums of these model files, their step and their run
metrics.jsonl          a line for every logged step and every validation
calls.jsonl            a line for every call that trained it: time, command, machine and versions
revisions/             models kept during training, if requested (`revisions.py`)
checkpoints/           where an interrupted run resumes; each has checksums and the identity of its run
result.json            the result, and checksums of all files but the checkpoints; exists once the run is finished

`Run` writes these files, and `Run.read` reads a finished run.
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
        identity: from `identity_of_run`; not needed to read a finished run.
    """

    def __init__(self, directory: Path, identity: str = "") -> None:
        self.directory = directory
        self.identity = identity

    @classmethod
    def open(cls, directory: str | Path) -> FinishedRun:
        """The contents of a finished run. Reads its weights once, about 1 s per gigabyte.

        Raises:
            UserError: if there is no run, it is not finished, or a file of it was changed.
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
        """The result that `finish` recorded; None while the run is not finished.

        Raises:
            UserError: if the record is damaged.
        """
        path = self.directory / _RESULT
        if not path.is_file():
            return None
        return read_as(RunResult, read_commit(self.directory, _RESULT, f"restore it, or {_REMEDY}"), path)

    def require_whole(self) -> None:
        """Refuse a finished run with a changed file. Reads all weights once, including those of revisions.

        Raises:
            UserError: with the file.
        """
        if damage := damage_of(self.directory, _RESULT):
            raise UserError(f"run {self.directory} is damaged: {damage}; restore that file, or {_REMEDY}")
        for place in Revisions(self.directory).places():
            require_untouched(place)

    def read(self) -> FinishedRun | None:
        """The contents of the run; None while it is not finished. Reads its weights once, about 1 s per gigabyte.

        Raises:
            UserError: if a file of it cannot be read or was changed; its weights may have been deleted.
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
        """The contents of an unfinished run: running, or interrupted.

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
        """Every logged number by its name; those that were not finite are omitted.

        An incomplete last line is still being written, or its process was killed: it is ignored.

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
        """The calls that trained the run, in order; none if they were not recorded.

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
        """The result, if the run is finished with these settings and inputs; else None. Writes nothing.

        Raises:
            UserError: if it is finished with others.
        """
        result = self.result()
        if result is None or self._grows(settings):
            return None
        self.require_settings(settings)
        self._require_inputs(inputs)
        return result

    def begin(self, settings: TrainSettings, inputs: RunInputs) -> None:
        """Create the directory, or require that its run can resume with these settings and inputs.

        Args:
            settings: of the run, with the paths of its inputs.
            inputs: the fingerprints of these inputs.

        Raises:
            UserError: if it holds a run with other settings or inputs, or something else.
        """
        path = self.directory / _CONFIG
        remove_leftovers(self.directory)
        has_inputs = self.require_fit(settings, inputs)
        if path.is_file():
            if self._grows(settings):
                # The result is removed first: with the new settings it would count as theirs.
                (self.directory / _RESULT).unlink(missing_ok=True)
            if self.result() is None:
                settings.write_yaml(path)
        else:
            self.directory.mkdir(parents=True, exist_ok=True)
            settings.write_yaml(path)
        if not has_inputs:
            write_sealed(self.directory / _INPUTS, inputs.as_plain())

    def require_fit(self, settings: TrainSettings, inputs: RunInputs) -> bool:
        """Refuse a directory that cannot resume with these settings and inputs; returns whether it has recorded inputs.

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
        """Require that the run was begun with these inputs, if they are recorded; returns whether they are."""
        path = self.directory / _INPUTS
        if path.is_file():
            found = read_sealed(path, f"restore it, or {_REMEDY}")
            refuse_difference(f"run {self.directory}", inputs.as_plain(), found, _REMEDY)
        return path.is_file()

    def require_settings(self, settings: TrainSettings) -> None:
        """Require that the directory's run, if there is one, can resume with these settings.

        Only options that change no step may differ, and the epochs may be more if the schedule allows it.

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
        """The length and checksum of the metrics so far."""
        path = self.directory / _METRICS
        content = path.read_bytes() if path.is_file() else b""
        return Logged(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    def cut_metrics(self, logged: Logged) -> None:
        """Remove the lines logged after the checkpoint from which a run resumes.

        Raises:
            UserError: if earlier lines are missing or were changed.
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
        """Write a model and an exact copy of the corpus's tokenizer, so that both load with `from_pretrained`.

        Projections and heads lie beside it. All are written under temporary names first. The old record is removed
        first, the weights are replaced last, and then the new record is written: so a record that does not match its
        files means damage, not a kill.
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
        """The best model so far; None without one, or if the process was killed while it was replaced.

        Raises:
            UserError: if it is damaged, or belongs to another run.
        """
        path = self.directory / MODEL_RECORD
        if not path.is_file():
            return None
        if damage := damage_of(self.directory, MODEL_RECORD, run=self.identity):
            raise UserError(f"run {self.directory} is damaged: {damage}; restore that file, or {_REMEDY}")
        facts = read_commit(self.directory, MODEL_RECORD)
        return read_as(Best, {name: facts[name] for name in Best.model_fields}, path)

    def finish(self, result: RunResult) -> None:
        """Record the result and the checksums of the run's files; from here on it is finished.

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
