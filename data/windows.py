"""Windows: how a flat token stream is cut into training examples, and the order in which they are read.

A window is `length` consecutive tokens; its address is (view, index). A view is one division of the whole stream, at
one offset. Nothing here depends on batch size, world size, epoch or shuffling, so a cache made by one program in one
order serves any other.

On disk the windows of a view lie in a fixed random permutation: the place of a window there is its slot.
Consecutive slots are already a random sample of the corpus, so a reader reads blocks of slots and never single windows.
"""

from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from palenka.ground.settings import Settings

CHUNK_WINDOWS = 64
"""Windows of a cache that are compressed together, so that cores decompress a block in parallel."""
BLOCK_WINDOWS = 4 * CHUNK_WINDOWS
"""Windows that an epoch reads together (see docs/design.md, "Windows, views, slots, reading order")."""


_DRAWS = 2**32
"""Added to a view, so that the numbers of its draws differ from those of its positions."""


class WindowRule(Settings):
    """How the token stream is cut into windows."""

    length: int = Field(default=128, ge=2, le=2**17)
    """Tokens in a window."""
    views: int = Field(default=1, ge=1)
    """Divisions of the stream at different offsets; epoch e reads view e mod views."""
    permutation_seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the order in which a view's windows lie on disk; the same for all caches of a corpus."""

    @model_validator(mode="after")
    def _views_differ(self) -> Self:
        if self.views > self.length:
            raise ValueError(f"views is {self.views}, but windows of {self.length} tokens have {self.length} offsets")
        return self

    def offset(self, view: int) -> int:
        """The offset of view `view` in the stream: 0, then halves, quarters, ... of a window.

        More views never move an earlier one. At most `length` views differ.

        Raises:
            ValueError: if a window of this length has no such view.
        """
        if not 0 <= view < self.length:
            raise ValueError(f"view {view} does not exist: windows of {self.length} tokens have {self.length} offsets")
        return _spread_offsets(self.length)[view]

    def count(self, num_tokens: int, view: int) -> int:
        """How many whole windows view `view` cuts from a stream of `num_tokens` tokens."""
        return max(0, num_tokens - self.offset(view)) // self.length

    def span(self, view: int, index: int) -> tuple[int, int]:
        """The [start, stop) of window (view, index) in the token stream."""
        start = self.offset(view) + index * self.length
        return start, start + self.length

    def positions(self, view: int, indices: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The `count` positions of each window whose hidden states are kept, [len(indices), count].

        They depend only on (permutation_seed, view, index), so they are the same for all teachers and caches. A larger
        count contains a smaller one. Position 0 is never among them: it alone can hold most of a layer's variance.
        """
        if not count:
            return np.empty((len(indices), 0), np.int64)
        numbers = _hash(self.permutation_seed, view, indices, self.length - 1)
        return 1 + np.argsort(numbers, axis=1, kind="stable").astype(np.int64)[:, :count]

    def uniforms(self, view: int, indices: NDArray[np.int64], count: int, stream: int) -> NDArray[np.float64]:
        """Numbers in [0, 1) at every token of windows, [len(indices), length, count]: the draws of a sampled encoding.

        Like positions they depend only on the address, so a resumed capture repeats the same draws. Different streams,
        such as those of two teachers, have different numbers.
        """
        numbers = _hash(self.permutation_seed ^ (stream + 1) * _DRAWS, view + _DRAWS, indices, self.length * count)
        return (numbers >> np.uint64(11)).reshape(len(indices), self.length, count) * np.float64(2.0**-53)

    def slots(self, num_tokens: int, view: int) -> NDArray[np.int64]:
        """The window index at every slot of view `view`: a permutation, the same on every machine."""
        return _permutation(self.permutation_seed, view, self.count(num_tokens, view))


def gather(
    tokens: NDArray[np.unsignedinteger], rule: WindowRule, view: int, indices: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The tokens of some windows of a view, [len(indices), length]."""
    starts = rule.offset(view) + indices * rule.length
    windows: NDArray[np.int64] = tokens[starts[:, None] + np.arange(rule.length)].astype(np.int64)
    return windows


def epoch_order(num_windows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The slots of a view in the order in which epoch `epoch` of a run with this seed reads them.

    Chunks of `CHUNK_WINDOWS` slots are in random order, four of them form a block, and the slots of a block are in
    random order. So a block has different windows in every epoch, and only a block's chunks are decompressed at a time.
    """
    generator = np.random.RandomState([seed, epoch])
    num_chunks, of_block = -(-num_windows // CHUNK_WINDOWS), BLOCK_WINDOWS // CHUNK_WINDOWS
    block = generator.permutation(num_chunks) // of_block
    place_within = generator.random_sample(num_windows)
    # Sorted block by block, in a tenth of the time of sorting all at once. The padding of the last block and the last
    # chunk is sorted to the end and left out.
    chunks = np.full(-(-num_chunks // of_block) * of_block, num_chunks)
    chunks[:num_chunks] = np.argsort(block, kind="stable")
    slots = (chunks[:, None] * CHUNK_WINDOWS + np.arange(CHUNK_WINDOWS)).reshape(-1, BLOCK_WINDOWS)
    places = np.full((num_chunks + 1) * CHUNK_WINDOWS, np.inf)
    places[:num_windows] = place_within
    order = np.take_along_axis(slots, np.argsort(places[slots], axis=1), axis=1).ravel()
    return order[order < num_windows]


def ascending_in_batches(order: NDArray[np.int64], batch: int, first: int = 0) -> NDArray[np.int64]:
    """An order whose slots ascend inside each batch; `first` is its place in the sequence of batches."""
    before = first % batch
    after = -(before + len(order)) % batch
    padded = np.concatenate([np.full(before, -1), order, np.full(after, np.iinfo(np.int64).max)])
    ascending: NDArray[np.int64] = np.sort(padded.reshape(-1, batch), axis=1).ravel()
    return ascending[before : before + len(order)]


@lru_cache(maxsize=4)
def _permutation(seed: int, view: int, count: int) -> NDArray[np.int64]:
    """A permutation of `count` numbers, read-only; cached, since a capture needs it for every shard."""
    # RandomState, because NumPy promises never to change its stream (NEP 19); that of Generator may change.
    permutation = np.random.RandomState([seed, view]).permutation(count).astype(np.int64)
    permutation.flags.writeable = False
    return permutation


def _hash(seed: int, stream: int, indices: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """Pseudo-random numbers that depend only on their address, [len(indices), count]."""
    key = np.zeros((1, 1), np.uint64)
    for part in (np.array([[seed]]), np.array([[stream]]), indices[:, None], np.arange(count)[None, :]):
        key = _mix(key + part.astype(np.uint64))
    return key


def _mix(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A step of SplitMix64 (Steele, Lea and Flood 2014): a pseudo-random bijection of 64-bit numbers."""
    number = number + np.uint64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


@lru_cache(maxsize=16)
def _spread_offsets(length: int) -> tuple[int, ...]:
    """All offsets 0..length-1 in bit-reversed order, so that any first few of them are spread evenly."""
    bits = (length - 1).bit_length()
    reversed_bits = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return tuple(offset for offset in reversed_bits if offset < length)
