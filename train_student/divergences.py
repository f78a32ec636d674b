"""Divergences of the logit term: forward KL, reverse KL and Jensen-Shannon, over the tokens that a teacher keeps.

A signal knows the probability of k tokens and of all others together. Over these k + 1 outcomes, with t a teacher and
q the student, tail included, all at temperature T, and m = (t + q) / 2:

    forward   KL(t ‖ q) = Σ t_i (log t_i − log q_i)         mass where the teacher has it; `terms.py` has it
    reverse   KL(q ‖ t) = Σ q_i (log q_i − log t_i)         no mass where the teacher has none (arXiv 2306.08543)
    js        ½ KL(t ‖ m) + ½ KL(q ‖ m), at most log 2      (Lin 1991)

Merging outcomes never increases any of them (the data-processing inequality), so each is a lower bound of the
divergence over all tokens, and equal to it with k = V. The tail's gradient is shared out as the student does.

An estimate from draws serves forward KL alone, whose gradient q − t is linear in t and so unbiased. The others are
not linear: reverse KL is infinite wherever a token was not drawn, and Jensen-Shannon is biased.

Shapes: B batch, L window length, V vocabulary, k kept tokens, n tokens of a chunk.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from data.signal import TeacherSignal, token_chunks
from train_student.terms import tail_bucket_kl

Divergence = Literal["forward", "reverse", "js"]

_IMPOSSIBLE = -100.0
"""Least log-probability of a teacher's outcome: e^−100 is 0 in float32, and reverse KL stays finite."""


def divergence_of(
    kind: Divergence,
    logits: Tensor,
    signals: Mapping[str, TeacherSignal],
    weights: Mapping[str, float],
    temperature: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum over teachers of a divergence between teacher and student; the caller scales it by T².

    Args:
        kind: which divergence.
        logits: the student's, [B, L, V].
        signals: the teachers' by name; their tail mass must be known at this temperature.
        weights: of the teachers in `signals`.
        temperature: T.

    Returns:
        The weighted sum, and each teacher's divergence without its weight and without a gradient; means over B · L
        tokens. Beyond forward KL, chunks are computed again in the backward pass, so that memory stays flat.
    """
    if kind == "forward":
        return tail_bucket_kl(logits, signals, weights, temperature)
    divergences = {
        name: _mean_over_tokens(_FORMULAS[kind], logits, signal, temperature) for name, signal in signals.items()
    }
    total = torch.stack([weights[name] * divergence for name, divergence in divergences.items()]).sum()
    return total, {name: divergence.detach() for name, divergence in divergences.items()}


def _mean_over_tokens(
    formula: Callable[[Tensor, Tensor], Tensor], logits: Tensor, signal: TeacherSignal, temperature: float
) -> Tensor:
    log_kept, log_tail = signal.at(temperature)
    ids, log_kept, log_tail = signal.ids.flatten(0, -2), log_kept.flatten(0, -2), log_tail.flatten()

    def of_chunk(chunk: Tensor, rows: slice) -> Tensor:
        teacher, student = _outcomes(chunk, ids[rows], log_kept[rows], log_tail[rows], temperature)
        return formula(teacher, student).sum()

    sums, start = [], 0
    for chunk in token_chunks(logits.flatten(0, -2)):
        rows = slice(start, start + len(chunk))
        sums.append(checkpoint(of_chunk, chunk, rows, use_reentrant=False, preserve_rng_state=False))
        start += len(chunk)
    return torch.stack(sums).sum() / start


def _outcomes(
    logits: Tensor, ids: Tensor, log_kept: Tensor, log_tail: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student over kept tokens and tail, [n, k + 1], or [n, V] with k = V."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    # Logits may be far from 0 all together; float32 would spend its digits on that.
    scaled = scaled - scaled.detach().amax(dim=-1, keepdim=True)
    normalizer = scaled.logsumexp(dim=-1, keepdim=True)
    student = scaled.gather(-1, ids) - normalizer
    teacher = log_kept
    if ids.shape[-1] < logits.shape[-1]:
        outside = scaled.scatter(-1, ids, -math.inf).logsumexp(dim=-1, keepdim=True)
        student = torch.cat([student, outside - normalizer], dim=-1)
        teacher = torch.cat([teacher, log_tail.unsqueeze(-1)], dim=-1)
    return teacher.to(student.dtype).clamp_min(_IMPOSSIBLE), student


def _reverse(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(q ‖ t) of log-probabilities [n, outcomes]: [n]."""
    return (student.exp() * (student - teacher)).sum(dim=-1)


def _jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """½ KL(t ‖ m) + ½ KL(q ‖ m) with m = (t + q) / 2, of log-probabilities [n, outcomes]: [n]."""
    middle = torch.logaddexp(teacher, student) - math.log(2.0)
    return ((teacher.exp() * (teacher - middle)).sum(dim=-1) + (student.exp() * (student - middle)).sum(dim=-1)) / 2


_FORMULAS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"reverse": _reverse, "js": _jensen_shannon}
