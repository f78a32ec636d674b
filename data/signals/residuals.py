"""Kept log-probabilities as residuals of a prediction, in steps that follow their weight.

The codes of all others also predict the logits of the kept tokens (`low_rank.py`), up to a constant. The residuals are
smaller than the log-probabilities. An error of δ nats in a token of probability p costs p δ² / 2 nats, so a step is 1 /
(32 √p) nats, with p as predicted.

Shapes: k kept tokens.
"""

import torch
from torch import Tensor

from palenka.data.signals.rounding import narrowed, to_int8, widened

_STEP = 1 / 32
"""Step, in nats, of a token that holds all mass."""
_LARGEST_STEP = 1 / 4
"""Largest step, in nats: tokens may be more probable than predicted."""
_WIDEN = 4.0
"""Distance from the prediction, in nats, at which a step is twice as wide: such values are rare, and need range."""


def residuals(values: Tensor, predicted: Tensor, log_mass: Tensor) -> Tensor:
    """Residuals of log-probabilities [..., k], up to a constant; their weighted mean over the kept tokens is 0.

    Args:
        values: of the kept tokens, up to a constant, [..., k].
        predicted: of the same, up to another constant, [..., k].
        log_mass: of the kept tokens together, [...].
    """
    shares = _shares(predicted, log_mass)
    left = values - predicted
    return left - (shares * left).sum(-1, keepdim=True) / shares.sum(-1, keepdim=True)


def pack_residuals(left: Tensor, predicted: Tensor, log_mass: Tensor) -> Tensor:
    """Residuals as int8, with a step per token that widens with the distance from the prediction."""
    steps = _steps(predicted, log_mass)
    return to_int8(narrowed(left / steps, _WIDEN / steps))


def unpack_residuals(stored: Tensor, predicted: Tensor, log_mass: Tensor) -> Tensor:
    """The residuals, float32; unchanged if they were stored in float32."""
    if stored.dtype != torch.int8:
        return stored
    steps = _steps(predicted, log_mass)
    return widened(stored, _WIDEN / steps) * steps


def _shares(predicted: Tensor, log_mass: Tensor) -> Tensor:
    """Predicted probabilities of the kept tokens [..., k]."""
    return (predicted.log_softmax(-1) + log_mass.unsqueeze(-1)).exp()


def _steps(predicted: Tensor, log_mass: Tensor) -> Tensor:
    """Nats in a step of each kept token, [..., k]."""
    return (_STEP * _shares(predicted, log_mass).rsqrt()).clamp_max(_LARGEST_STEP)
