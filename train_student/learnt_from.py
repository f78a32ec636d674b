"""Where a run's knowledge comes from besides its own text: what its teachers, and the model it went on from, have read.

Data that a teacher was trained on counts where words are counted, so a run's result has them.
"""

from collections.abc import Iterator
from pathlib import Path

from palenka.cache_teachers.settings import SINGLE
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.words import WordsRead


def words_of_others(settings: TrainSettings) -> dict[str, WordsRead | None]:
    """The words that others read in their training, by teacher (`NAME`, of an ensemble `NAME/MODEL`), and `from`.

    Those that they learnt from in turn follow behind another slash. None where that is not known: a model that is no
    finished run here, or a cache whose file names no `model`.
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
