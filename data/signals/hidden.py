"""Hidden states in a teacher signal: which are kept, in which coordinates, and how precisely.

An encoding of hidden states is a settings class that registers itself in `HIDDEN_ENCODINGS`. Its attributes and methods
are all that other code needs to know about it. Nothing here imports torch before it computes.

Shapes: B batch, P positions, W width of the teacher, C components kept (W without a basis).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

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


class Layer(ABC):
    """One layer's coordinates: how its states are encoded, and the statistics that terms use.

    A subclass is a frozen dataclass with `mean` and `rms_deviation`; its tensors, [C, W], [W], [C] or scalars, are kept
    in the store. `stacked` makes one of the n layers of a model that have equal widths, in their order: states
    [n, m, W], codes [n, m, C]. So `encode` and `components` must broadcast (`matrix.mT`, not `matrix.T`).
    """

    basis: Tensor | None = None
    """Directions of the components as rows, [C, W]; None for the teacher's own coordinates."""
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Any]]

        @property
        def mean(self) -> Tensor:
            """Mean of the states in the teacher's own coordinates, [W]."""
            ...

        @property
        def rms_deviation(self) -> Tensor:
            """√(Σ variance / C) of the components, a scalar in float32: the unit of decoded states."""
            ...

    @abstractmethod
    def encode(self, states: Tensor) -> Tensor:
        """Codes [..., C] of hidden states [..., W]."""

    @abstractmethod
    def components(self, codes: Tensor) -> Tensor:
        """Components [..., C] of centred states in the teacher's units, float32, of codes [..., C]."""

    def decode(self, codes: Tensor) -> Tensor:
        """Components [..., C] in units of `rms_deviation`, float32, of codes [..., C]."""
        return self.components(codes) / self.rms_deviation

    @property
    def num_components(self) -> int:
        """C."""
        return self.mean.shape[-1] if self.basis is None else self.basis.shape[-2]

    def statics(self) -> dict[str, Tensor]:
        """The arrays kept in the store, by name."""
        import torch

        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        return replace(self, **{name: value.to(device) for name, value in self.statics().items()})

    @classmethod
    def stacked(cls, layers: Sequence[Self]) -> Self:
        """Several layers of equal widths as one: vectors as [n, 1, C], matrices as [n, C, W]."""
        together = {name: stacked([layer.statics()[name] for layer in layers]) for name in layers[0].statics()}
        return replace(layers[0], **together)

    def squared_error(self, states: Tensor, codes: Tensor) -> Tensor:
        """Residual and total sum of squares of states [m, W] about the mean, given their codes [m, C].

        The part outside a truncated basis counts as residual. [2] float64 (stacked [n, 2]), on the device of the
        states if that has float64; a capture reads it once per shard.
        """
        import torch

        where = torch.device("cpu") if states.device.type == "mps" else states.device  # mps has no float64
        centred = states.to(where).float() - self.mean.to(where)
        components = self.components(codes).to(where)
        decoded = components if self.basis is None else components @ self.basis.to(where)
        both = (centred - decoded, centred)
        # A token in float32, all of them in float64, which takes some twenty times as long for every number.
        return torch.stack([part.square().sum(-1).sum(-1, dtype=torch.float64) for part in both], dim=-1)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of n layers as one with three dimensions, that of the layers first: [n, C, W], [n, 1, C] or [n, 1, 1]."""
    import torch

    together = torch.stack(list(tensors))
    return together.view(len(tensors), *(1,) * (3 - together.dim()), *together.shape[1:])


class LayerFit(Protocol):
    """Measures one layer's coordinates over a sample that comes in parts."""

    def add(self, states: Tensor) -> None:
        """Count hidden states [..., W]."""
        ...

    def finish(self, before: LayerFit | None = None) -> Layer:
        """The coordinates of all that was added, on the CPU.

        Args:
            before: the finished fit of the layer before among those kept of the same model, for codes that it predicts;
                None for the first.
        """
        ...


class _HeldSample:
    """Holds a layer's sample until it is complete."""

    def __init__(self, encoding: HiddenEncoding) -> None:
        self._encoding = encoding
        self._parts: list[Tensor] = []

    def add(self, states: Tensor) -> None:
        """Hold hidden states [..., W]."""
        self._parts.append(states.flatten(0, -2).float().cpu())

    def finish(self, before: LayerFit | None = None) -> Layer:
        """The coordinates of all that was added; no layer predicts another."""
        import torch

        return self._encoding.measure(torch.cat(self._parts))


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

    @property
    def needs_before(self) -> bool:
        """Whether a layer is decoded with the layers before it, among those kept of the same model."""
        return False

    def measure(self, states: Tensor) -> Layer:
        """The coordinates of a layer, from a sample of its states [n, W], float32 on the CPU."""
        raise NotImplementedError

    def fit(self) -> LayerFit:
        """A measurement of one layer's coordinates, with nothing added yet.

        It holds the sample for `measure`; an encoding whose measurement comes in parts has its own.
        """
        return _HeldSample(self)

    def layer(self, statics: Mapping[str, Tensor]) -> Layer:
        """A layer's coordinates from the arrays of `Layer.statics`."""
        raise NotImplementedError

    def summary(self) -> str:
        """What is kept of a state, in a few words."""
        return self.kind

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
    error: float = Field(default=0.005, gt=0, lt=1)
    """Mean relative squared error that int8 codes may have if the components' own error is smaller."""
    values: Literal["int8", "float32"] = "int8"
    """Type of the stored values."""
    predicted: bool = True
    """Store only what the layer before, among those kept, does not predict: a third fewer bytes. A layer is then read
    with all kept layers before it; choose false for students that read few of the layers."""
    sample_windows: int = Field(default=256, ge=2, le=2**20)
    """Windows from which the coordinates are measured before a capture."""

    @property
    def needs_before(self) -> bool:
        """See `HiddenEncoding`."""
        return self.predicted and self.values == "int8" and self.components is not None

    def array(self, width: int, layer: int) -> ArrayType:
        """See `HiddenEncoding`; embeddings row by row, since they repeat as a whole with their tokens."""
        if self.values == "float32":
            return ArrayType(self.num_components(width), self.values, "bitshuffle")
        return ArrayType(self.num_components(width), self.values, by_column=layer > 0)

    def summary(self) -> str:
        """See `HiddenEncoding`."""
        return f"{self.components or 'all'} components"

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
