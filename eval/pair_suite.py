"""Suites of minimal pairs: both texts of each pair are scored, and a model is right if the good one is as probable."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palenka.eval.decisions import Decisions, DecisionSuite
from palenka.eval.minimal_pairs import MinimalPair, read_pairs
from palenka.eval.protocols import encode_pairs
from palenka.eval.suite import Conditions, Measured, by_task, column
from palenka.ground.errors import UserError
from palenka.ground.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

    from palenka.eval.model import EvaluatedModel

AGREEMENT_PAIRS = 512
"""Pairs of a suite that are scored in float32 too, where another precision is asked for."""


@dataclass(frozen=True)
class PairSuite(DecisionSuite[list[MinimalPair]]):
    """A suite of minimal pairs.

    A row of its items has ``score_good`` and ``score_bad``, log-probabilities in nats; and beside another precision
    than float32, for a fixed sample, ``exact_good`` and ``exact_bad``, the same in float32.

    Attributes:
        title: as tables have it.
        folders: names of the subfolders that may hold its data.
        with_context: whether its files have EWoK's form, or else BLiMP's.
    """

    title: str
    folders: tuple[str, ...]
    with_context: bool = False

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """Protocol and precision."""
        return {"protocol": conditions.protocol, "precision": conditions.precision}

    def read(self, folder: Path, conditions: Conditions) -> list[MinimalPair]:
        """All pairs."""
        return read_pairs(self.files(folder), self.with_context)

    def measure(self, data: list[MinimalPair], model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """The scores of each pair's texts."""
        import pyarrow as pa

        from palenka.eval.scoring import log_likelihoods, reads_trees

        encoded = encode_pairs(data, conditions.protocol, model.tokenizer, model.vocabulary_size, model.positions)
        shared = reads_trees(model.load(), encoded)
        columns: dict[str, Any] = {"task": [pair.task for pair in data], "index": [pair.index for pair in data]}
        if conditions.precision != "float32":
            chosen = np.random.RandomState(0).permutation(len(data))[:AGREEMENT_PAIRS]
            sample = [encoded[place] for pair in chosen for place in (2 * pair, 2 * pair + 1)]
            exact = np.full((len(data), 2), np.nan)
            exact[chosen] = log_likelihoods(model.load(), sample, shared).reshape(-1, 2)
            columns |= {"exact_good": exact[:, 0], "exact_bad": exact[:, 1]}
        with progress_bar(f"{self.title} {model.name}", len(encoded), unit="sentences") as advance:
            scores = log_likelihoods(model.load(conditions.precision), encoded, shared, advance).reshape(-1, 2)
        if not (finite := np.isfinite(scores).all(axis=1)).all():
            place = data[int(np.argmin(finite))].place
            raise UserError(f"the model gives {place} no finite log-probability; its weights are broken")
        return pa.table(columns | {"score_good": scores[:, 0], "score_bad": scores[:, 1]})

    def right(self, items: "pa.Table") -> Decisions:
        """Ties go to the good text, as the protocols have it."""
        right: Decisions = column(items, "score_good") >= column(items, "score_bad")
        return right

    def figures(self, items: "pa.Table") -> Measured:
        """The accuracy, with ties reported; and how far a sample's scores, and decisions, are from those in float32."""
        measured = super().figures(items)
        scores, tied = measured.main.tasks, column(items, "score_good") == column(items, "score_bad")
        halves = [scores[task].value - float(tied[places].mean()) / 2 for task, places in by_task(items)]
        facts = {
            "ties": int(tied.sum()),
            "tie_rate": float(tied.mean()),
            "tie_half_accuracy": float(np.mean(halves)),
        }
        return Measured(figures=measured.figures, facts=facts | _agreement(items))


def _agreement(items: "pa.Table") -> dict[str, int | float]:
    if "exact_good" not in items.column_names:
        return {}
    good, bad, exact_good, exact_bad = (
        column(items, f"{kind}_{side}") for kind in ("score", "exact") for side in ("good", "bad")
    )
    sampled = np.isfinite(exact_good)
    differences = np.abs([(good - exact_good)[sampled], (bad - exact_bad)[sampled]])
    return {
        "agreement_pairs": int(sampled.sum()),
        "agreement_decisions": float(((good >= bad) == (exact_good >= exact_bad))[sampled].mean()),
        "agreement_largest_difference": float(differences.max()),
    }
