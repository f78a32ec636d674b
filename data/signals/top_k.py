"""The k most probable tokens of a distribution and the exact mass of all others, at any number of temperatures.

Decoding keeps exactly that mass, whatever the values are: p_i(T) = a_T · softmax_K(value_i / T) with the kept mass a_T.

Shapes: n tokens, k kept tokens, V vocabulary, T number of temperatures.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from palenka.data.signals.distribution import log1mexp, token_chunks

LARGEST_GAP_CODE = 255
_STEP, _WIDEN = 1 / 16, 8.0
"""The first step of a distance in nats, and the distance at which a step is twice as wide."""
_ODDS_STEPS = 32
_LARGEST_ODDS = 2**15 - 1
_FAINT = 1e-30
"""Below this mass, a float32 sum of probabilities is inexact: logarithms are summed instead, which takes longer."""
_FAINTEST = 256
"""Tokens of a chunk, those with the least mass, for which a GPU does so: counting them would wait for the GPU. For
further tokens a mass under 1e-38 is stored as 0."""


class TopK(NamedTuple):
    """The kept part of logits [..., V].

    Attributes:
        ids: in ascending order, [..., k] int64; None with k = V.
        values: log-probabilities at T = 1, [..., k] float32.
        log_tail: log of the mass outside per temperature, [..., T] float32; −inf where it is 0.
    """

    ids: Tensor | None
    values: Tensor
    log_tail: Tensor


def top_k(logits: Tensor, k: int, temperatures: Sequence[float]) -> TopK:
    """The k most probable tokens of full-vocabulary logits [..., V], with the exact mass of the others.

    The mass is summed over the others themselves, in float32: 1 − (a sum near 1) would lose digits. Costs one top-k, T
    softmaxes and some 4 + 2T passes over the logits; memory beside them: some megabytes.
    """
    rows = [_top_k(part.float(), k, temperatures) for part in token_chunks(logits.flatten(0, -2))]
    leading = logits.shape[:-1]
    ids = None if k == logits.shape[-1] else torch.cat([row.ids for row in rows if row.ids is not None])
    return TopK(
        None if ids is None else ids.unflatten(0, leading),
        torch.cat([row.values for row in rows]).unflatten(0, leading),
        torch.cat([row.log_tail for row in rows]).unflatten(0, leading),
    )


def gaps(values: Tensor) -> Tensor:
    """Distances in nats [..., k] to the most probable token."""
    return values.amax(dim=-1, keepdim=True) - values


def pack_gaps(gap: Tensor) -> Tensor:
    """Distances as uint8: steps of 1/16 nat that widen to 1/16 · (1 + gap / 8), for a range of 50 nats.

    A token further from the top has less weight: an error of δ nats costs p δ² / 2 nats.
    """
    code = (_WIDEN / _STEP) * torch.log1p(gap / _WIDEN)
    return code.round().clamp_max(LARGEST_GAP_CODE).to(torch.uint8)


def unpack_gaps(stored: Tensor) -> Tensor:
    """The distances, float32; unchanged if they were stored in float32."""
    return _WIDEN * torch.expm1(stored.float() * (_STEP / _WIDEN)) if stored.dtype == torch.uint8 else stored


def log_odds(log_tail: Tensor) -> Tensor:
    """log(a / (1 − a)) of the kept mass a = 1 − exp(log_tail), which is exact at both ends; +inf without a tail."""
    return log1mexp(log_tail) - log_tail


def pack_odds(odds: Tensor) -> Tensor:
    """Log-odds as int16 in steps of 1/32."""
    return (odds * _ODDS_STEPS).round().clamp(-_LARGEST_ODDS, _LARGEST_ODDS).to(torch.int16)


def unpack_odds(stored: Tensor) -> Tensor:
    """The log-odds, float32."""
    return stored.float() / _ODDS_STEPS if stored.dtype == torch.int16 else stored


def log_masses(odds: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the kept mass and of the tail, from log-odds."""
    return F.logsigmoid(odds), F.logsigmoid(-odds)


def _top_k(logits: Tensor, k: int, temperatures: Sequence[float]) -> TopK:
    ids = None if k == logits.shape[-1] else logits.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    # Logits may be far from 0 all together; float32 would spend its digits on that.
    logits = logits - logits.amax(dim=-1, keepdim=True)
    softmax = logits.softmax(dim=-1)
    # The most probable token has the logit 0.
    values = (logits if ids is None else logits.gather(-1, ids)) + softmax.amax(dim=-1, keepdim=True).log()
    if ids is None:
        return TopK(ids, values, logits.new_full((len(logits), len(temperatures)), -math.inf))
    tails = [
        _log_mass_outside(ids, logits, softmax) if t == 1 else _log_mass_outside(ids, logits / t) for t in temperatures
    ]
    return TopK(ids, values, torch.stack(tails, dim=-1))


def _log_mass_outside(ids: Tensor, logits: Tensor, softmax: Tensor | None = None) -> Tensor:
    """Log of the mass outside ids [n, k] for logits [n, V] that are 0 at most: [n]; their softmax is overwritten."""
    mass = (logits.softmax(dim=-1) if softmax is None else softmax).scatter_(-1, ids, 0.0).sum(dim=-1)
    log_mass = mass.log()
    if mass.device.type == "cpu":
        faint = (mass < _FAINT).nonzero().flatten()
    else:
        faint = mass.topk(min(len(mass), _FAINTEST), largest=False, sorted=False).indices
    if len(faint):
        few = logits[faint]
        exact = few.scatter(-1, ids[faint], -math.inf).logsumexp(dim=-1) - few.logsumexp(dim=-1)
        log_mass[faint] = torch.where(mass[faint] < _FAINT, exact, log_mass[faint])
    return log_mass
