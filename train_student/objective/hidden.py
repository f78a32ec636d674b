"""The hidden term: how well the student's hidden states predict the teachers', projected or as they are.

Projections map student to teacher: a trained map from teacher to student would collapse, since mapping everything to
one point satisfies it. Distances are relative to each layer's own variance: mean squares of real models span 0.01 to
8,000 across layers. Shapes: B batch, P positions, S width of the student, C components of a teacher's layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from palenka.data.signals.hidden import LayerStatistics, at_positions
from palenka.ground.errors import UserError

HiddenDistance = Literal["r2", "mse", "cosine"]
ProjectionKind = Literal["linear", "none"]
_SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class LayerPair:
    """A teacher's layer, what is known of it, and the student's layer that is to predict it."""

    key: str
    """Name of the teacher's layer in its signal, "model/layer"."""
    student_layer: int
    """Index into the student's hidden states; 0 is the embeddings."""
    statistics: LayerStatistics

    def sides(
        self, student_states: Sequence[Tensor], codes: Mapping[str, Tensor], positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The student's states [B, P, S] and the teacher's codes [B, P, C], both at the positions of the codes.

        Args:
            student_states: all hidden states of the student, [B, L, S] each.
            codes: of the teacher's hidden states by "model/layer", [B, P, C] each.
            positions: in their windows, [B, P or more]; the first P count.
        """
        there = codes[self.key]
        return at_positions(student_states[self.student_layer], positions[:, : there.shape[1]]), there


def last_pairs(pairs: Sequence[LayerPair]) -> list[LayerPair]:
    """The pair with the last teacher layer, one for each model of a teacher."""
    by_model: dict[str, dict[int, LayerPair]] = {}
    for pair in pairs:
        model, layer = pair.key.rsplit("/", 1)
        by_model.setdefault(model, {})[int(layer)] = pair
    return [layers[max(layers)] for layers in by_model.values()]


def mean_deviation(statistics: LayerStatistics) -> Tensor:
    """√(Σ variance / C) of a layer, a scalar in float32."""
    return statistics.variance.double().mean().clamp_min(_SMALLEST_VARIANCE).sqrt().float()


def in_mean_deviations(statistics: LayerStatistics) -> Tensor:
    """The scale [C] that turns a layer's codes into its components in units of its mean deviation."""
    return statistics.scale / mean_deviation(statistics)


class Projection(nn.Module):
    """A map from a student's layer to the components of a teacher's layer, and the distance that is left.

    A linear map is trained; none compares the states as they are, mean included, in the teacher's coordinates: without
    a truncated basis, what is left is the difference of the states themselves. Both work in units of the layer's mean
    deviation √(Σ variance / C), so that trained weights are of ordinary size.
    """

    unit: Tensor
    scale: Tensor
    mean: Tensor
    basis: Tensor | None

    def __init__(
        self, student_width: int, pair: LayerPair, distance: HiddenDistance, kind: ProjectionKind = "linear"
    ) -> None:
        super().__init__()
        self.pair = pair
        self.distance = distance
        statistics = pair.statistics
        self.linear = nn.Linear(student_width, len(statistics.scale)) if kind == "linear" else None
        self.register_buffer("mean", statistics.mean.clone(), persistent=False)
        self.register_buffer("basis", statistics.basis, persistent=False)
        self.register_buffer("unit", mean_deviation(statistics), persistent=False)
        self.register_buffer("scale", in_mean_deviations(statistics), persistent=False)

    def forward(self, states: Tensor, codes: Tensor) -> Tensor:
        """The distance between projected student states [B, P, S] and a teacher's codes [B, P, C]: a mean over tokens.

        r2 is 1 − R², the squared error over the layer's variance; mse the mean of squares over components in the
        teacher's own units; cosine 1 − cos between the states without their mean.
        """
        predicted = self._in_teachers_coordinates(states) if self.linear is None else self.linear(states).float()
        target = codes.float() * self.scale
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
        squares = (predicted - target).square().mean()
        if self.distance == "mse":
            squares = squares * self.unit.square()
        return squares

    def _in_teachers_coordinates(self, states: Tensor) -> Tensor:
        """States [B, P, S] of the teacher's own width as components [B, P, C], in units of the mean deviation."""
        with torch.autocast(states.device.type, enabled=False):
            centred = states.float() - self.mean
            return (centred if self.basis is None else centred @ self.basis.T) / self.unit


def require_equal_widths(student_width: int, pairs: Mapping[str, Sequence[LayerPair]]) -> None:
    """Refuse to compare hidden states without a projection unless student and teachers are equally wide.

    Raises:
        UserError: naming both widths.
    """
    for teacher, mapped in pairs.items():
        for pair in mapped:
            if (width := len(pair.statistics.mean)) != student_width:
                raise UserError(
                    f"objective.projection is none, but the student has the width {student_width} and teacher "
                    f"{teacher} ({pair.key}) {width}; choose linear, or a student as wide as its teacher"
                )


def module_name(teacher: str) -> str:
    """A teacher's name in a module: torch refuses names that modules have as attributes, such as train or half."""
    return f"teacher_{teacher}"


class HiddenTerm(nn.Module):
    """The projections of all teachers.

    Args:
        student_width: of the student's hidden states.
        pairs: the mapped layers of every teacher by its name.
        distance: what is minimised for each pair.
        seed: of the projections' first weights.
        kind: of the projections.
    """

    def __init__(
        self,
        student_width: int,
        pairs: Mapping[str, Sequence[LayerPair]],
        distance: HiddenDistance,
        seed: int,
        kind: ProjectionKind = "linear",
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleDict(
                {
                    module_name(teacher): nn.ModuleList(
                        Projection(student_width, pair, distance, kind) for pair in mapped
                    )
                    for teacher, mapped in pairs.items()
                }
            )

    def forward(
        self, teacher: str, student_states: Sequence[Tensor], codes: Mapping[str, Tensor], positions: Tensor
    ) -> Tensor:
        """The mean over a teacher's mapped layers.

        Args:
            teacher: its name.
            student_states: all hidden states of the student, [B, L, S] each.
            codes: of the teacher's hidden states by "model/layer", [B, P, C] each.
            positions: of these states in their windows, [B, P or more]; the first P count.
        """
        projections = self.projections[module_name(teacher)]
        assert isinstance(projections, nn.ModuleList)
        distances = []
        for projection in projections:
            assert isinstance(projection, Projection)
            distances.append(projection(*projection.pair.sides(student_states, codes, positions)))
        return torch.stack(distances).mean()
