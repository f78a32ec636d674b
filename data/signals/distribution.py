"""A teacher's distribution over the next token: the one type that terms, heads, verify and the report use.

The k most probable of V tokens are kept one by one, and the logarithm of the mass of all others together. The
distribution over the others may be known too (`Others`); without it they are one bucket.

Shapes: ... any leading dimensions (windows and their tokens, or tokens alone), k kept tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

_ROWS = 64
"""Tokens whose whole distribution is in memory at once."""


class Others(Protocol):
    """The distribution over the tokens that were not kept, for each position of a distribution."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same for other rows: `change` is applied to every tensor whose first dimensions are the tokens'."""
        ...

    def logits(self) -> Tensor:
        """Logits of all V tokens [..., V] at the temperature, up to a shift; those of kept tokens do not count."""
        ...


@dataclass(frozen=True)
class Distribution:
    """A teacher's distribution at one temperature, for some tokens.

    Attributes:
        ids: kept tokens in ascending order, [..., k] int64; None if all V are kept, in their order.
        log_kept: their log-probabilities, [..., k] floating point.
        log_tail: log of the mass of all others together, [...]; −inf where it is 0.
        others: the distribution over the others; None if it is not known.
    """

    ids: Tensor | None
    log_kept: Tensor
    log_tail: Tensor
    others: Others | None = None

    def flat(self) -> "Distribution":
        """The same with one leading dimension [N, ...]: the windows' tokens one after the other."""
        return self._map(lambda part: part.flatten(0, self.log_tail.dim() - 1))

    def rows(self, rows: slice) -> "Distribution":
        """Some of the tokens of a flat distribution."""
        return self._map(lambda part: part[rows])

    def at(self, positions: Tensor) -> "Distribution":
        """The distributions [B, P] at the positions of each window of a distribution [B, L]."""
        windows = torch.arange(len(positions), device=positions.device).unsqueeze(-1)
        return self._map(lambda part: part[windows, positions])

    def keeping(self, k: int) -> "Distribution":
        """The same with only the k most probable tokens kept one by one; the other kept tokens join all others."""
        if k >= self.log_kept.shape[-1]:
            return self
        places = self.log_kept.topk(k, dim=-1).indices.sort(dim=-1).values
        ids = places if self.ids is None else self.ids.gather(-1, places)
        joining = self.log_kept.scatter(-1, places, -math.inf).logsumexp(dim=-1)
        log_tail = torch.logaddexp(self.log_tail, joining)
        return Distribution(ids, self.log_kept.gather(-1, places), log_tail, self.others)

    def log_probabilities(self, vocabulary_size: int) -> Tensor:
        """Log-probabilities of all tokens, [..., V].

        Raises:
            ValueError: if the others are not known.
        """
        if self.ids is None:
            return self.log_kept
        if self.others is None:
            raise ValueError(
                f"{self.ids.shape[-1]} of {vocabulary_size} tokens are known one by one, the others are not"
            )
        # Softmax over the tokens that were not kept, scaled to their exact mass.
        outside = self.others.logits().to(self.log_kept.dtype).scatter(-1, self.ids, -math.inf)
        log_mass = (self.log_tail - outside.logsumexp(dim=-1)).unsqueeze(-1)
        return (outside + log_mass).scatter(-1, self.ids, self.log_kept)

    def most_probable(self) -> tuple[Tensor, Tensor]:
        """The probability of the most probable token among those kept, and its id, [...] each."""
        log_probability, place = self.log_kept.max(dim=-1)
        ids = place if self.ids is None else self.ids.gather(-1, place.unsqueeze(-1)).squeeze(-1)
        return log_probability.exp(), ids

    def entropy(self) -> Tensor:
        """Entropy in nats, float64 [...]; a lower bound if the others are one bucket.

        Only a few rows of V tokens are in memory at once: a cache's whole sample would take many gigabytes.
        """
        flat, shape = self.flat(), self.log_tail.shape
        starts = range(0, len(flat.log_tail), _ROWS)
        each = [flat.rows(slice(start, start + _ROWS))._entropy() for start in starts]
        return torch.cat(each).view(shape) if each else torch.empty(shape, dtype=torch.float64)

    def _entropy(self) -> Tensor:
        if self.others is not None and self.ids is not None:
            each = self.log_probabilities(0).double()
        else:
            each = torch.cat([self.log_kept, self.log_tail.unsqueeze(-1)], dim=-1).double()
        return -torch.where(each > -math.inf, each.exp() * each, 0.0).sum(dim=-1)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Distribution":
        return Distribution(
            None if self.ids is None else change(self.ids),
            change(self.log_kept),
            change(self.log_tail),
            None if self.others is None else self.others.map(change),
        )


def token_chunks(flat: Tensor) -> tuple[Tensor, ...]:
    """Rows [N, V] in chunks of `values_at_once` numbers."""
    return torch.split(flat, max(1, values_at_once(flat.device) // flat.shape[-1]))


def values_at_once(device: torch.device) -> int:
    """How many float32 numbers to process at once: 8 MB on a CPU; a 64th of a GPU's memory, at least 512 MB.

    8 MB stay in a processor's cache: three times as fast as whole batches, whose large buffers go back to the system
    each time. A GPU needs few, large kernels; there chunks only bound the memory. The limit follows from the GPU's
    total memory, not its free memory: sums over a chunk must not depend on other programs.
    """
    if device.type == "cpu":
        return 2**21
    if device.type != "cuda" or not torch.cuda.is_available():
        return 2**27
    return max(2**27, torch.cuda.get_device_properties(device).total_memory // (64 * 4))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x ≤ 0 without cancellation (Mächler 2012); 0 at x = −inf, −inf at x = 0."""
    return torch.where(x > -math.log(2.0), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
