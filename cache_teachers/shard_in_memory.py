"""A shard during capture: a device computes it and copies it to the host, while nobody waits for either.

All that is kept of a forward pass, numbers of any type, is packed into bytes and is one copy. What was copied is
unpacked and looked at by the thread that writes the shard.

Shapes: B windows of a forward pass, L window length, P positions, W width of a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palenka.cache_teachers.teacher import Teacher, finiteness, named_states, prefixed
from palenka.data.signals.cache_writer import HiddenError
from palenka.data.signals.encoding import TeacherOutputs
from palenka.data.signals.manifest import CacheManifest, codes_of
from palenka.data.signals.store import Arrays

_ERROR_EVERY = 4
"""The error of hidden states is measured on one position in so many: on all, it would take as long as encoding them."""


@dataclass(frozen=True)
class EncodedWindows:
    """A teacher's outputs for some windows, and the arrays that a cache keeps of them, on the teacher's device.

    Attributes:
        outputs: of the forward pass.
        arrays: to be stored, [B, …] each, by their path in a cache and in the type that it has there.
        states: hidden states at the positions kept, [B, P, W] by key.
        hidden_error: residual and total sum of squares of each layer's states, one in four of them, [2] float64.
        finite: whether logits and hidden states are, by their names.
    """

    outputs: TeacherOutputs
    arrays: dict[str, Tensor]
    states: dict[str, Tensor]
    hidden_error: dict[str, Tensor]
    finite: dict[str, Tensor]


def encode_windows(
    teacher: Teacher, manifest: CacheManifest, tokens: NDArray[np.int64], view: int, indices: NDArray[np.int64]
) -> EncodedWindows:
    """Compute the windows (view, indices), whose tokens are [B, L], as a capture stores them."""
    num_positions = manifest.hidden.num_positions() if manifest.hidden else 0
    positions = torch.from_numpy(manifest.windows.positions(view, indices, num_positions))
    outputs = teacher.outputs(torch.from_numpy(tokens), view, indices)
    states = teacher.at(outputs.hidden, positions)
    found = prefixed(*teacher.encode(outputs, states))
    arrays = {name: found[name].to(getattr(torch, array.row.dtype)) for name, array in manifest.arrays().items()}
    some = slice(None, None, _ERROR_EVERY)
    coded = {key: found[codes_of(key)][:, some] for key in states}
    errors = teacher.measured.stacks.squared_errors({key: layer[:, some] for key, layer in states.items()}, coded)
    finite = finiteness({"logits": outputs.logits} | named_states(states))
    return EncodedWindows(outputs, arrays, states, errors, finite)


@dataclass
class ShardInMemory:
    """What was computed of a shard so far.

    Attributes:
        teacher: that computes it.
        manifest: of the cache.
    """

    teacher: Teacher
    manifest: CacheManifest
    _names: list[str] = field(default_factory=list)
    _copied: list["_Packed"] = field(default_factory=list)
    _done: torch.cuda.Event | None = None

    def add(self, tokens: NDArray[np.int64], view: int, indices: NDArray[np.int64]) -> None:
        """Compute the shard's next windows (view, indices), whose tokens are [B, L]."""
        said = encode_windows(self.teacher, self.manifest, tokens, view, indices)
        finite = torch.stack(list(said.finite.values()))
        errors = [said.hidden_error[key] for key in self.manifest.hidden_keys()]
        self._copied.append(_Packed.of([*said.arrays.values(), *errors, finite]))
        self._names = list(said.finite)
        if self.teacher.device.type == "cuda":
            self._done = torch.cuda.current_stream(self.teacher.device).record_event()

    def finish(self) -> tuple[Arrays, HiddenError]:
        """Wait for all copies; returns the shard's arrays and errors, ready to be written.

        Raises:
            UserError: if any value is not finite.
        """
        if self._done is not None:
            self._done.synchronize()
        names = list(self.manifest.arrays())
        parts = list(zip(*(packed.parts() for packed in self._copied), strict=True))
        arrays, errors, finite = parts[: len(names)], parts[len(names) : -1], parts[-1]
        self.teacher.require_finite(dict(zip(self._names, torch.stack(finite).all(dim=0), strict=True)))
        sums = [torch.stack(squares).sum(dim=0) for squares in errors]
        hidden_error = {
            key: (float(residual), float(total))
            for key, (residual, total) in zip(self.manifest.hidden_keys(), sums, strict=True)
        }
        # Joined by NumPy: torch cannot join all types that are stored.
        joined = [np.concatenate([part.numpy() for part in each]) for each in arrays]
        return dict(zip(names, joined, strict=True)), hidden_error


@dataclass(frozen=True)
class _Packed:
    """Tensors of any types in one block of bytes on the host; on a GPU the copy may still be on its way."""

    content: Tensor
    kinds: Sequence[tuple[torch.dtype, torch.Size]]

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> "_Packed":
        """Of tensors on a device; some may be on the CPU, where that has a type that the device has not."""
        device = tensors[0].device
        packed = torch.cat([part.contiguous().view(-1).view(torch.uint8).to(device) for part in tensors])
        # A GPU copies asynchronously only to page-locked memory; torch keeps that for the next shard.
        content = torch.empty(len(packed), dtype=torch.uint8, pin_memory=device.type == "cuda")
        content.copy_(packed, non_blocking=True)
        return _Packed(content, [(part.dtype, part.shape) for part in tensors])

    def parts(self) -> list[Tensor]:
        """The tensors, once they are here."""
        sizes = [shape.numel() * kind.itemsize for kind, shape in self.kinds]
        blocks = zip(self.content.split(sizes), self.kinds, strict=True)
        # Copies, since numbers in the middle of others may not lie at a multiple of their size.
        return [block.clone().view(kind).view(shape) for block, (kind, shape) in blocks]
