"""Statistics of measures over the units of a text, or over the items of tasks: errors, 95 % intervals and tests."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959964
"""Standard errors on both sides of a normal value that 95 % lie within."""


class Estimate(NamedTuple):
    """A value estimated from the units of a text, with its uncertainty.

    Attributes:
        value: the estimate.
        stderr: its standard error; NaN for a single unit.
        degrees: of freedom, for Student's t.
    """

    value: float
    stderr: float
    degrees: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None if the error is unknown."""
        if math.isnan(self.stderr):
            return None
        from scipy.stats import t

        margin = float(t.ppf(0.975, self.degrees)) * self.stderr
        return self.value - margin, self.value + margin

    @property
    def p_value(self) -> float | None:
        """The two-sided p-value of a true value of 0; None if the error is unknown."""
        if math.isnan(self.stderr):
            return None
        if self.stderr == 0.0:
            return float(self.value == 0.0)
        from scipy.stats import t

        return float(2 * t.sf(abs(self.value) / self.stderr, self.degrees))


def ratio_estimate(
    totals: NDArray[np.float64], per: NDArray[np.int64], units: NDArray[np.int64], strata: NDArray[np.int64]
) -> Estimate:
    """The ratio of two sums over a text sampled by whole units within each stratum.

    A stratum's ratio has the variance of its units' residuals, totals - ratio · per (the separate ratio estimator,
    Cochran 1977, 6.11), corrected for large units: they pull the ratio towards themselves, so their residuals are too
    small. Strata keep their shares. Degrees of freedom are Satterthwaite's; a stratum has the effective number of its
    units less one.

    Args:
        totals: of each part of a unit, such as a window's nats, [n].
        per: denominators of each part, such as a window's tokens, [n].
        units: the unit of each part, [n]; strata have different numbers.
        strata: the stratum of each part, [n].
    """
    value = float(totals.sum() / per.sum())
    inside = [strata == stratum for stratum in np.unique(strata)]
    if any(len(np.unique(units[here])) < 2 for here in inside):
        inside = [np.ones(len(units), dtype=np.bool_)]  # a single unit has no variance: treat all as one stratum
    variances, degrees = [], []
    for here in inside:
        share, variance, freedom = _variance_of_ratio(totals[here], per[here], units[here])
        variances.append((share / per.sum()) ** 2 * variance)
        degrees.append(freedom)
    variance = math.fsum(variances)
    spread = math.fsum(each**2 / freedom for each, freedom in zip(variances, degrees, strict=True) if each)
    return Estimate(value, math.sqrt(variance), variance**2 / spread if spread else sum(degrees))


def _variance_of_ratio(
    totals: NDArray[np.float64], per: NDArray[np.int64], units: NDArray[np.int64]
) -> tuple[float, float, float]:
    """For one stratum: the sum of `per`, the variance of its ratio, and its degrees of freedom."""
    unit_of = np.unique(units, return_inverse=True)[1]
    sizes = np.bincount(unit_of, per)
    residuals = np.bincount(unit_of, totals - totals.sum() / per.sum() * per)
    shares = sizes / sizes.sum()
    squares = float((shares**2).sum())
    if squares == 1.0:
        return float(sizes.sum()), math.nan, 1.0
    # The mean square of a residual is (1 + Σh² - 2h) of that of its error, if errors are proportional to sizes.
    left = 1 + squares - 2 * float((shares**3).sum()) / squares
    return float(sizes.sum()), float((residuals**2).sum()) / float(sizes.sum()) ** 2 / left, 1 / squares - 1


def normal_interval(value: float, stderr: float) -> tuple[float, float]:
    """The 95 % interval of a value whose errors are normal."""
    return value - NORMAL_95 * stderr, value + NORMAL_95 * stderr


def difference_row(difference: float, error: float) -> dict[str, float | list[float]]:
    """A difference with its standard error, as an interval and a two-sided p-value of the normal distribution."""
    p_value = math.erfc(abs(difference) / error / math.sqrt(2)) if error else float(difference == 0)
    return {
        "difference": difference,
        "interval": list(normal_interval(difference, error)),
        "p_value": p_value,
    }


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among `count` (1927), also valid for small counts, and near 0 and 1."""
    z2 = NORMAL_95**2
    middle = (share * count + z2 / 2) / (count + z2)
    margin = NORMAL_95 / (count + z2) * math.sqrt(count * share * (1 - share) + z2 / 4)
    return max(0.0, middle - margin), min(1.0, middle + margin)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of a mean, for a few values such as those of seeds; None for a single one."""
    if (count := len(values)) < 2:
        return None
    from scipy.stats import t

    mean = sum(values) / count
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)
    margin = float(t.ppf((1 + confidence) / 2, count - 1)) * error
    return mean - margin, mean + margin


def residual_deviation(values: NDArray[np.float64]) -> float | None:
    """Standard deviation of runs after removing the means of variants and seeds (two-way analysis of variance).

    A seed's effect on all variants alike does not change their order, so this is the noise of a ranking.

    Args:
        values: of variants trained with the same seeds, [variants, seeds].

    Returns:
        The deviation, with (variants − 1)(seeds − 1) degrees of freedom; None if these are 0.
    """
    degrees = (values.shape[0] - 1) * (values.shape[1] - 1)
    if degrees < 1:
        return None
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return math.sqrt(float((rest**2).sum()) / degrees)


def expected_maximum(count: int) -> float:
    """The expected maximum of `count` standard normal draws: how far the best of equals stands out."""
    from scipy.special import ndtr

    x, step = np.linspace(-9.0, 9.0, 3601, retstep=True)
    density = count * ndtr(x) ** (count - 1) * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float((x * density).sum() * step)


def task_standard_error(accuracy: float, count: int) -> float:
    """Standard error of the share of right answers among `count`; 0 for a single item, for which it is unknown."""
    return math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else 0.0


def mean_standard_error(errors: Sequence[float]) -> float:
    """Standard error of the unweighted mean of independent figures, such as those of tasks: √(Σ se²) / k."""
    return math.sqrt(math.fsum(error**2 for error in errors)) / len(errors)


def pooled_standard_error(errors: Sequence[float], counts: Sequence[int]) -> float:
    """The error that lm-eval prints for a suite: sqrt([Σ (n−1)·se²·n / (Σn − k)] / Σn).

    It is the error of the mean over all items, not of the mean over tasks beside it: if tasks differ in size, it is too
    small. Published tables quote it; do not draw conclusions from it.
    """
    total = sum(counts)
    if total == len(counts):
        return 0.0
    pooled = sum((count - 1) * error**2 * count for error, count in zip(errors, counts, strict=True))
    return math.sqrt(pooled / (total - len(counts)) / total)


def difference_standard_error(differences: NDArray[np.int64]) -> float:
    """Standard error of the mean of paired differences of decisions, each 1, 0 or −1.

    Half an item is added on both sides, so that a few items that all differ one way do not count as certainty (Agresti
    and Min 2005).
    """
    count = len(differences) + 1
    mean, square = float(differences.sum()) / count, (float((differences != 0).sum()) + 1) / count
    return math.sqrt((square - mean**2) / count)


def mcnemar_p_value(differences: Sequence[NDArray[np.int64]], draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of two models having equal accuracy, as the mean over tasks.

    Under that hypothesis an item that only one model gets right belongs to either with probability one half. For a
    single task, or tasks of one size, this is McNemar's exact test (1947). Otherwise the discordant items of each task
    are reassigned at random `draws` times; the smallest p-value is then 1 / (draws + 1) (Phipson and Smyth 2010).

    Args:
        differences: for each task, 1, 0 or −1 for each item: whether the first model alone is right, or the second.
        draws: 0.5 s for 67 tasks.
        seed: of the draws.
    """
    discordant = [int((task != 0).sum()) for task in differences]
    if len({len(task) for task in differences}) == 1:
        from scipy.stats import binomtest

        first = sum(int((task == 1).sum()) for task in differences)
        return float(binomtest(first, sum(discordant)).pvalue) if any(discordant) else 1.0
    found = sum(float(task.mean()) for task in differences)
    generator = np.random.RandomState(seed)
    drawn = np.zeros(draws)
    for count, task in zip(discordant, differences, strict=True):
        drawn += (2 * generator.binomial(count, 0.5, size=draws) - count) / len(task)
    as_far = int((np.abs(drawn) >= abs(found) - 1e-12).sum())  # equal sums may differ in their last digit
    return (as_far + 1) / (draws + 1)
