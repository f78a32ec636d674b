"""Teachers with linear heads, whose logits are known in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from palenka.data.signals.encoding import OutputMatrix, TeacherOutputs

VOCABULARY, WIDTHS = 60, {"one": 12, "two": 7}
Outputs = Callable[..., TeacherOutputs]


def _no_numbers(count: int) -> Tensor:
    raise AssertionError(f"nothing is drawn, but {count} numbers were asked for")


@pytest.fixture(scope="session")
def outputs_of_heads(normal: Callable[..., Tensor]) -> Outputs:
    """Says what models with linear heads say of two windows of 40 tokens, perhaps with capped logits."""

    def say(seed: int, models: tuple[str, ...] = ("one",), cap: float | None = None) -> TeacherOutputs:
        shrink = {name: torch.linspace(3, 0.1, WIDTHS[name]) for name in models}
        last = {name: normal(seed + len(name), 2, 40, WIDTHS[name]) * shrink[name] for name in models}
        weights = {name: normal(100 + WIDTHS[name], VOCABULARY, WIDTHS[name]) for name in models}
        bias = normal(7, VOCABULARY)
        heads = {name: OutputMatrix(weights[name], bias) for name in models}
        logits = torch.stack([last[name] @ weights[name].T + bias for name in models]).mean(0)
        return TeacherOutputs(logits if cap is None else cap * torch.tanh(logits / cap), {}, last, heads, _no_numbers)

    return say


@pytest.fixture(scope="session")
def sample_of_heads(outputs_of_heads: Outputs) -> list[TeacherOutputs]:
    """What an encoding of one model is measured on."""
    return [outputs_of_heads(seed) for seed in range(20)]
