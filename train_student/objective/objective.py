"""The objective: the weighted sum of terms that a student minimises, in one module with the student.

    J = hard · CE + Σ_teachers weight_t · [logit · T² · KL(teacher_T ‖ student_T) + hidden · mean over layers (1 − R²)
                                           + contrastive · InfoNCE + auxiliary · supervision of shallow layers + …]

The divergence may be another one (`divergences.py`), a term may be a user's own (`term.py`), and every weight may move
over the run (`schedule.py`). accelerate wraps this module, so whatever it holds is trained, averaged over processes and
saved together. Forward KL summed over teachers has the gradient of the divergence to the mixture of their
probabilities.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palenka.data.signals.stream import Batch
from palenka.train_student.model.probe import has_linear_head
from palenka.train_student.objective.module import LayerPair, StudentOutputs, TermContext, TermModule
from palenka.train_student.objective.settings import ObjectiveSettings
from palenka.train_student.objective.term import Term

_NO_PAIRS: Mapping[str, Sequence[LayerPair]] = MappingProxyType({})


class Objective(nn.Module):
    """A student and its objective.

    Args:
        student: the model to train.
        settings: of the terms.
        pairs: the mapped layers of every teacher that has a term with hidden states, by the teacher's name.
        seed: of the initial weights of projections and heads.
        compiled: whether sums over the vocabulary are compiled, as the student's blocks are.

    ``objective(batch)`` is the loss and every term of a batch.

    Attributes:
        has_linear_head: whether the student's logits are a linear map of its last states, so that few are in memory.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        settings: ObjectiveSettings,
        pairs: Mapping[str, Sequence[LayerPair]] = _NO_PAIRS,
        seed: int = 0,
        *,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self._reads_states = {name for name, term in settings.active.items() if "states" in term.needs}
        self.has_linear_head = has_linear_head(student)
        context = TermContext(settings, student.config.get_text_config(), pairs, seed, compiled)
        # Terms that name the same module are computed together.
        together: dict[type[TermModule], dict[str, Term]] = {}
        for name, term in settings.active.items():
            together.setdefault(term.module(), {})[name] = term
        self.terms = nn.ModuleDict()
        for module, terms in together.items():
            # A term's own weights start the same, whatever other terms there are.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.terms["+".join(terms)] = module(terms, context)

    def forward(self, batch: Batch, weights: Mapping[str, float] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and every term before its weight, by name.

        Args:
            batch: windows, and the signals of all teachers that have a weight.
            weights: of the terms by their names in the log: ``hard``, ``logit/TEACHER``, ``hidden/TEACHER``, ...;
                others are not computed. Default: those of the settings, with a weight of 1 for each teacher.
        """
        if weights is None:
            weights = self.settings.weights(dict.fromkeys(batch.signals, 1.0))
        with_states = any(_kind(name) in self._reads_states for name in weights)
        student = self._outputs(batch.tokens, with_states)
        losses: list[Tensor] = []
        values: dict[str, Tensor] = {}
        for together, module in self.terms.items():
            mine = {name: weight for name, weight in weights.items() if _kind(name) in together.split("+")}
            if mine:
                loss, found = module(student, batch, mine)
                losses.append(loss)
                values |= {name: value.detach() for name, value in found.items()}
        return torch.stack(losses).sum(), values

    def _outputs(self, tokens: Tensor, with_states: bool) -> StudentOutputs:
        if self.has_linear_head:
            # Without the head, since its logits and their terms are one function.
            base = self.student.base_model(input_ids=tokens, use_cache=False, output_hidden_states=with_states)
            head = self.student.get_output_embeddings()
            assert isinstance(head, nn.Linear)
            return StudentOutputs(base.last_hidden_state, base.hidden_states or (), head)
        whole = self.student(input_ids=tokens, use_cache=False, output_hidden_states=True)
        states = whole.hidden_states
        return StudentOutputs(states[-1], states if with_states else (), None, whole.logits)

    def trained_beside(self) -> dict[str, Tensor]:
        """Projections and heads by name, which begins with that of the term."""
        return dict(self.terms.named_parameters())


def _kind(name: str) -> str:
    """The term of a name in the log."""
    return name.split("/", 1)[0]
