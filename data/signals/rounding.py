"""Numbers as signed bytes: what hidden states, codes and residuals are rounded to.

If a few numbers are far from the others, steps widen with the distance from 0, twice as wide at `width`. A byte then
reaches width · (exp(127 / width) − 1) units, and distant numbers keep a small relative error.
"""

import torch
from torch import Tensor

LARGEST_INT8 = 127
"""Numbers beyond it are clipped, on both sides."""


def to_int8(units: Tensor) -> Tensor:
    """Numbers in units of a step, rounded and clipped, as int8."""
    return units.round().clamp(-LARGEST_INT8, LARGEST_INT8).to(torch.int8)


def narrowed(units: Tensor, width: float | Tensor) -> Tensor:
    """Numbers in units of a step, in steps that widen with their distance from 0 and are twice as wide at `width`."""
    return units.sign() * torch.log1p(units.abs() / width) * width


def widened(codes: Tensor, width: float | Tensor) -> Tensor:
    """The inverse of `narrowed`, float32."""
    codes = codes.float()
    return codes.sign() * torch.expm1(codes.abs() / width) * width


def share_clipped(stored: Tensor) -> float:
    """The share of int8 numbers that are at the end of their range."""
    return float((stored.abs() == LARGEST_INT8).float().mean())
