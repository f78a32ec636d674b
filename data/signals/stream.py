"""The stream: tokens beside teacher signals, in an order that depends only on seed, epoch and corpus.

A run reads one long sequence of windows, epoch after epoch; a resume needs only a position in it. Batches are slices of
the sequence, so neither their size nor the number of processes changes which windows are read, or in which order.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.chunks import yield_to_training
from palenka.data.signals.manifest import num_used
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.store import Arrays
from palenka.data.windows import WindowRule, ascending_in_batches, epoch_order

Codes = Mapping[str, Tensor]
"""The stored arrays of a cache for some windows, [B, …] each."""


@dataclass(frozen=True)
class Batch:
    """Windows with their teacher signals.

    Attributes:
        tokens: [B, L] int64.
        positions: at which hidden states are known, [B, P] int64; a signal with fewer has the first of them.
        signals: by the teacher's name.
    """

    tokens: Tensor
    positions: Tensor
    signals: Mapping[str, TeacherSignal]


@dataclass(frozen=True)
class EncodedBatch:
    """A batch as it is read. Its codes move to an accelerator and are decoded there.

    Attributes:
        tokens: [B, L] int64.
        positions: [B, P] int64.
        codes: of the cached teachers by name.
    """

    tokens: Tensor
    positions: Tensor
    codes: Mapping[str, Codes]

    def to(self, device: torch.device) -> "EncodedBatch":
        """The same batch on another device; the copies are asynchronous if memory is pinned."""
        return self.map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> "EncodedBatch":
        """The same batch in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def tensors(self) -> Iterator[Tensor]:
        """All of its tensors."""
        yield self.tokens
        yield self.positions
        for parts in self.codes.values():
            yield from parts.values()

    def decode(self, caches: Mapping[str, TeacherCache]) -> Batch:
        """The batch with the signals of the caches that it was read from."""
        return Batch(
            self.tokens, self.positions, {name: caches[name].decode(codes) for name, codes in self.codes.items()}
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "EncodedBatch":
        """The same batch with each tensor changed."""
        codes = {teacher: {name: change(part) for name, part in parts.items()} for teacher, parts in self.codes.items()}
        return EncodedBatch(change(self.tokens), change(self.positions), codes)


class ReadingOrder:
    """The sequence of windows that a run reads: all epochs, one after the other.

    Args:
        rule: the window rule; epoch e reads view e mod `rule.views`.
        num_tokens: tokens in the corpus store.
        seed: the run's seed.
        epochs: how often the corpus is read.
        fraction: part of each view's slots that is read: the first ones, a uniform sample of the corpus.
        batch: windows of a global batch. Inside it slots ascend. Each process reads a slice of it, and thus few chunks
            of a cache.
    """

    def __init__(
        self, rule: WindowRule, num_tokens: int, seed: int, epochs: int, fraction: float = 1.0, batch: int = 1
    ) -> None:
        self.rule = rule
        self.num_tokens = num_tokens
        self.seed = seed
        self.batch = batch
        used = [num_used(rule.count(num_tokens, epoch % rule.views), fraction) for epoch in range(epochs)]
        self._ends = np.cumsum(used)
        self._opened: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._process, self._lock = os.getpid(), threading.Lock()

    def __len__(self) -> int:
        """Windows in all epochs together."""
        return int(self._ends[-1])

    def end(self, epoch: int) -> int:
        """The position after the last window of an epoch."""
        return int(self._ends[epoch])

    def epoch_at(self, position: int) -> int:
        """The epoch that a position belongs to."""
        return int(np.searchsorted(self._ends, position, side="right"))

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Positions [start, stop) as (view, slots, window indices), one piece for every epoch they touch."""
        while start < stop:
            epoch = self.epoch_at(start)
            end = int(self._ends[epoch])
            first = end - self._in_epoch(epoch)
            order, index_of_slot = self._order(epoch)
            slots = order[start - first : min(stop, end) - first]
            yield epoch % self.rule.views, slots, index_of_slot[slots]
            start = min(stop, end)

    def _in_epoch(self, epoch: int) -> int:
        return int(self._ends[epoch] - (self._ends[epoch - 1] if epoch else 0))

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's slots in reading order, and the window at every slot of its view; kept with the epoch before."""
        if self._process != os.getpid():  # a forked process lacks the thread that held the lock
            self._process, self._lock = os.getpid(), threading.Lock()
        with self._lock:
            if epoch not in self._opened:
                order = epoch_order(self._in_epoch(epoch), self.seed, epoch)
                order = ascending_in_batches(order, self.batch, int(self._ends[epoch]) - len(order))
                # Threads that read ahead may be in two epochs at once.
                self._opened = {last: kept for last, kept in self._opened.items() if last == epoch - 1}
                self._opened[epoch] = order, self.rule.slots(self.num_tokens, epoch % self.rule.views)
            return self._opened[epoch]


def read_batch(
    corpus: Corpus,
    order: ReadingOrder,
    caches: Mapping[str, TeacherCache],
    start: int,
    stop: int,
    num_positions: int = 0,
) -> EncodedBatch:
    """The windows at positions [start, stop) of the order, with their codes from the caches; see `stream`."""
    tokens: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    codes: dict[str, list[Arrays]] = {name: [] for name in caches}
    for view, slots, indices in order.pieces(start, stop):
        tokens.append(corpus.gather(order.rule, view, indices))
        positions.append(order.rule.positions(view, indices, num_positions))
        for name, cache in caches.items():
            codes[name].append(cache.codes(view, slots))
    joined = {name: {key: _join([part[key] for part in parts]) for key in parts[0]} for name, parts in codes.items()}
    return EncodedBatch(_join(tokens), _join(positions), joined)


def _join(parts: Sequence[NDArray[Any]]) -> Tensor:
    # Joined by NumPy, since torch cannot join all stored types. A single part, the usual case, is not copied.
    return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))


def stream(
    corpus: Corpus,
    order: ReadingOrder,
    caches: Mapping[str, TeacherCache],
    slices: Iterator[tuple[int, int]],
    num_positions: int = 0,
    prefetch: int = 4,
    pin_memory: bool = False,
) -> Generator[EncodedBatch, None, None]:
    """Batches for the given slices of the order, read ahead by background threads.

    There are two: one reads the next block while the other makes batches of the current one.

    Args:
        corpus: where the tokens are.
        order: the sequence of windows.
        caches: teacher caches by name.
        slices: [start, stop) positions, one for each batch.
        num_positions: in each window, at which hidden states are known.
        prefetch: maximum batches held ready; memory grows with it.
        pin_memory: put batches in page-locked memory, so that copies to a GPU overlap with work.

    Raises:
        UserError: an error of reading, at the batch where it happened.
    """

    def read(start: int, stop: int) -> EncodedBatch:
        batch = read_batch(corpus, order, caches, start, stop, num_positions)
        return batch.pin_memory() if pin_memory else batch

    executor = ThreadPoolExecutor(2, "prefetch", initializer=yield_to_training)
    ahead: deque[Future[EncodedBatch]] = deque()
    try:
        for start, stop in slices:
            ahead.append(executor.submit(read, start, stop))
            if len(ahead) > prefetch:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
