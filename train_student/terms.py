"""The terms of the objective: each a mean over tokens, in float32 whatever the model computes in.

Shapes: B batch, L window length, N = B · L tokens, V vocabulary, k kept tokens.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.autograd.function import once_differentiable

from data.signal import TeacherSignal, token_chunks


def hard_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of every next token inside its window: logits [B, L, V], tokens [B, L]; a mean over B · (L − 1)."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten())


def tail_bucket_kl(
    logits: Tensor, signals: Mapping[str, TeacherSignal], weights: Mapping[str, float], temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum over teachers of KL(teacher ‖ student) at a temperature, with one bucket for all tokens not kept.

    With t a teacher and q the student, K the kept tokens, a = Σ_K t and b = Σ_K q, all at temperature T:

        KL = Σ_K t_i (log t_i − log q_i) + (1 − a) [log(1 − a) − log(1 − b)]

    Its gradient with respect to the logits / T is q_j − t_j on K, exactly that of the full divergence, and
    q_j − (1 − a) q_j / (1 − b) off K: the tail is shared out as the student does. It never exceeds the full
    divergence. Where a teacher has no tail the second part is 0. The caller scales by T².

    Args:
        logits: the student's, [B, L, V].
        signals: the teachers' by name; their tail mass must be known at this temperature.
        weights: of the teachers in `signals`.
        temperature: T.

    Returns:
        The weighted sum, and each teacher's divergence without its weight and without a gradient; means over B · L
        tokens. The gradient is computed together with the value: one softmax for all teachers, and one over the
        complement for each, in chunks; it is kept at the size of the logits until the backward pass.
    """
    names = list(signals)
    kept = [(signals[name].ids.flatten(0, -2), *_flat(signals[name].at(temperature))) for name in names]
    total, divergences = _TailBucketKL.apply(
        logits.flatten(0, -2), kept, [weights[name] for name in names], temperature
    )  # type: ignore[no-untyped-call]
    return total, dict(zip(names, divergences.unbind(), strict=True))


def _flat(kept_and_tail: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return kept_and_tail[0].flatten(0, -2), kept_and_tail[1].flatten()


class _TailBucketKL(torch.autograd.Function):
    """Value and gradient in one go; `kept` has (ids [N, k], log t [N, k], log tail [N]) for every teacher."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch gives it no type
        logits: Tensor,
        kept: list[tuple[Tensor, Tensor, Tensor]],
        weights: list[float],
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        float_type = torch.promote_types(logits.dtype, torch.float32)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        sums = torch.zeros(len(kept), dtype=float_type, device=logits.device)
        start = 0
        for chunk in token_chunks(logits):
            rows = slice(start, start + len(chunk))
            scaled = chunk.to(float_type) / temperature
            here = [(ids[rows], *(part[rows].to(float_type) for part in parts)) for ids, *parts in kept]
            difference = _add_chunk(scaled, here, weights, sums, gradient is not None)
            if gradient is not None and difference is not None:
                gradient[rows] = difference
            start += len(chunk)
        ctx.save_for_backward(gradient)
        ctx.scale = 1 / (temperature * len(logits))
        divergences = sums / len(logits)
        ctx.mark_non_differentiable(divergences)
        return (divergences * divergences.new_tensor(weights)).sum(), divergences

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (difference,) = ctx.saved_tensors
        # Scaled only here and in float32: 1 / N alone would vanish in fp16, before the loss scaler could act.
        factor = grad_total * ctx.scale
        gradient = torch.cat([(chunk.to(factor.dtype) * factor).to(chunk.dtype) for chunk in token_chunks(difference)])
        return gradient, None, None, None


def _add_chunk(
    scaled: Tensor, teachers: list[tuple[Tensor, ...]], weights: list[float], sums: Tensor, with_gradient: bool
) -> Tensor | None:
    """Add a chunk's divergences to `sums`; returns Σ weight · (q − t) [n, V], the gradient for logits / T."""
    # Logits may be far from 0 all together; float32 would spend its digits on that.
    scaled -= scaled.amax(dim=-1, keepdim=True)
    normalizer = scaled.logsumexp(dim=-1, keepdim=True)
    gradient = (scaled - normalizer).exp_().mul_(sum(weights)) if with_gradient else None
    for number, ((ids, log_kept, log_tail), weight) in enumerate(zip(teachers, weights, strict=True)):
        probabilities = log_kept.exp()
        kept_logits = scaled.gather(-1, ids)
        divergence = (probabilities * (log_kept - (kept_logits - normalizer))).sum(dim=-1)
        if ids.shape[-1] < scaled.shape[-1]:
            outside = scaled.scatter_(-1, ids, -math.inf)
            outside_normalizer = outside.logsumexp(dim=-1, keepdim=True)
            tail = log_tail.exp()
            log_ratio = log_tail - (outside_normalizer - normalizer).squeeze(-1)
            divergence += torch.where(tail > 0, tail * log_ratio, 0.0)
            if gradient is not None:
                gradient.addcmul_((outside - outside_normalizer).exp_(), tail.unsqueeze(-1), value=-weight)
            scaled.scatter_(-1, ids, kept_logits)
        if gradient is not None:
            gradient.scatter_add_(-1, ids, probabilities * -weight)
        sums[number] += divergence.sum()
    return gradient
