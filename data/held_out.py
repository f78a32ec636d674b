"""Held-out windows: a fixed sample of a split, and a model's loss on each."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from palenka.data.corpus import Corpus
from palenka.data.signals.distribution import token_chunks
from palenka.data.windows import WindowRule
from palenka.ground.errors import UserError

_LOGITS_AT_ONCE = 2**27


def fixed_indices(corpus: Corpus, length: int, at_most: int | None = None) -> NDArray[np.int64]:
    """The numbers [n] of windows of view 0 of a held-out split: all, or a sample.

    The order is the same for every model, so a smaller sample is the beginning of a larger one.

    Raises:
        UserError: if the split is shorter than a window.
    """
    indices = WindowRule(length=length).slots(len(corpus.tokens), 0)[:at_most]
    if len(indices) == 0:
        raise UserError(
            f"the {corpus.split} split of {corpus.directory} has {len(corpus.tokens)} tokens, fewer than one window of "
            f"{length}; add text to it or shorten the windows"
        )
    return indices


def fixed_windows(corpus: Corpus, length: int, at_most: int | None = None) -> NDArray[np.int64]:
    """The tokens of those windows, [n, length].

    Raises:
        UserError: if the split is shorter than a window.
    """
    return corpus.gather(WindowRule(length=length), 0, fixed_indices(corpus, length, at_most))


@torch.inference_mode()
def window_losses(
    model: PreTrainedModel, windows: NDArray[np.int64], vocabulary_size: int, micro_batch: int
) -> Iterator[NDArray[np.float64]]:
    """Mean cross-entropy in nats of the next tokens of each window, micro-batch by micro-batch.

    Computed in float32 from the model's logits; L − 1 predictions in a window of L tokens.

    Args:
        model: on its device.
        windows: [n, L].
        vocabulary_size: of the corpus; a model's logits beyond it stand for no token, and are dropped.
        micro_batch: maximum windows at once; fewer if their logits would take more than 512 MB.
    """
    was_training = model.training
    model.train(False)
    size = max(1, min(micro_batch, _LOGITS_AT_ONCE // (windows.shape[1] * vocabulary_size)))
    try:
        for start in range(0, len(windows), size):
            tokens = torch.from_numpy(windows[start : start + size]).to(model.device)
            logits = model(input_ids=tokens, use_cache=False).logits[..., :vocabulary_size]
            losses = _losses(logits.flatten(0, 1), tokens.roll(-1, dims=1).flatten()).view(tokens.shape)
            # Nothing follows the last token of a window; the first token fills its place and is ignored.
            yield losses[:, :-1].mean(dim=1).cpu().double().numpy()
    finally:
        model.train(was_training)


def _losses(logits: Tensor, following: Tensor) -> Tensor:
    """Cross-entropy of each following token [n], given logits [n, V], a few rows at a time to save memory."""
    chunks = token_chunks(logits)
    targets = following.split(len(chunks[0]))
    each = [F.cross_entropy(few.float(), some, reduction="none") for few, some in zip(chunks, targets, strict=True)]
    return torch.cat(each)
