"""Reading times: how much better they are explained with a model's surprisal than without (de Varda et al. 2023).

`reading_data.csv` has a row for every word of 205 sentences but the first: `word` after `item`, `prev_word` after
`prev_item`, people's times and other predictors. The score of a measure is the share of the residual variance of a
regression without the word's surprisal that the surprisal explains, 100 · (R² − R²₀) / (1 − R²₀).
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palenka.eval.jackknife import jackknife_errors, jackknifed_difference
from palenka.eval.json_lines import Row
from palenka.eval.protocols import ScoredTokens, require_fit
from palenka.eval.reading_scores import NUMBERS, ReadingScores, require_statsmodels
from palenka.eval.row_files import read_rows
from palenka.eval.statistics import normal_interval
from palenka.eval.suite import Conditions, Figure, Measured, PredictionFiles, Suite, column
from palenka.ground.errors import UserError
from palenka.ground.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from palenka.eval.model import EvaluatedModel


@dataclass(frozen=True)
class ReadWord:
    """A word that people read, and the word before it, each after its context; None if there is no word before.

    Attributes:
        place: where it stands, as ``file:line``.
        word: its context, and the word.
        previous: the same for the word before.
        numbers: the measures and their predictors, by column; NaN if one is missing.
    """

    place: str
    word: tuple[str, str]
    previous: tuple[str, str] | None
    numbers: dict[str, float]


class Reading(Suite[list[ReadWord]]):
    """Eye tracking and self-paced reading.

    A row of its items has a word's ``surprisal`` and that of the word before, ``prev_surprisal``, in nats, and the
    columns of the data that the regressions use.
    """

    title = "reading"
    folders = ("reading",)
    fast_folder = "reading"
    patterns = ("*.csv",)
    column = "reading"

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """The precision."""
        return {"precision": conditions.precision}

    def read(self, folder: Path, conditions: Conditions) -> list[ReadWord]:
        """All words."""
        require_statsmodels()
        return [_word_of(row) for file in self.files(folder) for row in read_rows(file)]

    def measure(self, data: list[ReadWord], model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """The surprisals of each word and of the one before."""
        import pyarrow as pa

        from palenka.eval.scoring import log_likelihoods, reads_trees

        asked = [(read.place, read.word) for read in data]
        asked += [(read.place, read.previous) for read in data if read.previous is not None]
        encoded = [encode_word(model.tokenizer, *text) for _, text in asked]
        for (place, _), tokens in zip(asked, encoded, strict=True):
            for sequence in tokens:
                require_fit(place, sequence.tokens, model.vocabulary_size, model.positions)
        sequences = [sequence for tokens in encoded for sequence in tokens]
        shared = reads_trees(model.load(), sequences)
        with progress_bar(f"{self.title} {model.name}", len(sequences), unit="tokens") as advance:
            values = -log_likelihoods(model.load(conditions.precision), sequences, shared, advance)
        if not np.isfinite(values).all():
            raise UserError(f"model {model.directory} gives a word no finite surprisal; its weights are broken")
        firsts = np.cumsum([0, *(len(tokens) for tokens in encoded[:-1])])
        surprisals = iter(np.add.reduceat(values, firsts).tolist())
        columns: dict[str, Any] = {"task": ["reading"] * len(data), "index": list(range(len(data)))}
        columns["surprisal"] = [next(surprisals) for _ in data]
        columns["prev_surprisal"] = [math.nan if read.previous is None else next(surprisals) for read in data]
        return pa.table(columns | {name: [read.numbers[name] for read in data] for name in NUMBERS})

    def figures(self, items: "pa.Table") -> Measured:
        """The two scores and their mean; errors by the jackknife over sentences, whose words may be dependent.

        About 5 s.
        """
        scores = ReadingScores(items)
        values, errors = scores.of(np.ones(len(items), dtype=np.bool_)), jackknife_errors(scores.of, scores.sentences)
        figures = {}
        for place, name in enumerate(("reading", "eye_tracking", "self_paced")):
            value, error = float(values[place]), None if errors is None else float(errors[place])
            figures[name] = Figure(
                value=value,
                stderr=error,
                interval=None if error is None else normal_interval(value, error),
                n=len(items),
                unit="% of variance left",
                higher_is_better=True,
                chance=0.0,
            )
        return Measured(figures=figures)

    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """The difference of the mean scores, its error by the jackknife over sentences. About 10 s."""
        first, second = ReadingScores(ours), ReadingScores(theirs)
        every = np.ones(len(ours), dtype=np.bool_)
        return {
            "n": len(ours),
            "first": float(first.of(every)[0]),
            "second": float(second.of(every)[0]),
            **jackknifed_difference(lambda kept: first.of(kept)[:1] - second.of(kept)[:1], first.sentences),
        }

    def predictions(self, folder: Path, data: list[ReadWord], items: "pa.Table") -> PredictionFiles:
        """The surprisals of every word."""
        pairs = zip(column(items, "surprisal").tolist(), column(items, "prev_surprisal").tolist(), strict=True)
        rows = [{"id": number, "pred": pred, "prev_pred": previous} for number, (pred, previous) in enumerate(pairs)]
        return {"zero_shot/causal/reading/predictions.json": {"reading": {"predictions": rows}}}


def encode_word(tokenizer: "PreTrainedTokenizerBase", context: str, word: str) -> list[ScoredTokens]:
    """The context and scored token for each token of a word, as in the official pipeline.

    The word is encoded alone, thus without the space before it. Each of its tokens is predicted from the preceding
    text, encoded anew with the tokenizer's special tokens; the token is then appended to that text.
    """
    sequences: list[ScoredTokens] = []
    text = context
    for token in tokenizer.encode(word, add_special_tokens=False):
        decoded = str(tokenizer.decode(token))
        # A token may be part of a character: then the tokenizer's encoding of the replacement character is scored.
        target = token if not sequences else tokenizer.encode(decoded, add_special_tokens=False)[0]
        before = tokenizer.encode(text)
        sequences.append(ScoredTokens((*before, int(target)), len(before)))
        text += decoded
    return sequences


def _word_of(row: Row) -> ReadWord:
    word = row.text("word")
    # The organisers' data frame reads the word None, which begins one sentence, as missing, and repairs it as a
    # context.
    context = str(row.fields.get("item") or "None")
    previous, word_before = row.fields.get("prev_item"), row.fields.get("prev_word")
    has_previous = previous not in (None, "", "None") and word_before
    return ReadWord(
        place=row.place,
        word=(context, word),
        previous=(str(previous), str(word_before)) if has_previous else None,
        numbers={name: _number(row, name) for name in NUMBERS},
    )


def _number(row: Row, name: str) -> float:
    """A number of a CSV file; NaN for an empty field."""
    if name not in row.fields:
        raise UserError(f"{row.place} has no field {name}; get reading_data.csv again")
    text = str(row.fields[name])
    try:
        value = float(text or "nan")
    except ValueError:
        raise UserError(f"{row.place}: {name} is {text!r}, but it should be a number or empty") from None
    if math.isinf(value):
        raise UserError(f"{row.place}: {name} is {text}, but it should be a finite number or empty")
    return value
