"""Codes predicted from what a cache holds of the same token anyway: its most probable tokens and their mass.

A last hidden state points towards the output rows of the most probable tokens, and the further, the more mass they
hold. So least squares predicts a good part of the codes of `low_rank.py` from the kept tokens' rows of the basis and
the log-odds of their mass. Only the residuals are stored: they are smaller, and compress to fewer bytes at the same
step.

Shapes: n tokens, k kept tokens, V vocabulary, T temperatures, r rank.
"""

import torch
from torch import Tensor

_LARGEST_ODDS = 8.0
"""Log-odds beyond it say no more of the codes, and may be infinite."""
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

    def add(self, ids: Tensor, odds: Tensor, codes: Tensor) -> None:
        """Some tokens' kept ids [..., k] int64, the log-odds of their mass [..., T], and codes [..., r]."""
        features = _features(ids, odds, self._basis).flatten(0, -2).double()
        self._gram += features.T @ features
        self._moments += features.T @ codes.flatten(0, -2).double()

    def weights(self) -> Tensor:
        """The weights of the features, [(1 + T) (1 + r), r] float32."""
        ridge = _RIDGE * self._gram.diagonal()
        # A feature that is 0 throughout, such as the row of an unused component, has weight 0.
        ridge = torch.where(ridge > 0, ridge, 1.0)
        found: Tensor = torch.linalg.solve(self._gram + ridge.diag(), self._moments)
        return found.float()


def _features(ids: Tensor, odds: Tensor, basis: Tensor) -> Tensor:
    """Every product of (1, odds …) and (1, sum of the kept rows): [..., (1 + T) (1 + r)]."""
    rows = basis[ids].sum(dim=-2)
    one = torch.ones_like(rows[..., :1])
    masses = torch.cat([one, odds.clamp(-_LARGEST_ODDS, _LARGEST_ODDS)], dim=-1)
    products = masses.unsqueeze(-1) * torch.cat([one, rows], dim=-1).unsqueeze(-2)
    return products.flatten(-2)
