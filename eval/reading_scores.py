"""The scores of the reading suite: regressions of people's times with and without a model's surprisals."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from palenka.eval.suite import column
from palenka.ground.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

EYE_TRACKING = ("RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound")
SELF_PACED = "self_paced_reading_time"
_EYE_BASELINE = ("Subtlex_log10", "length", "context_length")
_SELF_PACED_BASELINE = (*_EYE_BASELINE, "prev_length", "prev_surprisal")
NUMBERS = ("sent_id", *EYE_TRACKING, SELF_PACED, *_EYE_BASELINE, "prev_length")
"""Columns of the data that the scores are made from."""

Columns = Mapping[str, NDArray[np.float64]]


class ReadingScores:
    """Scores of any part of the words.

    Args:
        items: a model's surprisals and the columns of the data.

    Attributes:
        sentences: that each word stands in, [n].
    """

    def __init__(self, items: "pa.Table") -> None:
        names = (*NUMBERS, "surprisal", "prev_surprisal")
        self._columns: Columns = {name: column(items, name).astype(np.float64) for name in names}
        self.sentences = self._columns["sent_id"].astype(np.int64)

    def of(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Mean, score of eye tracking and score of self-paced reading, [3], for some of the words, a mask [n]."""
        columns = {name: values[kept] for name, values in self._columns.items()}
        eyes = np.mean([explained(columns, measure, _EYE_BASELINE) for measure in EYE_TRACKING])
        self_paced = explained(columns, SELF_PACED, _SELF_PACED_BASELINE)
        return np.array([(eyes + self_paced) / 2, eyes, self_paced])


def explained(columns: Columns, measure: str, baseline: Sequence[str]) -> float:
    """The share of a baseline's residual variance that the surprisal explains, in %: 100 · (R² − R²₀) / (1 − R²₀).

    Ordinary least squares on the baseline's columns and their pairwise products, with and without the surprisal, over
    the words that have all of these numbers.

    Raises:
        UserError: if there are not more words than coefficients.
    """
    names = (measure, *baseline, "surprisal")
    whole = np.isfinite([columns[name] for name in names]).all(axis=0)
    found = {name: columns[name][whole] for name in names}
    products = [found[one] * found[other] for one, other in combinations(baseline, 2)]
    design = np.stack(
        [np.ones(int(whole.sum())), *(found[name] for name in baseline), *products, found["surprisal"]], 1
    )
    if len(design) <= design.shape[1]:
        raise UserError(
            f"{measure} of {len(design)} words is known with all that explains it, but the regression has "
            f"{design.shape[1]} coefficients; give the whole reading_data.csv"
        )
    without, with_surprisal = _r_squared(found[measure], design[:, :-1]), _r_squared(found[measure], design)
    return 100 * (with_surprisal - without) / (1 - without)


def require_statsmodels() -> None:
    """Refuse if the package for the regressions is missing.

    Raises:
        UserError: if it is not installed.
    """
    if importlib.util.find_spec("statsmodels") is None:
        raise UserError("the suite reading needs statsmodels, not installed here; pip install 'palenka[reading]'")


def _r_squared(values: NDArray[np.float64], design: NDArray[np.float64]) -> float:
    from statsmodels.regression.linear_model import OLS

    with warnings.catch_warnings():
        # Linearly dependent columns leave R² determined, though not their coefficients.
        warnings.simplefilter("ignore", UserWarning)
        return float(OLS(values, design).fit().rsquared)
