"""Components: a layer's hidden states in coordinates measured on a sample, as int8 codes or float32 values.

A hidden state h is centred and projected on the layer's principal components: z = B (h − mean). Codes are z over a
step, rounded to int8. **One step for all components of a layer** spends the bytes where the variance is, as in reverse
water-filling (Cover and Thomas, Elements of Information Theory, 10.3.3): a weak component is mostly 0 and compresses
away. A step per component in proportion to its deviation spends as many bytes on weak components as on strong ones.

The step follows from an error, the mean over the sample's tokens of each token's relative squared error. It may be as
large as that of exact values of K components (`ComponentsEncoding.components`), or as `ComponentsEncoding.error` if
that is larger. In the middle layers of many models a few tokens in ten thousand hold most of the variance (Sun and
others 2024, Massive activations in large language models): an error relative to the whole variance would keep nothing
of all other tokens. For these few tokens steps widen with the distance from 0.

**What the layer before predicts is not stored.** Blocks add to the states of the layers below, so least squares on the
decoded components of the previous kept layer of the same model leaves some 5 to 30 % of the variance (50 % right after
the embeddings). Codes are what is left, in its own principal components. Its rounding is the only error: the prediction
is made from what a reader decodes, so that errors of one layer do not add to those of the next.

The teacher's own coordinates (without a basis) each have their own step, in proportion to their deviation, and predict
nothing.

Shapes: n layers of a stack, m states, W width of the teacher, C components (W without a basis).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from palenka.data.signals.hidden import Layer, LayerFit, stacked
from palenka.data.signals.rounding import LARGEST_INT8, narrowed, to_int8, widened

if TYPE_CHECKING:
    from palenka.data.signals.hidden import ComponentsEncoding

_WIDTH = 24.0
"""Distance from 0, in steps, at which a step is twice as wide; codes reach 4,700 steps."""
_OWN_STEPS = LARGEST_INT8 / 5
"""Steps per deviation of the teacher's own coordinates; rounding then loses less than 1e-3 of their variance."""
_SMALLEST_VARIANCE = 1e-12
_HELD_TOKENS, _EVERY = 4096, 4
"""Maximum tokens of a sample that are held to choose the step, and their spacing: one token of so many."""
_LEAST_SHARE = 1e-3
"""Of the mean square: weaker components of the layer before, mostly rounded to 0, have no large weights."""
_HALVINGS = 16
"""Bisections, in the logarithm, of the range in which the step is searched: 1 to 1e-4 of the whole deviation."""


@dataclass(frozen=True)
class Components(Layer):
    """One layer's coordinates, measured on a sample of windows without position 0; all float32.

    Of n layers as one (`stacked`) each tensor has n as first dimension, and a second one for their states. By itself a
    layer is encoded and decoded as if nothing predicted it.

    Attributes:
        values: type of the codes.
        mean: of the hidden states, [W].
        variance: of each component, [C].
        scale: of a code's unit for each component, [C]; 1 where values are stored in float32.
        basis: principal components as orthonormal rows, [C, W]; None for the teacher's own coordinates.
        prediction: of the components from those of the layer before, [C, C]; 0 for a model's first layer. None if each
            layer is stored by itself.
        directions: principal components of what the prediction leaves, as orthonormal rows, [C, C]; None likewise.
    """

    values: Literal["int8", "float32"]
    mean: Tensor
    variance: Tensor
    scale: Tensor
    basis: Tensor | None = None
    prediction: Tensor | None = None
    directions: Tensor | None = None

    @cached_property
    def rms_deviation(self) -> Tensor:
        """√(Σ variance / C), a scalar in float32; summed in float64, on the CPU since not every device has it."""
        mean = self.variance.cpu().double().mean().clamp_min(_SMALLEST_VARIANCE)
        return mean.sqrt().float().to(self.variance.device)

    @classmethod
    def stacked(cls, layers: Sequence[Self]) -> Self:
        """The layers of a model as one: mean [n, 1, W], scale and variance [n, 1, C], basis [n, C, W], and so on."""
        together = super().stacked(layers)
        together.__dict__["rms_deviation"] = stacked([layer.rms_deviation for layer in layers])
        return together

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        moved = super().to(device)
        # Computed here already: on the device it would wait for a copy to the CPU.
        moved.__dict__["rms_deviation"] = self.rms_deviation.to(device)
        return moved

    def encode(self, states: Tensor) -> Tensor:
        """Codes [..., C], int8 or float32, of hidden states [..., W]."""
        centred = states.float() - self.mean
        components = centred if self.basis is None else centred @ self.basis.mT
        if self.values == "float32":
            return components
        if self.prediction is None or self.directions is None:
            return _rounded(components / self.scale)
        if self.prediction.dim() == 2:
            return _rounded(components @ self.directions.T / self.scale)
        codes, decoded = [], torch.zeros_like(components[0])
        for exact, scale, matrix, directions in zip(
            components, self.scale, self.prediction, self.directions, strict=True
        ):
            predicted = decoded @ matrix.T
            codes.append(_rounded((exact - predicted) @ directions.T / scale))
            decoded = predicted + (widened(codes[-1], _WIDTH) * scale) @ directions
        return torch.stack(codes)

    def components(self, codes: Tensor) -> Tensor:
        """Components [..., C] in the teacher's units, float32."""
        if self.values == "float32":
            return codes
        left = widened(codes, _WIDTH) * self.scale
        if self.prediction is None or self.directions is None:
            return left
        left = left @ self.directions
        if self.prediction.dim() == 2:
            return left
        for before, more, matrix in zip(left[:-1], left[1:], self.prediction[1:], strict=True):
            more.addmm_(before, matrix.T)  # in place: now this layer, and what the next is predicted from
        return left


def _rounded(units: Tensor) -> Tensor:
    """Components in units of the step as int8 codes."""
    return to_int8(narrowed(units, _WIDTH))


class ComponentsFit:
    """Measures one layer's coordinates over a sample that comes in parts: float64 sums on the CPU."""

    def __init__(self, encoding: ComponentsEncoding) -> None:
        self._encoding = encoding
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        self._held: list[Tensor] = []
        self.decoded: Tensor | None = None
        """What a reader decodes of the tokens held, [m, C], once finished: it predicts the next layer's."""

    def add(self, states: Tensor) -> None:
        """Count hidden states [..., W]."""
        flat = states.flatten(0, -2).cpu().double()
        squares = flat.square().sum(0) if self._encoding.components is None else flat.T @ flat
        if self._chooses_step and sum(map(len, self._held)) < _HELD_TOKENS:
            # Every n-th token of the whole sample: codes must not depend on how it is cut into parts.
            self._held.append(flat[-self._count % _EVERY :: _EVERY].float())
        self._count += len(flat)
        self._sum = flat.sum(0) if self._sum is None else self._sum + flat.sum(0)
        self._squares = squares if self._squares is None else self._squares + squares

    def finish(self, before: LayerFit | None = None) -> Components:
        """The coordinates of all that was added; see `LayerFit`."""
        assert self._sum is not None
        assert self._squares is not None
        mean = self._sum / self._count
        if self._encoding.components is None:
            variance = (self._squares / self._count - mean.square()).clamp_min(0).float()
            return Components(self._encoding.values, mean.float(), variance, self._own_scale(variance))
        variances, vectors = torch.linalg.eigh(self._squares / self._count - torch.outer(mean, mean))  # ascending
        kept = self._encoding.num_components(len(mean))
        basis = vectors.T.flip(0)[:kept].float()
        variance = variances.flip(0)[:kept].clamp_min(0).float()
        if not self._chooses_step:
            return Components(self._encoding.values, mean.float(), variance, torch.ones_like(variance), basis)
        centred = torch.cat(self._held)[:_HELD_TOKENS] - mean.float()
        components, exact = centred @ basis.T, self._encoding.components
        squares = centred.square().sum(-1).clamp_min(_SMALLEST_VARIANCE)
        outside, weak = squares - components.square().sum(-1), components[:, exact:].square().sum(-1)
        if not self._encoding.needs_before:
            scale = torch.full_like(variance, self._step(components, weak, outside, squares))
            return Components(self._encoding.values, mean.float(), variance, scale, basis)
        decoded = before.decoded if isinstance(before, ComponentsFit) else None
        prediction, directions = _what_predicts(components, decoded)
        predicted = decoded @ prediction.T if decoded is not None else torch.zeros_like(components)
        left = (components - predicted) @ directions.T
        step = self._step(left, weak, outside, squares)
        self.decoded = predicted + (widened(_rounded(left / step), _WIDTH) * step) @ directions
        scale = torch.full_like(variance, step)
        return Components(self._encoding.values, mean.float(), variance, scale, basis, prediction, directions)

    @property
    def _chooses_step(self) -> bool:
        return self._encoding.values == "int8" and self._encoding.components is not None

    def _own_scale(self, variance: Tensor) -> Tensor:
        """A step for each of the teacher's own coordinates, in proportion to its deviation."""
        if self._encoding.values == "float32":
            return torch.ones_like(variance)
        # A coordinate that never varies has code 0 whatever its step.
        return torch.where(variance > 0, variance.sqrt(), 1.0) / _OWN_STEPS

    def _step(self, left: Tensor, weak: Tensor, outside: Tensor, squares: Tensor) -> float:
        """The widest step whose codes lose no more of the held states than exact values of K components would.

        Args:
            left: what is rounded, [m, C].
            weak: sum of squares of the components beyond K, [m].
            outside: sum of squares outside all components, [m].
            squares: of the whole centred states, [m].
        """

        def lost(rest: Tensor) -> float:
            """The mean relative squared error of tokens, given the squared error of their components [m]."""
            return float(((outside + rest) / squares).mean())

        allowed = max(self._encoding.error, lost(weak))
        largest = float(squares.mean().sqrt())
        low, high = 1e-4 * largest, largest
        for _ in range(_HALVINGS):
            step = (low * high) ** 0.5
            rest = left - widened(_rounded(left / step), _WIDTH) * step
            low, high = (low, step) if lost(rest.square().sum(-1)) > allowed else (step, high)
        return low


def _what_predicts(components: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """The prediction of components [m, C] from those of the layer before, and the directions of what it leaves.

    Ridge regression: of m tokens and C features, a share of C / m of what they explain is chance.
    """
    tokens, count = components.shape
    if before is None:
        return torch.zeros(count, count), torch.eye(count)
    features, targets = before.double(), components.double()
    gram = features.T @ features
    squares = gram.diagonal()
    ridge = squares.clamp_min(_LEAST_SHARE * squares.mean()) * (count / tokens)
    # If all is rounded to 0, nothing is predicted.
    weights = torch.linalg.solve(gram + torch.where(ridge > 0, ridge, 1.0).diag(), features.T @ targets)
    left = targets - features @ weights
    vectors = torch.linalg.eigh(left.T @ left).eigenvectors  # ascending
    return weights.T.float(), vectors.T.flip(0).float()
