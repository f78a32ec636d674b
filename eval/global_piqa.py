"""Global PIQA: which solution fits a situation, as choices whose scores are means over tokens.

A row has `prompt`, `solution0`, `solution1`, … and `label`, the number of the right one. Solutions differ in length, so
the official pipeline divides a score by the number of scored tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import ClassVar

from palenka.eval.choice_suite import ChoiceSuite
from palenka.eval.choices import Choice, ChoiceMaker, Completion
from palenka.eval.json_lines import Row
from palenka.eval.row_files import read_rows
from palenka.ground.errors import UserError


@dataclass(frozen=True)
class GlobalPiqa(ChoiceSuite):
    """One of the two halves; the official table has their mean. Folder and task have the half's name.

    Attributes:
        title: in tables.
        pipeline_task: the name of its folder and task.
        chance: the accuracy that guessing gives.
    """

    per_token: ClassVar[bool] = True

    title: str
    pipeline_task: str
    chance: float | None  # type: ignore[misc]  # a class may say it or an instance
    column: str = "Global PIQA"

    @property
    def folders(self) -> tuple[str, ...]:  # type: ignore[override]
        """Its task's name."""
        return (self.pipeline_task,)

    @property
    def fast_folder(self) -> str:  # type: ignore[override]
        """The same: revisions are measured on all of it."""
        return self.pipeline_task

    def choices(self, files: list[Path]) -> Iterator[Choice]:
        """All items; a file (a language) is a task, and an item's prediction has its `example_id`."""
        maker = ChoiceMaker()
        for file in files:
            for row in read_rows(file):
                context = row.text("prompt")
                options = tuple(Completion(context, f" {text}") for text in _solutions(row))
                label = row.whole_number("label", below=len(options))
                yield maker.make(row, file.stem, options, {"label": label}, str(row.fields.get("example_id", "")))


def _solutions(row: Row) -> list[str]:
    names = [*takewhile(row.fields.__contains__, (f"solution{number}" for number in count()))]
    if len(names) < 2:
        raise UserError(f"{row.place} has {len(names)} solutions, but it should have solution0, solution1 and so on")
    return row.texts_of(tuple(names))
