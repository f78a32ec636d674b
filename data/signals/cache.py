"""The teacher cache: a sharded Zarr v3 group with one teacher's outputs for every window of its views.

    zarr.json            the manifest, as the group's attributes
    logits/ARRAY         [views, windows, length, …]  the arrays of the encoding (`encoding.py`)
    hidden/MODEL/LAYER/  codes [views, windows, positions, components], and the layer's coordinates
    commits/store.json   checksums of the metadata and of the layers' statistics
    commits/V-S.json     checksums of shard S of view V, and the error of its hidden states
    commits/asked.json     the largest fraction requested: if fewer shards exist, a capture was interrupted
    commits/fidelity.json  its error against its teacher, once `palenka cache verify` has measured it

Windows lie in slots (see `windows.py`). Zarr reads a missing shard as zeros without an error, so a shard counts only
once its commit record exists, which is written last, by renaming. Only native Zarr codecs are used.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from palenka.data.signals.chunks import ArrayChunks, ChunkError, workers
from palenka.data.signals.encoding import LogitEncoding
from palenka.data.signals.manifest import LOGITS, Shard, codes_of, num_used
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.store import (
    STORE_RECORD,
    Fidelity,
    Measured,
    chunk_windows,
    damage_of_shard,
    read_asked,
    read_fidelity,
    read_manifest,
    read_measured,
)
from palenka.data.windows import BLOCK_WINDOWS
from palenka.ground.errors import UserError
from palenka.ground.files import names_in, size_of, state_of
from palenka.ground.records import read_record
from palenka.ground.settings import path_of

Slots = int | Sequence[int] | NDArray[np.int64]
"""Places of windows on disk; see `windows.py`."""


class TeacherCache:
    """Reads a cache; the record and checksums of a shard are compared when it is first read.

    The arrays to read are fixed when it is opened. Several threads may read. Memory: three blocks of `BLOCK_WINDOWS`
    windows, for any corpus.

    Args:
        directory: of the cache.
        hidden: layers whose states are wanted, among `manifest.hidden_keys()`; default: none. Layers that they are
            predicted from are read too.
        logits: whether distributions are read.
        read_as: how they are decoded (`LogitEncoding.reading`); default: as they were encoded.

    Attributes:
        manifest: the description of the cache.
        measured: statics of the logit encoding, and the coordinates of the layers that are read.
        asked: the largest fraction of each view's windows that a capture was started with.
    """

    def __init__(
        self,
        directory: Path,
        hidden: Collection[str] = (),
        logits: bool = True,
        read_as: LogitEncoding | None = None,
    ) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        self.asked = read_asked(directory)
        self._encoding = read_as or self.manifest.logits
        group = zarr.open_group(directory, mode="r")
        names = [name for name in self.manifest.arrays() if name.startswith(f"{LOGITS}/")] if logits else []
        self._hidden, decoded = tuple(hidden), self.manifest.keys_to_decode(hidden)
        self._arrays = {
            name: ArrayChunks.of(directory, self.manifest, name) for name in [*names, *map(codes_of, decoded)]
        }
        self.measured = read_measured(directory, group, self.manifest, decoded)
        self._chunk_windows = chunk_windows(self.manifest)
        self._checked: dict[Shard, dict[str, object]] = {}
        self._chunks: OrderedDict[tuple[int, int], dict[str, Future[NDArray[Any]]]] = OrderedDict()
        self._process, self._lock = os.getpid(), threading.Lock()
        self._measured_on: dict[torch.device, Measured] = {}

    @classmethod
    def open(cls, directory: str | Path, hidden: bool = False) -> Self:
        """Open a cache to read its distributions, and all of its hidden states if asked for.

        Raises:
            UserError: if there is no cache, it is damaged, or it keeps no hidden states.
        """
        directory = path_of(directory)
        keys = read_manifest(directory).hidden_keys() if hidden else ()
        if hidden and not keys:
            raise UserError(f"teacher cache {directory} holds no hidden states; open it without, or capture them")
        return cls(directory, keys)

    def require_epochs(self, epochs: int, views: int, fraction: float) -> None:
        """Refuse unless all windows of some epochs were captured: a fraction of each view, one view after the other.

        Raises:
            UserError: with the number of missing shards and the first of them.
        """
        read = ((view, num_used(self.manifest.num_windows(view), fraction)) for view in range(min(views, epochs)))
        self.require_shards(shard for view, count in read for shard in self.manifest.shards_over(view, 0, count))

    def require_shards(self, shards: Iterable[Shard]) -> None:
        """Refuse unless all these shards were captured; each is compared with its record when it is read.

        Raises:
            UserError: with the number of missing shards and the first of them.
        """
        captured = self._captured()
        missing = [shard.record for shard in shards if Path(shard.record).name not in captured]
        if missing:
            raise UserError(
                f"teacher cache {self.directory} lacks {len(missing)} of the shards needed: {missing[0]} is missing; "
                "read a smaller fraction, or run `palenka cache run` again for all of it, it captures just these"
            )

    def read(self, view: int, slots: Slots) -> TeacherSignal:
        """The signal for the windows at some slots of a view, in their order, on the CPU.

        Raises:
            UserError: if a slot does not exist or was not captured, or a shard is damaged; the error names it.
        """
        return self.decode({name: torch.from_numpy(part) for name, part in self.codes(view, slots).items()})

    def codes(self, view: int, slots: Slots) -> dict[str, NDArray[np.generic]]:
        """The arrays [len(slots), rows, width] for the windows at some slots of a view.

        Their memory layout is that of the store: column by column if the encoding stores it so.

        Raises:
            UserError: if a slot does not exist or was not captured, or a shard is damaged; the error names it.
        """
        slots = self._existing(view, slots)
        chunks, rows = np.divmod(slots, self._chunk_windows)
        found = self._chunks_of(view, np.unique(chunks).tolist())
        # Where each chunk's windows go: a slice if slots ascend, as they do in a batch.
        order = np.argsort(chunks, kind="stable")
        ascending = bool((order[1:] > order[:-1]).all())
        bounds = np.searchsorted(chunks[order], [*found, np.inf]).tolist()
        parts = {name: array.array.empty(len(slots)) for name, array in self._arrays.items()}
        for number, chunk in enumerate(found):
            start, stop = bounds[number : number + 2]
            places = slice(start, stop) if ascending else order[start:stop]
            for name, future in found[chunk].items():
                row = self._arrays[name].array.row
                values, part = row.as_stored(self._value(future, view, chunk)), row.as_stored(parts[name])
                taken = rows[order[start:stop]]
                if row.by_column:  # windows are the second axis then
                    part[:, places] = values.take(taken, axis=1)
                else:
                    part[places] = values.take(taken, axis=0)
        return dict(parts)

    def decode(self, codes: Mapping[str, Tensor]) -> TeacherSignal:
        """The signal of some windows' arrays, on their device."""
        device = next(iter(codes.values())).device
        if device not in self._measured_on:
            self._measured_on[device] = self.measured.to(device)
        measured = self._measured_on[device]
        logits = {name.split("/", 1)[1]: part for name, part in codes.items() if name.startswith(f"{LOGITS}/")}
        hidden = measured.stacks.decode({key: codes[codes_of(key)] for key in measured.layers})
        wanted = {key: hidden[key] for key in self._hidden}
        return TeacherSignal(self._encoding, logits, measured.statics, wanted)

    def bytes_per_token(self) -> dict[str, float]:
        """Bytes on disk per token of the committed shards, by array."""
        tokens = self.captured_tokens()
        return {name: size / tokens for name, size in self.bytes_by_array().items()}

    def bytes_by_array(self) -> dict[str, int]:
        """Bytes on disk of the committed shards, by array; reads only file sizes."""
        shards = self.committed()
        return {
            name: sum((self.directory / shard.file_of(name)).stat().st_size for shard in shards)
            for name in self.manifest.arrays()
        }

    def captured_tokens(self) -> int:
        """Tokens of the committed shards, over all views."""
        return sum(shard.stop - shard.start for shard in self.committed()) * self.manifest.windows.length

    def hidden_errors(self) -> dict[str, float]:
        """Residual over total sum of squares about the mean of every layer's codes, as measured at capture."""
        sums: dict[str, NDArray[np.float64]] = {}
        for shard in self.committed():
            for key, squares in read_record(self.directory / shard.record)["hidden_error"].items():
                sums[key] = sums.get(key, np.zeros(2)) + np.array(squares)
        return {key: float(residual / max(total, 1e-30)) for key, (residual, total) in sums.items()}

    def kept_mass(self) -> dict[float, float]:
        """Mean mass of the kept tokens per temperature over the committed shards; 1 if draws estimate all tokens."""
        logits = self.manifest.logits
        sums, count = np.zeros(len(logits.temperatures)), 0
        names = logits.tail_arrays or tuple(logits.arrays(self.manifest.vocabulary_size))
        for shard, chunk in self._committed_chunks():
            windows = min(self._chunk_windows, shard.stop - chunk * self._chunk_windows)
            read = {name: self._arrays[f"{LOGITS}/{name}"].read(shard, chunk)[0][:windows] for name in names}
            arrays = {name: torch.from_numpy(values) for name, values in read.items()}
            log_tails = logits.log_tails(arrays, self.measured.statics).double().flatten(0, -2).numpy()
            sums += -np.expm1(log_tails).sum(axis=0)
            count += len(log_tails)
        return dict(zip(logits.temperatures, (sums / count).tolist(), strict=True))

    def fidelity(self) -> Fidelity | None:
        """The last result of `palenka cache verify`; None before the first."""
        return read_fidelity(self.directory)

    def committed(self) -> list[Shard]:
        """The shards that were captured."""
        captured = self._captured()
        return [shard for shard in self.manifest.shards() if Path(shard.record).name in captured]

    def captured_slots(self, view: int = 0) -> NDArray[np.int64]:
        """The slots of a view that were captured, ascending: a uniform sample of the corpus, [n]."""
        parts = [np.arange(shard.start, shard.stop) for shard in self.committed() if shard.view == view]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _existing(self, view: int, slots: Slots) -> NDArray[np.int64]:
        """Slots as an array, checked.

        Raises:
            UserError: if the cache lacks the view or a slot; names the first.
        """
        views = self.manifest.windows.views
        if not 0 <= view < views:
            raise UserError(f"view is {view}, but teacher cache {self.directory} has {views}, counted from 0")
        numbers = np.atleast_1d(np.asarray(slots))
        if numbers.size and numbers.dtype.kind not in "iu":
            raise UserError(f"slots are {numbers.dtype} numbers; give whole ones")
        count = self.manifest.num_windows(view)
        if (outside := numbers[(numbers < 0) | (numbers >= count)]).size:
            raise UserError(
                f"slot {outside[0]:,} does not exist: view {view} of teacher cache {self.directory} has the slots 0 to "
                f"{count - 1:,}"
            )
        return numbers.astype(np.int64)

    def _captured(self) -> set[str]:
        """The names of the existing commit records, from one listing of their folder."""
        return names_in((self.directory / STORE_RECORD).parent)

    def _committed_chunks(self) -> Iterator[tuple[Shard, int]]:
        for shard in self.committed():
            for chunk in range(shard.start // self._chunk_windows, -(-shard.stop // self._chunk_windows)):
                yield shard, chunk

    def _chunks_of(self, view: int, needed: list[int]) -> dict[int, dict[str, Future[NDArray[Any]]]]:
        """The chunks; starts reading those not in memory, and drops the least recently used others."""
        if self._process != os.getpid():
            # A forked process has none of the threads that were reading, nor the one that held the lock.
            self._process, self._lock, self._chunks = os.getpid(), threading.Lock(), OrderedDict()
        with self._lock:
            for chunk in needed:
                if (view, chunk) not in self._chunks:
                    shard = self._shard_of(view, chunk)
                    self._check(shard)
                    self._chunks[view, chunk] = {
                        name: workers().submit(self._read, array, shard, chunk) for name, array in self._arrays.items()
                    }
                self._chunks.move_to_end((view, chunk))
            found = {chunk: self._chunks[view, chunk] for chunk in needed}
            while len(self._chunks) * self._chunk_windows > 2 * BLOCK_WINDOWS:
                self._chunks.popitem(last=False)
        return found

    def _value(self, future: Future[NDArray[Any]], view: int, chunk: int) -> NDArray[Any]:
        """The array of a chunk; a failed read is tried again next time."""
        try:
            return future.result()
        except UserError:
            with self._lock:
                self._chunks.pop((view, chunk), None)
            raise

    def _read(self, array: ArrayChunks, shard: Shard, chunk: int) -> NDArray[Any]:
        """A chunk of a shard, checked first."""
        try:
            values, state = array.read(shard, chunk)
        except (OSError, ChunkError):
            self._refuse(shard)
        if state != self._checked[shard][array.name]:
            self._refuse(shard)
        return values

    def _refuse(self, shard: Shard) -> NoReturn:
        """Report what is wrong with a shard that was undamaged when it was checked."""
        damage = damage_of_shard(self.directory, shard, arrays=self._arrays) or "it is another one than before"
        raise UserError(
            f"teacher cache {self.directory} changed while shard {shard.number} of view {shard.view} was read: "
            f"{damage}; leave it alone, and run the same command again"
        )

    def _shard_of(self, view: int, chunk: int) -> Shard:
        (shard,) = self.manifest.shards_over(view, chunk * self._chunk_windows, chunk * self._chunk_windows + 1)
        return shard

    def _check(self, shard: Shard) -> None:
        """Compare a shard's checksums when it is first read, and again if its files have changed."""
        state: dict[str, object] = {name: state_of(self.directory / shard.file_of(name)) for name in self._arrays}
        if self._checked.get(shard) == state:
            return
        if size_of(self.directory / shard.record) is None:
            raise UserError(
                f"teacher cache {self.directory} lacks the slots {shard.start:,} to {shard.stop - 1:,} of view "
                f"{shard.view}, which were not captured ({shard.record} is missing); read slots that were, or capture "
                "these with `palenka cache run`"
            )
        if damage := damage_of_shard(self.directory, shard, arrays=self._arrays):
            raise UserError(
                f"teacher cache {self.directory} is damaged: {damage}; `palenka cache run` captures it anew"
            )
        self._checked[shard] = state
