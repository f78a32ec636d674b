"""Logit encodings: what is kept of a teacher's distribution at every token, and how coarsely.

    topk     the k most probable tokens and the exact mass of all others, at any number of temperatures
    sampled  counts of draws from the whole distribution at one temperature: an unbiased estimate of it
    hybrid   the k most probable tokens, and counts of draws from the others at one temperature: unbiased too

An encoding is a class of settings that registers itself in `ENCODINGS` and says of itself all that others must know.
Nothing here imports torch before it computes, so that settings and ``--help`` are quick.

Shapes: B batch, L window length, k kept tokens, D draws, V vocabulary, T temperatures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from palenka.ground.errors import UserError
from palenka.ground.registry import OneOf, Registry
from palenka.ground.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from palenka.data.signals.distribution import Distribution

_LARGEST_CODE = 255
_IMPOSSIBLE = -1e4
"""Log-probability of what was never drawn: its exponential is exactly 0, and nothing times it is not a number."""


class ArrayType(NamedTuple):
    """How the numbers of a token are stored."""

    width: int
    """Numbers a token."""
    dtype: str
    shuffles_bits: bool = True
    """Shuffle bits before compression, or bytes alone: repeated values compress better then."""


class OutputMatrix(NamedTuple):
    """The linear map from a model's last hidden states to its logits."""

    weight: Tensor
    """[V, W]."""
    bias: Tensor | None
    """[V]."""


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher's forward pass gives for windows [B, L]; what an encoding may keep of it.

    Attributes:
        logits: of the teacher, [B, L, V]; of an ensemble the mean of its models'.
        hidden: states of the layers that are kept, by "model/layer", [B, L, W] each.
        last: last hidden states by model, [B, L, W]; empty unless the encoding asks for them (`needs_states`).
        heads: the output matrices by model; without models whose head is no linear map.
        uniforms: makes numbers in [0, 1) [B, L, n] float64, which follow from the windows' addresses.
    """

    logits: Tensor
    hidden: Mapping[str, Tensor]
    last: Mapping[str, Tensor]
    heads: Mapping[str, OutputMatrix]
    uniforms: Callable[[int], Tensor]


class LogitEncoding(Settings):
    """What is kept of a teacher's distribution at every token."""

    is_estimate: ClassVar[bool] = False
    """Whether decoding gives an unbiased estimate of the distribution; it serves divergences that are linear in it."""
    needs_states: ClassVar[bool] = False
    """Whether encoding reads the models' last hidden states."""
    tail_arrays: ClassVar[tuple[str, ...]] = ("log_tail",)
    """The arrays that `log_tails` reads."""

    kind: str
    """Name of the encoding."""
    if TYPE_CHECKING:
        temperatures: tuple[float, ...]
        """Temperatures at which the distribution can be decoded; each encoding has them as a field."""

    @model_validator(mode="after")
    def _temperatures_are_positive(self) -> Self:
        if not self.temperatures or not all(0 < temperature < math.inf for temperature in self.temperatures):
            raise ValueError(
                f"temperatures are {list(self.temperatures)}, but they should be numbers above 0, such as [1.0]"
            )
        return self

    def require_room(self, vocabulary_size: int, corpus: str) -> None:
        """Refuse to keep more tokens than a vocabulary has.

        Raises:
            UserError: naming both.
        """

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """The arrays that are stored, by name; the first three dimensions of each are [views, windows, length]."""
        raise NotImplementedError

    def measure(self, sample: Iterable[TeacherOutputs]) -> dict[str, Tensor]:
        """What is measured once, on a sample of the corpus, and kept beside the arrays: the statics, by name."""
        del sample
        return {}

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arrays [B, L, …] of what a teacher says."""
        raise NotImplementedError

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """The distribution [B, L] of arrays, at one of the temperatures, on whatever device they are."""
        raise NotImplementedError

    def log_tails(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Log of the mass outside the kept tokens, [..., T]; needs `tail_arrays` alone."""
        return arrays["log_tail"]

    def summary(self) -> str:
        """What is kept, in a few words."""
        raise NotImplementedError


ENCODINGS: Registry[type[LogitEncoding]] = Registry("logit encoding")
AnyLogitEncoding = Annotated[LogitEncoding, OneOf(ENCODINGS, "topk")]
"""A settings field that any registered encoding fits, chosen by its `kind`."""


class _KeptTokens(LogitEncoding):
    """Tokens one by one: the most probable ones, draws, or both."""

    k: int = Field(ge=0)
    """Tokens kept: the most probable ones."""
    draws: int = Field(ge=0, le=255)
    """Draws kept."""
    temperatures: tuple[float, ...]
    """Temperatures of the exact mass of the others; draws serve the one that they were made at."""
    values: Literal["float32", "float16", "uint8"] = "uint8"
    """Type of the stored log-probabilities; uint8 counts steps below the most probable token."""
    step: float = Field(default=1 / 16, gt=0, lt=1)
    """Nats in a step of uint8; 255 steps are the most that can be told apart."""

    def require_room(self, vocabulary_size: int, corpus: str) -> None:
        """As `LogitEncoding` has it."""
        if self.k > vocabulary_size:
            raise UserError(
                f"logits.k is {self.k}, but the vocabulary of corpus {corpus} has {vocabulary_size} tokens; set it to "
                f"{vocabulary_size} at most"
            )

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """As `LogitEncoding` has it."""
        ids = "uint16" if vocabulary_size <= 2**16 else "uint32"
        arrays: dict[str, ArrayType] = {}
        if self.k:
            if self.k < vocabulary_size:
                # Differences repeat, which shuffled bits would hide.
                arrays["ids"] = ArrayType(self.k, ids, shuffles_bits=False)
            arrays["values"] = ArrayType(self.k, self.values)
            arrays["log_tail"] = ArrayType(len(self.temperatures), "float32")
        if self.draws:
            arrays["draw_ids"] = ArrayType(self.draws, ids, shuffles_bits=False)
            arrays["draw_counts"] = ArrayType(self.draws, "uint8")
        return arrays

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `LogitEncoding` has it."""
        import torch

        from palenka.data.signals.draws import draw
        from palenka.data.signals.top_k import differences, top_k

        arrays: dict[str, Tensor] = {}
        ids = None
        if self.k:
            ids, values, log_tail = top_k(outputs.logits, self.k, self.temperatures)
            if ids is not None:
                arrays["ids"] = differences(ids)
            arrays |= {"values": self._coarse(values), "log_tail": log_tail}
        if self.draws:
            drawn, counts = draw(outputs.logits, outputs.uniforms(self.draws), self.temperatures[0], excluded=ids)
            arrays |= {"draw_ids": differences(drawn), "draw_counts": counts.to(torch.uint8)}
        return arrays

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """As `LogitEncoding` has it."""
        import torch

        from palenka.data.signals.distribution import Distribution
        from palenka.data.signals.top_k import log_shares

        ids = arrays["ids"].to(torch.int64).cumsum(-1) if "ids" in arrays else None
        if self.k:
            log_tail = arrays["log_tail"][..., self.temperatures.index(temperature)].float()
            kept = log_shares(self._fine(arrays["values"]), log_tail, temperature)
            if not self.draws:
                return Distribution(ids, kept, log_tail)
        drawn = arrays["draw_ids"].to(torch.int64).cumsum(-1)
        shares = arrays["draw_counts"].float() / self.draws
        log_drawn = torch.where(shares > 0, shares.log(), _IMPOSSIBLE)
        if ids is not None:
            log_drawn = (log_drawn + log_tail.unsqueeze(-1)).clamp_min(_IMPOSSIBLE)
            drawn, log_drawn = torch.cat([ids, drawn], dim=-1), torch.cat([kept, log_drawn], dim=-1)
        # The estimate is a distribution over what was kept and drawn: nothing is left for a tail.
        return Distribution(drawn, log_drawn.log_softmax(-1), torch.full_like(log_drawn[..., 0], -math.inf))

    def _coarse(self, values: Tensor) -> Tensor:
        import torch

        if self.values == "float32":
            return values
        below = values - values.amax(dim=-1, keepdim=True)
        if self.values == "float16":
            return below.to(torch.float16)
        return (below / -self.step).round().clamp_max(_LARGEST_CODE).to(torch.uint8)

    def _fine(self, values: Tensor) -> Tensor:
        return values.float() * -self.step if self.values == "uint8" else values.float()

    def _one_temperature(self) -> Self:
        if len(self.temperatures) > 1:
            raise ValueError(
                f"temperatures are {list(self.temperatures)}, but draws of kind {self.kind} serve only the one they "
                "were made at; give one, or choose kind topk"
            )
        return self


@ENCODINGS.register("topk")
class TopKEncoding(_KeptTokens):
    """The k most probable tokens and the exact mass of all others."""

    kind: Literal["topk"] = "topk"
    """Name of the encoding."""
    k: int = Field(default=32, ge=1)
    """Tokens kept: the most probable ones."""
    draws: Literal[0] = 0
    """None are kept."""
    temperatures: tuple[float, ...] = (1.0, 2.0)
    """Temperatures of the exact mass of the others."""

    def summary(self) -> str:
        """As `LogitEncoding` has it."""
        return f"the {self.k} most probable tokens"


@ENCODINGS.register("sampled")
class SampledEncoding(_KeptTokens):
    """Draws from all tokens: an unbiased estimate at one temperature."""

    is_estimate: ClassVar[bool] = True
    tail_arrays: ClassVar[tuple[str, ...]] = ("draw_counts",)

    kind: Literal["sampled"] = "sampled"
    """Name of the encoding."""
    k: Literal[0] = 0
    """None are kept for being probable."""
    draws: int = Field(default=50, ge=1, le=255)
    """Draws kept."""
    temperatures: tuple[float, ...] = (1.0,)
    """The temperature of the draws, which they serve."""

    @model_validator(mode="after")
    def _draws_have_one_temperature(self) -> Self:
        return self._one_temperature()

    def log_tails(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Draws estimate all: nothing is left."""
        return (arrays["draw_counts"][..., :1] * 0.0).log()

    def summary(self) -> str:
        """As `LogitEncoding` has it."""
        return f"{self.draws} draws"


@ENCODINGS.register("hybrid")
class HybridEncoding(_KeptTokens):
    """The most probable tokens, and draws from the others: an unbiased estimate at one temperature."""

    is_estimate: ClassVar[bool] = True

    kind: Literal["hybrid"] = "hybrid"
    """Name of the encoding."""
    k: int = Field(default=16, ge=1)
    """Tokens kept: the most probable ones."""
    draws: int = Field(default=16, ge=1, le=255)
    """Draws kept from the others."""
    temperatures: tuple[float, ...] = (1.0,)
    """The temperature of the draws, which they serve."""

    @model_validator(mode="after")
    def _draws_have_one_temperature(self) -> Self:
        return self._one_temperature()

    def summary(self) -> str:
        """As `LogitEncoding` has it."""
        return f"the {self.k} most probable tokens and {self.draws} draws"
