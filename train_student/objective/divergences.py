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

Shapes: n tokens, V vocabulary, k kept tokens.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["forward", "reverse", "js"]
ByAutograd = Literal["reverse", "js"]
"""Those without a gradient of their own."""

_IMPOSSIBLE = -100.0
"""Least log-probability of a teacher's outcome: e^−100 is 0 in float32, and reverse KL stays finite."""


def divergence_of(
    kind: ByAutograd, logits: Tensor, ids: Tensor, log_kept: Tensor, log_tail: Tensor, temperature: float
) -> Tensor:
    """Sum over n tokens of reverse KL or Jensen-Shannon between teacher and student at a temperature.

    Args:
        kind: which of the two.
        logits: of the student, [n, V].
        ids: kept tokens, [n, k].
        log_kept: log-probabilities of these at T, [n, k].
        log_tail: of all others together, [n].
        temperature: T.
    """
    teacher, student = _outcomes(logits, ids, log_kept, log_tail, temperature)
    return _FORMULAS[kind](teacher, student).sum()


def _outcomes(
    logits: Tensor, ids: Tensor, log_kept: Tensor, log_tail: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student over kept tokens and tail, [n, k + 1], or [n, V] with k = V."""
    scaled = logits / temperature
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


_FORMULAS: Mapping[ByAutograd, Callable[[Tensor, Tensor], Tensor]] = {"reverse": _reverse, "js": _jensen_shannon}
