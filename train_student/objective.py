"""The objective: the weighted sum of terms that a student minimises, in one module with the student.

    J = hard · CE + Σ_teachers weight_t · logit · T² · KL(teacher_T ‖ student_T)

accelerate wraps this module, so whatever it holds is trained, averaged over processes and saved together. Mixing
divergences over teachers has the gradient of the divergence to the mixture of their probabilities.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from configs.settings import Settings
from data.signal import TeacherSignal
from train_student.terms import hard_loss, tail_bucket_kl


class ObjectiveSettings(Settings):
    """Weights of the terms; each term is a mean over tokens."""

    hard: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy with the text's own next tokens."""
    logit: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the teachers' distributions, scaled by temperature²."""
    temperature: float = Field(default=2.0, gt=0)
    """Temperature of the logit term; the caches must hold the tail mass at it."""


class Objective(nn.Module):
    """A student and what it minimises.

    Args:
        student: the model to train.
        settings: weights of the terms.
        teacher_weights: weight of every teacher by name.
    """

    def __init__(
        self, student: PreTrainedModel, settings: ObjectiveSettings, teacher_weights: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.teacher_weights = dict(teacher_weights)

    def forward(self, tokens: Tensor, signals: Mapping[str, TeacherSignal]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of windows [B, L], and every term before its weight, by name.

        Terms with weight 0 are not computed.
        """
        logits = self.student(input_ids=tokens, use_cache=False).logits
        terms: dict[str, Tensor] = {}
        loss = torch.zeros((), device=logits.device)
        if self.settings.hard:
            terms["hard"] = hard_loss(logits, tokens)
            loss = loss + self.settings.hard * terms["hard"]
        if self.settings.logit:
            temperature = self.settings.temperature
            total, divergences = tail_bucket_kl(logits, signals, self.teacher_weights, temperature)
            terms |= {f"logit/{name}": temperature**2 * divergence for name, divergence in divergences.items()}
            loss = loss + self.settings.logit * temperature**2 * total
        return loss, {name: term.detach() for name, term in terms.items()}
