"""The optimizer: AdamW, its gradients, and its learning rate, which depends only on the number of the step."""

import contextlib
import math
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from palenka.ground.errors import UserError
from palenka.train_student.settings import OptimizerSettings


def adamw(module: torch.nn.Module, settings: OptimizerSettings, device: torch.device) -> torch.optim.AdamW:
    """AdamW that decays matrices but not vectors (norms, biases); on a GPU one kernel updates many weights."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=device.type == "cuda" or None
    )


@contextlib.contextmanager
def gradients_added(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients are made anew; then they are added to the earlier ones, in a few operations for all of them.

    Autograd would add each by itself: 148 launches on a GPU for a student of 58 M. The sums are the same. Costs the
    memory of one more set of gradients inside.
    """
    earlier = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    for parameter, _ in earlier:
        parameter.grad = None
    yield
    both = [(sums, parameter.grad) for parameter, sums in earlier if parameter.grad is not None]
    if both:
        torch._foreach_add_([sums for sums, _ in both], [more for _, more in both])
    for parameter, sums in earlier:
        parameter.grad = sums


class LearningRate:
    """The learning rate at every step of a run; none is 0.

    After a linear warm-up that ends at the peak, ``cosine`` is half a cosine to 0 just after the last step,
    ``constant`` stays, and ``wsd`` (warm-up, stable, decay; Hu et al. 2024, arXiv 2404.06395) stays and finally decays
    linearly to 0 just after the last step.

    Args:
        settings: of the optimizer.
        num_steps: of the run.
        epoch_steps: of its first epoch, which decide the warm-up of a run that may be extended.

    Raises:
        UserError: if the warm-up is longer than the part of the run before its decay, so that it would never reach the
            peak.
    """

    def __init__(self, settings: OptimizerSettings, num_steps: int, epoch_steps: int) -> None:
        self._settings, self._num_steps = settings, num_steps
        self._warmup = settings.warmup_of(num_steps if settings.schedule == "cosine" else min(num_steps, epoch_steps))
        self._falling = max(1, round(settings.decay_fraction * num_steps)) if settings.schedule == "wsd" else 0
        if self._warmup > num_steps - self._falling:
            raise UserError(
                f"optimizer.warmup_steps is {self._warmup}, but the run has {num_steps - self._falling} steps before "
                "its learning rate falls and would never reach it; lower warmup_steps, or leave it out for a tenth of "
                "the run"
            )

    @property
    def open_until(self) -> int:
        """The last step up to which a longer run would have the same rates; 0 if its length changes all of them."""
        return 0 if self._settings.schedule == "cosine" else self._num_steps - self._falling

    def at(self, step: int) -> float:
        """The rate of a step, counted from 1."""
        return self._settings.learning_rate * self._share(step)

    def _share(self, step: int) -> float:
        """The rate as a fraction of the peak."""
        if step <= self._warmup:
            return step / self._warmup
        if self._settings.schedule == "cosine":
            passed = (step - self._warmup) / (self._num_steps + 1 - self._warmup)
            return (1 + math.cos(math.pi * passed)) / 2
        return min(1.0, (self._num_steps + 1 - step) / (self._falling + 1)) if self._falling else 1.0
