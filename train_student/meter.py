"""The meter: running means between log lines."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from palenka.data.signals.stream import EncodedBatch

GRADIENT = "gradient"
"""The name of a step's gradient in `NotFinite`."""
_NEVER = 2**62


@dataclass(frozen=True)
class NotFinite:
    """The first value of a run that was NaN or infinite.

    Attributes:
        name: of the term, ``loss``, or `GRADIENT`.
        micro_batch: in which it occurred, counted from 0 over all that a process has read in the run.
        process: in which it occurred.
    """

    name: str
    micro_batch: int
    process: int


@dataclass
class Meter:
    """Means of loss and terms, tokens per second, and the fraction of time waiting for data, since the last reading.

    The sums and the first micro-batches that were not finite stay on the device until they are read.
    """

    accelerator: Accelerator
    names: tuple[str, ...] = ()
    sums: Tensor | None = None
    """Sums of values times the tokens of their micro-batches, [names] float32."""
    tokens: float = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    skipped: int | Tensor = 0
    """Steps that the loss scaler of fp16 skipped."""
    first_bad: Tensor | None = None
    """The first micro-batch in which each value, or as the last entry the gradient, was not finite, [names + 1]
    int64."""

    def add(self, values: Mapping[str, Tensor], tokens: int, micro_batch: int = 0) -> None:
        """Add a micro-batch of this process: the loss and its terms, means over its tokens."""
        self.names = tuple(values)
        found = torch.stack([value.detach().float() for value in values.values()])
        self.sums = found * tokens if self.sums is None else self.sums + found * tokens
        self.tokens += tokens
        self._mark(torch.cat([found, found.new_zeros(1)]), micro_batch)

    def add_gradient(self, norm: Tensor, micro_batch: int) -> None:
        """Note whether the gradient of a step is finite."""
        self._mark(torch.cat([norm.new_zeros(len(self.names)), norm.detach().reshape(1)]), micro_batch)

    def _mark(self, values: Tensor, micro_batch: int) -> None:
        if self.first_bad is None:
            self.first_bad = torch.full(values.shape, _NEVER, dtype=torch.int64, device=values.device)
        self.first_bad = torch.where(values.isfinite(), self.first_bad, self.first_bad.clamp_max(micro_batch))

    def awaited(self, batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
        """The same batches; the time until each arrives counts as waiting for data."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, time does not count for the tokens per second."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def not_finite(self) -> NotFinite | None:
        """The first value not finite in any process, a term rather than the loss. Every process must call it."""
        if self.first_bad is None:
            return None
        found = self.accelerator.gather(self.first_bad.unsqueeze(0)).tolist()
        bad = [
            (number, name == "loss", NotFinite(name, number, process))
            for process, numbers in enumerate(found)
            for name, number in zip((*self.names, GRADIENT), numbers, strict=True)
            if number < _NEVER
        ]
        return min(bad, key=lambda each: each[:2])[-1] if bad else None

    def read(self) -> dict[str, float]:
        """The means over all processes since the last reading; resets the meter. Every process must call it."""
        assert self.sums is not None
        waited = self.sums.new_full((1,), self.waited)
        both = torch.cat([self.sums / self.tokens, waited])
        *means, waited_by_each = self.accelerator.reduce(both, "mean").tolist()
        now = time.perf_counter()
        seconds = now - self.since
        measured = dict(zip(self.names, means, strict=True)) | {
            "tokens_per_second": round(self.tokens * self.accelerator.num_processes / seconds, 1),
            "data_wait": round(waited_by_each / seconds, 4),
        }
        if self.accelerator.scaler is not None:
            measured["skipped_steps"] = int(self.skipped)
        self.sums, self.tokens, self.waited, self.since, self.skipped = None, 0, 0.0, now, 0
        return measured

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint: sums since the last reading. Every process must call it."""
        sums: Sequence[Sequence[float]] = []
        if self.sums is not None:
            sums = self.accelerator.gather(self.sums.unsqueeze(0)).tolist()
        return {
            "names": self.names,
            "sums_by_process": sums,
            "tokens": self.tokens,
            "waited": self.waited,
            "seconds": time.perf_counter() - self.since,
            "skipped": int(self.skipped),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`: exactly, or with another number of processes with the same means."""
        now, before = self.accelerator.num_processes, state["sums_by_process"]
        self.names, self.waited, self.skipped = tuple(state["names"]), state["waited"], state["skipped"]
        self.since = time.perf_counter() - state["seconds"]
        if not before:
            return
        if len(before) == now:
            mine, self.tokens = before[self.accelerator.process_index], state["tokens"]
        else:
            mine = [math.fsum(values) / now for values in zip(*before, strict=True)]
            self.tokens = state["tokens"] * len(before) / now
        self.sums = torch.tensor(mine, device=self.accelerator.device, dtype=torch.float32)
