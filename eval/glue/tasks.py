"""The seven tasks by the recipe of 2025 and 2026, and their files `TASK.train.jsonl` and `TASK.valid.jsonl`."""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from palenka.eval.json_lines import Row
from palenka.eval.row_files import read_rows

TaskName = Literal["boolq", "mnli", "mrpc", "multirc", "qqp", "rte", "wsc"]


@dataclass(frozen=True)
class GlueTask:
    """A task: the form of its texts, and its own training settings.

    Attributes:
        first: template of the first text of the tokenizer's pair, with names of fields.
        second: the second text.
        labels: number of labels, which count from 0.
        batch: examples in a step.
        epochs: over the training examples.
        by_f1: whether F1 of label 1 chooses the epoch and is shown in tables, or accuracy.
    """

    first: str
    second: str
    labels: int = 2
    batch: int = 32
    epochs: int = 10
    by_f1: bool = False

    def example(self, row: Row) -> "Example":
        """The example of a row of a file.

        Raises:
            UserError: with the row, if a field is missing or invalid.
        """
        first, second = (_filled(template, row) for template in (self.first, self.second))
        return Example(first, second, row.whole_number("label", below=self.labels))


class Example(NamedTuple):
    """A pair of texts, and its label."""

    first: str
    second: str
    label: int


TASKS: Mapping[TaskName, GlueTask] = {
    "boolq": GlueTask("{question}", "{passage}", batch=16),
    "mnli": GlueTask("{premise}", "{hypothesis}", labels=3),
    "mrpc": GlueTask("{sentence1}", "{sentence2}", by_f1=True),
    "multirc": GlueTask("Question: {question} Answer: {answer}", "{paragraph}", batch=16),
    "qqp": GlueTask("{question1}", "{question2}", by_f1=True),
    "rte": GlueTask("{sentence1}", "{sentence2}"),
    "wsc": GlueTask('Does "{span2_text}" refer to "{span1_text}" in this passage?', "{text}", epochs=30),
}


class TaskData(NamedTuple):
    """The examples of a task."""

    train: list[Example]
    valid: list[Example]


def files_of(folder: Path, task: TaskName) -> tuple[Path, Path]:
    """The files of a task's examples: for training, and for measurement."""
    return folder / f"{task}.train.jsonl", folder / f"{task}.valid.jsonl"


def read_task(folder: Path, task: TaskName, limit: int | None) -> TaskData:
    """The examples of a task, the first ones of each kind if there is a limit.

    Raises:
        UserError: with the wrong file and line.
    """
    train, valid = ([TASKS[task].example(row) for row in read_rows(file)] for file in files_of(folder, task))
    return TaskData(train[:limit], valid[:limit])


def _filled(template: str, row: Row) -> str:
    names = tuple(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)
    return template.format(**dict(zip(names, row.texts_of(names), strict=True)))
