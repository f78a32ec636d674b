"""Revisions: the model after given numbers of words, which BabyLM requires beside the final model.

revisions/chck_1M/
    config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
    model.commit.json      checksums of these, their step and words, and their run

Each is an ordinary model directory. Only the run itself removes them, when it goes back to an earlier checkpoint. A
finished run's record has the checksums of their records.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.data.model_files import MODEL_RECORD, commit_model, write_model
from palenka.ground.errors import UserError
from palenka.ground.files import disk_errors, whole_directory
from palenka.ground.records import damage_of, read_commit

MILLION = 10**6
_NAME = re.compile(r"chck_\d+M?")
_NEAR_THE_END = 0.95
"""A run that ends with at least this fraction of a revision's words keeps its last weights as that revision: cleaned
text has somewhat fewer words than the track allows."""


@dataclass(frozen=True)
class Revision:
    """A model that a run keeps during training.

    Attributes:
        name: such as ``chck_10M``.
        step: after which it is kept.
        words: read up to that step.
    """

    name: str
    step: int
    words: int


def planned_revisions(
    asked: Literal["babylm"] | Sequence[int], words_after: NDArray[np.float64]
) -> dict[int, list[Revision]]:
    """The revisions of a run by the first step that has read their words.

    Args:
        asked: numbers of words, or those of BabyLM's tracks: each million up to 10, then every 10, above 100 every 100.
            Those that the run does not reach are omitted (`unreached_revisions`).
        words_after: that a run has read after each step, [steps + 1].
    """
    total, last = float(words_after[-1]), len(words_after) - 1
    numbers = _of_the_track(total / _NEAR_THE_END) if asked == "babylm" else asked
    planned: dict[int, list[Revision]] = {}
    for number in numbers:
        if number * _NEAR_THE_END <= total:
            step = min(last, max(1, int(np.searchsorted(words_after, number))))
            planned.setdefault(step, []).append(Revision(name_of(number), step, round(words_after[step])))
    return planned


def unreached_revisions(
    asked: Literal["babylm"] | Sequence[int], planned: Mapping[int, Sequence[Revision]]
) -> list[str]:
    """The names of requested revisions that a run does not reach; of BabyLM's endless list only the first."""
    reached = {each.name for revisions in planned.values() for each in revisions}
    return [name for number in ([MILLION] if asked == "babylm" else asked) if (name := name_of(number)) not in reached]


def _of_the_track(most: float) -> list[int]:
    millions = [*range(1, 10), *range(10, 100, 10), *range(100, int(most / MILLION) + 1, 100)]
    return [million * MILLION for million in millions]


def name_of(words: int) -> str:
    """The pipeline's name of the revision after a number of words."""
    return f"chck_{words // MILLION}M" if words % MILLION == 0 else f"chck_{words}"


def words_of(name: str) -> int:
    """The number of words in a revision's name."""
    number = name.removeprefix("chck_")
    return int(number.removesuffix("M")) * (MILLION if number.endswith("M") else 1)


class Revisions:
    """The revisions that a run keeps.

    Args:
        run: the directory of the run.
        identity: of the run.
    """

    def __init__(self, run: Path, identity: str = "") -> None:
        self.directory, self._run, self._identity = run / "revisions", run, identity

    def save(self, revision: Revision, model: PreTrainedModel, corpus: Corpus) -> None:
        """Write a model as a revision, under a temporary name first.

        Raises:
            OSError: if it cannot be written.
        """
        place = self.directory / revision.name
        with whole_directory(place) as aside, disk_errors():
            write_model(model, corpus, aside)
            files = sorted(path.name for path in aside.iterdir())
            commit_model(aside, files, run=self._identity, step=revision.step, words=revision.words)
            shutil.rmtree(place, ignore_errors=True)

    def go_back(self, planned: Mapping[int, Sequence[Revision]], step: int) -> None:
        """Keep the revisions up to a step, and remove all others.

        Raises:
            UserError: if one of them is missing or damaged, since it cannot be made again from a later checkpoint.
        """
        expected = {each.name: each for at, revisions in planned.items() if at <= step for each in revisions}
        for revision in expected.values():
            place = self.directory / revision.name
            if damage := damage_of(place, MODEL_RECORD, run=self._identity, step=revision.step, words=revision.words):
                raise UserError(
                    f"revision {place} is damaged: {damage}; restore it, or delete {self._run} to train from the "
                    "beginning"
                )
        for place in self.places():
            if place.name not in expected:
                shutil.rmtree(place)

    def records(self) -> list[str]:
        """Paths in the run of the records of all revisions."""
        return [f"{place.relative_to(self._run).as_posix()}/{MODEL_RECORD}" for place in self.places()]

    def require(self) -> list[Revision]:
        """The revisions as `read` returns them, at least one.

        Raises:
            UserError: if there is none.
        """
        if not self._run.is_dir():
            raise UserError(f"{self._run} is not a folder; give a run that kept revisions")
        if not (found := self.read()):
            raise UserError(
                f"{self._run} has no revisions; they are kept while a run trains, with `palenka train … --revisions "
                "babylm`; leave --revisions out for its last model alone"
            )
        return found

    def read(self) -> list[Revision]:
        """The existing revisions, in the order of their words."""
        found = [(place.name, read_commit(place, MODEL_RECORD)) for place in self.places()]
        revisions = [Revision(name, int(facts["step"]), int(facts["words"])) for name, facts in found]
        return sorted(revisions, key=lambda revision: words_of(revision.name))

    def places(self) -> list[Path]:
        """Their directories."""
        return sorted(path for path in self.directory.glob("chck_*") if _NAME.fullmatch(path.name))
