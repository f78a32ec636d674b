"""Chunks of a cache, read from and written to the files of its shards without Zarr.

Zarr takes about a millisecond for each chunk of each array, whatever its size, on one core: a block of four chunks of
thirteen arrays would take longer than a GPU takes to learn from it. So the hot path follows Zarr's specification of a
shard itself (zarr-specs, Sharding codec 1.0): chunks, then an index of their offsets and sizes as 64-bit numbers, then
a CRC-32C of the index. A chunk is Blosc, then a CRC-32C. Readers are threads, since Blosc releases the interpreter
lock. Writing uses all cores and gives the same bytes as Zarr.

Readers have a lower priority than the training thread, which they would slow down on few cores. While it waits for
them, they have the cores to themselves.
"""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from palenka.data.signals.manifest import (
    CacheManifest,
    Shard,
    StoredArray,
    blosc_of,
)
from palenka.data.signals.store import chunk_windows
from palenka.ground.files import state_of_open
from palenka.ground.processes import cores

_CHECKSUM_BYTES = 4
_ABSENT = 2**64 - 1
"""Offset and size of a chunk that is absent from a shard."""
_NICENESS = 5


class ChunkError(Exception):
    """A file of a shard does not match its cache's metadata."""


@dataclass(frozen=True)
class ArrayChunks:
    """The chunks of one array.

    Attributes:
        directory: of the cache.
        name: of the array, its path in the cache.
        array: how it is stored.
        windows: number in a chunk.
        chunks_per_shard: number of chunks.
    """

    directory: Path
    name: str
    array: StoredArray
    windows: int
    chunks_per_shard: int

    @classmethod
    def of(cls, directory: Path, manifest: CacheManifest, name: str) -> "ArrayChunks":
        """The chunks of an array of a cache."""
        windows = chunk_windows(manifest)
        return cls(directory, name, manifest.arrays()[name], windows, manifest.windows_per_shard // windows)

    def read(self, shard: Shard, chunk: int) -> tuple[NDArray[Any], tuple[int, int, int]]:
        """A chunk [windows, rows, width], by its number in the view, and the state of the file it was read from.

        Raises:
            OSError: if there is no such file.
            ChunkError: if it does not hold the chunk.
        """
        with open(self.directory / shard.file_of(self.name), "rb", buffering=0) as file:  # noqa: PTH123 - quicker
            state, number = state_of_open(file.fileno()), file.fileno()
            index = _checked(os.pread(number, *self._place_of_index(state[1])))
            at, size = np.frombuffer(index, "<u8").reshape(-1, 2)[chunk % self.chunks_per_shard].tolist()
            compressed = _checked(os.pread(number, size, at) if at + size <= state[1] else b"")
        found = self.array.empty(self.windows)
        room = self.array.row.as_stored(found)
        try:
            blosc.decompress(compressed, room)
        except (RuntimeError, ValueError) as error:
            raise ChunkError(str(error)) from error
        return found, state

    def compress(self, values: NDArray[Any]) -> list[Future[bytes]]:
        """Begin to compress the numbers of a shard [windows, rows, width], a chunk on each core.

        A chunk that a view ends in is filled up with zeros.
        """
        row, codec = self.array.row, blosc_of(self.array.row, self.windows * self.array.rows * self.array.row.width)

        def compressed(start: int) -> bytes:
            part = values[start : start + self.windows]
            laid = self.array.empty(self.windows)
            laid[: len(part)], laid[len(part) :] = part, 0
            return _with_checksum(codec.encode(row.as_stored(laid)))  # lies in memory like that

        return [workers().submit(compressed, start) for start in range(0, len(values), self.windows)]

    def write(self, shard: Shard, chunks: Sequence[bytes]) -> None:
        """Write the compressed chunks of a shard: its file is as Zarr would write it, byte for byte."""
        index = np.full((self.chunks_per_shard, 2), _ABSENT, "<u8")
        sizes = [len(chunk) for chunk in chunks]
        index[: len(chunks), 0], index[: len(chunks), 1] = np.cumsum([0, *sizes[:-1]]), sizes
        path = self.directory / shard.file_of(self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join([*chunks, _with_checksum(index.tobytes())]))

    def _place_of_index(self, size: int) -> tuple[int, int]:
        """Bytes and offset of the index in a file of this size."""
        index = 16 * self.chunks_per_shard + _CHECKSUM_BYTES
        return index, max(0, size - index)


def _with_checksum(content: bytes) -> bytes:
    return content + int(google_crc32c.value(content)).to_bytes(_CHECKSUM_BYTES, "little")


def _checked(data: bytes) -> bytes:
    """Data without the checksum at its end.

    Raises:
        ChunkError: unless it has this checksum.
    """
    content = data[:-_CHECKSUM_BYTES]
    if len(data) < _CHECKSUM_BYTES or google_crc32c.value(content) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise ChunkError("a chunk differs from its checksum")
    return content


@cache
def workers() -> ThreadPoolExecutor:
    """The threads that read and compress chunks for all caches of this process, one per core."""
    return ThreadPoolExecutor(cores(), "chunks", initializer=yield_to_training)


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: a worker of a DataLoader, for instance, would wait for them forever.
    os.register_at_fork(after_in_child=workers.cache_clear)


def yield_to_training() -> None:
    """Give this thread a lower priority than others of its process, if the system supports that."""
    if hasattr(os, "setpriority") and hasattr(threading, "get_native_id") and os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
