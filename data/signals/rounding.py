"""Numbers as signed bytes: what hidden states, codes and residuals are rounded to."""

import torch
from torch import Tensor

LARGEST_INT8 = 127
"""Numbers beyond it are clipped, on both sides alike."""


def to_int8(units: Tensor) -> Tensor:
    """Numbers in units of a step, rounded and clipped, as int8."""
    return units.round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)


def share_clipped(stored: Tensor) -> float:
    """The share of int8 numbers that are at the end of their range."""
    return float((stored.abs() == LARGEST_INT8).float().mean())
