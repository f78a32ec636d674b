"""The logit encodings that come with Palenka.

    topk      the k most probable tokens and the exact mass of all others, at any number of temperatures
    low_rank  the same, and what the others are among themselves by low rank: the default
    sampled   counts of draws from the whole distribution at one temperature: an unbiased estimate of it
    hybrid    the k most probable tokens, and counts of draws from the others at one temperature: unbiased too

Nothing here imports torch before it computes.

Shapes: B batch, L window length, k kept tokens, D draws, V vocabulary, T temperatures, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from palenka.data.signals.encoding import ENCODINGS, ArrayType, LogitEncoding, TeacherOutputs
from palenka.ground.errors import UserError
from palenka.ground.registry import OneOf

if TYPE_CHECKING:
    from torch import Tensor

    from palenka.data.signals.distribution import Distribution

AnyLogitEncoding = Annotated[LogitEncoding, OneOf(ENCODINGS, "low_rank")]
"""A settings field that any registered encoding fits, chosen by its `kind`."""


def id_type(vocabulary_size: int) -> str:
    """The smallest type that holds every token's id."""
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


@ENCODINGS.register("topk")
class TopKEncoding(LogitEncoding):
    """The k most probable tokens and the exact mass of all others."""

    tail_arrays: ClassVar[tuple[str, ...] | None] = ("log_odds",)

    kind: Literal["topk"] = "topk"
    """Name of the encoding."""
    k: int = Field(default=32, ge=1)
    """Tokens kept: the most probable ones."""
    values: Literal["float32", "uint8"] = "uint8"
    """Type of their stored log-probabilities; uint8 has steps of 1/16 nat that widen with the distance to the top."""

    def require_room(self, vocabulary_size: int, corpus: str) -> None:
        """As `LogitEncoding` has it."""
        if self.k > vocabulary_size:
            raise UserError(
                f"logits.k is {self.k}, but the vocabulary of corpus {corpus} has {vocabulary_size} tokens; set it to "
                f"{vocabulary_size} at most"
            )

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """As `LogitEncoding` has it."""
        arrays = {"values": ArrayType(self.k, self.values)}
        if self.k < vocabulary_size:
            arrays["ids"] = ArrayType(self.k, id_type(vocabulary_size), "shuffle")
        arrays["log_odds"] = ArrayType(len(self.temperatures), "float32" if self.values == "float32" else "int16")
        return arrays

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `LogitEncoding` has it."""
        from palenka.data.signals.top_k import differences, gaps, log_odds, pack_gaps, pack_odds, top_k

        ids, values, log_tails = top_k(outputs.logits, self.k, self.temperatures)
        below, odds = gaps(values), log_odds(log_tails)
        is_coarse = self.values == "uint8"
        arrays = {
            "values": pack_gaps(below) if is_coarse else below,
            "log_odds": pack_odds(odds) if is_coarse else odds,
        }
        return arrays if ids is None else {**arrays, "ids": differences(ids)}

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """As `LogitEncoding` has it."""
        from palenka.data.signals.distribution import Distribution
        from palenka.data.signals.top_k import log_masses, sums, unpack_gaps, unpack_odds

        place = self.temperatures.index(temperature)
        log_kept_mass, log_tail = log_masses(unpack_odds(arrays["log_odds"][..., place]))
        shares = (-unpack_gaps(arrays["values"]) / temperature).log_softmax(dim=-1)
        ids = sums(arrays["ids"]) if "ids" in arrays else None
        return Distribution(ids, shares + log_kept_mass.unsqueeze(-1), log_tail)

    def unrounded(self) -> Self:
        """As `LogitEncoding` has it."""
        return self.model_copy(update={"values": "float32"})

    def log_tails(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """As `LogitEncoding` has it."""
        from palenka.data.signals.top_k import log_masses, unpack_odds

        return log_masses(unpack_odds(arrays["log_odds"]))[1]

    def clipped(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """As `LogitEncoding` has it."""
        from palenka.data.signals.top_k import LARGEST_GAP_CODE

        return {"values": _share(arrays["values"] == LARGEST_GAP_CODE)} if self.values == "uint8" else {}

    def summary(self) -> str:
        """As `LogitEncoding` has it."""
        return f"the {self.k} most probable tokens"


@ENCODINGS.register("low_rank")
class LowRankEncoding(TopKEncoding):
    """The k most probable tokens, the exact mass of all others, and what these are among themselves by low rank."""

    needs_states: ClassVar[bool] = True

    kind: Literal["low_rank"] = "low_rank"  # type: ignore[assignment]
    """Name of the encoding."""
    k: int = Field(default=8, ge=1)
    """Tokens kept: the most probable ones."""
    rank: int = Field(default=16, ge=1)
    """Numbers a token from which the logits of all others are given back."""
    codes: Literal["float32", "int8"] = "int8"
    """Type of these numbers."""
    step: float = Field(default=0.12, gt=0)
    """Nats in a step of int8."""

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """As `LogitEncoding` has it."""
        return {**super().arrays(vocabulary_size), "codes": ArrayType(self.rank, self.codes)}

    def measure(self, sample: Iterable[TeacherOutputs]) -> dict[str, Tensor]:
        """The map from states to codes and from codes to logits, and the KL that it leaves, from head and regression.

        Reads the sample three times.
        """
        import torch

        from palenka.data.signals.low_rank import measure

        found, errors = measure(sample, self.k, self.rank, self.temperatures, lambda z: self._fine(self._coarse(z)))
        errors_left = torch.tensor([errors.get(name, torch.nan) for name in ("head", "regression")])
        return {**vars(found), "errors": errors_left}

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `LogitEncoding` has it."""
        from palenka.data.signals.low_rank import states_of

        codes = (states_of(outputs).float() - statics["mean"]) @ statics["project"].T
        return {**super().encode(outputs, statics), "codes": self._coarse(codes)}

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """As `LogitEncoding` has it."""
        from dataclasses import replace

        from palenka.data.signals.low_rank import LowRankOthers

        kept = super().decode(arrays, statics, temperature)
        if kept.ids is None:
            return kept
        codes = self._fine(arrays["codes"]) / temperature
        return replace(kept, others=LowRankOthers(codes, statics["basis"], statics["centre"] / temperature))

    def unrounded(self) -> Self:
        """As `LogitEncoding` has it."""
        return super().unrounded().model_copy(update={"codes": "float32"})

    def clipped(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """As `LogitEncoding` has it."""
        clipped = super().clipped(arrays)
        return clipped if self.codes == "float32" else {**clipped, "codes": _share(arrays["codes"].abs() == 127)}

    def summary(self) -> str:
        """As `LogitEncoding` has it."""
        return f"{super().summary()}, the others by rank {self.rank}"

    def _coarse(self, codes: Tensor) -> Tensor:
        import torch

        return codes if self.codes == "float32" else (codes / self.step).round().clamp(-127, 127).to(torch.int8)

    def _fine(self, codes: Tensor) -> Tensor:
        return codes if self.codes == "float32" else codes.float() * self.step


class _DrawnEncoding(LogitEncoding):
    """Counts of draws, which estimate a distribution at the temperature that they were made at."""

    is_estimate: ClassVar[bool] = True

    draws: int = Field(ge=1, le=255)
    """Draws kept."""
    temperatures: tuple[float, ...] = (1.0,)
    """The temperature of the draws, which they serve."""

    @model_validator(mode="after")
    def _draws_have_one_temperature(self) -> Self:
        if len(self.temperatures) > 1:
            raise ValueError(
                f"temperatures are {list(self.temperatures)}, but draws of kind {self.kind} serve only the one they "
                "were made at; give one, or choose kind low_rank"
            )
        return self

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """As `LogitEncoding` has it."""
        return {
            "draw_ids": ArrayType(self.draws, id_type(vocabulary_size), "shuffle"),
            "draw_counts": ArrayType(self.draws, "uint8", "bitshuffle"),
        }

    def _draw(self, outputs: TeacherOutputs, excluded: Tensor | None) -> dict[str, Tensor]:
        import torch

        from palenka.data.signals.draws import draw
        from palenka.data.signals.top_k import differences

        ids, counts = draw(outputs.logits, outputs.uniforms(self.draws), self.temperatures[0], excluded)
        return {"draw_ids": differences(ids), "draw_counts": counts.to(torch.uint8)}

    def _drawn(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Ids, and the logarithms of their shares of the draws."""
        from palenka.data.signals.draws import log_shares
        from palenka.data.signals.top_k import sums

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
        """As `LogitEncoding` has it."""
        return self._draw(outputs, None)

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """As `LogitEncoding` has it; nothing is left for a tail."""
        from palenka.data.signals.distribution import Distribution

        ids, shares = self._drawn(arrays)
        return Distribution(ids, shares, self.log_tails(arrays, statics)[..., 0])

    def log_tails(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """Draws estimate all: nothing is left."""
        return (arrays["draw_counts"][..., :1] * 0.0).log()

    def summary(self) -> str:
        """As `LogitEncoding` has it."""
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
        """As `LogitEncoding` has it; there must be others."""
        if self.k >= vocabulary_size:
            raise UserError(
                f"logits.k is {self.k}, but the vocabulary of corpus {corpus} has {vocabulary_size} tokens and draws "
                f"are made from the others; set it to {vocabulary_size - 1} at most"
            )

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """As `LogitEncoding` has it."""
        return super().arrays(vocabulary_size) | self._kept().arrays(vocabulary_size)

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `LogitEncoding` has it."""
        from palenka.data.signals.top_k import sums

        kept = self._kept().encode(outputs, statics)
        return kept | self._draw(outputs, sums(kept["ids"]))

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """As `LogitEncoding` has it; nothing is left for a tail."""
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
        """As `LogitEncoding` has it."""
        return self._kept().log_tails(arrays, statics)

    def summary(self) -> str:
        """As `LogitEncoding` has it."""
        return f"the {self.k} most probable tokens and {self.draws} draws"

    def _kept(self) -> TopKEncoding:
        return TopKEncoding(k=self.k, temperatures=self.temperatures, values=self.values)


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
