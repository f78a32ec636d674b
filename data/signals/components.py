"""Components: a layer's hidden states in coordinates measured on a sample, as int8 codes or in float32.

A hidden state h is centred and, if asked for, projected on the layer's principal components: z = B (h − mean). Codes
are z / scale rounded to int8, with one scale for each component: the variance of real layers differs by orders of
magnitude between components, so a scale per token would lose most of them.

Shapes: W width of the teacher, C components (W without a basis).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from palenka.data.signals.rounding import LARGEST_INT8, to_int8

if TYPE_CHECKING:
    from palenka.data.signals.hidden import ComponentsEncoding

_CLIP_DEVIATIONS = 5.0
"""Values beyond so many standard deviations are clipped: they cost the others more than they are worth."""
_SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Components:
    """One layer's coordinates, measured on a sample of windows without position 0; all float32.

    Attributes:
        values: type of the codes.
        mean: of the hidden states, [W].
        variance: of each component, [C].
        scale: of a code's unit for each component, [C]; 1 where values are stored in float32.
        basis: principal components as orthonormal rows, [C, W]; None for the teacher's own coordinates.
    """

    values: Literal["int8", "float32"]
    mean: Tensor
    variance: Tensor
    scale: Tensor
    basis: Tensor | None = None

    @cached_property
    def rms_deviation(self) -> Tensor:
        """√(Σ variance / C), a scalar in float32; summed in float64, which not every device has."""
        mean = self.variance.cpu().double().mean().clamp_min(_SMALLEST_VARIANCE)
        return mean.sqrt().float().to(self.variance.device)

    @cached_property
    def _unit(self) -> Tensor:
        """What turns a code into a component in units of the RMS deviation, [C]."""
        return self.scale / self.rms_deviation

    @property
    def num_components(self) -> int:
        """C."""
        return len(self.scale)

    def to(self, device: torch.device) -> Components:
        """The same on another device."""
        return Components(self.values, **{name: value.to(device) for name, value in self.statics().items()})

    def statics(self) -> dict[str, Tensor]:
        """What is kept in the store, by name."""
        kept = {"mean": self.mean, "variance": self.variance, "scale": self.scale}
        return kept if self.basis is None else {**kept, "basis": self.basis}

    def encode(self, states: Tensor) -> Tensor:
        """Codes [..., C], int8 or float32, of hidden states [..., W]."""
        centred = states.float() - self.mean
        components = centred if self.basis is None else centred @ self.basis.T
        if self.values == "float32":
            return components
        return to_int8(components / self.scale)

    def decode(self, codes: Tensor) -> Tensor:
        """Components [..., C] in units of the RMS deviation, float32."""
        return codes.float() * self._unit

    def squared_error(self, states: Tensor, codes: Tensor) -> tuple[float, float]:
        """Residual and total sum of squares of hidden states [..., W] about the mean, float64.

        What lies outside a truncated basis is part of the residual.
        """
        states, codes = states.cpu(), codes.cpu()
        centred = states.double() - self.mean.cpu().double()
        components = codes.double() * self.scale.cpu().double()
        decoded = components if self.basis is None else components @ self.basis.cpu().double()
        return float((centred - decoded).square().sum()), float(centred.square().sum())


class ComponentsFit:
    """Measures one layer's coordinates over a sample that comes in parts: float64 sums on the CPU."""

    def __init__(self, encoding: ComponentsEncoding) -> None:
        self._encoding = encoding
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, states: Tensor) -> None:
        """Count hidden states [..., W]."""
        flat = states.flatten(0, -2).cpu().double()
        squares = flat.square().sum(0) if self._encoding.components is None else flat.T @ flat
        self._count += len(flat)
        self._sum = flat.sum(0) if self._sum is None else self._sum + flat.sum(0)
        self._squares = squares if self._squares is None else self._squares + squares

    def finish(self) -> Components:
        """The coordinates of all that was added."""
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
        return Components(self._encoding.values, mean.float(), variance.float(), self._scale(variance), basis)

    def _scale(self, variance: Tensor) -> Tensor:
        if self._encoding.values == "float32":
            return torch.ones_like(variance, dtype=torch.float32)
        deviation = variance.sqrt().float()
        # A component that never varies has code 0 whatever its scale.
        return torch.where(deviation > 0, deviation, 1.0) * (_CLIP_DEVIATIONS / LARGEST_INT8)
