"""The teacher signal: what a teacher says about a batch of tokens, cached or live, in one form.

A teacher's distribution over V tokens is kept as its k most probable tokens and the exact logarithm of the mass
outside them (the tail), at every temperature of interest. Decoding keeps that mass exact however coarse the
values are: with a_T = 1 − exp(log_tail_T), p_i(T) = a_T · softmax_K(value_i / T). With k = V nothing is lost.

Beside it lie hidden states of some layers at some positions of each window (`hidden.py`).

Shapes: B batch, L window length, k kept tokens, V vocabulary, T number of temperatures, P positions, C components.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

_FAINT = 1e-30
"""Mass that float32 does not add up from probabilities: it is added up from their logarithms, which takes longer."""


@dataclass(frozen=True)
class TeacherSignal:
    """One teacher's top-k log-probabilities, tail mass and hidden states for a batch.

    Attributes:
        ids: kept tokens in ascending order, [B, L, k] int64.
        values: their log-probabilities at T = 1 (any common shift is allowed), [B, L, k] floating point.
        log_tail: log of the mass outside the kept tokens per temperature, [B, L, T] float32; −inf where it is 0.
        temperatures: the temperatures of `log_tail`.
        hidden: codes of hidden states by "model/layer", [B, P, C] each, at the window's positions in their order.
    """

    ids: Tensor
    values: Tensor
    log_tail: Tensor
    temperatures: tuple[float, ...]
    hidden: Mapping[str, Tensor] = field(default_factory=dict)

    def at(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the kept tokens [B, L, k] and of the tail [B, L] at a temperature, float32.

        Raises:
            ValueError: if the tail mass was not kept at this temperature; re-weighting another one is not exact.
        """
        if temperature not in self.temperatures:
            raise ValueError(f"the tail mass is known at temperatures {self.temperatures}, not at {temperature}")
        log_tail = self.log_tail[..., self.temperatures.index(temperature)].float()
        kept = (self.values.float() / temperature).log_softmax(dim=-1)
        return kept + log1mexp(log_tail).unsqueeze(-1), log_tail


def entropy(kept: Tensor, tail: Tensor) -> Tensor:
    """Entropy in nats [B, L] of log-probabilities of kept tokens [B, L, k] and of their tail as one bucket [B, L].

    What the tail's own tokens would add is not known, so it is a lower bound of the teacher's.
    """
    both = torch.cat([kept, tail.unsqueeze(-1)], dim=-1).double()
    return -torch.where(both > -math.inf, both.exp() * both, 0.0).sum(dim=-1)


def top_k_signal(logits: Tensor, k: int, temperatures: tuple[float, ...]) -> TeacherSignal:
    """The k most probable tokens of full-vocabulary logits [B, L, V], with exact tail mass at each temperature.

    The tail is summed over the complement itself, in float32: 1 − (a sum near 1) would lose its digits.
    Costs one top-k, T softmaxes and some 4 + 2T passes over the logits; memory beside them: some megabytes.
    """
    rows = [_top_k(part.float(), k, temperatures) for part in token_chunks(logits.flatten(0, -2))]
    ids, values, log_tail = (torch.cat(parts).unflatten(0, logits.shape[:-1]) for parts in zip(*rows, strict=True))
    return TeacherSignal(ids, values, log_tail, temperatures)


def token_chunks(flat: Tensor) -> tuple[Tensor, ...]:
    """Rows [N, V] in chunks of about 8 MB of float32 on a CPU, 512 MB on a GPU.

    What is computed from 8 MB stays in a processor's cache: three times as fast as whole batches, whose large buffers
    go back to the system each time. A GPU wants few, large kernels; there chunks only bound the memory.
    """
    values = 2**21 if flat.device.type == "cpu" else 2**27
    return torch.split(flat, max(1, values // flat.shape[-1]))


def _top_k(logits: Tensor, k: int, temperatures: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    if k == logits.shape[-1]:
        ids = torch.arange(k, device=logits.device).expand(len(logits), k)
    else:
        ids = logits.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
    # Logits may be far from 0 all together; float32 would spend its digits on that.
    logits = logits - logits.amax(dim=-1, keepdim=True)
    softmax = logits.softmax(dim=-1)
    # The most probable token has the logit 0.
    values = logits.gather(-1, ids) + softmax.amax(dim=-1, keepdim=True).log()
    tails = [
        _log_mass_outside(ids, logits, softmax) if t == 1 else _log_mass_outside(ids, logits / t) for t in temperatures
    ]
    return ids, values, torch.stack(tails, dim=-1)


def _log_mass_outside(ids: Tensor, logits: Tensor, softmax: Tensor | None = None) -> Tensor:
    """Log of the mass outside ids [n, k] for logits [n, V] that are 0 at most: [n]; their softmax is overwritten."""
    if ids.shape[-1] == logits.shape[-1]:
        return torch.full_like(logits[:, 0], -math.inf)
    mass = (logits.softmax(dim=-1) if softmax is None else softmax).scatter_(-1, ids, 0.0).sum(dim=-1)
    log_mass = mass.log()
    faint = (mass < _FAINT).nonzero().flatten()
    if len(faint):
        few = logits[faint]
        log_mass[faint] = few.scatter(-1, ids[faint], -math.inf).logsumexp(dim=-1) - few.logsumexp(dim=-1)
    return log_mass


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x ≤ 0 without cancellation (Mächler 2012); 0 at x = −inf, −inf at x = 0."""
    return torch.where(x > -math.log(2.0), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
