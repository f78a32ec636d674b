"""A forward pass over a few tokens, to find out what a model computes."""

import torch
from torch import Tensor
from transformers import PreTrainedModel


def vocabulary_of(model: PreTrainedModel) -> int:
    """Logits of a model at each position."""
    return int(model.config.get_text_config().vocab_size)


def spread_tokens(model: PreTrainedModel, length: int) -> Tensor:
    """One window [1, length] of tokens spread over a model's vocabulary, on its device."""
    spread = torch.arange(length, device=model.device) * 7919 % vocabulary_of(model)
    return spread.unsqueeze(0)


@torch.no_grad()
def logits_without_dropout(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits [B, L, V] of windows [B, L]; the model keeps its training or evaluation mode."""
    was_training = model.training
    model.train(False)
    try:
        logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    finally:
        model.train(was_training)
    return logits
