"""The words that a run learnt from indirectly: those read by its teachers, and by the model that it started from.

A word budget includes the data of teachers, so a run's result records them.
"""

from collections.abc import Iterator
from pathlib import Path

from palenka.cache_teachers.settings import SINGLE
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.words import WordsRead


def words_of_others(settings: TrainSettings) -> dict[str, WordsRead | None]:
    """The words that others read in their training, by teacher (`NAME`, in an ensemble `NAME/MODEL`), and `from`.

    Models that they learnt from in turn come after another slash. The number is None if it is unknown: for a model that
    is not a finished run here, or a cache whose entry names no `model`.
    """
    return dict(_all_of(settings))


def _all_of(settings: TrainSettings) -> Iterator[tuple[str, WordsRead | None]]:
    if (origin := getattr(settings.model, "from_", None)) is not None:
        yield from _of("from", origin)
    for name, source in settings.teachers.items():
        if source.source == "live":
            for model, directory in source.models().items():
                yield from _of(name if model == SINGLE else f"{name}/{model}", directory)
        else:
            yield from _of(name, source.model)


def _of(name: str, directory: Path | None) -> Iterator[tuple[str, WordsRead | None]]:
    result = Run(directory).result() if directory is not None else None
    yield name, result.words if result else None
    for other, words in (result.learnt_from if result else {}).items():
        yield f"{name}/{other}", words
