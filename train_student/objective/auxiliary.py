"""The auxiliary term: deep supervision of the student's shallow layers (DSKD, arXiv 2202.07846).

Every layer but the last has a head, a classifier of its own, and every layer has a projection to the teacher's last
mapped hidden states. With C_l the divergence between teacher and head of layer l, scaled by T² (for the last layer:
and the student's own logits), and F_l the distance that the projection leaves:

    class_weight · Σ_l w_l(C) C_l + feature_weight · Σ_l w_l(F) F_l      with w(X) = softmax over l of X, no gradient

so the layers that lag most pull most. The sums go over the blocks' outputs, without the embeddings. Projections see all
positions at which the teacher's hidden states are known; heads, and the student's own for the last layer, the first few
of these, which are a random sample: on as many tokens a head takes as long as the student's own.

Shapes: B batch, L window length, P positions, S width of the student, H width of a head, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PretrainedConfig

from palenka.data.signals.hidden import at_positions
from palenka.data.signals.signal import TeacherSignal
from palenka.ground.settings import Settings
from palenka.train_student.model.head import head_terms
from palenka.train_student.objective.divergences import Divergence
from palenka.train_student.objective.hidden import HiddenDistance, HiddenTerm, LayerPair, last_pairs
from palenka.train_student.objective.terms import NextTokenTerms


class AuxiliarySettings(Settings):
    """Heads of the shallow layers, and how their losses are weighed."""

    width: int = Field(default=128, ge=1)
    """Width between a head's two linear maps; a head has about width × vocabulary weights."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout between them."""
    positions: int = Field(default=16, ge=1)
    """Positions of each window that heads see, the first of those whose hidden states are known."""
    class_weight: float = Field(default=0.5, gt=0)
    """Weight of the layers' divergences from the teacher's distribution."""
    feature_weight: float = Field(default=0.5, gt=0)
    """Weight of the layers' distances to the teacher's last mapped hidden states."""


class AuxiliaryTerm(nn.Module):
    """Heads, one for each shallow layer and all teachers, and projections, one for each layer and teacher's model.

    Args:
        student: configuration of the student.
        pairs: the mapped layers of every teacher by its name; the last teacher layer of each model counts.
        settings: of the term.
        divergence: between teacher and heads.
        temperature: of that.
        distance: that the projections leave.
        seed: of the first weights.
    """

    def __init__(
        self,
        student: PretrainedConfig,
        pairs: Mapping[str, Sequence[LayerPair]],
        settings: AuxiliarySettings,
        divergence: Divergence,
        temperature: float,
        distance: HiddenDistance,
        seed: int,
    ) -> None:
        super().__init__()
        width, depth = student.hidden_size, student.num_hidden_layers
        self.settings, self.temperature = settings, temperature
        self.divergence: Divergence = divergence
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                nn.Sequential(
                    nn.Linear(width, settings.width),
                    nn.GELU(),
                    nn.Dropout(settings.dropout),
                    nn.Linear(settings.width, student.vocab_size),
                )
                for _ in range(1, depth)
            )
        last = {teacher: last_pairs(mapped) for teacher, mapped in pairs.items()}
        self.features = nn.ModuleList(
            HiddenTerm(
                width,
                {teacher: [replace(pair, student_layer=layer) for pair in ends] for teacher, ends in last.items()},
                distance,
                seed + layer,
            )
            for layer in range(1, depth + 1)
        )

    def forward(
        self,
        teacher: str,
        student_head: nn.Linear,
        student_states: Sequence[Tensor],
        signal: TeacherSignal,
        positions: Tensor,
    ) -> Tensor:
        """The term for one teacher.

        Args:
            teacher: its name.
            student_head: from its last hidden states to its logits.
            student_states: all its hidden states, [B, L, S] each.
            signal: of the teacher, with hidden states at P positions.
            positions: of these states in their windows, [B, P or more]; the first P count.
        """
        num_known = next(iter(signal.hidden.values())).shape[1]
        places = positions[:, : min(num_known, self.settings.positions)]
        there = _at(signal, places)
        classes = [self._class_loss(at_positions(student_states[-1], places), student_head, there)]
        for head, states in zip(self.heads, student_states[1:-1], strict=True):
            assert isinstance(head, nn.Sequential)
            last = head[-1]
            assert isinstance(last, nn.Linear)
            classes.append(self._class_loss(head[:-1](at_positions(states, places)), last, there))
        features = [feature(teacher, student_states, signal.hidden, positions) for feature in self.features]
        class_loss, feature_loss = _adaptive_mean(classes), _adaptive_mean(features)
        return self.settings.class_weight * class_loss + self.settings.feature_weight * feature_loss

    def _class_loss(self, states: Tensor, head: nn.Linear, signal: TeacherSignal) -> Tensor:
        terms = NextTokenTerms(None, 0.0, {"": signal}, {"": 1.0}, self.divergence, self.temperature)
        return head_terms(states, head, terms)[0]


def _at(signal: TeacherSignal, positions: Tensor) -> TeacherSignal:
    """What a signal says of the tokens at the positions [B, P]."""
    ids, values, log_tail = (at_positions(part, positions) for part in (signal.ids, signal.values, signal.log_tail))
    return TeacherSignal(ids, values, log_tail, signal.temperatures)


def _adaptive_mean(losses: Sequence[Tensor]) -> Tensor:
    """The mean of scalar losses, weighted by the softmax of their values, through which no gradient flows."""
    stacked = torch.stack(list(losses))
    return (stacked.detach().softmax(dim=0) * stacked).sum()
