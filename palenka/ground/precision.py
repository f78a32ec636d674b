"""The types that a model computes in: their names in settings and torch's types."""

from typing import TYPE_CHECKING

from palenka.ground.settings import Precision

if TYPE_CHECKING:
    import torch


def dtype_of(precision: Precision) -> "torch.dtype":
    """Torch's type of a name."""
    import torch

    return {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
