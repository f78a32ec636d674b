"""The head: from hidden states to logits and their terms, chunk by chunk.

The logits of a vocabulary are by far the largest tensor of a step, so they are held once, a chunk at a time, and not
for the backward pass: a chunk is overwritten by its gradient, which goes into the gradients of states and head at once
(the idea of Liger Kernel's fused linear cross-entropy, arXiv 2410.10989). The backward pass only scales these.

Logits that are not a linear map of the last states (`probe.py`) are computed whole by the model itself, and go through
the same terms.

Shapes: N tokens, S width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from palenka.data.signals.distribution import token_chunks, values_at_once
from palenka.train_student.objective.next_token import NextTokenTerms

_LOGITS = 2**26
"""Logits of a chunk on a CPU: 128 MB in bf16. Chunks are not small, since each adds to the head's gradient. A GPU
processes as many at once as its memory allows (`values_at_once`), with some copies in float32."""


def head_terms(states: Tensor, head: nn.Linear, terms: NextTokenTerms) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms on a head's logits, and every term without its weight.

    Matrix products are in the type of autocast, sums in float32 (float64 for states in float64). Beside its result it
    costs the gradient of the head, in that type, until the backward pass, and one chunk of logits (`_LOGITS`).

    Args:
        states: that the head sees, [B, L, S].
        head: from S to V.
        terms: over the B · L tokens.

    Returns:
        The sum, and [1 + teachers] means without a gradient: the cross-entropy, then each scaled divergence.
    """
    total, means = _HeadTerms.apply(states.flatten(0, -2), head.weight, head.bias, terms)  # type: ignore[no-untyped-call]
    return total, means


def logit_terms(logits: Tensor, terms: NextTokenTerms) -> tuple[Tensor, Tensor]:
    """The same for logits [B, L, V] that a model computed itself, as float32; keeps their gradient beside them."""
    total, means = _LogitTerms.apply(logits.flatten(0, -2), terms)  # type: ignore[no-untyped-call]
    return total, means


_MULTIPLIES_INTO_FLOAT32 = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)
"""Whether torch's product of fp16 matrices can be float32 on CUDA, as fast as in fp16."""


class _HeadTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        terms: NextTokenTerms,
    ) -> tuple[Tensor, Tensor]:
        """Values and, times N, gradients."""
        device = states.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        sums_kind = torch.promote_types(states.dtype, torch.float32)
        of_states = torch.empty_like(states)
        of_weight = torch.zeros_like(weight, dtype=sums_kind)
        of_bias = torch.zeros_like(bias, dtype=sums_kind) if bias is not None else None
        sums = torch.zeros(1 + len(terms.teachers), dtype=sums_kind, device=states.device)
        # Cast here and not by autocast, which would keep the casts without a gradient for other users of the weight.
        matrix, offset = weight.to(kind), bias.to(kind) if bias is not None else None
        start = 0
        for part in states.split(max(1, max(_LOGITS, values_at_once(states.device)) // len(weight))):
            seen = part.to(kind)
            with torch.autocast(device, enabled=False):
                logits = F.linear(seen, matrix, offset)
                _in_chunks(logits, start, terms, sums)
                of_states[start : start + len(part)] = logits @ matrix
                of_weight += _sum_over_tokens(logits, seen)
            if of_bias is not None:
                of_bias += logits.sum(dim=0, dtype=sums_kind)
            start += len(part)
        ctx.save_for_backward(of_states, of_weight, of_bias)
        ctx.num_tokens = len(states)
        total, means = _total(sums, len(states), terms)
        ctx.mark_non_differentiable(means)
        return total, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        """Scaled only here, in float32: 1 / N alone would vanish in fp16 before the loss scaler acts."""
        factor = grad_total / ctx.num_tokens
        return (*(part * factor if part is not None else None for part in ctx.saved_tensors), None)


def _sum_over_tokens(gradient: Tensor, seen: Tensor) -> Tensor:
    """The gradient of the head, [V, S], from that of the logits [n, V] and the head's inputs [n, S].

    In float32 for fp16: some sums over many tokens overflow fp16 and most entries underflow, and no loss scale helps
    both.
    """
    if gradient.dtype != torch.float16:
        return gradient.T @ seen
    if gradient.is_cuda and _MULTIPLIES_INTO_FLOAT32:
        return torch.mm(gradient.T, seen, out_dtype=torch.float32)
    return gradient.T.float() @ seen.float()


class _LogitTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, terms: NextTokenTerms) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Values and, times N, the gradient."""
        # A copy, since the model may need the logits for its own backward pass.
        gradient = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        sums = gradient.new_zeros(1 + len(terms.teachers))
        with torch.autocast(logits.device.type, enabled=False):
            _in_chunks(gradient, 0, terms, sums)
        ctx.save_for_backward(gradient)
        total, means = _total(sums, len(logits), terms)
        ctx.mark_non_differentiable(means)
        return total, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * (grad_total / len(gradient)), None


def _total(sums: Tensor, num_tokens: int, terms: NextTokenTerms) -> tuple[Tensor, Tensor]:
    """The weighted sum of the terms, and the terms, from their sums over tokens."""
    means = sums / num_tokens
    # One number at a time: a list would be copied to the device, which waits.
    weighted = [mean * weight for mean, weight in zip(means.unbind(), [terms.hard, *terms.weights], strict=True)]
    return torch.stack(weighted).sum(), means


def _in_chunks(logits: Tensor, start: int, terms: NextTokenTerms, sums: Tensor) -> None:
    """Overwrite logits [n, V] of the tokens from `start` on with the gradient of their terms; adds these to sums."""
    first = 0
    for few in token_chunks(logits):
        rows = slice(start + first, start + first + len(few))
        terms.rows(rows).to_gradient(few, sums)
        first += len(few)
