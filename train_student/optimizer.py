"""The optimizer: AdamW under a cosine schedule with linear warm-up."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from palenka.ground.errors import UserError
from palenka.train_student.settings import OptimizerSettings


def adamw(module: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors (norms, biases) alone."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2))


def cosine_schedule(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, num_steps: int) -> LambdaLR:
    """Linear warm-up that ends at the peak, then half a cosine to 0 just after the last step; no step has rate 0.

    Raises:
        UserError: if the warm-up is longer than the run, which would never reach the peak.
    """
    warmup = settings.warmup_of(num_steps)
    if warmup > num_steps:
        raise UserError(
            f"optimizer.warmup_steps is {warmup}, but the run has {num_steps} steps and would never reach its learning "
            "rate; lower warmup_steps, or leave it out for a tenth of the run"
        )

    def rate(step: int) -> float:
        """The share of the peak at a step, counted from 0."""
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step + 1 - warmup) / (num_steps + 1 - warmup))) / 2

    return LambdaLR(optimizer, rate)
