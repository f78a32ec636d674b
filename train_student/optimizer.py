"""The optimizer: AdamW under a cosine schedule with linear warm-up."""

import torch
from pydantic import Field
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

from palenka.ground.settings import Settings


class OptimizerSettings(Settings):
    """AdamW with a cosine schedule: linear warm-up, then half a cosine down to 0."""

    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decay of matrices; vectors (norms, biases) have none."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the gradient's mean."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the gradient's second moment."""
    warmup_steps: int = Field(default=300, ge=0)
    """Steps of linear warm-up."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""


def adamw(module: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors (norms, biases) alone."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2))


def cosine_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, num_steps: int) -> LambdaLR:
    """Linear warm-up from 0 at the first step to the peak, then half a cosine to 0 just after the last."""
    schedule: LambdaLR = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, num_steps)
    return schedule
