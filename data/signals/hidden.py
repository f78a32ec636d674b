"""Hidden states in a teacher signal: which are kept, in which coordinates, and how coarsely.

A hidden state h of a layer is centred and, if asked for, projected on the layer's principal components:
z = B (h − mean). It is stored as codes, z / scale rounded to int8, with one scale for each component: the variance of
real layers differs by orders of magnitude between components, so a scale per token would lose most of them.

Shapes: B batch, P positions, W width of the teacher, C components (W without a basis).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from palenka.ground.errors import UserError
from palenka.ground.settings import Settings

_CLIP_DEVIATIONS = 5.0
"""Values beyond so many standard deviations are clipped: they cost the others more than they are worth."""
_LARGEST_CODE = 127


class HiddenEncoding(Settings):
    """What is kept of a teacher's hidden states."""

    layers: Literal["uniform"] | tuple[int, ...] = "uniform"
    """Indices of hidden states: 0 is the embeddings, the last is after the final norm; uniform spreads them evenly."""
    num_layers: int = Field(default=9, ge=2)
    """How many layers uniform takes."""
    positions: int | None = Field(default=None, ge=1)
    """Positions kept in each window, drawn by its address; seven eighths of them unless given; never position 0."""
    components: int | None = Field(default=64, ge=1)
    """Principal components kept of each layer, at most; null keeps the teacher's own coordinates, all of them."""
    values: Literal["int8", "float32"] = "int8"
    """Type of the stored values; int8 with one scale for each component."""
    sample_windows: int = Field(default=256, ge=2)
    """Windows from which mean, variance, scale and basis are measured before a capture."""

    @model_validator(mode="after")
    def _layers_differ(self) -> Self:
        if not isinstance(self.layers, str) and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"layers is {list(self.layers)}, but it should name each layer once, such as [0, 3, 6]")
        return self

    def within(self, length: int) -> "HiddenEncoding":
        """The same encoding with its number of positions settled for windows of a length.

        Raises:
            UserError: if a window has not so many beside position 0.
        """
        positions = self.positions or max(1, length * 7 // 8)
        if positions >= length:
            raise UserError(
                f"hidden.positions is {positions}, but windows of {length} tokens have only {length - 1} beside "
                f"position 0; set it to {length - 1} at most"
            )
        return self.model_copy(update={"positions": positions})

    def num_positions(self) -> int:
        """Positions kept in each window, once they are settled."""
        assert self.positions is not None
        return self.positions

    def num_components(self, width: int) -> int:
        """Numbers kept of each hidden state of a model of this width."""
        return width if self.components is None else min(width, self.components)

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The indices kept of a model with `depth` blocks, which has depth + 1 hidden states.

        Raises:
            UserError: if the model has no such layer.
        """
        if self.layers == "uniform":
            spread = np.linspace(0, depth, min(self.num_layers, depth + 1)).round()
            return tuple(int(layer) for layer in spread)
        for layer in self.layers:
            if not 0 <= int(layer) <= depth:
                raise UserError(
                    f"hidden.layers has {layer}, but the teacher has the hidden states 0 to {depth}; choose among them"
                )
        return tuple(int(layer) for layer in self.layers)


class HiddenLayers(Settings):
    """The layers kept of one model."""

    depth: int
    """Its blocks: it has depth + 1 hidden states."""
    width: int
    """Width of its hidden states."""
    layers: tuple[int, ...]
    """Indices of those that are kept."""

    @staticmethod
    def of(config: Mapping[str, Any], encoding: HiddenEncoding) -> "HiddenLayers":
        """The layers that an encoding keeps of a model with this Hugging Face configuration.

        Raises:
            UserError: if the model has no such layer.
        """
        depth = int(config.get("num_hidden_layers") or config["n_layer"])
        width = int(config.get("hidden_size") or config["n_embd"])
        return HiddenLayers(depth=depth, width=width, layers=encoding.layers_of(depth))


@dataclass(frozen=True)
class LayerStatistics:
    """One layer's coordinates, measured on a sample of windows without position 0; all float32.

    Attributes:
        mean: of the hidden states, [W].
        variance: of each component, [C].
        scale: of a code's unit for each component, [C]; 1 where values are stored in float32.
        basis: principal components as orthonormal rows, [C, W]; None for the teacher's own coordinates.
    """

    mean: Tensor
    variance: Tensor
    scale: Tensor
    basis: Tensor | None

    def to(self, device: torch.device) -> "LayerStatistics":
        """The same statistics on another device."""
        basis = None if self.basis is None else self.basis.to(device)
        return LayerStatistics(self.mean.to(device), self.variance.to(device), self.scale.to(device), basis)

    def encode(self, states: Tensor, encoding: HiddenEncoding) -> Tensor:
        """Codes [..., C], int8 or float32, of hidden states [..., W]."""
        centred = states.float() - self.mean
        components = centred if self.basis is None else centred @ self.basis.T
        if encoding.values == "float32":
            return components
        return (components / self.scale).round().clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8)

    def squared_error(self, states: Tensor, codes: Tensor) -> tuple[float, float]:
        """What the codes miss of hidden states [..., W], and what there is: sums of squares about the mean, float64.

        What lies outside a truncated basis counts as missed.
        """
        mean, scale, known, coded = (part.cpu().double() for part in (self.mean, self.scale, states, codes))
        centred, components = known - mean, coded * scale
        decoded = components if self.basis is None else components @ self.basis.cpu().double()
        return float((centred - decoded).square().sum()), float(centred.square().sum())


class StatisticsFit:
    """Measures one layer's statistics over a sample that comes in parts; float64 sums, W² of them with a basis."""

    def __init__(self, encoding: HiddenEncoding) -> None:
        self._encoding = encoding
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, states: Tensor) -> None:
        """Count hidden states [..., W]."""
        flat = states.flatten(0, -2).cpu().double()  # an mps device has no float64
        squares = flat.square().sum(0) if self._encoding.components is None else flat.T @ flat
        self._count += len(flat)
        self._sum = flat.sum(0) if self._sum is None else self._sum + flat.sum(0)
        self._squares = squares if self._squares is None else self._squares + squares

    def finish(self) -> LayerStatistics:
        """The statistics of all that was added, on the CPU."""
        assert self._sum is not None
        assert self._squares is not None
        mean = self._sum / self._count
        basis = None
        if self._encoding.components is None:
            variance = (self._squares / self._count - mean.square()).clamp_min(0)
        else:
            covariance = self._squares / self._count - torch.outer(mean, mean)
            variances, vectors = torch.linalg.eigh(covariance)  # ascending
            basis = vectors.T.flip(0)[: self._encoding.components].float()
            variance = variances.flip(0)[: self._encoding.components].clamp_min(0)
        return LayerStatistics(mean.float(), variance.float(), self._scale(variance), basis)

    def _scale(self, variance: Tensor) -> Tensor:
        if self._encoding.values == "float32":
            return torch.ones_like(variance, dtype=torch.float32)
        deviation = variance.sqrt().float()
        # A component that never varies has code 0 whatever its scale.
        return torch.where(deviation > 0, deviation, 1.0) * (_CLIP_DEVIATIONS / _LARGEST_CODE)


def bytes_per_window(encoding: HiddenEncoding, layers: Mapping[str, HiddenLayers]) -> int:
    """Bytes of a window's hidden states before compression."""
    per_value = np.dtype(encoding.values).itemsize
    widths = (len(kept.layers) * encoding.num_components(kept.width) for kept in layers.values())
    return encoding.num_positions() * per_value * sum(widths)


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [B, L, W] at the positions [B, P] of each window: [B, P, W]."""
    return states.gather(1, positions.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
