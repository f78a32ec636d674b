"""A toy encoding: every token's log-probability in float16, without its mean over a sample, which is kept once."""

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from palenka.data.signals.distribution import Distribution
from palenka.data.signals.encoding import ENCODINGS, ArrayType, LogitEncoding, TeacherOutputs


@ENCODINGS.register("whole")
class WholeEncoding(LogitEncoding):
    """The whole distribution."""

    kind: Literal["whole"] = "whole"
    temperatures: tuple[float, ...] = (1.0, 2.0)

    def arrays(self, vocabulary_size: int) -> dict[str, ArrayType]:
        return {"beside_mean": ArrayType(vocabulary_size, "float16")}

    def measure(self, sample: Iterable[TeacherOutputs]) -> dict[str, Tensor]:
        parts = [outputs.logits.double().log_softmax(-1).flatten(0, -2).cpu() for outputs in sample]
        return {"mean": torch.cat(parts).mean(0).float()}

    def encode(self, outputs: TeacherOutputs, statics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"beside_mean": (outputs.logits.float().log_softmax(-1) - statics["mean"]).half()}

    def decode(self, arrays: Mapping[str, Tensor], statics: Mapping[str, Tensor], temperature: float) -> Distribution:
        kept = ((arrays["beside_mean"].float() + statics["mean"]) / temperature).log_softmax(-1)
        return Distribution(None, kept, torch.full_like(kept[..., 0], -math.inf))

    def summary(self) -> str:
        return "the whole distribution"
