"""The teacher signal: a teacher's outputs for a batch of tokens, the same type for cached and live teachers.

Shapes: B batch, L window length, P positions, C components.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from palenka.data.signals.distribution import Distribution
from palenka.data.signals.encoding import LogitEncoding


@dataclass(frozen=True)
class TeacherSignal:
    """One teacher's distributions and hidden states for a batch of windows.

    Attributes:
        encoding: of its distributions.
        arrays: of the encoding, [B, L, …] each.
        statics: of the encoding, measured once.
        hidden: hidden states by "model/layer", [B, P, C] each, at the window's positions in their order; components
            without their mean, in units of the layer's RMS deviation.
    """

    encoding: LogitEncoding
    arrays: Mapping[str, Tensor]
    statics: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[str, Tensor] = field(default_factory=dict)
    _decoded: dict[float, Distribution] = field(default_factory=dict, repr=False, compare=False)

    def at(self, temperature: float) -> Distribution:
        """The distributions [B, L] at a temperature, float32.

        Raises:
            ValueError: if the teacher was not kept at this temperature; re-weighting another one is not exact.
        """
        if temperature not in self.encoding.temperatures:
            raise ValueError(f"the teacher is known at temperatures {self.encoding.temperatures}, not at {temperature}")
        if temperature not in self._decoded:
            # In float32, whatever type the student computes in.
            with torch.autocast(next(iter(self.arrays.values())).device.type, enabled=False):
                self._decoded[temperature] = self.encoding.decode(self.arrays, self.statics, temperature)
        return self._decoded[temperature]


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [..., B, L, W] at the positions [B, P] of each window: [..., B, P, W]."""
    selected: Tensor = at_rows(states, rows_of(positions, states.shape[-2])).unflatten(-2, positions.shape)
    return selected


def at_rows(states: Tensor, rows: Tensor) -> Tensor:
    """Hidden states [..., B, L, W] at the rows [n] of all windows one after the other: [..., n, W]."""
    # Whole rows: a tenth of the time of gather, which looks each number up.
    return states.flatten(-3, -2).index_select(-2, rows)


def rows_of(positions: Tensor, length: int) -> Tensor:
    """The rows of positions [B, P] in windows [B · length, …] one after the other: [B · P]."""
    first = torch.arange(len(positions), device=positions.device).unsqueeze(-1) * length
    return (first + positions).flatten()
