"""The optimizer: AdamW under a cosine schedule with linear warm-up."""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_cosine_schedule_with_warmup

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
    """Linear warm-up from 0 at the first step to the peak, then half a cosine to 0 just after the last."""
    schedule: LambdaLR = get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, num_steps)
    return schedule
