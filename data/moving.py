"""Moving tensors to an accelerator without waiting for it."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same tensor on a device, copied before the next computation there; the host does not wait for the copy.

    A GPU copies asynchronously only from page-locked memory, so other tensors are copied there first.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
