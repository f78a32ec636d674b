"""Logit encodings of the most probable tokens: `topk`, and `low_rank`, which adds a distribution over the others.

Nothing here imports torch before it computes.

Shapes: B batch, L window length, k kept tokens, V vocabulary, T temperatures, r rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from palenka.data.signals.encoding import ENCODINGS, ArrayType, LogitEncoding, TeacherOutputs, id_type
from palenka.ground.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from palenka.data.signals.distribution import Distribution
    from palenka.data.signals.top_k import TopK


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

        kept = top_k(outputs.logits, self.k, self.temperatures, compiled=outputs.compiled)
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
    k: int = Field(default=7, ge=1)
    """Tokens kept: the most probable ones."""
    rank: int = Field(default=64, ge=1, le=2**12)
    """Numbers per token from which the logits of all other tokens are reconstructed."""
    values: Literal["float32", "int8"] = "int8"  # type: ignore[assignment]
    """Type of the residuals of the kept tokens' log-probabilities; int8 has finer steps for more probable tokens."""
    codes: Literal["float32", "int8"] = "int8"
    """Type of these numbers."""
    step: float = Field(default=0.065, gt=0)
    """Nats in a step of int8."""

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        """See `LogitEncoding`."""
        return {**super().arrays(vocabulary_size), "codes": ArrayType(self.rank, self.codes, by_column=True)}

    def measure(self, sample: Iterable[TeacherOutputs]) -> dict[str, Tensor]:
        """The maps from states to codes and from codes to logits, the KL that each candidate leaves, the prediction.

        Reads the sample four times.
        """
        import torch

        from palenka.data.signals.code_prediction import CodeRegression, gains
        from palenka.data.signals.low_rank import measure, states_of
        from palenka.data.signals.top_k import log_odds, top_k

        found, errors = measure(sample, self.k, self.rank, self.temperatures)
        regression = CodeRegression(found.basis, len(self.temperatures))
        for outputs in sample:
            kept = top_k(outputs.logits, self.k, self.temperatures, compiled=outputs.compiled)
            if kept.ids is not None:
                regression.add(kept.ids.cpu(), log_odds(kept.log_tail).cpu(), found.codes(states_of(outputs)).cpu())
        errors_left = torch.tensor([errors.get(name, torch.nan) for name in ("head", "regression")])
        prediction, variance = regression.finish()
        added = {"errors": errors_left, "prediction": prediction, "gain": gains(variance, self.step)}
        return {**vars(found), **added}

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `LogitEncoding`."""
        from palenka.data.signals.low_rank import LowRankMap, states_of
        from palenka.data.signals.residuals import pack_residuals, residuals
        from palenka.data.signals.top_k import top_k

        kept = top_k(outputs.logits, self.k, self.temperatures, compiled=outputs.compiled)
        arrays = self._packed(kept)
        arrays["codes"] = self._coarse(
            LowRankMap.of(statics).codes(states_of(outputs)) - self._predicted_codes(arrays, statics)
        )
        predicted, log_mass = self._predicted_values(arrays, statics, self._codes(arrays, statics))
        left = residuals(kept.values, predicted, log_mass)
        return {**arrays, "values": left if self.values == "float32" else pack_residuals(left, predicted, log_mass)}

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        """See `LogitEncoding`."""
        from dataclasses import replace

        from palenka.data.signals.low_rank import LowRankOthers
        from palenka.data.signals.residuals import unpack_residuals

        codes = self._codes(arrays, statics)
        predicted, log_mass = self._predicted_values(arrays, statics, codes)
        values = predicted + unpack_residuals(arrays["values"], predicted, log_mass)
        kept = self._decoded(arrays, values, temperature)
        if kept.ids is None and self.k == kept.log_kept.shape[-1]:
            return kept
        # The first components matter most, so that a lower rank reads these.
        codes, basis = codes[..., : self.rank] / temperature, statics["basis"][:, : self.rank]
        return replace(kept, others=LowRankOthers(codes, basis, statics["centre"] / temperature)).keeping(self.k)

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

    def _codes(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """All codes, at T = 1: the prediction and the stored residuals."""
        residuals = arrays["codes"]
        if self.codes == "int8":
            residuals = residuals.float() * (self.step * statics["gain"])
        return self._predicted_codes(arrays, statics) + residuals

    def _predicted_codes(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor]) -> Tensor:
        """The codes predicted from the kept tokens, [..., r]; 0 where all tokens are kept."""
        import torch

        from palenka.data.signals.code_prediction import predict
        from palenka.data.signals.top_k import unpack_odds

        if "ids" not in arrays:
            return torch.zeros((), device=statics["basis"].device)
        odds = unpack_odds(arrays["log_odds"])
        return predict(arrays["ids"].to(torch.int64), odds, statics["basis"], statics["prediction"])

    def _predicted_values(
        self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The prediction of the kept tokens' logits from the codes [..., k], and the log of their mass [...]."""
        import torch

        from palenka.data.signals.low_rank import LowRankOthers

        others = LowRankOthers(codes, statics["basis"], statics["centre"])
        predicted = others.logits_of(arrays["ids"].to(torch.int64)) if "ids" in arrays else others.logits()
        return predicted, self._log_masses(arrays, self.temperatures[0])[0]

    def _coarse(self, codes: Tensor) -> Tensor:
        from palenka.data.signals.rounding import to_int8

        return codes if self.codes == "float32" else to_int8(codes / self.step)


def _no_more(asked: int | None, kept: int, name: str, subject: str) -> int:
    """The number asked for, or all that was kept.

    Raises:
        UserError: if more was asked for than kept.
    """
    if asked is not None and asked > kept:
        raise UserError(f"{subject} holds {name} {kept}, but {asked} is to be read; choose {kept} at most")
    return asked or kept


def _share(flags: Tensor) -> float:
    return float(flags.float().mean())
