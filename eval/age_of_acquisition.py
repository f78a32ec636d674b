"""Age of acquisition: whether a model learns words in the order in which children do, after Chang and Bergen (2022).

Each revision of a run gives surprisals of words of the CDI in contexts (`cdi_childes.json`, a word with its contexts).
A sigmoid over the words read decides when the model has learnt a word. Another one over months decides when children
have (a CSV with `word` and a column for each month, the share of children who say it). The score is Pearson's
correlation of both.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from palenka.eval.choice_suite import ScoredChoices
from palenka.eval.choices import Choice, Completion
from palenka.eval.row_files import read_rows
from palenka.eval.statistics import NORMAL_95, difference_row, normal_interval
from palenka.eval.suite import Figure, Measured, column, visible_files
from palenka.ground.errors import UserError
from palenka.ground.files import read_text

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]

_FEWEST_CONTEXTS = 20
"""A word with fewer contexts is left out, as in the official script."""
_MONTHS = range(16, 31)
_FEWEST_WORDS, _FEWEST_POINTS = 3, 3
_GUESSING = math.log2(300_000)
"""Surprisal of a guessed word, as in the official code: in bits, although its surprisals are in nats."""


class WordSurprisals(ScoredChoices):
    """The surprisals of words in contexts; `acquisition` computes the score from those of all revisions of a run.

    A row of its items is a word (its task) in a context (its index), with ``score_0``, its log-probability in nats.
    """

    title = "surprisal of CDI words"
    folders = ()  # only for revisions: a single model gives no ages
    fast_folder = "aoa"
    patterns = ("*.json",)
    things = "contexts"

    def choices(self, files: list[Path]) -> Iterator[Choice]:
        """Each word in each of its contexts."""
        for file in files:
            for word, contexts in _words_of(file).items():
                for index, context in enumerate(contexts):
                    yield Choice(file, 1, word, index, (Completion(f"{context.strip()} ", word),))

    def figures(self, items: "pa.Table") -> Measured:
        """The mean surprisal, its error over words."""
        values = _means(items)
        error = _error_of_mean(values)
        figure = Figure(
            value=float(values.mean()),
            stderr=error,
            interval=None if error is None else normal_interval(float(values.mean()), error),
            n=len(values),
            unit="nats per word",
            higher_is_better=False,
        )
        return Measured(figures={"surprisal": figure})

    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """The difference of the mean surprisals, over words."""
        first, second = _means(ours), _means(theirs)
        row = difference_row(float((first - second).mean()), _error_of_mean(first - second) or 0.0)
        return {"n": len(first), "first": float(first.mean()), "second": float(second.mean()), **row}


def _means(items: "pa.Table") -> Floats:
    """The mean surprisal of each word."""
    names = np.unique(column(items, "task").astype(str), return_inverse=True)[1]
    return -np.bincount(names, column(items, "score_0").astype(np.float64)) / np.bincount(names)


def _error_of_mean(values: Floats) -> float | None:
    """The standard error of a mean; None for a single value."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def acquisition(words_read: Sequence[int], items: Sequence["pa.Table"], ages: Mapping[str, float]) -> Figure:
    """The correlation of the ages at which a run and children learn words.

    Args:
        words_read: by each revision, from its name.
        items: of each revision, from `WordSurprisals`.
        ages: at which children learn words, from `children_ages`.
    """
    ours, theirs = [], []
    for word, surprisals in _by_word(items).items():
        age = ages.get(word)
        learnt = None if age is None else model_age(np.repeat(words_read, surprisals.shape[1]), surprisals.ravel())
        if age is not None and learnt is not None:
            ours.append(learnt)
            theirs.append(age)
    if len(ours) < _FEWEST_WORDS:
        return Figure(value=0.0, n=len(ours), higher_is_better=True, chance=0.0)
    value = float(np.corrcoef(ours, theirs)[0, 1])
    interval = None
    if len(ours) > _FEWEST_WORDS and abs(value) < 1:
        # Fisher's transformation.
        margin = NORMAL_95 / math.sqrt(len(ours) - 3)
        interval = math.tanh(math.atanh(value) - margin), math.tanh(math.atanh(value) + margin)
    return Figure(value=value, interval=interval, n=len(ours), higher_is_better=True, chance=0.0)


def _by_word(items: Sequence["pa.Table"]) -> dict[str, Floats]:
    """The surprisals of each word, [revisions, contexts]."""
    tasks = column(items[0], "task").astype(str)
    surprisals = -np.stack([column(table, "score_0").astype(np.float64) for table in items])
    return {str(word): surprisals[:, tasks == word] for word in dict.fromkeys(tasks)}


def children_ages(folder: Path) -> dict[str, float]:
    """The month in which half of the children say a word, for words that half of them do say.

    Raises:
        UserError: if there is no CSV with months, or a share is not a number.
    """
    files = visible_files(folder, "*.csv")
    ages: dict[str, float] = {}
    for row in (row for file in files for row in read_rows(file)):
        shares = [(month, _share(row.fields[str(month)], row.place)) for month in _MONTHS if str(month) in row.fields]
        if not shares:
            raise UserError(f"{row.place} has no column of a month from 16 to 30; get the CSV of the CDI again")
        months, values = np.array([pair for pair in shares if not math.isnan(pair[1])]).reshape(-1, 2).T
        if len(months) >= _FEWEST_POINTS and row.text("word") not in ages:
            bounds = ([0, 0, months[0], -0.5], [2, 1, months[-1], 0.5])
            age = _crossing(months, values, [1.0, 0.1, float(months.mean()), 0.0], 0.5, bounds)
            if age is not None and months[0] <= age <= months[-1]:
                ages[row.text("word")] = age
    if not files:
        raise UserError(f"{folder} has no CSV of the words that children say, with word and months 16 to 30; add it")
    return ages


def _share(text: object, place: str) -> float:
    try:
        return float(str(text).strip() or "nan")
    except ValueError:
        raise UserError(f"{place}: {text!r} should be a share of children, or empty") from None


def model_age(words_read: NDArray[np.int64], surprisals: Floats) -> float | None:
    """The logarithm (base 10) of the number of words after which a word is learnt; None if it is not learnt.

    It is learnt where the sigmoid is half-way between guessing and the least surprisal.

    Args:
        words_read: at each measurement, [n].
        surprisals: then, [n].
    """
    if len(set(words_read.tolist())) < _FEWEST_POINTS:
        return None
    places = np.log10(words_read + 1)
    known = -surprisals
    guess = [float(known.max() - known.min()), 1.0, float(places.mean()), float(known.min())]
    age = _crossing(places, known, guess, -(_GUESSING + float(surprisals.min())) / 2)
    if age is None or not places[0] <= age <= places[-1]:
        return None
    return age


def _crossing(
    x: Floats,
    y: Floats,
    guess: Sequence[float],
    height: float,
    bounds: tuple[Sequence[float], Sequence[float]] | None = None,
) -> float | None:
    """Where the sigmoid a / (1 + exp(-b (x - c))) + d fitted to some points reaches a height; None if it does not."""
    from scipy.optimize import curve_fit
    from scipy.special import expit

    def sigmoid(x: Floats, a: float, b: float, c: float, d: float) -> Floats:
        found: Floats = a * expit(b * (x - c)) + d
        return found

    limits: dict[str, Any] = {} if bounds is None else {"bounds": bounds}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the errors of the parameters are unknown
            (a, b, c, d), _ = curve_fit(sigmoid, x, y, p0=guess, maxfev=1000, **limits)
    except RuntimeError:  # no fit within the maximum of evaluations
        return None
    # As logarithms of both parts, since their ratio may overflow or underflow.
    below, above = float(height - d), float(a + d - height)
    if not (b > 0 and below > 0 and above > 0):
        return None
    return float(c) - (math.log(above) - math.log(below)) / float(b)


def _words_of(file: Path) -> Mapping[str, list[str]]:
    """The words with enough contexts; those of one letter are left out, as in the official script.

    Raises:
        UserError: if the file does not have this form.
    """
    try:
        content = json.loads(read_text(file).removeprefix("\ufeff"))
        words = {word: [str(each["context"]) for each in uses] for word, uses in content.items() if len(word) > 1}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f'{file} is not of the form {{"word": [{{"context": "…"}}, …]}}; get it again') from None
    found = {word: contexts for word, contexts in words.items() if len(contexts) >= _FEWEST_CONTEXTS}
    if not found:
        raise UserError(f"{file} has no word with {_FEWEST_CONTEXTS} contexts; get it again")
    return found
