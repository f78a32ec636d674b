"""Statistics of measures over many windows or items."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    values: NDArray[np.float64],
    per: NDArray[np.int64] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, or of the ratio of two sums (Efron 1979).

    Args:
        values: one number for every independent unit, such as a window's loss, [n].
        per: what the sum of values is divided by the sum of, such as a window's words, [n]; the mean without it.
        confidence: the interval's coverage.
        resamples: how many samples of n units are drawn with replacement; n · resamples draws in all.
        seed: of the draws.
    """
    generator = np.random.RandomState(seed)
    # Batches of resamples keep the memory at some 8 MB however many values there are.
    batch = max(1, 2**20 // len(values))
    estimates = []
    for done in range(0, resamples, batch):
        drawn = generator.randint(0, len(values), (min(batch, resamples - done), len(values)))
        means = values[drawn].mean(axis=1)
        estimates.append(means if per is None else means / per[drawn].mean(axis=1))
    return _percentile_interval(np.concatenate(estimates), confidence)


def difference_interval(
    differences: Sequence[NDArray[np.int64]], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over tasks of the mean of paired differences of decisions.

    Items are drawn anew within each task. Differences have three values, so how often each of them is drawn is
    multinomial: the same distribution as drawing items, at the cost of one draw a task and resample.

    Args:
        differences: for each task, 1, 0 or −1 for each item: whether the first model alone is right, or the second.
        confidence: the interval's coverage.
        resamples: how many times all items are drawn.
        seed: of the draws.
    """
    generator = np.random.RandomState(seed)
    total = np.zeros(resamples)
    for task in differences:
        shares = np.array([(task == -1).mean(), (task == 0).mean(), (task == 1).mean()])
        drawn = generator.multinomial(len(task), shares / shares.sum(), size=resamples)
        total += (drawn[:, 2] - drawn[:, 0]) / len(task)
    return _percentile_interval(total / len(differences), confidence)


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
    """Standard deviation of runs once the means of variants and of seeds are taken away (two-way analysis of variance).

    What a seed does to all variants alike does not change their order, so this is the noise of a ranking.

    Args:
        values: of variants trained with the same seeds, [variants, seeds].

    Returns:
        The deviation, with (variants − 1)(seeds − 1) degrees of freedom; None where there are none.
    """
    degrees = (values.shape[0] - 1) * (values.shape[1] - 1)
    if degrees < 1:
        return None
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return math.sqrt(float((rest**2).sum()) / degrees)


def expected_maximum(count: int) -> float:
    """What the largest of so many standard normal draws is on average: how far the best of equals stands out."""
    from scipy.special import ndtr

    x, step = np.linspace(-9.0, 9.0, 3601, retstep=True)
    density = count * ndtr(x) ** (count - 1) * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    return float((x * density).sum() * step)


def task_standard_error(accuracy: float, count: int) -> float:
    """Standard error of the share of right answers among `count`; 0 for a single item, of which it is unknown."""
    return math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else 0.0


def suite_standard_error(errors: Sequence[float], counts: Sequence[int]) -> float:
    """Standard error of a suite as lm-eval pools it over tasks: sqrt([Σ (n−1)·se²·n / (Σn − k)] / Σn)."""
    total = sum(counts)
    if total == len(counts):
        return 0.0
    pooled = sum((count - 1) * error**2 * count for error, count in zip(errors, counts, strict=True))
    return math.sqrt(pooled / (total - len(counts)) / total)


def mcnemar_p_value(first_alone: int, second_alone: int) -> float:
    """Exact two-sided p-value that two models are right equally often, from the items that one alone gets right.

    Under that hypothesis the smaller count is binomial with probability one half (McNemar 1947, exact form).
    """
    from scipy.stats import binomtest

    discordant = first_alone + second_alone
    return float(binomtest(first_alone, discordant).pvalue) if discordant else 1.0


def _percentile_interval(estimates: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return float(low), float(high)
