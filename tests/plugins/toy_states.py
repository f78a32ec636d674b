"""An encoding of hidden states: the signs of a state's coordinates; a layer has one deviation for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from palenka.data.signals.encoding import ArrayType
from palenka.data.signals.hidden import HIDDEN_ENCODINGS, HiddenEncoding, Layer


@dataclass(frozen=True)
class SignLayer(Layer):
    mean: Tensor
    rms_deviation: Tensor

    def encode(self, states: Tensor) -> Tensor:
        return (states.float() - self.mean).sign().to(torch.int8)

    def components(self, codes: Tensor) -> Tensor:
        return codes * self.rms_deviation


@HIDDEN_ENCODINGS.register("signs")
class SignEncoding(HiddenEncoding):
    kind: Literal["signs"] = "signs"
    sample_windows: int = 40

    def array(self, width: int, layer: int) -> ArrayType:
        return ArrayType(width, "int8")

    def measure(self, states: Tensor) -> SignLayer:
        return SignLayer(states.mean(0), states.var(0, correction=0).mean().sqrt())

    def layer(self, statics: Mapping[str, Tensor]) -> SignLayer:
        return SignLayer(**statics)
