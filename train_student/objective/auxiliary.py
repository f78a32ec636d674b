"""The auxiliary term: deep supervision of the student's shallow layers (DSKD, arXiv 2202.07846).

Every layer but the last has a head, its own classifier, and every layer has a projection to the teacher's last mapped
hidden states. With C_l the divergence between the teacher and the head of layer l, scaled by T² (for the last layer:
the student's own logits), and F_l the distance after projection:

    class_weight · Σ_l w_l(C) C_l + feature_weight · Σ_l w_l(F) F_l      with w(X) = softmax over l of X, no gradient

So the layers with the largest losses have the largest weights. The sums go over the blocks' outputs, without the
embeddings. Projections read all positions at which the teacher's hidden states are known. Heads, including the
student's own for the last layer, read only the first few of these, a random sample: on all tokens each head would take
as long as the student's own.

Shapes: B batch, L window length, P positions, S width of the student, H width of a head, V vocabulary.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from palenka.data.signals.signal import TeacherSignal, at_positions
from palenka.train_student.model.head import head_terms
from palenka.train_student.objective.hidden import Projections, distances
from palenka.train_student.objective.module import StudentOutputs, TeacherTerm, TermContext, last_pairs
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.objective.settings import AuxiliaryTerm
from palenka.train_student.objective.term import Term


class DeepSupervision(TeacherTerm):
    """Heads, one per shallow layer for all teachers, and projections, one per layer and teacher's model."""

    def __init__(self, terms: Mapping[str, Term], context: TermContext) -> None:
        super().__init__(terms, context)
        (term,) = terms.values()
        assert isinstance(term, AuxiliaryTerm)
        width, depth = context.student.hidden_size, context.student.num_hidden_layers
        self.settings = term
        self.temperature = context.objective.temperature
        self.divergence = context.objective.divergence_function()
        self.compiled = context.compiled
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, term.width),
                nn.GELU(),
                nn.Dropout(term.dropout),
                nn.Linear(term.width, context.student.vocab_size),
            )
            for _ in range(1, depth)
        )
        last = {teacher: last_pairs(mapped) for teacher, mapped in context.pairs.items()}
        self.features = nn.ModuleList(
            Projections(
                width,
                {teacher: [replace(pair, student_layer=layer) for pair in ends] for teacher, ends in last.items()},
                context.seed + layer,
            )
            for layer in range(1, depth + 1)
        )

    def with_teacher(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        """See `TeacherTerm`."""
        num_known = next(iter(signal.hidden.values())).shape[1]
        places = positions[:, : min(num_known, self.settings.positions)]
        there = signal.at(self.temperature).at(places)
        terms = NextTokenTerms(None, 0.0, [there], [1.0], self.divergence, self.temperature, self.compiled)
        classes = [student.next_token(terms, places)[0]]
        for head, states in zip(self.heads, student.states[1:-1], strict=True):
            assert isinstance(head, nn.Sequential)
            last = head[-1]
            assert isinstance(last, nn.Linear)
            classes.append(head_terms(head[:-1](at_positions(states, places)), last, terms)[0])
        layers = [feature.of(teacher) for feature in self.features if isinstance(feature, Projections)]
        projections = [each for layer in layers for each in layer]
        found = distances(projections, student, signal, positions, self.settings.distance, self.compiled)
        features = found.view(len(layers), -1).mean(dim=-1)  # of each layer, over the models
        class_loss, feature_loss = _adaptive_mean(torch.stack(classes)), _adaptive_mean(features)
        return self.settings.class_weight * class_loss + self.settings.feature_weight * feature_loss


def _adaptive_mean(losses: Tensor) -> Tensor:
    """The mean of losses [n], weighted by the softmax of their values, through which no gradient flows."""
    return (losses.detach().softmax(dim=0) * losses).sum()
