"""Hidden states in a teacher signal: which are kept, in which coordinates, and how precisely.

An encoding of hidden states is a settings class that registers itself in `HIDDEN_ENCODINGS`. Its attributes and methods
are all that other code needs to know about it. Nothing here imports torch before it computes.

Shapes: B batch, P positions, W width of the teacher, C components kept (W without a basis).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from palenka.data.signals.encoding import ArrayType
from palenka.ground.errors import UserError
from palenka.ground.registry import OneOf, Registry
from palenka.ground.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig


class Layer(Protocol):
    """One layer's coordinates: how its states are encoded, and the statistics that terms use.

    `stacked` makes one of n layers of equal widths: states and codes then have n as first dimension.
    """

    @classmethod
    def stacked(cls, layers: Sequence[Self]) -> Self:
        """Several layers of equal widths as one, whose states are [n, m, W] and codes [n, m, C] of n layers each."""
        ...

    @property
    def mean(self) -> Tensor:
        """Mean of the states in the teacher's own coordinates, [W]."""
        ...

    @property
    def basis(self) -> Tensor | None:
        """Directions of the components as rows, [C, W]; None for the teacher's own coordinates."""
        ...

    @property
    def rms_deviation(self) -> Tensor:
        """√(Σ variance / C) of the components, a scalar in float32: the unit of decoded states."""
        ...

    @property
    def num_components(self) -> int:
        """C."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        ...

    def statics(self) -> dict[str, Tensor]:
        """The arrays kept in the store, by name."""
        ...

    def encode(self, states: Tensor) -> Tensor:
        """Codes [..., C] of hidden states [..., W]."""
        ...

    def decode(self, codes: Tensor) -> Tensor:
        """Components [..., C] of centred states in units of `rms_deviation`, float32, of codes [..., C]."""
        ...

    def squared_error(self, states: Tensor, codes: Tensor) -> Tensor:
        """Residual and total sum of squares of states [m, W] about the mean, given their codes [m, C].

        [2] float64 (stacked [n, 2]), on the device of the states if that has float64; a capture reads it once per
        shard.
        """
        ...


class LayerFit(Protocol):
    """Measures one layer's coordinates over a sample that comes in parts."""

    def add(self, states: Tensor) -> None:
        """Count hidden states [..., W]."""
        ...

    def finish(self) -> Layer:
        """The coordinates of all that was added, on the CPU."""
        ...


class HiddenEncoding(Settings):
    """What is kept of a teacher's hidden states."""

    layers: Literal["uniform"] | tuple[int, ...] = "uniform"
    """Indices of hidden states: 0 is the embeddings, the last is after the final norm; uniform spreads them evenly."""
    num_layers: int = Field(default=9, ge=2, le=1000)
    """How many layers uniform takes."""
    positions: int | None = Field(default=None, ge=1)
    """Positions kept in each window, drawn by its address; default: seven eighths; never position 0."""
    if TYPE_CHECKING:
        kind: str
        """Name of the encoding; each has it as a field."""
        sample_windows: int
        """Windows from which the coordinates are measured before a capture; each encoding has it as a field."""

    @model_validator(mode="after")
    def _layers_differ(self) -> Self:
        if not isinstance(self.layers, str) and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise ValueError(f"layers is {list(self.layers)}, but it should name each layer once, such as [0, 3, 6]")
        return self

    def array(self, width: int, layer: int) -> ArrayType:
        """How a state of this layer of a model is stored; the first dimensions are [views, windows, positions].

        Args:
            width: of the model.
            layer: index of the hidden state; 0 is the embeddings.
        """
        raise NotImplementedError

    def fit(self) -> LayerFit:
        """A measurement of one layer's coordinates, with nothing added yet."""
        raise NotImplementedError

    def layer(self, statics: Mapping[str, Tensor]) -> Layer:
        """A layer's coordinates from the arrays of `Layer.statics`."""
        raise NotImplementedError

    def within(self, length: int) -> Self:
        """The same encoding with its number of positions resolved for windows of a length.

        Raises:
            UserError: if a window has fewer without position 0.
        """
        positions = self.positions or max(1, length * 7 // 8)
        if positions >= length:
            raise UserError(
                f"hidden.positions is {positions}, but windows of {length} tokens have only {length - 1} beside "
                f"position 0; set it to {length - 1} at most"
            )
        return self.model_copy(update={"positions": positions})

    def num_positions(self) -> int:
        """Positions kept in each window, once resolved (`within`)."""
        assert self.positions is not None
        return self.positions

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


HIDDEN_ENCODINGS: Registry[type[HiddenEncoding]] = Registry("hidden encoding")
AnyHiddenEncoding = Annotated[HiddenEncoding, OneOf(HIDDEN_ENCODINGS, "components")]
"""A settings field that any registered encoding of hidden states fits, chosen by its `kind`."""


@HIDDEN_ENCODINGS.register("components")
class ComponentsEncoding(HiddenEncoding):
    """Principal components of each layer, in int8 with one step for all components of a layer."""

    kind: Literal["components"] = "components"
    """Name of the encoding."""
    components: int | None = Field(default=64, ge=1, le=2**16)
    """The codes are as exact as this many principal components per layer; null keeps all of the teacher's own
    coordinates, each with its own step."""
    error: float = Field(default=0.03, gt=0, lt=1)
    """Mean relative squared error that int8 codes may have if the components' own error is smaller."""
    values: Literal["int8", "float32"] = "int8"
    """Type of the stored values."""
    sample_windows: int = Field(default=256, ge=2, le=2**20)
    """Windows from which mean, variance, scale and basis are measured before a capture."""

    def array(self, width: int, layer: int) -> ArrayType:
        """See `HiddenEncoding`; embeddings row by row, since they repeat as a whole with their tokens."""
        if self.values == "float32":
            return ArrayType(self.num_components(width), self.values, "bitshuffle")
        return ArrayType(self.num_components(width), self.values, by_column=layer > 0)

    def num_components(self, width: int) -> int:
        """Components stored of a state of this width: in int8 a quarter more than `components`.

        Coarse codes of more components have the same error in fewer bytes (`components.py`).
        """
        if self.components is None:
            return width
        return min(width, self.components if self.values == "float32" else -(-self.components * 5 // 4))

    def fit(self) -> LayerFit:
        """See `HiddenEncoding`; float64 sums on the CPU, W² of them with a basis, and 4,096 states."""
        from palenka.data.signals.components import ComponentsFit

        return ComponentsFit(self)

    def layer(self, statics: Mapping[str, Tensor]) -> Layer:
        """See `HiddenEncoding`."""
        from palenka.data.signals.components import Components

        return Components(self.values, **statics)


class HiddenLayers(Settings):
    """The layers kept of one model."""

    depth: int
    """Its blocks: it has depth + 1 hidden states."""
    width: int
    """Width of its hidden states."""
    layers: tuple[int, ...]
    """Indices of those that are kept."""

    @staticmethod
    def of(config: PretrainedConfig, encoding: HiddenEncoding) -> HiddenLayers:
        """The layers that an encoding keeps of a model with this configuration.

        Raises:
            UserError: if the model has no such layer.
        """
        text = config.get_text_config()
        depth = int(text.num_hidden_layers)
        return HiddenLayers(depth=depth, width=int(text.hidden_size), layers=encoding.layers_of(depth))
