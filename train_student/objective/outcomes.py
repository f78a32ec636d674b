"""What a divergence compares: log-probabilities of a teacher and a student over the same outcomes.

Shapes: n tokens, V vocabulary, k kept tokens.
"""

import math

import torch
from torch import Tensor

from palenka.data.signals.distribution import Distribution

_IMPOSSIBLE = -100.0
"""Least log-probability of a teacher's outcome: e^−100 is 0 in float32, and reverse KL stays finite."""


def outcomes(logits: Tensor, teacher: Distribution, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of teacher and student over the same outcomes.

    These are all V tokens if the teacher knows them, [n, V]; or those kept and all others as one, [n, k + 1].
    """
    scaled = logits / temperature
    # All logits may share a large offset, which would cost float32 its digits.
    scaled = scaled - scaled.detach().amax(dim=-1, keepdim=True)
    normalizer = scaled.logsumexp(dim=-1, keepdim=True)
    if teacher.ids is None or teacher.others is not None:
        log_teacher, log_student = teacher.log_probabilities(logits.shape[-1]), scaled - normalizer
    else:
        outside = scaled.scatter(-1, teacher.ids, -math.inf).logsumexp(dim=-1, keepdim=True)
        log_student = torch.cat([scaled.gather(-1, teacher.ids), outside], dim=-1) - normalizer
        log_teacher = torch.cat([teacher.log_kept, teacher.log_tail.unsqueeze(-1)], dim=-1)
    return log_teacher.to(log_student.dtype).clamp_min(_IMPOSSIBLE), log_student
