"""A loss of your own: cross-entropy with the teacher's most probable token, weighted by its probability.

palenka train student.yaml --plugins best_guess --objective.best_guess 0.3     with this file in the current folder
"""

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from palenka.data.signals.signal import TeacherSignal
from palenka.train_student.objective.module import StudentOutputs, TeacherTerm
from palenka.train_student.objective.term import TERMS, Need, Term


@TERMS.register("best_guess")
class BestGuess(Term):
    """Cross-entropy with the teacher's most probable token."""

    needs: ClassVar[frozenset[Need]] = frozenset({"distributions"})

    def module(self) -> type[TeacherTerm]:
        return BestGuessModule


class BestGuessModule(TeacherTerm):
    def with_teacher(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        sureness, guess = signal.at(1.0).most_probable()  # [B, L] each
        losses = F.cross_entropy(student.all_logits().mT, guess, reduction="none")
        return (sureness * losses).mean()
