"""A term: 1 − cosine between the student's last states, through a linear map, and the teacher's last mapped layer."""

from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from palenka.data.signals.signal import TeacherSignal, at_positions
from palenka.train_student.objective.module import StudentOutputs, TeacherTerm, TermContext, last_pairs, module_name
from palenka.train_student.objective.term import TERMS, Need, Term


@TERMS.register("last_cosine")
class LastCosine(Term):
    """How well the student's last states point where the teacher's do."""

    needs: ClassVar[frozenset[Need]] = frozenset({"states"})

    def module(self) -> type["LastCosines"]:
        return LastCosines


class LastCosines(TeacherTerm):
    def __init__(self, terms: Mapping[str, Term], context: TermContext) -> None:
        super().__init__(terms, context)
        self.last = {teacher: last_pairs(pairs)[0] for teacher, pairs in context.pairs.items()}
        width = context.student.hidden_size
        self.maps = nn.ModuleDict(
            {module_name(name): nn.Linear(width, pair.layer.num_components) for name, pair in self.last.items()}
        )

    def with_teacher(self, teacher: str, student: StudentOutputs, signal: TeacherSignal, positions: Tensor) -> Tensor:
        theirs = signal.hidden[self.last[teacher].key]
        ours = self.maps[module_name(teacher)](at_positions(student.last, positions[:, : theirs.shape[1]]))
        return 1 - F.cosine_similarity(ours, theirs, dim=-1).mean()
