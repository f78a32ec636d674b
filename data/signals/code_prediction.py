"""Codes predicted from what a cache holds of the same token anyway: its most probable tokens and their mass.

A last hidden state points towards the output rows of the most probable tokens, and the further, the more mass they
hold. So least squares predicts a good part of the codes of `low_rank.py` from the kept tokens' rows of the basis and
the log-odds of their mass. Only the residuals are stored: they are smaller, and compress to fewer bytes at the same
step.

A residual that is small beside the step is mostly rounded to 0. What is decoded is then smaller on average than the
residual itself, the same in every step of a training: students learn less of it. So decoding multiplies by a gain that
makes up for that.

Shapes: n tokens, k kept tokens, V vocabulary, T temperatures, r rank.
"""

import math

import torch
from torch import Tensor

_LARGEST_ODDS = 8.0
"""Log-odds beyond it say no more of the codes, and may be infinite."""
_LARGEST_GAIN = 1.5
"""A larger one would add more noise than it corrects."""
_THRESHOLDS = 64
"""Thresholds of rounding that are summed over."""
_RIDGE = 1e-3
"""Added to each feature's sum of squares, as a share of it: features may be linear combinations of each other."""


def predict(ids: Tensor, odds: Tensor, basis: Tensor, weights: Tensor) -> Tensor:
    """The codes [..., r] predicted from the kept tokens. Memory: k · r numbers a token.

    Args:
        ids: of the kept tokens, [..., k] int64.
        odds: log-odds of their mass, [..., T] float32.
        basis: from codes to logits, [V, r].
        weights: of the features, [(1 + T) (1 + r), r]; see `CodeRegression`.
    """
    return _features(ids, odds, basis) @ weights


def gains(variance: Tensor, step: float) -> Tensor:
    """By how much rounded residuals are multiplied, [r] float32 of 1 to 1.5.

    If z is normal with standard deviation s and q is z rounded to steps of Δ, then E[z q] = 2 Δ s Σ_k φ((k + ½) Δ / s)
    with the normal density φ, since q rises by Δ at every (k + ½) Δ. The gain is g = s² / E[z q]: g q has a slope of
    1 over z, that is, on average what is decoded is neither larger nor smaller than z, unless the gain is limited.

    Args:
        variance: of the residuals, [r].
        step: Δ.
    """
    ratio = step / variance.double().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    # Thresholds beyond eight deviations have no mass; a residual of many steps has gain 1 anyway.
    thresholds = (torch.arange(_THRESHOLDS) + 0.5) * ratio.unsqueeze(-1)
    density = torch.exp(-(thresholds**2) / 2).sum(-1) / math.sqrt(2 * math.pi)
    slopes = torch.where(ratio * _THRESHOLDS > 8, 2 * ratio * density, 1.0)
    return (1 / slopes).clamp(1, _LARGEST_GAIN).float()


class CodeRegression:
    """Least squares of codes on features of the kept tokens: float64 sums on the CPU."""

    def __init__(self, basis: Tensor, temperatures: int) -> None:
        """Begin with no tokens.

        Args:
            basis: from codes to logits, [V, r].
            temperatures: how many the mass is known at.
        """
        features, rank = (1 + temperatures) * (1 + basis.shape[-1]), basis.shape[-1]
        self._basis = basis
        self._gram = torch.zeros(features, features, dtype=torch.float64)
        self._moments = torch.zeros(features, rank, dtype=torch.float64)
        self._squares = torch.zeros(rank, dtype=torch.float64)
        self._count = 0

    def add(self, ids: Tensor, odds: Tensor, codes: Tensor) -> None:
        """Some tokens' kept ids [..., k] int64, the log-odds of their mass [..., T], and codes [..., r]."""
        features, exact = _features(ids, odds, self._basis).flatten(0, -2).double(), codes.flatten(0, -2).double()
        self._gram += features.T @ features
        self._moments += features.T @ exact
        self._squares += exact.square().sum(0)
        self._count += len(exact)

    def finish(self) -> tuple[Tensor, Tensor]:
        """The weights of the features, [(1 + T) (1 + r), r] float32, and the variance of the residuals [r] float64."""
        ridge = _RIDGE * self._gram.diagonal()
        # A feature that is 0 throughout, such as the row of an unused component, has weight 0.
        ridge = torch.where(ridge > 0, ridge, 1.0)
        weights: Tensor = torch.linalg.solve(self._gram + ridge.diag(), self._moments)
        left = self._squares - (weights * (2 * self._moments - self._gram @ weights)).sum(0)
        return weights.float(), left.clamp_min(0) / max(1, self._count)


def _features(ids: Tensor, odds: Tensor, basis: Tensor) -> Tensor:
    """Every product of (1, odds …) and (1, sum of the kept rows): [..., (1 + T) (1 + r)]."""
    rows = basis[ids].sum(dim=-2)
    one = torch.ones_like(rows[..., :1])
    masses = torch.cat([one, odds.clamp(-_LARGEST_ODDS, _LARGEST_ODDS)], dim=-1)
    products = masses.unsqueeze(-1) * torch.cat([one, rows], dim=-1).unsqueeze(-2)
    return products.flatten(-2)
