"""Held-out cross-entropy: how surprising fixed windows of a split are to a model, per token, per word and per byte.

`palenka eval MODEL_DIR --suite held_out --data CORPUS_DIR --out FILE.json`

The first token of each window is not predicted. Bytes are those that the other tokens stand for, and words those that
begin in them; `<s>` stands for none, though predicting it costs. So per word and per byte compare tokenizers, and the
three figures differ by constant factors for one corpus.
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from palenka.eval.statistics import bootstrap_interval
from palenka.eval.suite import Conditions, Figure, Measured, Suite, column
from palenka.ground.errors import UserError
from palenka.ground.progress import progress_bar

if TYPE_CHECKING:
    import pyarrow as pa

    from palenka.data.corpus import Corpus
    from palenka.eval.model import EvaluatedModel

_MICRO_BATCH, _GPU_MICRO_BATCH = 4, 64
"""On a CPU the logits of more windows than these few are slower to allocate than to compute."""
_RESAMPLES = 2_000
"""For differences, of all windows; draws leave an interval's ends uncertain by some 3 % of its half-width."""


class HeldOut(Suite["Corpus"]):
    """Cross-entropy on windows of a prepared corpus.

    A row of its items is a window: its ``loss``, the mean over its predicted tokens in nats, and how many ``tokens``
    are predicted, with the ``words`` and ``bytes`` in them. Their order is the same for every model.
    """

    title = "held-out cross-entropy"
    folders = ("held_out", "corpus")
    patterns = ("*.zarr",)

    def fingerprint(self, folder: Path, conditions: Conditions) -> str:
        """That of the split's tokens."""
        return self.read(folder, conditions).fingerprint

    def relevant(self, conditions: Conditions) -> dict[str, str | int]:
        """The windows."""
        sample = {} if conditions.windows is None else {"windows": conditions.windows}
        return {"length": conditions.length, **sample}

    def read(self, folder: Path, conditions: Conditions) -> "Corpus":
        """The split of the corpus."""
        from palenka.data.corpus import Corpus

        return Corpus.open(folder, conditions.split)

    def measure(self, data: "Corpus", model: "EvaluatedModel", conditions: Conditions) -> "pa.Table":
        """The loss of every window; computed in float32, so that as such nothing of them is lost."""
        import pyarrow as pa

        from palenka.data.held_out import fixed_windows, window_losses
        from palenka.data.model_files import require_fit

        require_fit("model", model.directory, data, conditions.length)
        windows = fixed_windows(data, conditions.length, conditions.windows)
        loaded = model.load()
        parts = []
        with progress_bar(f"held out {model.name}", windows.size) as advance:
            for part in window_losses(
                loaded, windows, _MICRO_BATCH if loaded.device.type == "cpu" else _GPU_MICRO_BATCH
            ):
                parts.append(part)
                advance(len(part) * conditions.length)
        losses = np.concatenate(parts)
        if not np.isfinite(losses).all():
            raise UserError(f"model {model.directory} gives a window of {data.directory} no finite loss; it is broken")
        words, num_bytes = words_and_bytes(data, windows)
        columns = {
            "task": [data.split] * len(losses),
            "index": np.arange(len(losses)),
            "loss": losses.astype(np.float32),
            "tokens": np.full(len(losses), conditions.length - 1),
            "words": words,
            "bytes": num_bytes,
        }
        return pa.table(columns)

    def figures(self, items: "pa.Table") -> Measured:
        """Nats per token, word and byte, each with the bootstrap interval over windows."""
        losses = column(items, "loss").astype(np.float64)
        totals = losses * column(items, "tokens")
        figures = {
            "cross_entropy": Figure(
                value=float(losses.mean()),
                interval=bootstrap_interval(losses),
                n=len(losses),
                unit="nats per token",
                higher_is_better=False,
            )
        }
        for unit in ("word", "byte"):
            counts = column(items, f"{unit}s")
            figures[f"per_{unit}"] = Figure(
                value=float(totals.sum() / counts.sum()),
                interval=bootstrap_interval(totals, per=counts),
                n=int(counts.sum()),
                unit=f"nats per {unit}",
                higher_is_better=False,
            )
        return Measured(figures=figures)

    def compare(self, ours: "pa.Table", theirs: "pa.Table") -> dict[str, Any]:
        """The difference of the cross-entropies, with the percentile bootstrap over windows of the differences.

        So what is hard in a window for both cancels. About 1 s for 40,000 windows.
        """
        first, second = (column(items, "loss").astype(np.float64) for items in (ours, theirs))
        return {
            "n": len(first),
            "first": float(first.mean()),
            "second": float(second.mean()),
            "difference": float((first - second).mean()),
            "interval": list(bootstrap_interval(first - second, resamples=_RESAMPLES)),
        }


def words_and_bytes(corpus: "Corpus", windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many words begin in the predicted tokens of each window, [n], and how many bytes these stand for, [n].

    A word is a run of anything but (ASCII) white space. The corpus's tokenizer is byte-level: each character of a
    token's name is one byte of text, white space the 256 characters further.
    """
    tokenizer = corpus.tokenizer()
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(corpus.vocabulary_size)))
    names = ["" if token in special else name for token, name in enumerate(names)]
    spaces = {chr(256 + ord(space)) for space in " \t\n\r\v\f"}
    num_bytes = np.array([len(name) for name in names])
    begins_with_word = np.array([name[:1] not in spaces and name != "" for name in names])
    ends_before_word = np.array([name[-1:] in spaces or name == "" for name in names])
    begun_inside = np.array(
        [sum(left in spaces and right not in spaces for left, right in pairwise(name)) for name in names]
    )
    before, predicted = windows[:, :-1], windows[:, 1:]
    begun = begun_inside[predicted] + (ends_before_word[before] & begins_with_word[predicted])
    return begun.sum(axis=1), num_bytes[predicted].sum(axis=1)
