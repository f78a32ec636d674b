"""Logit encodings: what is kept of a teacher's distribution at every token, and how coarsely.

    topk     the k most probable tokens and the exact mass of all others, at any number of temperatures
    sampled  counts of draws from the whole distribution at one temperature: an unbiased estimate of it
    hybrid   the k most probable tokens, and counts of draws from the others at one temperature: unbiased too

Ids are kept in ascending order as differences, which are small and compress well; values relative to the most probable
token. Decoding keeps the mass exact however coarse the values are (`signal.py`).

Shapes: B batch, L window length, k kept tokens, D draws, V vocabulary, T temperatures.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from palenka.data.signals.signal import TeacherSignal, log1mexp, token_chunks, top_k_signal
from palenka.ground.settings import Settings

_DEFAULTS: dict[str, dict[str, Any]] = {
    "topk": {"k": 32, "draws": 0, "temperatures": (1.0, 2.0)},
    "sampled": {"k": 0, "draws": 50, "temperatures": (1.0,)},
    "hybrid": {"k": 16, "draws": 16, "temperatures": (1.0,)},
}
_LARGEST_CODE = 255
_IMPOSSIBLE = -1e4
"""Log-probability of what was never drawn: its exponential is exactly 0, and nothing times it is not a number."""


class LogitEncoding(Settings):
    """What is kept of a teacher's distribution at every token."""

    kind: Literal["topk", "sampled", "hybrid"] = "topk"
    """The most probable tokens, draws from all, or the most probable and draws from the others."""
    k: int = Field(default=32, ge=0)
    """Tokens kept: the most probable ones (topk 32, hybrid 16 unless given)."""
    draws: int = Field(default=0, ge=0, le=255)
    """Draws kept (sampled 50, hybrid 16 unless given)."""
    temperatures: tuple[float, ...] = (1.0, 2.0)
    """Temperatures of the exact mass of the others; sampled and hybrid have one, which they serve (1 unless given)."""
    values: Literal["float32", "float16", "uint8"] = "uint8"
    """Type of the stored log-probabilities; uint8 counts steps below the most probable token."""
    step: float = Field(default=1 / 16, gt=0, lt=1)
    """Nats in a step of uint8; 255 steps are the most that can be told apart."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        if isinstance(given, Mapping) and given.get("kind", "topk") in _DEFAULTS:
            return _DEFAULTS[given.get("kind", "topk")] | dict(given)
        return given

    @model_validator(mode="after")
    def _numbers_fit_the_kind(self) -> Self:
        if not self.temperatures or not all(0 < temperature < math.inf for temperature in self.temperatures):
            raise ValueError(
                f"temperatures are {list(self.temperatures)}, but they should be numbers above 0, such as [1.0]"
            )
        for name, number, used in (("k", self.k, self.kind != "sampled"), ("draws", self.draws, self.kind != "topk")):
            if used != (number > 0):
                raise ValueError(
                    f"{name} is {number}, but kind {self.kind} needs {'at least 1' if used else 'none'}; "
                    f"set it to {_DEFAULTS[self.kind][name]}, or choose another kind"
                )
        if self.draws and len(self.temperatures) > 1:
            raise ValueError(
                f"temperatures are {list(self.temperatures)}, but draws of kind {self.kind} serve only the one they "
                "were made at; give one, or choose kind topk"
            )
        return self

    def arrays(self, vocabulary_size: int) -> dict[str, tuple[int, str]]:
        """Last dimension and type of every array; the first three are [views, windows, length]."""
        ids = "uint16" if vocabulary_size <= 2**16 else "uint32"
        arrays: dict[str, tuple[int, str]] = {}
        if self.k:
            arrays |= {"logits/ids": (self.k, ids), "logits/values": (self.k, self.values)}
            arrays["logits/log_tail"] = (len(self.temperatures), "float32")
        if self.draws:
            arrays |= {"logits/draw_ids": (self.draws, ids), "logits/draw_counts": (self.draws, "uint8")}
        return arrays

    def bytes_per_token(self, vocabulary_size: int) -> int:
        """Bytes before compression."""
        return sum(width * np.dtype(kind).itemsize for width, kind in self.arrays(vocabulary_size).values())

    def encode(self, logits: Tensor, uniforms: Tensor | None = None) -> dict[str, Tensor]:
        """The arrays for full-vocabulary logits [B, L, V].

        Args:
            logits: of the teacher.
            uniforms: numbers in [0, 1) that decide the draws, [B, L, D] float64.
        """
        codes: dict[str, Tensor] = {}
        ids = None
        if self.k:
            signal = top_k_signal(logits, self.k, self.temperatures)
            ids = signal.ids
            codes = {"logits/ids": _differences(ids), "logits/values": self._coarse(signal.values)}
            codes["logits/log_tail"] = signal.log_tail
        if self.draws:
            assert uniforms is not None
            drawn, counts = draw(logits, uniforms, self.temperatures[0], excluded=ids)
            codes |= {"logits/draw_ids": _differences(drawn), "logits/draw_counts": counts.to(torch.uint8)}
        return codes

    def decode(self, codes: Mapping[str, Tensor], hidden: Mapping[str, Tensor]) -> TeacherSignal:
        """The signal of arrays [B, L, …], on whatever device they are."""
        if self.kind == "topk":
            return TeacherSignal(
                ids=codes["logits/ids"].to(torch.int64).cumsum(-1),
                values=self._fine(codes["logits/values"]),
                log_tail=codes["logits/log_tail"],
                temperatures=self.temperatures,
                hidden=hidden,
            )
        # The estimate is a distribution over what was kept and drawn: nothing is left for a tail.
        temperature = self.temperatures[0]
        drawn = codes["logits/draw_ids"].to(torch.int64).cumsum(-1)
        shares = codes["logits/draw_counts"].float() / self.draws
        log_shares = torch.where(shares > 0, shares.log(), _IMPOSSIBLE)
        ids, log_probabilities = drawn, log_shares
        if self.k:
            log_tail = codes["logits/log_tail"][..., :1]
            kept = (self._fine(codes["logits/values"]) / temperature).log_softmax(-1) + log1mexp(log_tail)
            ids = torch.cat([codes["logits/ids"].to(torch.int64).cumsum(-1), drawn], dim=-1)
            log_probabilities = torch.cat([kept, (log_shares + log_tail).clamp_min(_IMPOSSIBLE)], dim=-1)
        nothing = torch.full((*ids.shape[:-1], 1), -math.inf, device=ids.device)
        return TeacherSignal(ids, log_probabilities * temperature, nothing, self.temperatures, hidden)

    def _coarse(self, values: Tensor) -> Tensor:
        if self.values == "float32":
            return values
        below = values - values.amax(dim=-1, keepdim=True)
        if self.values == "float16":
            return below.to(torch.float16)
        return (below / -self.step).round().clamp_max(_LARGEST_CODE).to(torch.uint8)

    def _fine(self, values: Tensor) -> Tensor:
        return values.float() * -self.step if self.values == "uint8" else values.float()


def draw(logits: Tensor, uniforms: Tensor, temperature: float, excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draws from softmax(logits / T): distinct ids in ascending order and how often each was drawn, both [B, L, D].

    What is left of D after the distinct ids repeats some of them with count 0.

    Args:
        logits: [B, L, V].
        uniforms: numbers in [0, 1) that decide the draws, [B, L, D] float64.
        temperature: T.
        excluded: ids that are not drawn, [B, L, k]; the others share the probability.
    """
    ids, start = [], 0
    flat, numbers = logits.flatten(0, -2), uniforms.flatten(0, -2)
    for chunk in token_chunks(flat):
        rows = slice(start, start + len(chunk))
        scaled = chunk.double() / temperature
        if excluded is not None:
            scaled = scaled.scatter(-1, excluded.flatten(0, -2)[rows], -math.inf)
        cumulative = (scaled - scaled.amax(-1, keepdim=True)).exp().cumsum(-1)
        places = torch.searchsorted(cumulative, numbers[rows].to(cumulative.device) * cumulative[:, -1:], right=True)
        ids.append(places.clamp_max(chunk.shape[-1] - 1))
        start += len(chunk)
    ordered = torch.cat(ids).sort(dim=-1).values.unflatten(0, logits.shape[:-1]).contiguous()
    first = torch.searchsorted(ordered, ordered, right=False)
    counts = torch.searchsorted(ordered, ordered, right=True) - first
    return ordered, torch.where(first == torch.arange(ordered.shape[-1], device=ordered.device), counts, 0)


def _differences(ids: Tensor) -> Tensor:
    """Ascending ids as the first of them and differences."""
    return torch.cat([ids[..., :1], ids.diff(dim=-1)], dim=-1)
