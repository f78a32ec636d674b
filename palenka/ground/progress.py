"""Progress of a stage on standard error: a bar with rate and time left, and sentences."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from palenka.ground.console import console, tell
from palenka.ground.quantities import duration

_console = console(to_errors=True)


def info(sentence: str) -> None:
    """Print a message that is not an error."""
    tell(_console, sentence)


def is_watched() -> bool:
    """Whether bars are drawn on a terminal; a file gets sentences instead."""
    return _console.is_terminal


@dataclass(frozen=True)
class Bar:
    """A visible bar; a call advances it by some units."""

    _progress: Progress
    _task: TaskID

    def __call__(self, units: int) -> None:
        """Count more units as done."""
        self._progress.advance(self._task, units)

    def note(self, text: str) -> None:
        """Show a few words beside the bar, in place of earlier ones."""
        self._progress.update(self._task, note=text)


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str = "tokens", verbose: bool = True, done: int = 0
) -> Iterator[Bar]:
    """Show a bar that ends with its rate; yields what advances it.

    Args:
        description: what is being done, a few words.
        total: number of units; None if unknown.
        unit: of the count; the rate is in units per second.
        verbose: False on the processes of a distributed run that should stay silent.
        done: units done before, which do not count for the rate.
    """
    columns = (
        TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", max_width=24)
        ),
        BarColumn(None, table_column=Column(ratio=1, min_width=4)),
        TextColumn("{task.percentage:>3.0f} %", table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
        _Rate(unit),
        _TimeLeft(),
    )
    with Progress(*columns, console=_console, disable=not verbose, expand=True) as progress:
        yield Bar(progress, progress.add_task(description, total=total, completed=done, note=""))


class _Rate(ProgressColumn):
    """Units per second; over the whole task once it is finished."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else f"– {self._unit}/s")


class _TimeLeft(ProgressColumn):
    """The remaining time, and at the end the total time."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True))

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"in {duration(task.finished_time or 0)}")
        left = task.time_remaining
        return Text("– left" if left is None else f"{duration(left)} left")
