"""The overall figure of the official table of 2026: the mean of nine columns, one that is missing counting as 0."""

from collections.abc import Mapping

import numpy as np

from palenka.eval.suite import Figure
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
"""In the order of the official table; each is the mean of the suites that say that they stand in it."""


def columns_of(figures: Mapping[str, Figure]) -> dict[str, float]:
    """The official table's columns in %, of those that were measured.

    Args:
        figures: the main figures of suites, by the suites' names.
    """
    parts: dict[str, list[float]] = {}
    for name, figure in figures.items():
        if name in SUITES and (column := SUITES[name].column):
            parts.setdefault(column, []).append(figure.value if figure.unit else 100 * figure.value)
    return {column: float(np.mean(parts[column])) for column in COLUMNS if column in parts}


def overall(figures: Mapping[str, Figure]) -> float:
    """The mean of all nine columns in %, with 0 for each that was not measured."""
    return sum(columns_of(figures).values()) / len(COLUMNS)
