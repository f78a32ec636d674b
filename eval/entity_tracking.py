"""Entity tracking: the contents of a box after some operations (Kim and Schuster 2023), as choices of five.

A row has `input_prefix`, which ends where a box's content begins; `options`, the first of which is right; and `numops`,
the number of operations. A file and a number of operations form a task. Since August 2026 the official pipeline leaves
out every item that has an option with "nothing", since models gain from preferring or avoiding that word.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from palenka.eval.choice_suite import ChoiceSuite
from palenka.eval.choices import Choice, ChoiceMaker, Completion
from palenka.eval.row_files import read_rows
from palenka.eval.statistics import normal_interval
from palenka.eval.suite import Measured
from palenka.ground.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class EntityTracking(ChoiceSuite):
    """Entity tracking, with or without the items that have an option with "nothing".

    Its figure weighs files equally, and the subsets of a file equally. Comparisons weigh all subsets equally: the same
    if all files have the same number of subsets, as the official ones do.

    Attributes:
        title: in tables.
        filtered: whether these items are left out.
        pipeline_task: the official pipeline's name; empty if the pipeline no longer has it.
        column: in the official table.
    """

    title: str
    filtered: bool
    pipeline_task: str = ""
    column: str = ""
    folders: tuple[str, ...] = ("entity_tracking",)
    fast_folder: str = "entity_tracking_fast"
    chance: float | None = 0.2  # type: ignore[misc]  # five options; a class may say it or an instance

    def figures(self, items: "pa.Table") -> Measured:
        """The accuracy as the mean over files of means over their subsets."""
        measured = super().figures(items)
        tasks = measured.main.tasks
        subsets = Counter(map(_file_of, tasks))
        weights = np.array([1 / len(subsets) / subsets[_file_of(task)] for task in tasks])
        values, errors = np.array([(score.value, score.stderr or 0.0) for score in tasks.values()]).T
        value, error = float(weights @ values), math.sqrt(float(weights**2 @ errors**2))
        mean = {"value": value, "stderr": error, "interval": normal_interval(value, error)}
        return measured.model_copy(update={"figures": {"accuracy": measured.main.model_copy(update=mean)}})

    def choices(self, files: list[Path]) -> Iterator[Choice]:
        """All items, or those without "nothing"."""
        maker, left = ChoiceMaker(), 0
        for file in files:
            for row in read_rows(file):
                context, options = row.text("input_prefix"), row.texts("options", at_least=2)
                task = f"{file.stem}_{row.whole_number('numops')}_ops"
                if not (self.filtered and any("nothing" in option for option in options)):
                    left += 1
                    yield maker.make(row, task, tuple(Completion(context, option) for option in options))
        if not left:
            raise UserError(f"every item of {files[0].parent} has an option with nothing; measure entity_tracking")


def _file_of(task: str) -> str:
    """The file of a task, such as regular of regular_3_ops."""
    return task.rsplit("_", 2)[0]
