"""Layers: the hidden states of all of a teacher's layers, encoded and decoded in as few operations as those of one.

The layers of a model are stacked and worked on as one (`Layer.stacked`). One by one, decoding alone was some ten
operations for each, and the host of a GPU took longer to hand them over than the GPU to work on them.

Shapes: n layers of a stack, B batch, P positions, W width of a teacher, C components.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from palenka.data.signals.hidden import Layer, LayerFit
from palenka.data.signals.manifest import model_and_layer


@dataclass(frozen=True)
class LayerStacks:
    """The layers of a teacher by "model/layer", those of a model stacked in their order.

    Attributes:
        stacks: the keys of each stack, and their layers as one.
    """

    stacks: tuple[tuple[tuple[str, ...], Layer], ...]

    @classmethod
    def of(cls, layers: Mapping[str, Layer]) -> Self:
        """The stacks of some layers, all of one encoding."""
        alike: dict[tuple[str, int, int], list[str]] = {}
        for key, layer in layers.items():
            alike.setdefault((model_and_layer(key)[0], len(layer.mean), layer.num_components), []).append(key)
        several = ((tuple(keys), [layers[key] for key in keys]) for keys in alike.values())
        return cls(tuple((keys, type(some[0]).stacked(some)) for keys, some in several))

    def encode(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Codes [B, P, C] of hidden states [B, P, W], by key."""
        return self._each(lambda layer, there: layer.encode(there), states)

    def decode(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Components [B, P, C] of codes [B, P, C], by key; see `Layer.decode`."""
        return self._each(lambda layer, there: layer.decode(there), codes)

    def squared_errors(self, states: Mapping[str, Tensor], codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Residual and total sum of squares, [2] float64 by key; see `Layer.squared_error`."""
        found: dict[str, Tensor] = {}
        for keys, layer in self.stacks:
            errors = layer.squared_error(_stack(keys, states), _stack(keys, codes))
            found |= zip(keys, errors.unbind(), strict=True)
        return {key: found[key] for key in states}

    def _each(self, change: Callable[[Layer, Tensor], Tensor], parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for keys, layer in self.stacks:
            changed = change(layer, _stack(keys, parts)).unflatten(1, parts[keys[0]].shape[:-1])
            found |= zip(keys, changed.unbind(), strict=True)
        return {key: found[key] for key in parts}


def finished(fits: Mapping[str, LayerFit]) -> dict[str, Layer]:
    """The layers by "model/layer" whose measurements are complete; each model's in their order."""
    layers: dict[str, Layer] = {}
    before: dict[str, LayerFit] = {}
    for key, fit in fits.items():
        model, _ = model_and_layer(key)
        layers[key] = fit.finish(before.get(model))
        before[model] = fit
    return layers


def _stack(keys: tuple[str, ...], parts: Mapping[str, Tensor]) -> Tensor:
    """Parts [B, P, …] of some keys as [n, B · P, …]."""
    return torch.stack([parts[key] for key in keys]).flatten(1, -2)
