"""Models that read windows: none is padded, so attention needs no mask, and nobody looks for padding.

At every forward pass transformers asks the device whether a mask can be left out, and GPT-2 whether a text ends in its
padding token. Each answer makes the host wait until the device has done all that it was given, and then the device
waits for the host.
"""

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from palenka.data.probes import logits_without_dropout, spread_tokens

_CAUSAL = "palenka_causal"
"""Torch's attention, causal, under a name for which transformers makes no mask."""
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)


def leave_out_masks(model: PreTrainedModel, length: int) -> bool:
    """Let a model leave out masks, if its logits for windows of a length stay as they are, bit by bit.

    They do not where attention sees only part of what came before (sliding windows that are shorter), and where it is
    not torch's (Gemma 2): such a model goes on to make masks. Costs two forward passes over a window. A model that is
    saved or loaded says nothing of it.

    Args:
        model: whose attention may be changed.
        length: of the windows, at most.

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
    if torch.equal(logits_without_dropout(model, window), expected):
        return True
    model.config._attn_implementation = before
    return False


def _no_search(*_arguments: object) -> None:
    """In place of the search for padding."""
