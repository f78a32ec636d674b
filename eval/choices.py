"""What suites of choices have models read: texts of which a model should find one more probable than the others."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from palenka.eval.json_lines import Row


class Completion(NamedTuple):
    """A text that is scored, after one that is only read.

    Attributes:
        context: what is read before it, its white space included; None where the whole is scored.
        text: what is scored, the white space that parts it from the context included.
    """

    context: str | None
    text: str

    @property
    def whole(self) -> str:
        """What a model reads."""
        return (self.context or "") + self.text


@dataclass(frozen=True)
class Choice:
    """An item: some texts, one of which is the right one.

    Attributes:
        file: that it was read from.
        line: in the file, counted from 1.
        task: what accuracies are grouped by.
        index: among the items of its task, counted from 0, in the order of files and lines.
        options: the texts; the first is right, unless `facts` have a ``label``.
        facts: numbers that its figures are made from too, by the name of their column; ``label`` is the place of the
            right option.
        name: what a file of predictions calls its group; its task unless given.
    """

    file: Path
    line: int
    task: str
    index: int
    options: tuple[Completion, ...]
    facts: Mapping[str, float] = field(default_factory=dict)
    name: str = ""

    @property
    def place(self) -> str:
        """Where it stands, as ``file:line``."""
        return f"{self.file}:{self.line}"


class ChoiceMaker:
    """Makes choices of rows, and counts those of each task."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def make(
        self,
        row: Row,
        task: str,
        options: tuple[Completion, ...],
        facts: Mapping[str, float] | None = None,
        name: str = "",
    ) -> Choice:
        """The next choice of a task."""
        choice = Choice(row.file, row.line, task, self._seen[task], options, facts or {}, name)
        self._seen[task] += 1
        return choice
