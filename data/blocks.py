"""A model's blocks: where they are, and compiling them."""

import torch
from torch import nn
from transformers import PreTrainedModel

_COMPILED = 64
"""Blocks of different models, shapes and modes that a process may compile; beyond it torch silently stops compiling."""


def block_lists(model: PreTrainedModel, depth: int) -> list[str]:
    """Names of a model's module lists with one entry per block; lists of experts inside a block do not count."""
    lists: list[str] = []
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{each}.") for each in lists)
        if isinstance(module, nn.ModuleList) and len(module) == depth and not is_inside:
            lists.append(name)
    return lists


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile every block of a model for static shapes, in place.

    Only blocks are compiled: they are alike, so one compilation serves all (some 20 to 60 s per shape and process), and
    hidden states are read between them. Names, weights and saved models do not change, since only the blocks' `forward`
    is compiled and no module is wrapped.
    """
    # Transformers wraps the blocks of all models in one function, so each model and shape counts towards its limit.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED)
    for name in block_lists(model, model.config.get_text_config().num_hidden_layers):
        for block in model.get_submodule(name).children():
            block.forward = torch.compile(block.forward, dynamic=False)
