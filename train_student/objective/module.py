"""The forward pass of a term: its inputs and its results.

Shapes: B batch, L window length, S width of the student, P positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from palenka.data.signals.hidden import Layer
from palenka.data.signals.manifest import model_and_layer
from palenka.data.signals.signal import TeacherSignal, at_positions
from palenka.data.signals.stream import Batch
from palenka.ground.errors import UserError
from palenka.train_student.model.head import head_terms, logit_terms
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.objective.settings import ObjectiveSettings
from palenka.train_student.objective.term import Term


@dataclass(frozen=True)
class LayerPair:
    """A teacher's layer, its coordinates, and the student's layer that predicts it."""

    key: str
    """Name of the teacher's layer in its signal, "model/layer"."""
    student_layer: int
    """Index into the student's hidden states; 0 is the embeddings."""
    layer: Layer

    def sides(self, student: "StudentOutputs", signal: TeacherSignal, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The student's states [B, P, S] and the teacher's [B, P, C], both at the positions that the signal has.

        Args:
            student: its hidden states.
            signal: of the teacher.
            positions: in their windows, [B, P or more]; the first P are used.
        """
        there = signal.hidden[self.key]
        return at_positions(student.states[self.student_layer], positions[:, : there.shape[1]]), there


def last_pairs(pairs: Sequence[LayerPair]) -> list[LayerPair]:
    """The pair with the last teacher layer, one for each model of a teacher."""
    by_model: dict[str, dict[int, LayerPair]] = {}
    for pair in pairs:
        model, layer = model_and_layer(pair.key)
        by_model.setdefault(model, {})[layer] = pair
    return [layers[max(layers)] for layers in by_model.values()]


@dataclass(frozen=True)
class TermFit:
    """The facts that decide whether a term can be computed.

    Attributes:
        student_width: of the student's hidden states.
        pairs: the mapped layers of every teacher by its name; empty without a term that reads states.
        micro_batch: windows in a forward pass.
        num_positions: in each window, at which any teacher's hidden states are known.
    """

    student_width: int
    pairs: Mapping[str, Sequence[LayerPair]]
    micro_batch: int
    num_positions: int

    def require_equal_widths(self) -> None:
        """Refuse to compare hidden states without a projection if student and teachers have different widths.

        Raises:
            UserError: with both widths.
        """
        for teacher, mapped in self.pairs.items():
            for pair in mapped:
                if (width := len(pair.layer.mean)) != self.student_width:
                    raise UserError(
                        f"objective.hidden.projection is none, but the student has the width {self.student_width} and "
                        f"teacher {teacher} ({pair.key}) {width}; choose linear, or a student as wide as its teacher"
                    )

    def require_negatives(self, weight: float) -> None:
        """Refuse a contrastive term whose micro-batches have a single position.

        Raises:
            UserError: with both numbers.
        """
        if self.micro_batch * self.num_positions < 2:
            raise UserError(
                f"objective.contrastive is {weight}, but a micro-batch of {self.micro_batch} window(s) has "
                f"{self.num_positions} position(s), and so no negatives; raise micro_batch or the positions kept"
            )


@dataclass(frozen=True)
class TermContext:
    """The context in which a term's module is built.

    Attributes:
        objective: all settings of the objective.
        student: configuration of the student.
        pairs: the mapped layers of every teacher that has a term with hidden states, by the teacher's name.
        seed: of initial weights; torch's generator is seeded with it while a module is built.
        compiled: whether sums over the vocabulary are compiled.
    """

    objective: ObjectiveSettings
    student: PretrainedConfig
    pairs: Mapping[str, Sequence[LayerPair]]
    seed: int
    compiled: bool = False


@dataclass(frozen=True)
class StudentOutputs:
    """The outputs of the student's forward pass for a batch.

    Attributes:
        last: last hidden states, which the head sees, [B, L, S].
        states: all hidden states, [B, L, S] each; empty unless a term reads states.
        head: from the last states to logits; None if the logits are not a linear map of them.
        logits: [B, L, V] from the student itself if it has no such head; else None.
    """

    last: Tensor
    states: Sequence[Tensor]
    head: nn.Linear | None
    logits: Tensor | None = None

    def next_token(self, terms: NextTokenTerms, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Terms on the student's logits: their weighted sum, and each of them without its weight.

        Args:
            terms: over the B · L tokens, or over the B · P at the positions.
            positions: [B, P] of each window; default: all.
        """
        if self.logits is not None:
            return logit_terms(self.logits if positions is None else at_positions(self.logits, positions), terms)
        assert self.head is not None
        return head_terms(self.last if positions is None else at_positions(self.last, positions), self.head, terms)

    def all_logits(self) -> Tensor:
        """Logits of every token, [B, L, V], for your own loss: held whole in memory, which `next_token` avoids."""
        if self.logits is not None:
            return self.logits
        assert self.head is not None
        logits: Tensor = self.head(self.last)
        return logits


class TermModule(nn.Module):
    """Computes the terms whose settings name this class.

    Args:
        terms: the settings of these terms by name, the active ones.
        context: that they are built in.
    """

    def __init__(self, terms: Mapping[str, Term], context: TermContext) -> None:
        super().__init__()

    def forward(
        self, student: StudentOutputs, batch: Batch, weights: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of some of the terms, and each of them without its weight, by its name in the log.

        Args:
            student: its outputs for the batch.
            batch: windows, and the signals of all teachers that have a weight.
            weights: of the terms to compute, by their names in the log; there is at least one.
        """
        raise NotImplementedError


class TeacherTerm(TermModule):
    """A term that is computed for each teacher separately; a subclass defines `with_teacher`."""

    def forward(
        self, student: StudentOutputs, batch: Batch, weights: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TermModule`."""
        values = {}
        for name in weights:
            teacher = teacher_of(name)
            values[name] = self.with_teacher(teacher, student, batch.signals[teacher], batch.positions)
        total = torch.stack([weights[name] * value for name, value in values.items()]).sum()
        return total, values

    def with_teacher(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        """The term with one teacher: a mean over tokens.

        Args:
            teacher: its name.
            student: outputs of the student.
            signal: of the teacher.
            positions: of the signal's hidden states in their windows, [B, P or more]; the first P are used.
        """
        raise NotImplementedError


def teacher_of(name: str) -> str:
    """The teacher in a term's name in the log, TERM/TEACHER."""
    return name.split("/", 1)[1]


def module_name(teacher: str) -> str:
    """A teacher's name in a module: torch refuses names that modules have as attributes, such as train or half."""
    return f"teacher_{teacher}"
