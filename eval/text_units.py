"""Units of a split's text: groups of windows that intervals of a level sample as one.

Neighbouring windows are alike (the same author, topic, conversation), so sampled one by one they would count as more
evidence than they are. A unit is a run of whole documents: those that begin in the same twentieth of their source. If
documents are few, and so large that these runs would be worth less than five equal ones, it is a fifth of the source:
means of a few long batches of a dependent series are nearly independent (Schmeiser 1982). Ten blocks were measured to
be too short for transcripts and books. Sources, the files of a split, are strata, since a split has fixed shares of
them.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from palenka.data.corpus import Corpus

DOCUMENTS, BLOCK = "documents", "block"
"""Kinds of units."""
_RUNS, _BLOCKS = 20, 5
"""Maximum numbers of units in a source."""
_FEWEST_RUNS = 5
"""Minimum effective number of runs of documents, (Σ length)² / Σ length²."""


class TextUnits(NamedTuple):
    """The source of each window, [n], and its unit in the source, [n], such as "documents 3" or "block 7"."""

    sources: NDArray[np.str_]
    units: NDArray[np.str_]


def text_units(corpus: "Corpus", starts: NDArray[np.int64]) -> TextUnits:
    """The units of windows that begin at given places of a split's tokens, [n]."""
    bounds = np.cumsum([0, *(source.counts.tokens for source in corpus.sources)])
    source_of = np.searchsorted(bounds, starts, side="right") - 1
    document_of = np.searchsorted(corpus.document_starts, starts, side="right") - 1
    units = np.empty(len(starts), dtype=object)
    for source in np.unique(source_of):
        first, end = int(bounds[source]), int(bounds[source + 1])
        here = source_of == source
        documents = corpus.document_starts[(corpus.document_starts >= first) & (corpus.document_starts < end)]
        runs = _part(documents, first, end, _RUNS)
        lengths = np.bincount(runs, np.diff([*documents, end]))
        if lengths.sum() ** 2 / (lengths**2).sum() >= _FEWEST_RUNS:
            numbers, kind = _part(corpus.document_starts[document_of[here]], first, end, _RUNS), DOCUMENTS
        else:
            numbers, kind = _part(starts[here], first, end, _BLOCKS), BLOCK
        units[here] = [f"{kind} {number}" for number in numbers]
    names = np.array([source.path for source in corpus.sources])
    return TextUnits(names[source_of], units.astype(str))


def _part(places: NDArray[np.int64], first: int, end: int, count: int) -> NDArray[np.int64]:
    """Which of `count` equal parts of [first, end) each place lies in."""
    parts: NDArray[np.int64] = (places - first) * count // (end - first)
    return parts
