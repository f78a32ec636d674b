"""A model's blocks: where they are, and compiling them."""

import torch
from torch import nn
from transformers import PreTrainedModel

_COMPILED = 64
"""Blocks of different models, shapes and modes that a process may compile: beyond it torch goes on without a word."""


def block_lists(model: PreTrainedModel, depth: int) -> list[str]:
    """Names of the lists of a model that have something for each block; experts inside a block are none."""
    lists: list[str] = []
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{each}.") for each in lists)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not is_inside:
            lists.append(name)
    return lists


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile every block of a model for static shapes, in place.

    Blocks alone: they are alike, so one of them is compiled for all (some 20 to 60 s for each shape, once in a
    process), and hidden states are taken between them. Names, weights and what is saved stay as they are: it is the
    blocks' `forward` that is compiled, not their modules wrapped.
    """
    # Transformers wraps the blocks of all models in one function: each model and shape counts for it.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED)
    for name in block_lists(model, model.config.get_text_config().num_hidden_layers):
        for block in model.get_submodule(name).children():
            block.forward = torch.compile(block.forward, dynamic=False)
