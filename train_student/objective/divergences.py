"""Divergences of the logit term and of heads: forward KL, reverse KL and Jensen-Shannon.

With t a teacher and q the student, all at temperature T, over the same outcomes, and m = (t + q) / 2:

    forward   KL(t ‖ q) = Σ t_i (log t_i − log q_i)         mass where the teacher has it
    reverse   KL(q ‖ t) = Σ q_i (log q_i − log t_i)         no mass where the teacher has none (arXiv 2306.08543)
    js        ½ KL(t ‖ m) + ½ KL(q ‖ m), at most log 2      (Lin 1991)

The outcomes are the tokens that a teacher keeps, and all others as one outcome if they are not known. Merging outcomes
never increases any of these divergences (the data-processing inequality), so each is a lower bound of the divergence
over all tokens, and equals it with k = V. The tail's gradient is distributed in proportion to the student's
probabilities.

An estimate from draws serves only forward KL, whose gradient q − t is linear in t and so unbiased. The others are not
linear: reverse KL is infinite wherever a token was not drawn, and Jensen-Shannon is biased.

A divergence registers itself with `divergence`. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palenka.ground.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Formula = Callable[["Tensor", "Tensor"], "Tensor"]
"""From log-probabilities of teacher and student over the same outcomes, [n, outcomes] each, to divergences [n]."""


@dataclass(frozen=True)
class Divergence:
    """A divergence between a teacher's and a student's distribution.

    Attributes:
        formula: of the divergence.
        squares_temperature: whether T² scales it, as gradients with respect to logits / T shrink by T².
        serves_estimates: whether an unbiased estimate of the teacher gives an unbiased gradient.
        has_gradient: whether `next_token.py` has its explicit gradient; otherwise autograd computes it.
    """

    formula: Formula
    squares_temperature: bool = True
    serves_estimates: bool = False
    has_gradient: bool = False

    def scale(self, temperature: float) -> float:
        """The factor of its value at a temperature."""
        return temperature**2 if self.squares_temperature else 1.0


DIVERGENCES: Registry[Divergence] = Registry("divergence")


def divergence(
    name: str, *, squares_temperature: bool = True, serves_estimates: bool = False
) -> Callable[[Formula], Formula]:
    """A decorator that registers a formula as a divergence; autograd computes its gradient."""

    def add(formula: Formula) -> Formula:
        DIVERGENCES.register(name)(Divergence(formula, squares_temperature, serves_estimates))
        return formula

    return add


def forward(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(t ‖ q) of log-probabilities [n, outcomes]: [n]."""
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


DIVERGENCES.register("forward")(Divergence(forward, serves_estimates=True, has_gradient=True))


@divergence("reverse")
def reverse(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(q ‖ t) of log-probabilities [n, outcomes]: [n]."""
    return (student.exp() * (student - teacher)).sum(dim=-1)


@divergence("js")
def jensen_shannon(teacher: Tensor, student: Tensor) -> Tensor:
    """½ KL(t ‖ m) + ½ KL(q ‖ m) with m = (t + q) / 2, of log-probabilities [n, outcomes]: [n]."""
    middle = teacher.logaddexp(student) - math.log(2.0)
    return (forward(teacher, middle) + forward(student, middle)) / 2
