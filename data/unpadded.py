"""Models without masks: windows are never padded, so attention needs no mask and no search for padding.

At every forward pass transformers asks the device whether a mask can be left out, and GPT-2 whether a text ends in its
padding token. Each answer makes the host wait until the device has finished its work, and then the device waits for the
host.
"""

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from palenka.data.probes import logits_without_dropout, spread_tokens

_CAUSAL = "palenka_causal"
"""Torch's attention, causal, under a name for which transformers makes no mask."""
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)


def leave_out_masks(model: PreTrainedModel, length: int) -> bool:
    """Let a model leave out masks, if its logits for windows of a length stay identical bit by bit.

    They do not if attention sees only part of the earlier tokens (shorter sliding windows) or is not torch's (Gemma 2,
    Falcon): such a model keeps its masks. Costs two forward passes over a window. Saved models do not record it.

    Args:
        model: whose attention may be changed.
        length: maximum, of the windows.

    Returns:
        Whether masks are left out.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.warn_if_padding_and_no_attention_mask = _no_search  # type: ignore[method-assign]
    before = model.config._attn_implementation
    if before != "sdpa":
        return False
    window = spread_tokens(model, length)
    expected = logits_without_dropout(model, window)
    model.config._attn_implementation = _CAUSAL
    if _gives(model, window, expected):
        return True
    model.config._attn_implementation = before
    return False


def _gives(model: PreTrainedModel, window: Tensor, expected: Tensor) -> bool:
    """Whether a model gives these logits for a window, and runs at all."""
    try:
        return torch.equal(logits_without_dropout(model, window), expected)
    except Exception:  # attention of an architecture's own (Falcon's adds its mask) fails in a way of its own
        return False


def _no_search(*_arguments: object) -> None:
    """Replaces the search for padding."""
