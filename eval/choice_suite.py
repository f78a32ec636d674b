"""Suites of choices: each option of an item is scored, and a model is right if the right one is the most probable."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from palenka.eval.choices import Choice
from palenka.eval.decisions import Decisions, DecisionSuite
from palenka.eval.protocols import Protocol, encode_choices
from palenka.eval.suite import Conditions, Measured, PredictionFiles, Suite, column
from palenka.ground.errors import UserError
from palenka.ground.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

    from palenka.eval.model import EvaluatedModel

AGREEMENT_ITEMS = 512
"""Items of a suite that are also scored in float32 if another precision is asked for."""


class ScoredChoices(Suite[list[Choice]]):
    """A suite whose items are options with scores.

    A row of its items has ``score_0``, ``score_1``, …, log-probabilities in nats, NaN if an item has fewer options; the
    item's ``facts``; and with another precision than float32, for a fixed sample, ``exact_0``, …, the same in float32.

    Attributes:
        protocols: that it can be scored by.
        option_names: instead of 0, 1, … in the names of columns.
        things: name of its items.
        per_token: whether a score is the mean over the scored tokens, not the sum.
        pipeline_task: the official pipeline's name; empty if the pipeline lacks it.
        predicts_whole_texts: whether that pipeline's predictions are whole texts, or only their scored part.
    """

    protocols: ClassVar[tuple[Protocol, ...]] = ("babylm-2025",)
    option_names: ClassVar[tuple[str, ...]] = ()
    things: ClassVar[str] = "items"
    per_token: ClassVar[bool] = False
    pipeline_task: str = ""
    predicts_whole_texts: bool = False

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """Protocol and precision."""
        return {"protocol": conditions.protocol, "precision": conditions.precision}

    @abstractmethod
    def choices(self, files: list[Path]) -> Iterator[Choice]:
        """All items of some files, in their order.

        Raises:
            UserError: with the mistake and its place.
        """

    def read(self, folder: Path, conditions: Conditions) -> list[Choice]:
        """All items."""
        if conditions.protocol not in self.protocols:
            raise UserError(
                f"{self.title} is scored by protocol {' or '.join(self.protocols)} alone, but protocol is "
                f"{conditions.protocol}; give --protocol {self.protocols[0]}"
            )
        return list(self.choices(self.files(folder)))

    def measure(self, data: list[Choice], model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """The scores of each item's options."""
        import pyarrow as pa

        from palenka.eval.scoring import log_likelihoods, reads_trees

        encoded = encode_choices(data, conditions.protocol, model.tokenizer, model.vocabulary_size, model.positions)
        shared = reads_trees(model.load(), encoded)
        counts = np.array([len(choice.options) for choice in data])
        divisors = [len(tokens) - start if self.per_token else 1 for tokens, start in encoded]
        columns: dict[str, Any] = {"task": [choice.task for choice in data], "index": [choice.index for choice in data]}
        columns |= {name: [choice.facts[name] for choice in data] for name in data[0].facts}
        if conditions.precision != "float32":
            # Whether an option's item is in the sample, [options].
            in_sample = np.zeros(len(data), dtype=np.bool_)
            in_sample[np.random.RandomState(0).permutation(len(data))[:AGREEMENT_ITEMS]] = True
            sampled = np.flatnonzero(np.repeat(in_sample, counts))
            exact = np.full(len(encoded), np.nan)
            exact[sampled] = log_likelihoods(model.load(), [encoded[place] for place in sampled], shared)
            columns |= self._named("exact", exact / divisors, counts)
        with progress_bar(f"{self.title} {model.name}", len(encoded), unit="texts") as advance:
            scores = log_likelihoods(model.load(conditions.precision), encoded, shared, advance)
        if not np.isfinite(scores).all():
            owners = np.repeat(np.arange(len(data)), counts)
            place = data[int(owners[np.argmin(np.isfinite(scores))])].place
            raise UserError(f"the model gives {place} no finite log-probability; its weights are broken")
        return pa.table(columns | self._named("score", scores / divisors, counts))

    def scores(self, items: "pa.Table", kind: str = "score") -> NDArray[np.float64]:
        """The scores of each item's options, [items, options]; NaN where an item has fewer."""
        names = [name for name in items.column_names if name.startswith(f"{kind}_")]
        return np.stack([column(items, name).astype(np.float64) for name in names], axis=1)

    def predictions(self, folder: Path, data: list[Choice], items: "pa.Table") -> PredictionFiles:
        """The option that the model finds most probable, of every item."""
        if not self.pipeline_task:
            return {}
        groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for choice, chosen in zip(data, chosen_options(self.scores(items)), strict=True):
            name = choice.name or choice.task
            predictions = groups.setdefault(name, {"predictions": []})["predictions"]
            option = choice.options[chosen]
            text = option.whole if self.predicts_whole_texts else option.text
            predictions.append({"id": f"{name}_{len(predictions)}", "pred": text})
        return {f"zero_shot/causal/{self.pipeline_task}/{folder.name}/predictions.json": groups}

    def _named(self, kind: str, values: NDArray[np.float64], counts: NDArray[np.int64]) -> dict[str, Any]:
        """Columns of the options' values, given item by item."""
        table = np.full((len(counts), counts.max()), np.nan)
        # Row by row, True for as many columns as the item has options, which is the order of the values.
        table[np.arange(counts.max()) < counts[:, None]] = values
        names = self.option_names or [str(number) for number in range(counts.max())]
        return {f"{kind}_{name}": table[:, number] for number, name in enumerate(names)}


class ChoiceSuite(ScoredChoices, DecisionSuite[list[Choice]]):
    """A suite of choices: an item counts as right if no other option is more probable than the right one.

    Attributes:
        chance: the accuracy of guessing, if known.
    """

    chance: ClassVar[float | None] = None

    def right(self, items: "pa.Table") -> Decisions:
        """Ties go to the first option, as in the protocols."""
        decisions: Decisions = chosen_options(self.scores(items)) == _labels(items)
        return decisions

    def figures(self, items: "pa.Table") -> Measured:
        """The accuracy, with ties reported; and how far a sample's scores and decisions differ from float32."""
        accuracy = super().figures(items).main.model_copy(update={"chance": self.chance})
        tied = tied_items(self.scores(items), _labels(items))
        facts = {"ties": int(tied.sum()), "tie_rate": float(tied.mean())}
        return Measured(figures={"accuracy": accuracy}, facts=facts | self._agreement(items))

    def _agreement(self, items: "pa.Table") -> dict[str, int | float]:
        if not any(name.startswith("exact_") for name in items.column_names):
            return {}
        scores, exact, labels = self.scores(items), self.scores(items, "exact"), _labels(items)
        sampled = np.isfinite(exact).any(axis=1)
        agrees = (chosen_options(scores) == labels) == (chosen_options(exact) == labels)
        return {
            f"agreement_{self.things}": int(sampled.sum()),
            "agreement_decisions": float(agrees[sampled].mean()),
            "agreement_largest_difference": float(np.nanmax(np.abs(scores - exact))),
        }


def chosen_options(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first of the most probable options of each item, [items], from scores [items, options]."""
    chosen: NDArray[np.int64] = np.argmax(np.nan_to_num(scores, nan=-np.inf), axis=1)
    return chosen


def tied_items(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the right option of an item ties with another one as the most probable, [items]."""
    best = np.nanmax(scores, axis=1)
    right = scores[np.arange(len(scores)), labels]
    tied: NDArray[np.bool_] = (right == best) & ((scores == best[:, None]).sum(axis=1) > 1)
    return tied


def _labels(items: "pa.Table") -> NDArray[np.int64]:
    """The place of each item's right option: the first, unless the items have a label."""
    if "label" in items.column_names:
        return column(items, "label").astype(np.int64)
    return np.zeros(len(items), dtype=np.int64)
