"""Probes: find out what a model computes by running it, so that no list of names is needed."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palenka.data.probes import logits_without_dropout, spread_tokens, vocabulary_of
from palenka.ground.errors import UserError
from palenka.train_student.model.student import building

_LENGTH = 8
_LARGE = 50.0
"""Standard deviation of the probed logits, large enough to show caps of some 30."""
_EQUAL = 1e-4
"""Tolerance relative to the largest logit; another order of float32 sums differs by some 1e-6."""


@torch.no_grad()
def has_linear_head(model: PreTrainedModel) -> bool:
    """Whether a model's logits are its output embedding of its base model's last states, and nothing more.

    False for capped (Gemma 2) or scaled logits (Granite, Cohere), and for heads of several layers. The states are
    replaced by large random ones, since small logits would not show a cap.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or model.base_model is model:
        return False
    given: list[Tensor] = []

    def replace(_module: nn.Module, _arguments: object, output: object) -> object:
        states = getattr(output, "last_hidden_state", None)
        if isinstance(states, Tensor):
            random = torch.randn(states.shape, generator=torch.Generator().manual_seed(0)).to(states)
            large = random * (_LARGE / head(random).std())
            output.last_hidden_state = large  # type: ignore[attr-defined]
            given.append(large)
        return output

    hook = model.base_model.register_forward_hook(replace)
    try:
        logits = logits_without_dropout(model, spread_tokens(model, _LENGTH))
    finally:
        hook.remove()
    return len(given) == 1 and _equal(logits, head(given[0]))


@torch.no_grad()
def require_causal(model: PreTrainedModel, summary: str) -> None:
    """Refuse a model whose logits depend on later tokens, as those of an encoder do.

    Raises:
        UserError: with the model; or if its parts do not fit together, which some models report only when they run.
    """
    tokens = spread_tokens(model, _LENGTH)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % vocabulary_of(model)
    with building(summary):
        before, after = (logits_without_dropout(model, each)[:, :-1] for each in (tokens, changed))
    if not _equal(before, after):
        raise UserError(
            f"model: {summary} sees the tokens that it is to predict; set is_decoder: true if its configuration has "
            "that, or choose a causal language model"
        )


def _equal(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= _EQUAL * first.abs().max())
