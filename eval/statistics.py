"""Statistics of measures over many windows or items."""

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    values: NDArray[np.float64], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron 1979).

    Args:
        values: one number for every independent unit, such as a window's loss, [n].
        confidence: the interval's coverage.
        resamples: how many samples of n values are drawn with replacement; n · resamples draws in all.
        seed: of the draws.
    """
    generator = np.random.RandomState(seed)
    # Batches of resamples keep the memory at some 8 MB however many values there are.
    batch = max(1, 2**20 // len(values))
    means = np.concatenate(
        [
            values[generator.randint(0, len(values), (min(batch, resamples - done), len(values)))].mean(axis=1)
            for done in range(0, resamples, batch)
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
