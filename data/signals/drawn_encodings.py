"""Logit encodings by random draws: `sampled`, and `hybrid`, which keeps the most probable tokens too.

Nothing here imports torch before it computes.

Shapes: B batch, L window length, k kept tokens, D draws, V vocabulary, T temperatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from palenka.data.signals.encoding import ENCODINGS, ArrayType, LogitEncoding, TeacherOutputs, id_type
from palenka.data.signals.top_k_encodings import TopKEncoding
from palenka.ground.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from palenka.data.signals.distribution import Distribution


class _DrawnEncoding(LogitEncoding):
    """Counts of draws, which estimate a distribution at the temperature that they were made at."""

    is_estimate: ClassVar[bool] = True

    draws: int = Field(ge=1, le=255)
    """Draws kept."""
    temperatures: tuple[float, ...] = (1.0,)
    """The temperature of the draws, the only one that they serve."""

    @model_validator(mode="after")
    def _draws_have_one_temperature(self) -> Self:
        if len(self.temperatures) > 1:
            raise ValueError(
                f"temperatures are {list(self.temperatures)}, but draws of kind {self.kind} serve only the one they "
                "were made at; give one, or choose kind low_rank"
            )
        return self

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """See `LogitEncoding`."""
        return {
            "draw_ids": ArrayType(self.draws, id_type(vocabulary_size), "shuffle"),
            "draw_counts": ArrayType(self.draws, "uint8", "bitshuffle"),
        }

    def _draw(self, outputs: TeacherOutputs, excluded: Tensor | None) -> dict[str, Tensor]:
        import torch

        from palenka.data.signals.draws import differences, draw

        ids, counts = draw(outputs.logits, outputs.uniforms(self.draws), self.temperatures[0], excluded)
        return {"draw_ids": differences(ids), "draw_counts": counts.to(torch.uint8)}

    def _drawn(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Ids, and the logarithms of their shares of the draws."""
        from palenka.data.signals.draws import log_shares, sums

        return sums(arrays["draw_ids"]), log_shares(arrays["draw_counts"], self.draws)


@ENCODINGS.register("sampled")
class SampledEncoding(_DrawnEncoding):
    """Draws from all tokens: an unbiased estimate at one temperature."""

    tail_arrays: ClassVar[tuple[str, ...] | None] = ("draw_counts",)

    kind: Literal["sampled"] = "sampled"
    """Name of the encoding."""
    draws: int = Field(default=50, ge=1, le=255)
    """Draws kept."""

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `LogitEncoding`."""
        return self._draw(outputs, None)

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """See `LogitEncoding`; there is no tail."""
        from palenka.data.signals.distribution import Distribution

        ids, shares = self._drawn(arrays)
        return Distribution(ids, shares, self.log_tails(arrays, statics)[..., 0])

    def log_tails(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """Draws estimate all tokens: there is no tail."""
        return (arrays["draw_counts"][..., :1] * 0.0).log()

    def summary(self) -> str:
        """See `LogitEncoding`."""
        return f"{self.draws} draws"


@ENCODINGS.register("hybrid")
class HybridEncoding(_DrawnEncoding):
    """The most probable tokens, and draws from the others: an unbiased estimate at one temperature."""

    tail_arrays: ClassVar[tuple[str, ...] | None] = ("log_odds",)

    kind: Literal["hybrid"] = "hybrid"
    """Name of the encoding."""
    k: int = Field(default=16, ge=1)
    """Tokens kept: the most probable ones."""
    draws: int = Field(default=16, ge=1, le=255)
    """Draws kept from the others."""
    values: Literal["float32", "uint8"] = "uint8"
    """Type of the stored log-probabilities, as topk has them."""

    def require_room(self, vocabulary_size: int, corpus: str) -> None:
        """See `LogitEncoding`; at least one other token must remain."""
        if self.k >= vocabulary_size:
            raise UserError(
                f"logits.k is {self.k}, but the vocabulary of corpus {corpus} has {vocabulary_size} tokens and draws "
                f"are made from the others; set it to {vocabulary_size - 1} at most"
            )

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """See `LogitEncoding`."""
        return super().arrays(vocabulary_size) | self._kept().arrays(vocabulary_size)

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `LogitEncoding`."""
        kept = self._kept().encode(outputs, statics)
        return kept | self._draw(outputs, kept["ids"])

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """See `LogitEncoding`; there is no tail."""
        import torch

        from palenka.data.signals.distribution import Distribution

        kept = self._kept().decode(arrays, statics, temperature)
        ids, shares = self._drawn(arrays)
        assert kept.ids is not None
        return Distribution(
            torch.cat([kept.ids, ids], dim=-1),
            torch.cat([kept.log_kept, shares + kept.log_tail.unsqueeze(-1)], dim=-1),
            torch.full_like(kept.log_tail, -torch.inf),
        )

    def log_tails(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """See `LogitEncoding`."""
        return self._kept().log_tails(arrays, statics)

    def summary(self) -> str:
        """See `LogitEncoding`."""
        return f"the {self.k} most probable tokens and {self.draws} draws"

    def _kept(self) -> TopKEncoding:
        return TopKEncoding(k=self.k, temperatures=self.temperatures, values=self.values)
