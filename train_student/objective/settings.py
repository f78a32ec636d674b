"""Settings of the objective, and those of the terms that come with Palenka."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from palenka.ground.registry import NameIn, OpenSettings
from palenka.train_student.objective.divergences import DIVERGENCES, Divergence
from palenka.train_student.objective.term import TERMS, Need, Term

if TYPE_CHECKING:
    from palenka.train_student.objective.module import TermFit, TermModule

HiddenDistance = Literal["r2", "mse", "cosine"]
ProjectionKind = Literal["linear", "none"]


@TERMS.register("hard")
class HardTerm(Term):
    """Cross-entropy with the text's own next tokens."""

    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    has_teachers: ClassVar[bool] = False
    trains_all: ClassVar[bool] = True

    weight: float = Field(default=1.0, ge=0)
    """Weight of the term, at the end of the run if it has a schedule."""

    def module(self) -> type[TermModule]:
        """Shared with the logit term: one function computes the logits and the gradient of both."""
        from palenka.train_student.objective.logits import LogitTerms

        return LogitTerms


@TERMS.register("logit")
class LogitTerm(Term):
    """Divergence from the teachers' distributions, scaled by temperature² if its gradient shrinks with it."""

    needs: ClassVar[frozenset[Need]] = frozenset({"distributions"})
    trains_all: ClassVar[bool] = True

    def module(self) -> type[TermModule]:
        """Shared with the hard term."""
        from palenka.train_student.objective.logits import LogitTerms

        return LogitTerms


@TERMS.register("hidden")
class HiddenTerm(Term):
    """Distance to the teachers' hidden states, a mean over the mapped layers."""

    needs: ClassVar[frozenset[Need]] = frozenset({"states"})

    distance: HiddenDistance = "r2"
    """r2 is 1 − R², in units of each layer's variance; mse is in the teacher's own; cosine is 1 − cos."""
    projection: ProjectionKind = "linear"
    """How states are compared: through trained linear maps, or none: directly, at equal widths."""

    def module(self) -> type[TermModule]:
        """See `Term`."""
        from palenka.train_student.objective.hidden import HiddenDistances

        return HiddenDistances

    def require_fit(self, fit: TermFit) -> None:
        """Without a projection, student and teachers must have equal widths."""
        if self.projection == "none":
            fit.require_equal_widths()


@TERMS.register("contrastive")
class ContrastiveTerm(Term):
    """InfoNCE between student and teacher at the last mapped layer."""

    needs: ClassVar[frozenset[Need]] = frozenset({"states"})
    sees_micro_batch: ClassVar[bool] = True

    temperature: float = Field(default=2.0, gt=0)
    """τ: cosines are divided by it."""
    width: int = Field(default=256, ge=2, le=2**16)
    """Width that student and teacher are projected to."""
    negatives: int = Field(default=1023, ge=1, le=2**20)
    """Maximum negatives per position; a larger micro-batch is divided into several pools."""

    def module(self) -> type[TermModule]:
        """See `Term`."""
        from palenka.train_student.objective.contrastive import Contrast

        return Contrast

    def require_fit(self, fit: TermFit) -> None:
        """There must be negatives."""
        fit.require_negatives(self.weight)


@TERMS.register("auxiliary")
class AuxiliaryTerm(Term):
    """Deep supervision of shallow layers, each with its own head and projections."""

    needs: ClassVar[frozenset[Need]] = frozenset({"distributions", "states"})
    trains_all: ClassVar[bool] = True
    sees_micro_batch: ClassVar[bool] = True

    width: int = Field(default=128, ge=1, le=2**16)
    """Width between a head's two linear maps; a head has about width × vocabulary weights."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout between them."""
    positions: int = Field(default=16, ge=1)
    """Positions of each window that heads read, the first of those whose hidden states are known."""
    class_weight: float = Field(default=0.5, gt=0)
    """Weight of the layers' divergences from the teacher's distribution."""
    feature_weight: float = Field(default=0.5, gt=0)
    """Weight of the layers' distances to the teacher's last mapped hidden states."""
    distance: HiddenDistance = "r2"
    """The distance, as that of the hidden term."""

    def module(self) -> type[TermModule]:
        """See `Term`."""
        from palenka.train_student.objective.auxiliary import DeepSupervision

        return DeepSupervision


class ObjectiveSettings(OpenSettings):
    """Terms of the objective, each a mean over tokens, and settings that several of them share."""

    registry: ClassVar = TERMS

    temperature: float = Field(default=2.0, gt=0)
    """Temperature of the compared distributions; the caches must have it."""
    divergence: Annotated[str, NameIn(DIVERGENCES)] = "forward"
    """Divergence of logit term and heads: forward KL(teacher ‖ student), reverse KL(student ‖ teacher) or js
    (Jensen-Shannon)."""

    @property
    def terms(self) -> Mapping[str, Term]:
        """All terms by name, in the order in which they were registered."""
        return self.entries

    @property
    def active(self) -> dict[str, Term]:
        """The terms that have a weight at any step of the run."""
        return {name: term for name, term in self.terms.items() if term.is_active}

    def written(self) -> Mapping[str, Term]:
        """Terms without effect are omitted, so that a run stays the same when more terms are registered."""
        return {name: term for name, term in self.terms.items() if term.is_active or term != type(term)()}

    def divergence_function(self) -> Divergence:
        """The divergence of that name."""
        return DIVERGENCES[self.divergence]

    def needing(self, need: Need) -> str | None:
        """The first active term that needs something, by name; None if none does."""
        return next((name for name, term in self.active.items() if need in term.needs), None)

    def weights(self, teachers: Mapping[str, float], step: int | None = None, num_steps: int = 1) -> dict[str, float]:
        """The weight of every active term, by its name in the log; it may be 0 by a schedule.

        Args:
            teachers: weight of every teacher by name.
            step: counted from 1; default: the end of the run.
            num_steps: of the run.
        """
        weights: dict[str, float] = {}
        for name, term in self.active.items():
            weight = term.weight_at(step, num_steps)
            if term.has_teachers:
                weights |= {f"{name}/{teacher}": weight * share for teacher, share in teachers.items() if share > 0}
            else:
                weights[name] = weight
        return weights
