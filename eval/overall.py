"""The overall figure of the official table of 2026: the mean of nine columns, with missing ones as 0."""

from collections.abc import Mapping, Sequence

import numpy as np

from palenka.eval.statistics import mean_standard_error, normal_interval
from palenka.eval.suite import Figure, Score
from palenka.eval.suites import SUITES

COLUMNS = (
    "BLiMP",
    "supplement",
    "EWoK",
    "entity tracking",
    "COMPS",
    "Global PIQA",
    "GLUE",
    "reading",
    "AoA",
)
"""In the order of the official table; each is the mean of the suites that name it as their column."""


def columns_of(figures: Mapping[str, Figure]) -> dict[str, Score]:
    """The measured columns of the official table in %, with the errors of their means.

    Args:
        figures: the main figures of suites, by the suites' names.
    """
    parts: dict[str, list[Figure]] = {}
    for name, figure in figures.items():
        if name in SUITES and (column := SUITES[name].column):
            parts.setdefault(column, []).append(figure)
    return {column: _mean([_in_percent(each) for each in parts[column]]) for column in COLUMNS if column in parts}


def overall(figures: Mapping[str, Figure]) -> Score:
    """The mean of all nine columns in %, with an exact 0 for each that was not measured."""
    measured = columns_of(figures)
    absent = [Score(value=0.0, stderr=0.0)] * (len(COLUMNS) - len(measured))
    return _mean([*measured.values(), *absent])


def _in_percent(figure: Figure) -> Score:
    factor = 1 if figure.unit else 100
    return Score(value=factor * figure.value, stderr=None if figure.stderr is None else factor * figure.stderr)


def _mean(scores: Sequence[Score]) -> Score:
    """The mean of independent scores; its error is unknown if that of one score is."""
    value = float(np.mean([score.value for score in scores]))
    errors = [score.stderr for score in scores if score.stderr is not None]
    if len(errors) < len(scores):
        return Score(value=value)
    error = mean_standard_error(errors)
    return Score(value=value, stderr=error, interval=normal_interval(value, error))
