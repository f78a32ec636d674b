"""Skewed divergence, KL(t ‖ α t + (1 − α) q) with α = 0.1 (arXiv 2402.03898): finite whatever the student says."""

import math

import torch
from torch import Tensor

from palenka.train_student.objective.divergences import divergence

ALPHA = 0.1


@divergence("skewed")
def skewed(teacher: Tensor, student: Tensor) -> Tensor:
    """Of log-probabilities [n, outcomes]: [n]."""
    mixture = torch.logaddexp(teacher + math.log(ALPHA), student + math.log(1 - ALPHA))
    return (teacher.exp() * (teacher - mixture)).sum(-1)
