"""The logit encodings that come with Palenka.

    topk      the k most probable tokens and the exact mass of all others, at any number of temperatures
    low_rank  the same, and a low-rank distribution over the others: the default
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
    from palenka.data.signals.low_rank import LowRankOthers
    from palenka.data.signals.top_k import TopK

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
        """See `LogitEncoding`."""
        if self.k > vocabulary_size:
            raise UserError(
                f"logits.k is {self.k}, but the vocabulary of corpus {corpus} has {vocabulary_size} tokens; set it to "
                f"{vocabulary_size} at most"
            )

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """See `LogitEncoding`."""
        arrays = {"values": ArrayType(self.k, self.values, "bitshuffle")}
        if self.k < vocabulary_size:
            arrays["ids"] = ArrayType(self.k, id_type(vocabulary_size))
        odds_type = "float32" if self.values == "float32" else "int16"
        arrays["log_odds"] = ArrayType(len(self.temperatures), odds_type, "shuffle", by_column=True)
        return arrays

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `LogitEncoding`."""
        from palenka.data.signals.top_k import gaps, pack_gaps, top_k

        kept = top_k(outputs.logits, self.k, self.temperatures)
        below = gaps(kept.values)
        return {**self._packed(kept), "values": below if self.values == "float32" else pack_gaps(below)}

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """See `LogitEncoding`."""
        from palenka.data.signals.top_k import unpack_gaps

        return self._decoded(arrays, -unpack_gaps(arrays["values"]), temperature).keeping(self.k)

    def _packed(self, kept: TopK) -> dict[str, Tensor]:
        """Ids and log-odds as they are stored."""
        from palenka.data.signals.top_k import log_odds, pack_odds

        odds = log_odds(kept.log_tail)
        arrays = {"log_odds": odds if self.values == "float32" else pack_odds(odds)}
        return arrays if kept.ids is None else {**arrays, "ids": kept.ids}

    def _decoded(self, arrays: Mapping[str, Tensor], values: Tensor, temperature: float) -> Distribution:
        """The distribution from log-probabilities of the kept tokens at T = 1, up to a constant."""
        import torch

        from palenka.data.signals.distribution import Distribution

        log_kept_mass, log_tail = self._log_masses(arrays, temperature)
        shares = (values / temperature).log_softmax(dim=-1)
        ids = arrays["ids"].to(torch.int64) if "ids" in arrays else None
        return Distribution(ids, shares + log_kept_mass.unsqueeze(-1), log_tail)

    def reading(self, k: int | None, rank: int | None, subject: str) -> Self:
        """See `LogitEncoding`."""
        if rank is not None:
            return super().reading(None, rank, subject)
        return self.model_copy(update={"k": _no_more(k, self.k, "k", subject)})

    def _log_masses(self, arrays: Mapping[str, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
        """Log of the kept mass and of the tail at a temperature."""
        from palenka.data.signals.top_k import log_masses, unpack_odds

        return log_masses(unpack_odds(arrays["log_odds"][..., self.temperatures.index(temperature)]))

    def unrounded(self) -> Self:
        """See `LogitEncoding`."""
        return self.model_copy(update={"values": "float32"})

    def log_tails(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """See `LogitEncoding`."""
        from palenka.data.signals.top_k import log_masses, unpack_odds

        return log_masses(unpack_odds(arrays["log_odds"]))[1]

    def clipped(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """See `LogitEncoding`."""
        from palenka.data.signals.top_k import LARGEST_GAP_CODE

        return {"values": _share(arrays["values"] == LARGEST_GAP_CODE)} if self.values == "uint8" else {}

    def summary(self) -> str:
        """See `LogitEncoding`."""
        return f"the {self.k} most probable tokens"


@ENCODINGS.register("low_rank")
class LowRankEncoding(TopKEncoding):
    """The k most probable tokens, the exact mass of all others, and a low-rank distribution over these."""

    needs_states: ClassVar[bool] = True

    kind: Literal["low_rank"] = "low_rank"  # type: ignore[assignment]
    """Name of the encoding."""
    k: int = Field(default=6, ge=1)
    """Tokens kept: the most probable ones."""
    rank: int = Field(default=48, ge=1, le=2**12)
    """Numbers per token from which the logits of all other tokens are reconstructed."""
    values: Literal["float32", "int8"] = "int8"  # type: ignore[assignment]
    """Type of the residuals of the kept tokens' log-probabilities; int8 has finer steps for more probable tokens."""
    codes: Literal["float32", "int8"] = "int8"
    """Type of these numbers."""
    step: float = Field(default=0.1, gt=0)
    """Nats in a step of int8."""

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """See `LogitEncoding`."""
        return {**super().arrays(vocabulary_size), "codes": ArrayType(self.rank, self.codes, by_column=True)}

    def measure(self, sample: Iterable[TeacherOutputs]) -> dict[str, Tensor]:
        """The map from states to codes and from codes to logits, and the remaining KL of both candidates.

        Reads the sample three times.
        """
        import torch

        from palenka.data.signals.low_rank import measure

        found, errors = measure(sample, self.k, self.rank, self.temperatures, lambda z: self._fine(self._coarse(z)))
        errors_left = torch.tensor([errors.get(name, torch.nan) for name in ("head", "regression")])
        return {**vars(found), "errors": errors_left}

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `LogitEncoding`."""
        from palenka.data.signals.low_rank import states_of
        from palenka.data.signals.residuals import pack_residuals, residuals
        from palenka.data.signals.top_k import top_k

        kept = top_k(outputs.logits, self.k, self.temperatures)
        codes = (states_of(outputs).float() - statics["mean"]) @ statics["project"].T
        arrays = {**self._packed(kept), "codes": self._coarse(codes)}
        predicted, log_mass = self._predicted(arrays, statics)
        left = residuals(kept.values, predicted, log_mass)
        return {**arrays, "values": left if self.values == "float32" else pack_residuals(left, predicted, log_mass)}

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """See `LogitEncoding`."""
        from dataclasses import replace

        from palenka.data.signals.residuals import unpack_residuals

        predicted, log_mass = self._predicted(arrays, statics)
        values = predicted + unpack_residuals(arrays["values"], predicted, log_mass)
        kept = self._decoded(arrays, values, temperature)
        if kept.ids is None and self.k == kept.log_kept.shape[-1]:
            return kept
        return replace(kept, others=self._others(arrays, statics, temperature, self.rank)).keeping(self.k)

    def reading(self, k: int | None, rank: int | None, subject: str) -> Self:
        """See `LogitEncoding`."""
        fewer = super().reading(k, None, subject)
        return fewer.model_copy(update={"rank": _no_more(rank, self.rank, "rank", subject)})

    def unrounded(self) -> Self:
        """See `LogitEncoding`."""
        return super().unrounded().model_copy(update={"codes": "float32"})

    def clipped(self, arrays: Mapping[str, Tensor]) -> dict[str, float]:
        """See `LogitEncoding`."""
        from palenka.data.signals.rounding import share_clipped

        coarse = {"values": self.values, "codes": self.codes}
        return {name: share_clipped(arrays[name]) for name, kind in coarse.items() if kind == "int8"}

    def summary(self) -> str:
        """See `LogitEncoding`."""
        return f"{super().summary()}, the others by rank {self.rank}"

    def _others(
        self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float, rank: int | None = None
    ) -> LowRankOthers:
        """The other tokens at a temperature, from all codes or from the first ones, which matter most."""
        from palenka.data.signals.low_rank import LowRankOthers

        codes = self._fine(arrays["codes"][..., :rank]) / temperature
        return LowRankOthers(codes, statics["basis"][:, :rank], statics["centre"] / temperature)

    def _predicted(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The codes' prediction of the kept tokens' logits [..., k], and the log of their mass [...]."""
        import torch

        others = self._others(arrays, statics, 1.0)
        predicted = others.logits_of(arrays["ids"].to(torch.int64)) if "ids" in arrays else others.logits()
        return predicted, self._log_masses(arrays, self.temperatures[0])[0]

    def _coarse(self, codes: Tensor) -> Tensor:
        from palenka.data.signals.rounding import to_int8

        return codes if self.codes == "float32" else to_int8(codes / self.step)

    def _fine(self, codes: Tensor) -> Tensor:
        return codes if self.codes == "float32" else codes.float() * self.step


def _no_more(asked: int | None, kept: int, name: str, subject: str) -> int:
    """The number asked for, or all that was kept.

    Raises:
        UserError: if more was asked for than kept.
    """
    if asked is not None and asked > kept:
        raise UserError(f"{subject} holds {name} {kept}, but {asked} is to be read; choose {kept} at most")
    return asked or kept


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


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
