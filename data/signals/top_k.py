"""The k most probable tokens of a distribution and the exact mass of all others, at any number of temperatures.

Decoding keeps exactly that mass, whatever the values are: p_i(T) = a_T · softmax_K(value_i / T) with the kept mass a_T.

Shapes: n tokens, k kept tokens, V vocabulary, T number of temperatures.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from palenka.data.signals.distribution import log1mexp, token_chunks
from palenka.data.signals.places import fill_at

LARGEST_GAP_CODE = 255
_STEP, _WIDEN = 1 / 16, 8.0
"""The first step of a distance in nats, and the distance at which a step is twice as wide."""
_ODDS_STEPS = 32
_LARGEST_ODDS = 2**15 - 1


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


def top_k(logits: Tensor, k: int, temperatures: Sequence[float], *, compiled: bool = False) -> TopK:
    """The k most probable tokens of full-vocabulary logits [..., V], with the exact mass of the others.

    The mass is summed over the others themselves, in float32: 1 − (a sum near 1) would lose digits. Costs one top-k and
    some 1 + 3T passes over the logits, fewer if they are compiled; memory beside them: some megabytes on a CPU
    (`values_at_once`).
    """
    rows = [_top_k(part, k, temperatures, compiled=compiled) for part in token_chunks(logits.flatten(0, -2))]
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


def _top_k(logits: Tensor, k: int, temperatures: Sequence[float], *, compiled: bool) -> TopK:
    if k == logits.shape[-1]:
        values = logits.float().log_softmax(dim=-1)
        return TopK(None, values, values.new_full((len(logits), len(temperatures)), -math.inf))
    # One more than is kept, the largest of all others: relative to it their masses add up to 1 at least, however small
    # they are, so no sum underflows.
    best, places = logits.topk(k + 1, dim=-1)
    ids, order = places[:, :k].sort(dim=-1)
    best = best.float()
    peak, edge = best[:, :1], best[:, k:].clamp_min(torch.finfo(torch.float32).min)
    kept = best[:, :k].gather(-1, order) - peak
    below = (edge - peak).squeeze(-1)
    log_all: dict[float, Tensor] = {}
    log_tail: dict[float, Tensor] = {}
    asked = tuple(sorted({1.0, *temperatures}, reverse=True))  # at 1 for the values
    sums = (_compiled() if compiled else _log_sums)(logits, ids, edge, asked)
    for temperature, log_sum in zip(asked, sums, strict=True):
        log_others = log_sum + below / temperature
        log_all[temperature] = torch.logaddexp((kept / temperature).logsumexp(dim=-1), log_others)
        log_tail[temperature] = log_others - log_all[temperature]
    return TopK(ids, kept - log_all[1.0].unsqueeze(-1), torch.stack([log_tail[t] for t in temperatures], dim=-1))


def _log_sums(logits: Tensor, ids: Tensor, edge: Tensor, temperatures: Sequence[float]) -> list[Tensor]:
    """Log of the sum of exp((logits − edge) / T) over all tokens but ids, [n] for each T.

    Args:
        logits: [n, V].
        ids: of each row, [n, k].
        edge: the largest of the others' logits, [n, 1] float32.
        temperatures: in descending order.
    """
    others = fill_at(logits - edge, ids, -math.inf)  # float32, the only copy of the logits
    found: list[Tensor] = []
    above, scaled = 0.0, others
    for temperature in temperatures:
        # exp(x / T) is the square of exp(x / 2T), in a fraction of the time.
        scaled = scaled.square_() if above == 2 * temperature else (others / temperature).exp_()
        above = temperature
        found.append(scaled.sum(dim=-1).log())
    return found


@cache
def _compiled() -> Callable[..., list[Tensor]]:
    return torch.compile(_log_sums, dynamic=False, fullgraph=True)
