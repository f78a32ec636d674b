"""The contrastive term: InfoNCE between projected hidden states of student and teacher (arXiv 1807.03748, 1910.10699).

With u_i the student's state and v_i the teacher's at the same position, both projected and of length 1:

    InfoNCE = − mean over i of log [ exp(u_i · v_i / τ) / Σ_j exp(u_i · v_j / τ) ]

The sum goes over the positions of a pool: i itself and its negatives, all from one micro-batch of one process. The
value depends on how many there are: with none of them better than chance it is the logarithm of the pool's size, and
no pair can be better than that by more than 2 / τ. So compare values at equal `negatives`, positions and micro-batch.

One student map serves all teachers, so that it must find what they share. Every teacher has a map of its own: widths
differ, and even at equal widths two models' coordinates have nothing in common. Both sides are trained; the negatives
keep them from mapping everything to one point.

Shapes: B batch, P positions, N = B · P, S width of the student, C components of a teacher's layer, D projected width.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from pydantic import Field
from torch import Tensor, nn

from palenka.ground.settings import Settings
from palenka.train_student.objective.hidden import LayerPair, in_mean_deviations, last_pairs, module_name


class InfoNCESettings(Settings):
    """What the contrastive term compares."""

    temperature: float = Field(default=2.0, gt=0)
    """τ: cosines are divided by it."""
    width: int = Field(default=256, ge=2)
    """Width that student and teacher are projected to."""
    negatives: int = Field(default=1023, ge=1)
    """Other positions that each one is told from, at most; a micro-batch with more is dealt out to several pools."""


class ContrastiveTerm(nn.Module):
    """The maps of student and teachers, and InfoNCE between the teacher's last mapped layer and the student's.

    Args:
        student_width: of the student's hidden states.
        pairs: the mapped layers of every teacher by its name; the last teacher layer of each model counts.
        settings: of the term.
        seed: of the maps' first weights.
    """

    def __init__(
        self, student_width: int, pairs: Mapping[str, Sequence[LayerPair]], settings: InfoNCESettings, seed: int
    ) -> None:
        super().__init__()
        self.temperature, self.negatives = settings.temperature, settings.negatives
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.student_map = nn.Linear(student_width, settings.width)
            self.teacher_maps = nn.ModuleDict(
                {
                    module_name(teacher): nn.ModuleList(
                        _TeacherMap(pair, settings.width) for pair in last_pairs(mapped)
                    )
                    for teacher, mapped in pairs.items()
                }
            )

    def forward(
        self, teacher: str, student_states: Sequence[Tensor], codes: Mapping[str, Tensor], positions: Tensor
    ) -> Tensor:
        """The mean over the models of a teacher; arguments as those of the hidden term."""
        maps = self.teacher_maps[module_name(teacher)]
        assert isinstance(maps, nn.ModuleList)
        losses = []
        for teacher_map in maps:
            assert isinstance(teacher_map, _TeacherMap)
            states, there = teacher_map.pair.sides(student_states, codes, positions)
            ours, theirs = self.student_map(states).flatten(0, 1), teacher_map(there).flatten(0, 1)
            losses.append(info_nce(ours, theirs, self.temperature, self.negatives))
        return torch.stack(losses).mean()


class _TeacherMap(nn.Module):
    """A linear map of a teacher's layer, from codes in units of the layer's mean deviation, without its mean."""

    scale: Tensor

    def __init__(self, pair: LayerPair, width: int) -> None:
        super().__init__()
        self.pair = pair
        self.linear = nn.Linear(len(pair.statistics.scale), width)
        self.register_buffer("scale", in_mean_deviations(pair.statistics), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes [B, P, C] mapped to [B, P, D]."""
        mapped: Tensor = self.linear(codes.float() * self.scale)
        return mapped


def info_nce(ours: Tensor, theirs: Tensor, temperature: float, negatives: int) -> Tensor:
    """InfoNCE of vectors [N, D] with their partners [N, D] in float32: a mean over N.

    More than negatives + 1 vectors are dealt out in turn to as few pools as hold them, so that each pool has vectors of
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
