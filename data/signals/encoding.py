"""Logit encodings: what is kept of a teacher's distribution at every token, and how precisely.

An encoding is a settings class that registers itself in `ENCODINGS`. Its attributes and methods are all that other code
needs to know about it. `encodings.py` has those that come with Palenka. Nothing here imports torch before it computes,
so that settings and ``--help`` are quick.

Shapes: B batch, L window length, V vocabulary, W width of a model, T temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator

from palenka.ground.errors import UserError
from palenka.ground.registry import Registry
from palenka.ground.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from palenka.data.signals.distribution import Distribution


class ArrayType(NamedTuple):
    """How the numbers of a token are stored."""

    width: int
    """Numbers per token."""
    dtype: str
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "noshuffle"
    """Blosc's filter before compression: noshuffle, shuffle (bytes) or bitshuffle; whichever was smaller."""
    by_column: bool = False
    """Compress each of a token's numbers separately, over all tokens of a chunk.

    Smaller if the numbers of a token have different spreads and correlate little.
    """

    def as_stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Numbers [windows, rows, width] with their axes in stored order: width comes first if stored by column."""
        import numpy as np

        return np.moveaxis(values, -1, 0) if self.by_column else values


def id_type(vocabulary_size: int) -> str:
    """The smallest type that holds every token's id."""
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


class OutputMatrix(NamedTuple):
    """The linear map from a model's last hidden states to its logits."""

    weight: Tensor
    """[V, W]."""
    bias: Tensor | None
    """[V]."""


@dataclass(frozen=True)
class TeacherOutputs:
    """The outputs of a teacher's forward pass for windows [B, L] that an encoding may use.

    Attributes:
        logits: of the teacher, [B, L, V]; of an ensemble the mean of its models'.
        hidden: states of the layers that are kept, by "model/layer", [B, L, W] each.
        last: last hidden states by model, [B, L, W]; empty unless the encoding asks for them (`needs_states`).
        heads: the output matrices by model, except models whose head is not a linear map.
        uniforms: makes numbers in [0, 1) [B, L, n] float64, decided by the teacher and the windows' addresses.
        compiled: whether sums over the vocabulary are compiled, as the teacher's blocks are.
    """

    logits: Tensor
    hidden: Mapping[str, Tensor]
    last: Mapping[str, Tensor]
    heads: Mapping[str, OutputMatrix]
    uniforms: Callable[[int], Tensor]
    compiled: bool = False


class LogitEncoding(Settings):
    """What is kept of a teacher's distribution at every token."""

    is_estimate: ClassVar[bool] = False
    """Whether decoding gives an unbiased estimate of the distribution, usable for divergences that are linear in it."""
    needs_states: ClassVar[bool] = False
    """Whether encoding reads the models' last hidden states."""
    tail_arrays: ClassVar[tuple[str, ...] | None] = None
    """The arrays that `log_tails` reads; None for all."""

    kind: str
    """Name of the encoding."""
    temperatures: tuple[float, ...] = (1.0, 2.0)
    """Temperatures at which the distribution can be decoded."""

    @model_validator(mode="after")
    def _temperatures_are_positive(self) -> Self:
        if not self.temperatures or min(self.temperatures) <= 0:
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
        """The statics by name: measured once, on a sample of the corpus, and kept beside the arrays.

        Args:
            sample: of the corpus; it can be read several times.
        """
        del sample
        return {}

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arrays [B, L, …] of a teacher's outputs."""
        raise NotImplementedError

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """The distribution [B, L] of arrays at one of the temperatures, on their device."""
        raise NotImplementedError

    def unrounded(self) -> Self:
        """The same encoding without rounding, as a reference for its error."""
        return self

    def reading(self, k: int | None, rank: int | None, subject: str) -> Self:
        """The encoding that decodes fewer tokens or a lower rank from the same arrays.

        Args:
            k: tokens kept one by one; default: all.
            rank: numbers per token for all others; default: all.
            subject: whose arrays they are.

        Raises:
            UserError: if fewer were kept.
        """
        if k is not None or rank is not None:
            name, value = ("k", k) if k is not None else ("rank", rank)
            raise UserError(
                f"{subject} holds {self.kind} logits, of which no smaller {name} ({value}) is read; leave it out"
            )
        return self

    def log_tails(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """Log of the mass outside the kept tokens, [..., T]; reads only `tail_arrays`."""
        import torch

        return torch.stack([self.decode(arrays, statics, t).log_tail for t in self.temperatures], dim=-1)

    def clipped(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """Shares of the stored numbers that are at the end of their range, by array."""
        del arrays
        return {}

    def summary(self) -> str:
        """What is kept, in a few words."""
        raise NotImplementedError


ENCODINGS: Registry[type[LogitEncoding]] = Registry("logit encoding")
