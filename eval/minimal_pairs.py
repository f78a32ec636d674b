"""Minimal pairs on disk: JSON lines of BLiMP and of EWoK.

BLiMP's form has `sentence_good` and `sentence_bad`, and a file is a task. EWoK's has `Context1`, `Target1` (the right
one), `Target2` and `Domain`, and a domain is a task.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from palenka.eval.json_lines import read_lines

_EWOK_FIELDS = ("Domain", "Context1", "Target1", "Target2")
_BLIMP_FIELDS = ("sentence_good", "sentence_bad")


@dataclass(frozen=True)
class MinimalPair:
    """Two texts of which a model should find the first more probable.

    Attributes:
        file: that it was read from.
        line: in the file, counted from 1.
        task: what accuracies are grouped by.
        index: among the pairs of its task, counted from 0, in the order of files and lines.
        good: the right sentence or target.
        bad: the wrong one.
        context: what stands before the targets; None where whole sentences are compared.
    """

    file: Path
    line: int
    task: str
    index: int
    good: str
    bad: str
    context: str | None = None

    @property
    def place(self) -> str:
        """Where it stands, as ``file:line``."""
        return f"{self.file}:{self.line}"


def read_pairs(files: Iterable[Path], with_context: bool) -> list[MinimalPair]:
    """All pairs in some files, in the order of files and lines.

    Args:
        files: JSON lines.
        with_context: whether they have EWoK's form, or else BLiMP's.

    Raises:
        UserError: for an empty file, or a line that is no pair; names the file and the line.
    """
    pairs: list[MinimalPair] = []
    seen: Counter[str] = Counter()
    for file in files:
        for line, fields in read_lines(file, _EWOK_FIELDS if with_context else _BLIMP_FIELDS):
            if with_context:
                task, context, good, bad = fields
            else:
                task, context, (good, bad) = file.stem, None, fields
            pairs.append(MinimalPair(file, line, task, seen[task], good, bad, context))
            seen[task] += 1
    return pairs
