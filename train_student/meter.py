"""The meter: what the log says of the steps since its last line."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from palenka.data.signals.stream import EncodedBatch


@dataclass
class Meter:
    """Means of loss and terms, tokens per second, and the part spent waiting for data, since the last reading."""

    accelerator: Accelerator
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    tokens: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def add(self, values: Mapping[str, Tensor], tokens: int) -> None:
        """Count a micro-batch of this process: the loss and its terms, means over its tokens."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        self.count += 1
        self.tokens += tokens

    def awaited(self, batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
        """The same batches; what it takes until each is there counts as waiting for data."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count against the tokens per second."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def read(self) -> dict[str, float]:
        """The means over all processes since the last reading, and begin anew; every process must call it."""
        waited = torch.tensor(self.waited, device=self.accelerator.device, dtype=torch.float32)
        both = torch.stack([*(total / self.count for total in self.sums.values()), waited])
        *means, waited_by_each = self.accelerator.reduce(both, "mean").tolist()
        now = time.perf_counter()
        seconds = now - self.since
        measured = dict(zip(self.sums, means, strict=True)) | {
            "tokens_per_second": round(self.tokens * self.accelerator.num_processes / seconds, 1),
            "data_wait": round(waited_by_each / seconds, 4),
        }
        self.sums, self.count, self.tokens, self.waited, self.since = {}, 0, 0, 0.0, now
        return measured
