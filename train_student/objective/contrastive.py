"""The contrastive term: InfoNCE between projected hidden states of student and teacher (arXiv 1807.03748, 1910.10699).

With u_i the student's state and v_i the teacher's at the same position, both projected and of length 1:

    InfoNCE = − mean over i of log [ exp(u_i · v_i / τ) / Σ_j exp(u_i · v_j / τ) ]

The sum goes over the positions of a pool: i itself and its negatives, all from one micro-batch of one process. The
value depends on their number: at chance it is the logarithm of the pool's size, and no pair can be better than that by
more than 2 / τ. So compare values at equal `negatives`, positions and micro-batch.

One student map serves all teachers, so it must find what they share. Every teacher has its own map: widths differ, and
even at equal widths two models' coordinates are unrelated. Both sides are trained; the negatives keep them from mapping
everything to one point.

Shapes: B batch, P positions, N = B · P, S width of the student, C components of a teacher's layer, D projected width.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from palenka.data.signals.signal import TeacherSignal
from palenka.train_student.objective.module import (
    LayerPair,
    StudentOutputs,
    TeacherTerm,
    TermContext,
    last_pairs,
    module_name,
)
from palenka.train_student.objective.settings import ContrastiveTerm
from palenka.train_student.objective.term import Term


class Contrast(TeacherTerm):
    """The maps of student and teachers, and InfoNCE between the teacher's last mapped layer and the student's."""

    def __init__(self, terms: Mapping[str, Term], context: TermContext) -> None:
        super().__init__(terms, context)
        (term,) = terms.values()
        assert isinstance(term, ContrastiveTerm)
        self.temperature, self.negatives = term.temperature, term.negatives
        self.student_map = nn.Linear(context.student.hidden_size, term.width)
        self.teacher_maps = nn.ModuleDict(
            {
                module_name(teacher): nn.ModuleList(_TeacherMap(pair, term.width) for pair in last_pairs(mapped))
                for teacher, mapped in context.pairs.items()
            }
        )

    def with_teacher(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        """The mean over the models of a teacher."""
        maps = self.teacher_maps[module_name(teacher)]
        assert isinstance(maps, nn.ModuleList)
        losses = []
        for teacher_map in maps:
            assert isinstance(teacher_map, _TeacherMap)
            states, there = teacher_map.pair.sides(student, signal, positions)
            ours, theirs = self.student_map(states).flatten(0, 1), teacher_map.linear(there).flatten(0, 1)
            losses.append(info_nce(ours, theirs, self.temperature, self.negatives))
        return torch.stack(losses).mean()


class _TeacherMap(nn.Module):
    """A linear map [B, P, C] → [B, P, D] of a teacher's layer, in units of its RMS deviation and without its mean."""

    def __init__(self, pair: LayerPair, width: int) -> None:
        super().__init__()
        self.pair = pair
        self.linear = nn.Linear(pair.layer.num_components, width)


def info_nce(ours: Tensor, theirs: Tensor, temperature: float, negatives: int) -> Tensor:
    """InfoNCE of vectors [N, D] with their partners [N, D] in float32: a mean over N.

    More than negatives + 1 vectors are distributed in turn over as few pools as hold them, so each pool has vectors of
    all windows.
    """
    with torch.autocast(ours.device.type, enabled=False):
        ours, theirs = (F.normalize(vectors.float(), dim=-1) for vectors in (ours, theirs))
        num_pools = -(-len(ours) // (negatives + 1))
        sums = []
        for pool in range(num_pools):
            similarities = ours[pool::num_pools] @ theirs[pool::num_pools].T / temperature
            partners = torch.arange(len(similarities), device=ours.device)
            sums.append(F.cross_entropy(similarities, partners, reduction="sum"))
        return torch.stack(sums).sum() / len(ours)
