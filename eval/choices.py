"""The items of suites of choices: texts, one of which a model should find more probable than the others."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from palenka.eval.json_lines import Row


class Completion(NamedTuple):
    """A scored text after a context.

    Attributes:
        context: the text before it, including its white space; None if the whole text is scored.
        text: the scored text, including the white space that separates it from the context.
    """

    context: str | None
    text: str

    @property
    def whole(self) -> str:
        """The text that a model reads."""
        return (self.context or "") + self.text


@dataclass(frozen=True)
class Choice:
    """An item: several texts, one of which is right.

    Attributes:
        file: that it was read from.
        line: in the file, counted from 1.
        task: group of its accuracy.
        index: among the items of its task, counted from 0, in the order of files and lines.
        options: the texts; the first is right, unless `facts` have a ``label``.
        facts: further numbers for its figures, by the name of their column; ``label`` is the place of the right option.
        name: of its group in a file of predictions; default: its task.
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
        """Its place, as ``file:line``."""
        return f"{self.file}:{self.line}"


class ChoiceMaker:
    """Makes choices from rows, and numbers them within each task."""

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
