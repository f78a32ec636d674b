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

_LARGEST_RATIO = 16.0
"""Of a teacher's mass outside K to the student's, for both to come from one exponential in float32."""


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
        tokens. The gradient is computed together with the value, in chunks, with one softmax for all teachers; it is
        kept at the size of the logits until the backward pass.
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
        """The weighted mean over tokens, and every teacher's own; Σ weight · (q − t) is kept for `backward`."""
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
    """Add a chunk's divergences to `sums`; returns Σ weight · (q − t) [n, V], the gradient for logits / T.

    With r = (1 − a) / (1 − b) a teacher's t is r · q off K: the gradient is (1 − r) · q there, and on K it needs
    r · q − t more. So one exponential serves all teachers. Where r is large that would cancel, or 1 − b has underflown:
    these rare tokens are computed apart, from the logits outside K.
    """
    # Logits may be far from 0 all together; float32 would spend its digits on that.
    scaled -= scaled.amax(dim=-1, keepdim=True)
    normalizer = scaled.logsumexp(dim=-1, keepdim=True)
    student = (scaled - normalizer).exp_()
    coefficient = torch.zeros_like(normalizer)
    corrections: list[tuple[Tensor, Tensor]] = []
    apart: list[tuple[Tensor, Tensor]] = []
    for number, ((ids, log_kept, log_tail), weight) in enumerate(zip(teachers, weights, strict=True)):
        probabilities, kept = log_kept.exp(), student.gather(-1, ids)
        divergence = (probabilities * (log_kept - (scaled.gather(-1, ids) - normalizer))).sum(dim=-1)
        ratio = torch.zeros_like(normalizer)
        if ids.shape[-1] < scaled.shape[-1]:
            outside = student.scatter_(-1, ids, 0.0).sum(dim=-1)
            student.scatter_(-1, ids, kept)
            tail, log_outside = log_tail.exp(), outside.log()
            rows = (tail > _LARGEST_RATIO * outside).nonzero().flatten()
            if len(rows):
                complement = scaled[rows].scatter_(-1, ids[rows], -math.inf)
                log_outside[rows] = complement.logsumexp(dim=-1) - normalizer[rows].squeeze(-1)
                apart.append((rows, complement.softmax(dim=-1).mul_(-weight * tail[rows].unsqueeze(-1))))
                outside[rows] = math.inf
            divergence += torch.where(tail > 0, tail * (log_tail - log_outside), 0.0)
            ratio = torch.where(tail > 0, tail / outside, 0.0).unsqueeze(-1)
        coefficient += weight * (1 - ratio)
        corrections.append((ids, weight * (ratio * kept - probabilities)))
        sums[number] += divergence.sum()
    if not with_gradient:
        return None
    gradient = student.mul_(coefficient)
    for ids, correction in corrections:
        gradient.scatter_add_(-1, ids, correction)
    for rows, addition in apart:
        gradient.index_add_(0, rows, addition)
    return gradient
