"""The hidden term: how well the student's hidden states predict the teachers', with or without projection.

Projections map student to teacher: a trained map from teacher to student would collapse, since mapping everything to
one point satisfies it. Distances are relative to each layer's own variance: mean squares of real models span 0.01 to
8,000 across layers. Shapes: B batch, P positions, S width of the student, C components of a teacher's layer.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from palenka.data.signals.signal import TeacherSignal
from palenka.train_student.objective.module import (
    LayerPair,
    StudentOutputs,
    TeacherTerm,
    TermContext,
    module_name,
)
from palenka.train_student.objective.settings import HiddenDistance, HiddenTerm, ProjectionKind
from palenka.train_student.objective.term import Term


class Projection(nn.Module):
    """A map from a student's layer to the components of a teacher's layer, and the distance after it.

    ``linear`` trains a linear map. ``none`` compares the states themselves, mean included, in the teacher's
    coordinates; without a truncated basis this is the plain difference of states. Both work in units of the layer's RMS
    deviation √(Σ variance / C), so that trained weights have ordinary size.
    """

    unit: Tensor
    mean: Tensor
    basis: Tensor | None

    def __init__(
        self, student_width: int, pair: LayerPair, distance: HiddenDistance, kind: ProjectionKind = "linear"
    ) -> None:
        super().__init__()
        self.pair = pair
        self.distance = distance
        self.linear = nn.Linear(student_width, pair.layer.num_components) if kind == "linear" else None
        self.register_buffer("mean", pair.layer.mean.clone(), persistent=False)
        self.register_buffer("basis", pair.layer.basis, persistent=False)
        self.register_buffer("unit", pair.layer.rms_deviation, persistent=False)

    def forward(self, states: Tensor, target: Tensor) -> Tensor:
        """The distance between projected student states [B, P, S] and a teacher's [B, P, C]: a mean over tokens.

        r2 is 1 − R², the squared error over the layer's variance; mse the mean of squares over components in the
        teacher's own units; cosine 1 − cos between the states without their mean.
        """
        predicted = self._in_teachers_coordinates(states) if self.linear is None else self.linear(states).float()
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(predicted, target, dim=-1).mean()
        squares = (predicted - target).square().mean()
        if self.distance == "mse":
            squares = squares * self.unit.square()
        return squares

    def _in_teachers_coordinates(self, states: Tensor) -> Tensor:
        """States [B, P, S] of the teacher's own width as components [B, P, C], in units of the RMS deviation."""
        with torch.autocast(states.device.type, enabled=False):
            centred = states.float() - self.mean
            return (centred if self.basis is None else centred @ self.basis.T) / self.unit


class Projections(nn.Module):
    """The projections of all teachers, and the mean of the distances over a teacher's mapped layers.

    Args:
        student_width: of the student's hidden states.
        pairs: the mapped layers of every teacher by its name.
        distance: minimised for each pair.
        seed: of the projections' initial weights.
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

    def forward(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        """The mean over a teacher's mapped layers; arguments as those of `TeacherTerm.with_teacher`."""
        projections = self.projections[module_name(teacher)]
        assert isinstance(projections, nn.ModuleList)
        distances = []
        for projection in projections:
            assert isinstance(projection, Projection)
            distances.append(projection(*projection.pair.sides(student, signal, positions)))
        return torch.stack(distances).mean()


class HiddenDistances(TeacherTerm):
    """The hidden term."""

    def __init__(self, terms: Mapping[str, Term], context: TermContext) -> None:
        super().__init__(terms, context)
        (term,) = terms.values()
        assert isinstance(term, HiddenTerm)
        width = context.student.hidden_size
        self.layers = Projections(width, context.pairs, term.distance, context.seed, term.projection)

    def with_teacher(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        """See `TeacherTerm`."""
        distance: Tensor = self.layers(teacher, student, signal, positions)
        return distance
