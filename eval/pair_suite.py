"""Suites of minimal pairs, in BLiMP's form or in EWoK's.

BLiMP's form has `sentence_good` and `sentence_bad`, and a file is a task. EWoK's has `Context1`, `Target1` (the right
one), `Target2` and `Domain`, and a domain is a task.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from palenka.eval.choice_suite import ChoiceSuite
from palenka.eval.choices import Choice, ChoiceMaker, Completion
from palenka.eval.protocols import Protocol
from palenka.eval.row_files import read_rows
from palenka.eval.suite import Measured, by_task

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class PairSuite(ChoiceSuite):
    """A suite of minimal pairs; the scores of a row are ``score_good`` and ``score_bad``.

    Attributes:
        title: in tables.
        folders: names of the subfolders that may hold its data.
        with_context: whether its files have EWoK's form, or BLiMP's.
        pipeline_task: what the official pipeline calls it; empty if it does not know it.
        fast_folder: name of the subfolder with the small part for revisions; empty for none.
        column: of the official table.
    """

    protocols: ClassVar[tuple[Protocol, ...]] = ("babylm-2024", "babylm-2025")
    option_names: ClassVar[tuple[str, ...]] = ("good", "bad")
    things: ClassVar[str] = "pairs"
    chance: ClassVar[float | None] = 0.5

    title: str
    folders: tuple[str, ...]
    with_context: bool = False
    pipeline_task: str = ""
    fast_folder: str = ""
    column: str = ""

    @property
    def patterns(self) -> tuple[str, ...]:  # type: ignore[override]
        """EWoK also comes as tables, from the Hub."""
        return ("*.jsonl", "*.csv", "*.parquet") if self.with_context else ("*.jsonl",)

    @property
    def predicts_whole_texts(self) -> bool:  # type: ignore[override]
        """True for EWoK, as in the official pipeline."""
        return self.with_context

    def choices(self, files: Iterable[Path]) -> Iterator[Choice]:
        """All pairs."""
        return read_pairs(files, self.with_context)

    def figures(self, items: "pa.Table") -> Measured:
        """The figures of a suite of choices, and the accuracy with ties as one half."""
        measured = super().figures(items)
        scores, (good, bad) = measured.main.tasks, self.scores(items).T
        halves = [scores[task].value - float((good == bad)[places].mean()) / 2 for task, places in by_task(items)]
        ties, others = ("ties", "tie_rate"), measured.facts
        facts = {name: others[name] for name in ties} | {"tie_half_accuracy": float(np.mean(halves))}
        return Measured(figures=measured.figures, facts=facts | others)


def read_pairs(files: Iterable[Path], with_context: bool) -> Iterator[Choice]:
    """All pairs in some files, in the order of files and lines, the good text first.

    Args:
        files: JSON lines; or tables, of pairs with a context.
        with_context: whether they have EWoK's form, or BLiMP's.

    Raises:
        UserError: for an empty file, or a line that is not a pair; names the file and the line.
    """
    maker = ChoiceMaker()
    for file in files:
        for row in read_rows(file):
            if with_context:
                names = ("Domain", "Context1", "Target1", "Target2")
                task, context, good, bad = row.texts_of(names)
                yield maker.make(row, task, (Completion(context, f" {good}"), Completion(context, f" {bad}")))
            else:
                good, bad = row.texts_of(("sentence_good", "sentence_bad"))
                yield maker.make(row, file.stem, (Completion(None, good), Completion(None, bad)))
