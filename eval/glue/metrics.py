"""Accuracy, F1 and Matthews' correlation of predictions, also of resamples.

Shape legend: n examples, K seeds, U different rows (label, predictions of all seeds) among the examples, R resamples.
The counts of the rows are multinomial, so a resample costs U numbers, not n.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Metric = Callable[[Integers, Integers, Floats], Floats]
"""From labels [U], predictions [U] and the counts of the rows, [..., U], to values, [...]."""

_RESAMPLES = 1_000


def accuracy(labels: Integers, predictions: Integers, weights: Floats) -> Floats:
    """The share of right predictions."""
    shares: Floats = weights @ (labels == predictions).astype(np.float64) / weights.sum(axis=-1)
    return shares


def f1(labels: Integers, predictions: Integers, weights: Floats) -> Floats:
    """The harmonic mean of precision and recall of label 1; 0 if the label is neither given nor predicted."""
    both = weights @ ((labels == 1) & (predictions == 1)).astype(np.float64)
    either = weights @ ((labels == 1).astype(np.float64) + (predictions == 1))
    means: Floats = np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)
    return means


def mcc(labels: Integers, predictions: Integers, weights: Floats) -> Floats:
    """Matthews' correlation of any number of classes (Gorodkin 2004); 0 if one side has only one class."""
    classes = np.arange(max(labels.max(), predictions.max()) + 1)
    given = weights @ (labels[:, None] == classes).astype(np.float64)
    predicted = weights @ (predictions[:, None] == classes).astype(np.float64)
    total, right = weights.sum(axis=-1), weights @ (labels == predictions).astype(np.float64)
    covariance = right * total - (given * predicted).sum(axis=-1)
    spread = np.sqrt((total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (given**2).sum(axis=-1)))
    correlations: Floats = np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)
    return correlations


@dataclass(frozen=True)
class Known:
    """A value with its uncertainty.

    Attributes:
        value: the mean over seeds.
        error: of this mean, from the examples and from the seeds.
        deviation: of the seeds; None for a single one.
    """

    value: float
    error: float
    deviation: float | None


def mean_over_seeds(metric: Metric, labels: Integers, predictions: Integers) -> Known:
    """A metric's mean over seeds, with errors from resampled examples (the same for all seeds) and from seeds.

    Args:
        metric: one of this module's.
        labels: [n].
        predictions: [n, K].
    """
    return _known(labels, predictions, lambda rows, weights: _by_seed(metric, rows, weights))


def difference_over_seeds(metric: Metric, labels: Integers, ours: Integers, theirs: Integers) -> Known:
    """The difference of two models' means over the same seeds, on the same examples; predictions [n, K]."""

    def differences(rows: Integers, weights: Floats) -> Floats:
        seeds = ours.shape[1]
        first, second = rows[:, : 1 + seeds], np.delete(rows, np.s_[1 : 1 + seeds], axis=1)
        return _by_seed(metric, first, weights) - _by_seed(metric, second, weights)

    return _known(labels, np.concatenate([ours, theirs], axis=1), differences)


def _known(labels: Integers, predictions: Integers, by_seed: Callable[[Integers, Floats], Floats]) -> Known:
    rows, counts = np.unique(np.column_stack([labels, predictions]), axis=0, return_counts=True)
    values = by_seed(rows, counts.astype(np.float64))
    drawn = np.random.RandomState(0).multinomial(len(labels), counts / len(labels), size=_RESAMPLES)
    variance = float(by_seed(rows, drawn.astype(np.float64)).mean(axis=-1).var())
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    if deviation is not None:
        variance += deviation**2 / len(values)
    return Known(float(values.mean()), math.sqrt(variance), deviation)


def _by_seed(metric: Metric, rows: Integers, weights: Floats) -> Floats:
    """The values of each seed, [..., K], from rows (label, predictions) [U, 1 + K]."""
    labels, *predictions = np.ascontiguousarray(rows.T)
    columns: Sequence[Floats] = [metric(labels, of_seed, weights) for of_seed in predictions]
    return np.stack(columns, axis=-1)
