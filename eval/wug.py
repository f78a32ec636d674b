"""Wug tests: the agreement of a model and people on two forms of a made-up word.

A row's `sentences` has two texts, separated by a tab; its `ratio` is the share of people who chose the first. A model's
share is the softmax over the two texts' log-probabilities, and the figure Spearman's correlation of the two shares.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from palenka.eval.choice_suite import ScoredChoices
from palenka.eval.choices import Choice, ChoiceMaker, Completion
from palenka.eval.jackknife import jackknife_errors, jackknifed_difference
from palenka.eval.row_files import read_rows
from palenka.eval.statistics import NORMAL_95
from palenka.eval.suite import Figure, Measured, PredictionFiles, column
from palenka.ground.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Wug(ScoredChoices):
    """A wug test; a row of its items has people's ``ratio`` beside the two scores.

    Attributes:
        title: in tables.
        folders: names of the subfolders that may hold its data.
        pipeline_task: the official pipeline's name.
    """

    title: str
    folders: tuple[str, ...]
    pipeline_task: str

    def choices(self, files: list[Path]) -> Iterator[Choice]:
        """All pairs of forms."""
        maker = ChoiceMaker()
        for file in files:
            for row in read_rows(file):
                texts = row.text("sentences").split("\t")
                if len(texts) != 2:
                    raise UserError(f"{row.place}: sentences has {len(texts)} texts, but it should have 2, by a tab")
                options = tuple(Completion(None, text) for text in texts)
                yield maker.make(row, file.stem, options, {"ratio": float(row.number("ratio"))})

    def figures(self, items: "pa.Table") -> Measured:
        """The correlation over all items; its error by the jackknife, its interval by Fisher's transformation."""
        shares, ratios = self.shares(items), column(items, "ratio").astype(np.float64)
        value = spearman(shares, ratios)
        errors = jackknife_errors(lambda kept: np.array([spearman(shares[kept], ratios[kept])]), np.arange(len(items)))
        error, interval = None if errors is None else float(errors[0]), None
        if error is not None and abs(value) < 1:
            # On Fisher's scale the error of a correlation hardly depends on its value.
            middle, margin = math.atanh(value), NORMAL_95 * error / (1 - value**2)
            interval = math.tanh(middle - margin), math.tanh(middle + margin)
        figure = Figure(
            value=value,
            stderr=error,
            interval=interval,
            n=len(items),
            unit="Spearman's correlation",
            higher_is_better=True,
            chance=0.0,
        )
        return Measured(figures={"correlation": figure})

    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """The difference of the correlations with people's shares, its error by the jackknife over the items."""
        first, second, ratios = self.shares(ours), self.shares(theirs), column(ours, "ratio").astype(np.float64)

        def difference(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
            return np.array([spearman(first[kept], ratios[kept]) - spearman(second[kept], ratios[kept])])

        return {
            "n": len(ratios),
            "first": spearman(first, ratios),
            "second": spearman(second, ratios),
            **jackknifed_difference(difference, np.arange(len(ratios))),
        }

    def predictions(self, folder: Path, data: list[Choice], items: "pa.Table") -> PredictionFiles:
        """The more probable form of every item, and the share of the first beside it."""
        files = super().predictions(folder, data, items)
        shares, tasks = self.shares(items), column(items, "task")
        for groups in files.values():
            for task, group in groups.items():
                for prediction, share in zip(group["predictions"], shares[tasks == task].tolist(), strict=True):
                    prediction["prob"] = share
        return files

    def shares(self, items: "pa.Table") -> NDArray[np.float64]:
        """The model's share of the first form of each item, [items]."""
        scores = self.scores(items)
        shares: NDArray[np.float64] = 1 / (1 + np.exp(np.clip(scores[:, 1] - scores[:, 0], -700, 700)))
        return shares


def spearman(values: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; 0 if all values of one side are equal."""
    from scipy.stats import spearmanr

    if np.ptp(values) == 0 or np.ptp(others) == 0:
        return 0.0
    return float(spearmanr(values, others).statistic)
