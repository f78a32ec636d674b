"""The hidden term: how well the student's hidden states predict the teachers', with or without projection.

Projections map student to teacher: a trained map from teacher to student would collapse, since mapping everything to
one point satisfies it. Distances are relative to each layer's own variance: mean squares of real models span 0.01 to
8,000 across layers.

All layers of a teacher are one batch of matrix products. One by one they took some 30 operations each, and a GPU would
wait for the host to hand them over.

Shapes: n layers, B batch, L window length, P positions, S width of the student, C components of a teacher's layer.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from palenka.data.signals.signal import TeacherSignal, at_positions
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
    """A map from a student's layer to a teacher's components, with the constants of its distance (`distances`).

    ``linear`` trains a linear map. ``none`` compares the states themselves, mean included, in the teacher's
    coordinates; without a truncated basis this is the plain difference of states. Both work in units of the layer's RMS
    deviation √(Σ variance / C), so that trained weights have ordinary size.
    """

    unit: Tensor
    mean: Tensor
    basis: Tensor | None

    def __init__(self, student_width: int, pair: LayerPair, kind: ProjectionKind = "linear") -> None:
        super().__init__()
        self.pair = pair
        self.linear = nn.Linear(student_width, pair.layer.num_components) if kind == "linear" else None
        self.register_buffer("mean", pair.layer.mean.clone(), persistent=False)
        self.register_buffer("basis", pair.layer.basis, persistent=False)
        self.register_buffer("unit", pair.layer.rms_deviation, persistent=False)


class Projections(nn.Module):
    """The projections of all teachers, one per mapped layer.

    Args:
        student_width: of the student's hidden states.
        pairs: the mapped layers of every teacher by its name.
        seed: of the projections' initial weights.
        kind: of the projections.
    """

    def __init__(
        self,
        student_width: int,
        pairs: Mapping[str, Sequence[LayerPair]],
        seed: int,
        kind: ProjectionKind = "linear",
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projections = nn.ModuleDict(
                {
                    module_name(teacher): nn.ModuleList(Projection(student_width, pair, kind) for pair in mapped)
                    for teacher, mapped in pairs.items()
                }
            )

    def of(self, teacher: str) -> list[Projection]:
        """The projections of a teacher."""
        projections = self.projections[module_name(teacher)]
        assert isinstance(projections, nn.ModuleList)
        return [projection for projection in projections if isinstance(projection, Projection)]


class HiddenDistances(TeacherTerm):
    """The hidden term."""

    def __init__(self, terms: Mapping[str, Term], context: TermContext) -> None:
        super().__init__(terms, context)
        (term,) = terms.values()
        assert isinstance(term, HiddenTerm)
        self.distance, self.compiled = term.distance, context.compiled
        self.layers = Projections(context.student.hidden_size, context.pairs, context.seed, term.projection)

    def with_teacher(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        """The mean over a teacher's mapped layers."""
        return distances(self.layers.of(teacher), student, signal, positions, self.distance, self.compiled).mean()


def distances(
    projections: Sequence[Projection],
    student: StudentOutputs,
    signal: TeacherSignal,
    positions: Tensor,
    distance: HiddenDistance,
    compiled: bool = False,
) -> Tensor:
    """The distances [n] between projected student and teacher, each a mean over tokens.

    r2 is 1 − R², the squared error over the layer's variance; mse the mean of squares over components in the
    teacher's own units; cosine 1 − cos between the states without their mean.

    Args:
        projections: n of them, all of one teacher.
        student: its hidden states.
        signal: of the teacher.
        positions: of the signal's hidden states in their windows, [B, P or more]; the first P count.
        distance: which.
        compiled: whether to compile what is done with all layers as one function.
    """
    alike: dict[object, list[Projection]] = {}
    for projection in projections:  # models of an ensemble may keep different numbers of components
        alike.setdefault((signal.hidden[projection.pair.key].shape, projection.basis is None), []).append(projection)
    found: dict[Projection, Tensor] = {}
    for some in alike.values():
        pairs = [projection.pair for projection in some]
        targets = [signal.hidden[pair.key] for pair in pairs]
        states, few = [student.states[pair.student_layer] for pair in pairs], positions[:, : targets[0].shape[1]]
        compute = _compiled() if compiled else _distances
        found |= zip(some, compute(states, targets, few, _tensors(some), distance).unbind(), strict=True)
    return torch.stack([found[projection] for projection in projections])


def _tensors(projections: Sequence[Projection]) -> dict[str, list[Tensor]]:
    """The weights of equal-shaped projections by name; each remains a separate weight in checkpoints."""
    parts: dict[str, list[Tensor]] = {}
    for projection in projections:
        for name, tensor in (*projection.named_parameters(), *projection.named_buffers()):
            parts.setdefault(name, []).append(tensor)
    return parts


def _distances(
    states: Sequence[Tensor],
    targets: Sequence[Tensor],
    positions: Tensor,
    tensors: Mapping[str, Sequence[Tensor]],
    distance: HiddenDistance,
) -> Tensor:
    """The distances [n] between student states [B, L, S] at positions [B, P] and targets [B, P, C], n of each."""
    seen = at_positions(torch.stack(list(states)), positions).flatten(1, 2)  # [n, B · P, S]
    target = torch.stack(list(targets)).flatten(1, 2)
    predicted = _predicted(seen, tensors)
    if distance == "cosine":
        return 1 - F.cosine_similarity(predicted, target, dim=-1).mean(dim=-1)
    squares = (predicted - target).square().mean(dim=(-2, -1))
    return squares if distance == "r2" else squares * torch.stack(list(tensors["unit"])).square()


def _predicted(states: Tensor, tensors: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """Student states [n, m, S] as the teacher's components [n, m, C] in units of the RMS deviation, float32."""
    if "linear.weight" in tensors:
        weight, bias = (torch.stack(list(tensors[f"linear.{name}"])) for name in ("weight", "bias"))
        return torch.baddbmm(bias.unsqueeze(1), states, weight.mT).float()
    with torch.autocast(states.device.type, enabled=False):
        centred = states.float() - torch.stack(list(tensors["mean"])).unsqueeze(1)
        components = centred @ torch.stack(list(tensors["basis"])).mT if "basis" in tensors else centred
        return components / torch.stack(list(tensors["unit"])).view(-1, 1, 1)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_distances, dynamic=False, fullgraph=True)
