"""Draws from a distribution: an unbiased estimate of it, decided by given random numbers.

Shapes: B batch, L window length, D draws, V vocabulary, k excluded tokens.
"""

import math

import torch
from torch import Tensor

from palenka.data.moving import to_device
from palenka.data.signals.distribution import token_chunks

_IMPOSSIBLE = -1e4
"""Log-probability of a token that was never drawn: its exponential is exactly 0, and 0 times it is not NaN."""


def differences(ids: Tensor) -> Tensor:
    """Ascending ids as the first id and differences, which compress better when many are drawn."""
    return torch.cat([ids[..., :1], ids.diff(dim=-1)], dim=-1)


def sums(stored: Tensor) -> Tensor:
    """The ids that `differences` encoded, int64."""
    return stored.to(torch.int64).cumsum(-1)


def log_shares(counts: Tensor, draws: int) -> Tensor:
    """Logarithms of the shares of draws, float32."""
    shares = counts.float() / draws
    return torch.where(shares > 0, shares.log(), _IMPOSSIBLE)


def draw(logits: Tensor, uniforms: Tensor, temperature: float, excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draws from softmax(logits / T): distinct ids in ascending order and how often each was drawn, both [B, L, D].

    The places left over after the distinct ids repeat some of them with count 0.

    Args:
        logits: [B, L, V].
        uniforms: numbers in [0, 1) that decide the draws, [B, L, D] float64.
        temperature: T.
        excluded: ids that are not drawn, [B, L, k]; the others share the probability.
    """
    # An mps device has no float64.
    where = "cpu" if logits.device.type == "mps" else logits.device
    ids, start = [], 0
    flat, numbers = logits.flatten(0, -2), to_device(uniforms.flatten(0, -2), torch.device(where))
    for chunk in token_chunks(flat):
        rows = slice(start, start + len(chunk))
        scaled = chunk.to(where).double() / temperature
        if excluded is not None:
            scaled = scaled.scatter(-1, excluded.flatten(0, -2)[rows].to(where), -math.inf)
        cumulative = (scaled - scaled.amax(-1, keepdim=True)).exp().cumsum(-1)
        places = torch.searchsorted(cumulative, numbers[rows] * cumulative[:, -1:], right=True)
        ids.append(places.clamp_max(chunk.shape[-1] - 1).to(flat.device))
        start += len(chunk)
    ordered = torch.cat(ids).sort(dim=-1).values.unflatten(0, logits.shape[:-1]).contiguous()
    # ids 3 3 7 7 7 have first 0 0 2 2 2 and last 2 2 5 5 5: each id's count is last − first.
    first = torch.searchsorted(ordered, ordered, right=False)
    counts = torch.searchsorted(ordered, ordered, right=True) - first
    # Of equal ids the first place holds the count and the others 0 (2 0 3 0 0): a fixed shape, and sums stay right.
    return ordered, torch.where(first == torch.arange(ordered.shape[-1], device=ordered.device), counts, 0)
