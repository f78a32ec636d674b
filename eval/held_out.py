"""Held-out cross-entropy of a model on fixed windows of a split, per token, per word and per byte.

`palenka eval MODEL_DIR --suite held_out --data CORPUS_DIR --out FILE.json`

The first token of each window is not predicted. Bytes are those of the other tokens, and words those that begin in
them; `<s>` has none, though its prediction counts as loss. So figures per word and per byte compare tokenizers, and for
one corpus the three figures differ by constant factors. Intervals and tests sample documents, or blocks of the text if
documents are few (`eval/text_units.py`).
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from palenka.eval.statistics import Estimate, ratio_estimate
from palenka.eval.suite import Conditions, Figure, Measured, Score, Suite, by_task, column
from palenka.eval.text_units import BLOCK, text_units
from palenka.ground.errors import UserError
from palenka.ground.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

    from palenka.data.corpus import Corpus
    from palenka.eval.model import EvaluatedModel

_MICRO_BATCH, _GPU_MICRO_BATCH = 4, 64
"""On a CPU, allocating the logits of more windows takes longer than computing them."""


class HeldOut(Suite["Corpus"]):
    """Cross-entropy on windows of a prepared corpus.

    A row of its items is a window: its ``loss``, the mean over its predicted tokens in nats, and how many ``tokens``
    are predicted, with the ``words`` and ``bytes`` in them. Its task is the source in which it begins, its index its
    number in the split, its ``unit`` the unit of sampling. The order is the same for every model.
    """

    version = 2

    title = "held-out cross-entropy"
    folders = ("held_out", "corpus")
    patterns = ("*.zarr",)

    def fingerprint(self, folder: Path, conditions: Conditions) -> str:
        """The fingerprint of the split's tokens."""
        return self.read(folder, conditions).fingerprint

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """The split and its windows."""
        sample = {} if conditions.windows is None else {"windows": conditions.windows}
        return {"split": conditions.split, "length": conditions.length, **sample}

    def read(self, folder: Path, conditions: Conditions) -> "Corpus":
        """The split of the corpus."""
        from palenka.data.corpus import Corpus

        return Corpus.open(folder, conditions.split)

    def measure(self, data: "Corpus", model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """The loss of every window, computed and stored in float32."""
        import pyarrow as pa

        from palenka.data.held_out import fixed_indices, window_losses
        from palenka.data.model_files import require_fit
        from palenka.data.windows import WindowRule

        require_fit("model", model.located, data, conditions.length)
        indices = fixed_indices(data, conditions.length, conditions.windows)
        if len(indices) < 2:
            raise UserError(
                f"the {data.split} split of {data.directory} has one window of {conditions.length} tokens, but two are "
                "the fewest that tell how well a level is known; add text to it or shorten the windows"
            )
        windows = data.gather(WindowRule(length=conditions.length), 0, indices)
        loaded = model.load()
        parts = []
        with progress_bar(f"held out {model.name}", windows.size) as advance:
            micro_batch = _MICRO_BATCH if loaded.device.type == "cpu" else _GPU_MICRO_BATCH
            for part in window_losses(loaded, windows, data.vocabulary_size, micro_batch):
                parts.append(part)
                advance(len(part) * conditions.length)
        losses = np.concatenate(parts)
        if not np.isfinite(losses).all():
            raise UserError(f"model {model.directory} gives a window of {data.directory} no finite loss; it is broken")
        words, num_bytes = words_and_bytes(data, windows)
        belonging = text_units(data, indices * conditions.length)
        columns = {
            "task": belonging.sources,
            "index": indices,
            "unit": belonging.units,
            "loss": losses.astype(np.float32),
            "tokens": np.full(len(losses), conditions.length - 1),
            "words": words,
            "bytes": num_bytes,
        }
        return pa.table(columns)

    def figures(self, items: "pa.Table") -> Measured:
        """Nats per token, word and byte, and the numbers of units of either kind in their intervals."""
        by_source = {source: _score(items.take(places), "tokens") for source, places in by_task(items)}
        figures = {
            name: Figure(**dict(_score(items, per)), unit=f"nats per {per[:-1]}", higher_is_better=False)
            for name, per in (("cross_entropy", "tokens"), ("per_word", "words"), ("per_byte", "bytes"))
        }
        if len(by_source) > 1:
            figures["cross_entropy"] = figures["cross_entropy"].model_copy(update={"tasks": by_source})
        names = {(task, unit) for task, unit in zip(*(column(items, name) for name in ("task", "unit")), strict=True)}
        blocks = sum(unit.startswith(BLOCK) for _, unit in names)
        return Measured(figures=figures, facts={"runs_of_documents": len(names) - blocks, "blocks_of_text": blocks})

    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """The difference of the cross-entropies and Student's test of it, by units, of the windows' differences.

        So text that is hard for both models cancels.
        """
        tasks = {source: _row(ours.take(places), theirs.take(places)) for source, places in by_task(ours)}
        return _row(ours, theirs) | ({"tasks": tasks} if len(tasks) > 1 else {})


def _score(items: "pa.Table", per: str) -> Score:
    found = _estimate(items, _nats(items), per)
    count = len(items) if per == "tokens" else int(column(items, per).sum())
    stderr = None if math.isnan(found.stderr) else found.stderr
    return Score(value=found.value, stderr=stderr, interval=found.interval, n=count)


def _row(ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
    first, second = (_estimate(items, _nats(items), "tokens").value for items in (ours, theirs))
    found = _estimate(ours, _nats(ours) - _nats(theirs), "tokens")
    return {
        "n": len(ours),
        "first": first,
        "second": second,
        "difference": found.value,
        "interval": found.interval,
        "p_value": found.p_value,
    }


def _nats(items: "pa.Table") -> NDArray[np.float64]:
    nats: NDArray[np.float64] = column(items, "loss").astype(np.float64) * column(items, "tokens")
    return nats


def _estimate(items: "pa.Table", nats: NDArray[np.float64], per: str) -> Estimate:
    """Nats [n] of windows per token, word or byte, with the sampling error of their units."""
    sources = np.unique(column(items, "task").astype(str), return_inverse=True)[1]
    units = np.unique(column(items, "unit").astype(str), return_inverse=True)[1] + sources * len(items)
    if len(np.unique(units)) == 1:
        units = np.arange(len(items))  # a few windows from one place: the best estimate available
    return ratio_estimate(nats, column(items, per), units, sources)


def words_and_bytes(corpus: "Corpus", windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of words that begin in the predicted tokens of each window, [n], and of their bytes, [n].

    A word is a run of characters other than (ASCII) white space. Special tokens have no bytes.
    """
    from palenka.data.text.tokenizer import token_bytes

    names = token_bytes(corpus.tokenizer(), corpus.vocabulary_size)
    spaces = {bytes([space]) for space in b" \t\n\r\v\f"}
    num_bytes = np.array([len(name) for name in names])
    begins_with_word = np.array([name[:1] not in spaces and name != b"" for name in names])
    ends_before_word = np.array([name[-1:] in spaces or name == b"" for name in names])
    begun_inside = np.array(
        [
            sum(bytes([left]) in spaces and bytes([right]) not in spaces for left, right in pairwise(name))
            for name in names
        ]
    )
    before, predicted = windows[:, :-1], windows[:, 1:]
    begun = begun_inside[predicted] + (ends_before_word[before] & begins_with_word[predicted])
    return begun.sum(axis=1), num_bytes[predicted].sum(axis=1)
