"""Numbers at some ids of each row: set, added to, and masked.

A row [V] of logits has few such ids, and a CPU goes to each of them (scatter). In compiled code that would end a pass
over [n, V] and store all of it. On a GPU such a pass is limited by memory, so each place is compared with the ids
instead, and passes share a kernel, which moves 30 to 60 % fewer bytes (`benchmarks/records/gpu.md`).

Shapes: n rows, V vocabulary, k ids of a row.
"""

import torch
from torch import Tensor

_FEW = 8
"""Ids of a row, at most, that compiled code compares with each of its places."""


def are_compared(ids: Tensor) -> bool:
    """Whether the places of ids [n, k] are found by comparing: if they are few, in compiled code."""
    return torch.compiler.is_compiling() and ids.shape[-1] <= _FEW


def _is_at(ids: Tensor, dense: Tensor) -> Tensor:
    """Whether each place of dense [n, V] is that of its row's id [n]."""
    return torch.arange(dense.shape[-1], device=dense.device) == ids.unsqueeze(-1)


def is_among(ids: Tensor, dense: Tensor) -> Tensor:
    """Whether each place of dense [n, V] is among its row's ids [n, k]."""
    first, *more = ids.unbind(dim=-1)
    found = _is_at(first, dense)
    for each in more:
        found = found | _is_at(each, dense)
    return found


def fill_at(dense: Tensor, ids: Tensor, value: float, *, in_place: bool = True) -> Tensor:
    """Dense [n, V] with a value at the ids [n, k] of its rows; overwrites it if it may."""
    if are_compared(ids):
        return torch.where(is_among(ids, dense), value, dense)
    return dense.scatter_(-1, ids, value) if in_place else dense.scatter(-1, ids, value)


def add_at(dense: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """Dense [n, V] plus values [n, k] at the ids [n, k] of its rows; overwrites it."""
    if not are_compared(ids):
        return dense.scatter_add_(-1, ids, values)
    for each, value in zip(ids.unbind(dim=-1), values.unbind(dim=-1), strict=True):
        dense = dense + torch.where(_is_at(each, dense), value.unsqueeze(-1), 0.0)
    return dense
