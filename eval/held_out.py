"""Held-out cross-entropy: how surprising fixed windows of a split are to a model, per token, per word and per byte.

`palenka eval MODEL_DIR --suite held_out --data CORPUS_DIR --out FILE.json`

The first token of each window is not predicted. Bytes are those that the other tokens stand for, and words those that
begin in them; `<s>` stands for none, though predicting it costs. So per word and per byte compare tokenizers, and the
three figures differ by constant factors for one corpus.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows, window_losses
from palenka.data.model_files import identity_of, load_model, require_fit
from palenka.eval.results import earlier_results, has_window_losses, write_window_losses
from palenka.eval.statistics import bootstrap_interval
from palenka.ground.processes import open_processes
from palenka.ground.progress import progress_bar

_MICRO_BATCH, _GPU_MICRO_BATCH = 4, 64
"""On a CPU the logits of more windows than these few are slower to allocate than to compute."""


def words_and_bytes(corpus: Corpus, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


def measure_held_out(
    model_directory: Path, corpus: Corpus, length: int, out: Path, at_most: int | None = None
) -> dict[str, Any]:
    """Held-out cross-entropy of a model with bootstrap intervals over windows, written to a file.

    The loss of every window stands beside it, for paired comparisons. Files that were made from the same model, corpus
    and length are not made again.

    Args:
        model_directory: in Hugging Face format.
        corpus: the held-out split.
        length: tokens in a window.
        out: the file.
        at_most: measure on so many windows, a sample that is the same for every model; on all unless given.

    Raises:
        UserError: if the model does not fit the corpus, the file is something else, or the disk does not take it.
    """
    request = held_out_request(model_directory, corpus, length) | ({} if at_most is None else {"at_most": at_most})
    for found in earlier_results(out, ["held_out"]):
        same = request.items() <= found.items() and found.get("at_most") == at_most
        if same and has_window_losses(out):
            return found
    figures, losses = _measured(model_directory, corpus, length, at_most)
    return write_window_losses(out, request | figures, losses)


def held_out_request(model_directory: Path, corpus: Corpus, length: int) -> dict[str, Any]:
    """Everything that decides a result.

    Raises:
        UserError: if the model does not fit the corpus.
    """
    require_fit("model", model_directory, corpus, length)
    return {
        "suite": "held_out",
        "version": 2,
        "model": identity_of(model_directory, "float32").as_plain(),
        "corpus": corpus.fingerprint,
        "length": length,
    }


def held_out_result(model_directory: Path, corpus: Corpus, length: int) -> dict[str, Any]:
    """The figures in nats, each with the bootstrap interval over windows; `cross_entropy` is per token."""
    return _measured(model_directory, corpus, length, None)[0]


def _measured(
    model_directory: Path, corpus: Corpus, length: int, at_most: int | None
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """The figures, and the mean loss of every window that they are of, [n]."""
    device = open_processes().device
    model = load_model(model_directory, device)
    windows = fixed_windows(corpus, length, at_most)
    losses = []
    with progress_bar(f"held out {model_directory.name}", windows.size) as advance:
        for part in window_losses(model, windows, _MICRO_BATCH if device.type == "cpu" else _GPU_MICRO_BATCH):
            losses.append(part)
            advance(len(part) * length)
    values = np.concatenate(losses)
    words, num_bytes = words_and_bytes(corpus, windows)
    totals = values * (length - 1)
    figures = {
        "parameters": model.num_parameters(),
        "windows": len(values),
        "words": int(words.sum()),
        "bytes": int(num_bytes.sum()),
        "cross_entropy": float(values.mean()),
        "interval": list(bootstrap_interval(values)),
        "per_word": float(totals.sum() / words.sum()),
        "per_word_interval": list(bootstrap_interval(totals, per=words)),
        "per_byte": float(totals.sum() / num_bytes.sum()),
        "per_byte_interval": list(bootstrap_interval(totals, per=num_bytes)),
    }
    return figures, values
