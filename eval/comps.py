"""COMPS: whether a property is more probable for a thing that has it than for one without it (Misra et al. 2023).

A row has `prefix_acceptable`, `prefix_unacceptable` and `property_phrase`, which is scored after either.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from palenka.eval.choice_suite import ChoiceSuite
from palenka.eval.choices import Choice, ChoiceMaker, Completion
from palenka.eval.row_files import read_rows


class Comps(ChoiceSuite):
    """COMPS; a file is a task, named as in the official pipeline, such as base or wugs_dist_before."""

    title = "COMPS"
    folders = ("comps",)
    column = "COMPS"
    pipeline_task = "comps"
    predicts_whole_texts = True
    option_names: ClassVar[tuple[str, ...]] = ("good", "bad")
    things: ClassVar[str] = "pairs"
    chance: ClassVar[float | None] = 0.5

    def choices(self, files: list[Path]) -> Iterator[Choice]:
        """All pairs."""
        maker = ChoiceMaker()
        for file in files:
            task = file.stem.removeprefix("comps_").replace("-", "_")
            for row in read_rows(file):
                good, bad, phrase = row.texts_of(("prefix_acceptable", "prefix_unacceptable", "property_phrase"))
                yield maker.make(row, task, (Completion(f"{good} ", phrase), Completion(f"{bad} ", phrase)))
