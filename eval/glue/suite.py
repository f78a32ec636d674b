"""The suite of fine-tuned tasks: tasks and seeds, kept results of finished ones, and figures."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palenka.eval.glue.metrics import Integers, Known, Metric, accuracy, difference_over_seeds, f1, mcc, mean_over_seeds
from palenka.eval.glue.tasks import TASKS, GlueTask, TaskData, TaskName, files_of, read_task
from palenka.eval.statistics import difference_row, mean_standard_error, normal_interval
from palenka.eval.suite import (
    Conditions,
    Figure,
    Measured,
    PredictionFiles,
    Score,
    Suite,
    by_task,
    column,
    hash_of_files,
)
from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers_of
from palenka.ground.progress import info, progress_bar
from palenka.ground.records import read_sealed, write_sealed

if TYPE_CHECKING:
    import pyarrow as pa

    from palenka.eval.model import EvaluatedModel

GlueData = dict[TaskName, TaskData]


class Glue(Suite[GlueData]):
    """Seven tasks of (Super)GLUE, each fine-tuned with each seed.

    A row of its items is a validation example: its ``label``, and the ``prediction_SEED`` of each seed.
    """

    title = "GLUE"
    folders = ("glue_filtered", "glue")
    patterns = ("*.valid.jsonl",)
    column = "GLUE"

    def fingerprint(self, folder: Path, conditions: Conditions) -> str:
        """Fingerprint of the files of the measured tasks."""
        return hash_of_files(file for task in self._tasks(folder, conditions) for file in files_of(folder, task))

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """The seeds, and the limit if there is one."""
        limit = {} if conditions.limit is None else {"limit": conditions.limit}
        return {"seeds": " ".join(map(str, conditions.seeds)), **limit}

    def read(self, folder: Path, conditions: Conditions) -> GlueData:
        """The examples of every requested task; or of all with files, naming those without."""
        if absent := [task for task in TASKS if not all(file.is_file() for file in files_of(folder, task))]:
            named = [task for task in absent if task in conditions.tasks]
            if named or len(absent) == len(TASKS):
                lacking = next(file for file in files_of(folder, (named or absent)[0]) if not file.is_file())
                raise UserError(f"{lacking} is not there; get it with the official data, or choose other --tasks")
            if not conditions.tasks:
                info(f"{folder} has not both files of {', '.join(absent)}: the mean is over the other tasks alone")
        return {task: read_task(folder, task, conditions.limit) for task in self._tasks(folder, conditions)}

    def measure(self, data: GlueData, model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """The predictions of every task and seed, without keeping results."""
        return self.measure_resumably(data, model, conditions, None)

    def measure_resumably(
        self, data: GlueData, model: "EvaluatedModel", conditions: Conditions, kept: Path | None
    ) -> "pa.Table":
        """The predictions of every task and seed; the result of each is kept in its own file."""
        import pyarrow as pa

        tables = []
        for task, examples in data.items():
            columns: dict[str, Any] = {"task": [task] * len(examples.valid), "index": range(len(examples.valid))}
            columns["label"] = [example.label for example in examples.valid]
            for seed in conditions.seeds:
                columns[f"prediction_{seed}"] = _predictions(task, examples, model, seed, kept)
            tables.append(pa.table(columns))
        return pa.concat_tables(tables)

    def figures(self, items: "pa.Table") -> Measured:
        """The mean over tasks of each one's metric in tables; accuracy, F1 and Matthews' correlation of all."""
        known: dict[str, dict[str, Known]] = {name: {} for name in _METRICS}
        deviations: dict[str, float] = {}
        for task, labels, predictions in _of_tasks(items):
            for name, metric in _METRICS.items():
                if (chosen := metric or _metric_of(task)) is not f1 or name == "score" or TASKS[task].labels == 2:
                    known[name][task] = mean_over_seeds(chosen, labels, predictions)
            if (deviation := known["score"][task].deviation) is not None:
                deviations[f"{task}_seed_deviation"] = deviation
        counts = {task: len(places) for task, places in by_task(items)}
        figures = {name: _figure(of_tasks, counts) for name, of_tasks in known.items() if of_tasks}
        return Measured(figures=figures, facts={"tasks": len(counts), **deviations})

    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """The difference of the means over tasks, with its error from examples and seeds; and that of each task."""
        rows, errors = {}, []
        for (task, labels, first), (_, _, second) in zip(_of_tasks(ours), _of_tasks(theirs), strict=True):
            metric = _metric_of(task)
            difference = difference_over_seeds(metric, labels, first, second)
            levels = [mean_over_seeds(metric, labels, each).value for each in (first, second)]
            rows[str(task)] = _row(len(labels), levels, difference.value, difference.error)
            errors.append(difference.error)
        levels = [float(np.mean([row[side] for row in rows.values()])) for side in ("first", "second")]
        return _row(len(ours), levels, levels[0] - levels[1], mean_standard_error(errors)) | {"tasks": rows}

    def predictions(self, folder: Path, data: GlueData, items: "pa.Table") -> PredictionFiles:
        """The labels that the first seed predicts; a file for each task."""
        return {
            f"finetune/{task}/predictions.json": {
                task: {
                    "predictions": [
                        {"id": f"{task}_{number}", "pred": label} for number, label in enumerate(found[:, 0].tolist())
                    ]
                }
            }
            for task, _, found in _of_tasks(items)
        }

    def _tasks(self, folder: Path, conditions: Conditions) -> list[TaskName]:
        asked = conditions.tasks or tuple(TASKS)
        return [task for task in asked if all(file.is_file() for file in files_of(folder, task))]


_METRICS: Mapping[str, Metric | None] = {"score": None, "accuracy": accuracy, "f1": f1, "mcc": mcc}
"""The metrics by name; ``score`` is each task's metric in tables."""


def _metric_of(task: TaskName) -> Metric:
    return f1 if TASKS[task].by_f1 else accuracy


def _of_tasks(items: "pa.Table") -> list[tuple[TaskName, Integers, Integers]]:
    """Each task with its labels [n] and the predictions of its seeds, [n, K]."""
    names = [name for name in items.column_names if name.startswith("prediction_")]
    labels = column(items, "label").astype(np.int64)
    predictions = np.stack([column(items, name).astype(np.int64) for name in names], axis=1)
    known: dict[str, TaskName] = {name: name for name in TASKS}
    return [(known[task], labels[places], predictions[places]) for task, places in by_task(items)]


def _predictions(task: TaskName, data: TaskData, model: "EvaluatedModel", seed: int, kept: Path | None) -> list[int]:
    """The result of a task and a seed: from the file of an earlier call, or by fine-tuning."""
    from palenka.eval.glue.finetune import examples_read, fine_tune

    settings: GlueTask = TASKS[task]
    file = None if kept is None else kept / f"{task}-{seed}.json"
    key = _key(model, task, data, seed)
    if file is not None and file.is_file() and (record := read_sealed(file)).get("key") == key:
        return list(record["predictions"])
    with progress_bar(f"{task}, seed {seed}", examples_read(settings, data), unit="examples") as advance:
        found = fine_tune(model, settings, data, seed, advance)
    if file is not None:
        remove_leftovers_of(file)
        write_sealed(file, {"key": key, "scores": found.scores, "predictions": found.predictions})
    return found.predictions


def _key(model: "EvaluatedModel", task: TaskName, data: TaskData, seed: int) -> str:
    """A key that is equal only for the same model, tokenizer, examples, recipe and seed."""
    described = [model.identity, Glue.version, task, repr(TASKS[task]), seed, data.train, data.valid]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _figure(known: Mapping[str, Known], counts: Mapping[str, int]) -> Figure:
    tasks = {
        task: Score(
            value=found.value, stderr=found.error, interval=normal_interval(found.value, found.error), n=counts[task]
        )
        for task, found in known.items()
    }
    value = float(np.mean([found.value for found in known.values()]))
    error = mean_standard_error([found.error for found in known.values()])
    return Figure(
        value=value,
        stderr=error,
        interval=normal_interval(value, error),
        n=sum(counts[task] for task in known),
        higher_is_better=True,
        tasks=tasks,
    )


def _row(count: int, levels: list[float], difference: float, error: float) -> dict[str, Any]:
    return {"n": count, "first": levels[0], "second": levels[1], **difference_row(difference, error)}
