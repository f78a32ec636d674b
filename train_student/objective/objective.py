"""The objective: the weighted sum of terms that a student minimises, in one module with the student.

    J = hard · CE + Σ_teachers weight_t · [logit · T² · KL(teacher_T ‖ student_T) + hidden · mean over layers (1 − R²)
                                           + contrastive · InfoNCE + auxiliary · supervision of shallow layers]

The divergence may be another one (`divergences.py`), and every weight may move over the run (`schedule.py`). accelerate
wraps this module, so whatever it holds is trained, averaged over processes and saved together. Mixing forward KL over
teachers has the gradient of the divergence to the mixture of their probabilities.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from palenka.data.signals.stream import Batch
from palenka.ground.settings import Settings
from palenka.train_student.model.head import head_terms
from palenka.train_student.objective.auxiliary import AuxiliarySettings, AuxiliaryTerm
from palenka.train_student.objective.contrastive import ContrastiveTerm, InfoNCESettings
from palenka.train_student.objective.divergences import Divergence
from palenka.train_student.objective.hidden import HiddenDistance, HiddenTerm, LayerPair, ProjectionKind
from palenka.train_student.objective.schedule import WeightSchedule
from palenka.train_student.objective.terms import NextTokenTerms

TEACHER_TERMS = ("logit", "hidden", "contrastive", "auxiliary")
"""Kinds of terms that a student has with each of its teachers."""
STATE_TERMS = ("hidden", "contrastive", "auxiliary")
"""Those that need hidden states."""
DISTRIBUTION_TERMS = ("logit", "auxiliary")
"""Those that need distributions over tokens."""


class ObjectiveSettings(Settings):
    """Weights of the terms; each term is a mean over tokens."""

    hard: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy with the text's own next tokens."""
    logit: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the teachers' distributions, scaled by temperature²."""
    temperature: float = Field(default=2.0, gt=0)
    """Temperature of the logit term; the caches must hold the tail mass at it."""
    divergence: Divergence = "forward"
    """Of logit term and heads: forward is KL(teacher ‖ student), reverse KL(student ‖ teacher), js Jensen-Shannon."""
    hidden: float = Field(default=0.0, ge=0)
    """Weight of the distance to the teachers' hidden states, a mean over the mapped layers."""
    hidden_distance: HiddenDistance = "r2"
    """The distance: r2 is 1 − R², in units of each layer's variance; mse is in the teacher's own; cosine is 1 − cos."""

    projection: ProjectionKind = "linear"
    """How the hidden term compares states: through trained linear maps, or none, as they are, at equal widths."""
    contrastive: float = Field(default=0.0, ge=0)
    """Weight of InfoNCE between student and teacher at the last mapped layer."""
    info_nce: InfoNCESettings = InfoNCESettings()
    """What the contrastive term compares."""
    auxiliary: float = Field(default=0.0, ge=0)
    """Weight of the deep supervision of shallow layers by heads and projections of their own."""
    heads: AuxiliarySettings = AuxiliarySettings()
    """What the auxiliary term consists of."""
    schedule: dict[str, WeightSchedule] = Field(default={})
    """How weights move over the run, by the term (hard, logit, hidden, ...); a term not named keeps its weight."""

    @model_validator(mode="after")
    def _schedules_are_of_terms(self) -> Self:
        for kind in self.schedule:
            if kind not in ("hard", *TEACHER_TERMS):
                raise ValueError(f"schedule names {kind}, but the terms are hard, {', '.join(TEACHER_TERMS)}; name one")
        return self

    def counts(self, kind: str) -> bool:
        """Whether a kind of term has a weight at any step of the run."""
        return self.weight(kind) > 0 or (kind in self.schedule and self.schedule[kind].start > 0)

    def states_for(self) -> str | None:
        """The first kind of term that needs the teachers' hidden states, if any counts."""
        return next(filter(self.counts, STATE_TERMS), None)

    def distributions_for(self) -> str | None:
        """The first kind of term that needs the teachers' distributions, if any counts."""
        return next(filter(self.counts, DISTRIBUTION_TERMS), None)

    def weight(self, kind: str, step: int | None = None, num_steps: int = 1) -> float:
        """The weight of a kind of term at a step, counted from 1, of so many; at the end unless a step is given."""
        end: float = getattr(self, kind)
        if step is None or kind not in self.schedule:
            return end
        return self.schedule[kind].weight(end, step, num_steps)

    def weights(self, teachers: Mapping[str, float], step: int | None = None, num_steps: int = 1) -> dict[str, float]:
        """The weight of every term that counts at any step, by its name in the log; 0 where a schedule has it so.

        Args:
            teachers: share of every teacher by name.
            step: at which; the end of the run unless given.
            num_steps: of the run.
        """
        weights = {"hard": self.weight("hard", step, num_steps)} if self.counts("hard") else {}
        for kind in filter(self.counts, TEACHER_TERMS):
            weight = self.weight(kind, step, num_steps)
            weights |= {f"{kind}/{name}": weight * share for name, share in teachers.items() if share > 0}
        return weights


class Objective(nn.Module):
    """A student and what it minimises.

    Args:
        student: the model to train.
        settings: of the terms.
        pairs: the mapped layers of every teacher that has a term with hidden states, by the teacher's name.
        seed: of the first weights of projections and heads.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        settings: ObjectiveSettings,
        pairs: Mapping[str, Sequence[LayerPair]],
        seed: int,
    ) -> None:
        super().__init__()
        self.student = student
        self.temperature = settings.temperature
        self.divergence: Divergence = settings.divergence
        width: int = student.config.hidden_size
        projected = pairs if settings.counts("hidden") else {}
        self.hidden = HiddenTerm(width, projected, settings.hidden_distance, seed, settings.projection)
        self.contrastive = (
            ContrastiveTerm(width, pairs, settings.info_nce, seed) if settings.counts("contrastive") else None
        )
        self.auxiliary = (
            AuxiliaryTerm(
                student.config,
                pairs,
                settings.heads,
                settings.divergence,
                settings.temperature,
                settings.hidden_distance,
                seed,
            )
            if settings.counts("auxiliary")
            else None
        )

    def forward(self, batch: Batch, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and every term before its weight, by name.

        Args:
            batch: windows, and the signals of all teachers that have a weight.
            weights: of the terms by name: ``hard``, ``logit/TEACHER``, ``hidden/TEACHER``, ...; the others are not
                computed.
        """
        with_states = any(name.startswith(STATE_TERMS) for name in weights)
        # Without the head: its logits and their terms are one function.
        output = self.student.base_model(input_ids=batch.tokens, use_cache=False, output_hidden_states=with_states)
        terms: dict[str, Tensor] = {}
        losses: list[Tensor] = []
        shares = _teachers_of("logit", weights)
        if shares or "hard" in weights:
            signals = {name: batch.signals[name] for name in shares}
            hard, tokens = weights.get("hard", 0.0), batch.tokens if "hard" in weights else None
            compared = NextTokenTerms(tokens, hard, signals, shares, self.divergence, self.temperature)
            total, values = head_terms(output.last_hidden_state, self.head, compared)
            named = dict(zip(("hard", *(f"logit/{name}" for name in shares)), values.unbind(), strict=True))
            terms |= {name: value for name, value in named.items() if name in weights}
            losses.append(total)
        for kind, term in (("hidden", self.hidden), ("contrastive", self.contrastive)):
            for name, weight in _teachers_of(kind, weights).items():
                assert term is not None
                distance = term(name, output.hidden_states, batch.signals[name].hidden, batch.positions)
                terms[f"{kind}/{name}"] = distance
                losses.append(weight * distance)
        for name, weight in _teachers_of("auxiliary", weights).items():
            assert self.auxiliary is not None
            signal = batch.signals[name]
            supervision = self.auxiliary(name, self.head, output.hidden_states, signal, batch.positions)
            terms[f"auxiliary/{name}"] = supervision
            losses.append(weight * supervision)
        return torch.stack(losses).sum(), {name: term.detach() for name, term in terms.items()}

    @property
    def head(self) -> nn.Linear:
        """From the student's last hidden states to its logits."""
        head = self.student.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head

    def trained_beside(self) -> dict[str, Tensor]:
        """What is trained beside the student, projections and heads, by name."""
        return {name: weight for name, weight in self.named_parameters() if not name.startswith("student.")}


def _teachers_of(kind: str, weights: Mapping[str, float]) -> dict[str, float]:
    """The weights of one kind of term by the teacher's name."""
    return {name.split("/", 1)[1]: weight for name, weight in weights.items() if name.startswith(f"{kind}/")}
