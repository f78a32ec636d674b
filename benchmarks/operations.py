"""Number of operations that the host launches, which limits a small model's step on a GPU; counted on any machine.

    with counted() as found:
        ...
    found.total()

An operation is one of torch's that computes or copies, the innermost of those that call each other. One that looks at
the same memory in another way (view, expand), or makes room, is none. A compiled region counts as one, forward or
backward. On a GPU an operation is a launch or a few.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch.autograd.profiler_util import FunctionEvent

_COMPILED = "## Call CompiledFxGraph"
"""How torch's name for a run of a compiled region begins."""
_TORCHS = "aten::"
_MANY = ("aten::_foreach", "aten::_fused")
"""What works on many tensors: one on a GPU, though not on a CPU."""
_NOTHING = """
    _local_scalar_dense _reshape_alias _unsafe_view alias as_strided as_strided_ chunk contiguous detach detach_ empty
    empty_like empty_strided expand expand_as flatten is_nonzero item lift_fresh mT narrow new_empty new_empty_strided
    numpy_T permute promote_types reshape resize_ resolve_conj resolve_neg result_type select set_ slice split
    split_with_sizes squeeze stride swapaxes t to transpose unbind unflatten unsafe_split unsqueeze view view_as
"""
"""Operations that compute nothing."""
_COMPUTING_NOTHING = frozenset(_NOTHING.split())


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """The operations that are handed over inside, on the CPU, by name; known at the end."""
    found: Counter[str] = Counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorder:
        yield found
    _add(found, (event for event in recorder.events() or [] if event.cpu_parent is None))


def _add(counts: Counter[str], events: Iterable[FunctionEvent]) -> None:
    for event in events:
        if event.name.startswith(_COMPILED):
            counts["compiled region"] += 1
        elif event.name.startswith(_MANY) or (_computes(event) and not any(map(_holds_one, event.cpu_children))):
            counts[event.name.removeprefix(_TORCHS)] += 1
        else:
            _add(counts, event.cpu_children)


def _holds_one(event: FunctionEvent) -> bool:
    """Whether an event, or one inside it, is an operation that counts."""
    return event.name.startswith(_COMPILED) or _computes(event) or any(map(_holds_one, event.cpu_children))


def _computes(event: FunctionEvent) -> bool:
    return event.name.startswith(_TORCHS) and event.name.removeprefix(_TORCHS) not in _COMPUTING_NOTHING
