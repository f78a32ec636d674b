"""The terms on the student's logits, hard and logit, as one function; with a linear head few logits are in memory."""

from collections.abc import Mapping

from torch import Tensor

from palenka.data.signals.stream import Batch
from palenka.train_student.objective.module import StudentOutputs, TermContext, TermModule, teacher_of
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.objective.term import Term


class LogitTerms(TermModule):
    """Cross-entropy with the text, and divergences from the teachers' distributions."""

    def __init__(self, terms: Mapping[str, Term], context: TermContext) -> None:
        super().__init__(terms, context)
        self._text = {name for name, term in terms.items() if "labels" in term.needs}
        self._divergence = context.objective.divergence_function()
        self._temperature = context.objective.temperature
        self._compiled = context.compiled

    def forward(
        self, student: StudentOutputs, batch: Batch, weights: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `TermModule`."""
        from_text = [name for name in weights if name in self._text]
        from_teachers = [name for name in weights if name not in self._text]
        compared = NextTokenTerms(
            batch.tokens if from_text else None,
            sum(weights[name] for name in from_text),
            [batch.signals[teacher_of(name)].at(self._temperature) for name in from_teachers],
            [weights[name] for name in from_teachers],
            self._divergence,
            self._temperature,
            self._compiled,
        )
        total, values = student.next_token(compared)
        text, *teachers = values.unbind()
        return total, dict.fromkeys(from_text, text) | dict(zip(from_teachers, teachers, strict=True))
