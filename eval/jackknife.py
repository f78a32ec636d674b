"""The jackknife: standard errors of figures that are not means, such as correlations and shares of variance."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from palenka.eval.statistics import difference_row

Floats = NDArray[np.float64]


def jackknife_errors(estimate: Callable[[NDArray[np.bool_]], Floats], units: NDArray[np.int64]) -> Floats | None:
    """Standard errors of estimates, from their values without each of the independent units (Tukey 1958).

    Args:
        estimate: the figures [k] of some of the items, given a mask [n]; called once per unit.
        units: the unit that each item belongs to, such as its sentence, [n]; within one they may depend on each other.

    Returns:
        sqrt((u − 1) / u · Σ (estimates without a unit − their mean)²) over the u units, [k]; None with fewer than two.
    """
    names = np.unique(units)
    if len(names) < 2:
        return None
    without = np.array([estimate(units != name) for name in names])
    errors: Floats = np.sqrt((len(names) - 1) * without.var(axis=0))
    return errors


def jackknifed_difference(
    estimate: Callable[[NDArray[np.bool_]], Floats], units: NDArray[np.int64]
) -> dict[str, float | list[float]]:
    """A paired difference with its interval and p-value, as in `eval.suite.Suite.compare`.

    Args:
        estimate: the difference [1] of some of the items, given a mask [n].
        units: the unit that each item belongs to, [n].
    """
    value = float(estimate(np.ones(len(units), dtype=np.bool_))[0])
    errors = jackknife_errors(estimate, units)
    return difference_row(value, 0.0 if errors is None else float(errors[0]))
