"""Moving tensors to an accelerator without waiting for it."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on a device; it is there before whatever is computed next, and nobody waits for the copy.

    A GPU copies by itself from page-locked memory alone, so what is in other memory goes through that.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
