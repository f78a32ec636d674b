"""What a person watches while a stage works: a bar with tokens per second, and sentences, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

_console = Console(stderr=True, highlight=False, soft_wrap=True)


def info(sentence: str) -> None:
    """Tell the user something that is not an error."""
    _console.print(sentence, markup=False)


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str = "tokens", verbose: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show a bar that ends with its rate; yields the function that advances it.

    Args:
        description: what is being done, a few words.
        total: how many units make the whole; None where that is unknown.
        unit: what is counted; the rate is shown in these per second.
        verbose: False on the processes of a distributed run that should stay silent.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console, disable=not verbose) as bar:
        task = bar.add_task(description, total=total)
        yield lambda advance: bar.advance(task, advance)


class _Rate(ProgressColumn):
    """Units per second; over the whole task once it is finished."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self._unit}/s" if speed else f"– {self._unit}/s")
