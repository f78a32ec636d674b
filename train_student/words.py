"""Words: how many a run has read after each step.

A word is a run of characters other than white space in the cleaned text. A window counts its share of the words of the
documents that it cuts (`Corpus.words_before`). So a budget, such as 10 million words read at most 10 times, can be
verified.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from palenka.data.corpus import Corpus
from palenka.data.signals.stream import ReadingOrder
from palenka.ground.settings import Settings

_STEPS_AT_ONCE = 4096


class WordsRead(Settings):
    """The amount of text that a model was trained on."""

    corpus: str
    """Fingerprint of the split that it was trained on: models with the same one have read the same text."""
    corpus_words: int
    """Words of that split."""
    read: int
    """Words read over all epochs."""


def words_after_steps(corpus: Corpus, order: ReadingOrder, global_batch: int, num_steps: int) -> NDArray[np.float64]:
    """Words that a run has read after each step, [num_steps + 1]; the first entry, before any step, is 0.

    Args:
        corpus: that it reads.
        order: in which it reads.
        global_batch: windows of a step.
        num_steps: of the run.
    """
    of_steps = [np.zeros(1)]
    for first in range(0, num_steps, _STEPS_AT_ONCE):
        steps = min(_STEPS_AT_ONCE, num_steps - first)
        of_windows = [*_words_of_windows(corpus, order, first * global_batch, (first + steps) * global_batch)]
        of_steps.append(np.concatenate(of_windows).reshape(steps, global_batch).sum(axis=1))
    after: NDArray[np.float64] = np.cumsum(np.concatenate(of_steps))
    return after


def _words_of_windows(corpus: Corpus, order: ReadingOrder, start: int, stop: int) -> Iterator[NDArray[np.float64]]:
    length = order.rule.length
    for view, _, indices in order.pieces(start, stop):
        begins = order.rule.offset(view) + indices * length
        yield corpus.words_before(begins + length) - corpus.words_before(begins)
