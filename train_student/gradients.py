"""The strength of each term: the norm of its gradient in the student over a global batch."""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from palenka.data.signals.stream import Batch
from palenka.train_student.objective.objective import Objective


def gradient_ratios(
    objective: Objective,
    accelerator: Accelerator,
    micro_batches: Callable[[], Iterable[Batch]],
    weights: Mapping[str, float],
) -> dict[str, float]:
    """Norm of every term's weighted gradient in the student, and its ratio to that of the hard term.

    Costs a forward and a backward pass over the global batch for every term, and one more set of gradients in memory.

    Args:
        objective: the student and its terms, not wrapped for distributed training.
        accelerator: of the run; every process must call this.
        micro_batches: makes this process's part of a global batch, with signals; called once per term.
        weights: of the terms by name.

    Returns:
        ``gradient_norm/TERM`` for every term, and ``gradient_ratio/TERM`` for all but the hard one, if that has a
        weight.
    """
    norms = {name: _norm(objective, accelerator, micro_batches(), {name: weight}) for name, weight in weights.items()}
    measured = {f"gradient_norm/{name}": norm for name, norm in norms.items()}
    if hard := norms.get("hard"):
        measured |= {f"gradient_ratio/{name}": norm / hard for name, norm in norms.items() if name != "hard"}
    return measured


def _norm(
    objective: Objective, accelerator: Accelerator, micro_batches: Iterable[Batch], weights: Mapping[str, float]
) -> float:
    parameters = [parameter for parameter in objective.student.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    # Small gradients would vanish in fp16; the scaler of the training steps knows a scale that fits.
    scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
    count = 0
    for batch in micro_batches:
        loss, _ = objective(batch, weights)
        for total, gradient in zip(sums, torch.autograd.grad(loss * scale, parameters, allow_unused=True), strict=True):
            if gradient is not None:
                total += gradient
        count += 1
    squares = sum((_mean(accelerator, total).cpu().double().square().sum() for total in sums), torch.zeros(()))
    return math.sqrt(float(squares)) / (count * scale)


def _mean(accelerator: Accelerator, gradient: Tensor) -> Tensor:
    """The mean over processes."""
    mean: Tensor = accelerator.reduce(gradient, "mean")
    return mean
