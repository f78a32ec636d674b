"""The teacher cache: a sharded Zarr v3 group of what one teacher says about every window of its views.

    zarr.json            the manifest, as the group's attributes
    logits/ARRAY         [views, windows, length, …]  what the encoding keeps (`encoding.py`)
    hidden/MODEL/LAYER/  codes [views, windows, positions, components], and the layer's mean, variance, scale, basis
    commits/store.json   checksums of the metadata and of the layers' statistics
    commits/V-S.json     checksums of shard S of view V, and the error of its hidden states

Windows lie in slots (see `windows.py`). Zarr reads a missing shard as zeros without an error, so a shard counts
only once its commit record is there; the record is written last, by renaming. Only native Zarr codecs are used.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from palenka.data.signals.manifest import LOGITS, Shard, codes_of
from palenka.data.signals.signal import TeacherSignal
from palenka.data.signals.store import (
    STORE_RECORD,
    Measured,
    array_at,
    chunk_windows,
    damage_of_shard,
    read_manifest,
    read_measured,
)
from palenka.data.windows import BLOCK_WINDOWS
from palenka.ground.errors import UserError
from palenka.ground.files import names_in, state_of
from palenka.ground.records import read_record
from palenka.ground.settings import path_of

Slots = int | Sequence[int] | NDArray[np.int64]
"""Places of windows on disk; see `windows.py`."""


class TeacherCache:
    """Reads a cache; every shard's checksums are compared once, when it is first read.

    What is read is fixed when it is opened. Memory: two blocks of `BLOCK_WINDOWS` windows, whatever the corpus.

    Args:
        directory: of the cache.
        hidden: layers whose states are read, among `manifest.hidden_keys()`; none unless given.
        logits: whether distributions are read.

    Attributes:
        manifest: what the cache says of itself.
        measured: statics of the logit encoding, and the coordinates of the layers that are read.
    """

    def __init__(self, directory: Path, hidden: Collection[str] = (), logits: bool = True) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        group = zarr.open_group(directory, mode="r")
        names = [name for name in self.manifest.arrays() if name.startswith(f"{LOGITS}/")] if logits else []
        self._arrays = {name: array_at(group, name) for name in [*names, *map(codes_of, hidden)]}
        self.measured = read_measured(directory, group, self.manifest, hidden)
        self._chunk_windows = chunk_windows(self.manifest)
        self._checked: dict[Shard, tuple[object, ...]] = {}
        self._chunks: OrderedDict[tuple[int, int], dict[str, NDArray[np.generic]]] = OrderedDict()
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

    def require_shards(self, shards: Iterable[Shard]) -> None:
        """Refuse to go on unless all these shards are there; sizes are compared, checksums when they are read.

        Raises:
            UserError: naming how many shards are missing and what is wrong with the first.
        """
        damages = [damage for shard in shards if (damage := damage_of_shard(self.directory, shard, contents=False))]
        if damages:
            raise UserError(
                f"teacher cache {self.directory} lacks {len(damages)} of the shards needed: {damages[0]}; "
                "read a smaller fraction, or run `palenka cache run` again for all of it, it captures just these"
            )

    def read(self, view: int, slots: Slots) -> TeacherSignal:
        """The signal for the windows at some slots of a view, in their order, on the CPU.

        Raises:
            UserError: if a slot does not exist or was not captured, or a shard is damaged; it is named.
        """
        return self.decode({name: torch.from_numpy(part) for name, part in self.codes(view, slots).items()})

    def codes(self, view: int, slots: Slots) -> dict[str, NDArray[np.generic]]:
        """The arrays for the windows at some slots of a view, as they are stored.

        Raises:
            UserError: if a slot does not exist or was not captured, or a shard is damaged; it is named.
        """
        slots = self._existing(view, slots)
        chunks, rows = np.divmod(slots, self._chunk_windows)
        needed = np.unique(chunks)
        self._load(view, needed)
        parts = {
            name: np.empty((len(slots), *array.shape[2:]), dtype=array.dtype) for name, array in self._arrays.items()
        }
        for chunk in needed:
            here = chunks == chunk
            for name, values in self._chunks[view, int(chunk)].items():
                parts[name][here] = values[rows[here]]
        while len(self._chunks) * self._chunk_windows > BLOCK_WINDOWS:
            self._chunks.popitem(last=False)
        return parts

    def decode(self, codes: Mapping[str, Tensor]) -> TeacherSignal:
        """The signal of some windows' arrays, on whatever device they are."""
        device = next(iter(codes.values())).device
        if device not in self._measured_on:
            self._measured_on[device] = self.measured.to(device)
        measured = self._measured_on[device]
        logits = {name.split("/", 1)[1]: part for name, part in codes.items() if name.startswith(f"{LOGITS}/")}
        hidden = {key: layer.decode(codes[codes_of(key)]) for key, layer in measured.layers.items()}
        return TeacherSignal(self.manifest.logits, logits, measured.statics, hidden)

    def bytes_per_token(self) -> dict[str, float]:
        """Bytes on disk for every token of the committed shards, by array."""
        tokens = self.captured_tokens()
        return {name: size / tokens for name, size in self.bytes_by_array().items()}

    def bytes_by_array(self) -> dict[str, int]:
        """Bytes on disk of the committed shards, by array."""
        shards = self.committed()
        return {
            name: sum((self.directory / shard.file_of(name)).stat().st_size for shard in shards)
            for name in self.manifest.arrays()
        }

    def captured_tokens(self) -> int:
        """Tokens of the committed shards, over all views."""
        return sum(shard.stop - shard.start for shard in self.committed()) * self.manifest.windows.length

    def hidden_errors(self) -> dict[str, float]:
        """Relative squared error of every layer's codes, about its mean, as measured at capture."""
        sums: dict[str, NDArray[np.float64]] = {}
        for shard in self.committed():
            for key, squares in read_record(self.directory / shard.record)["hidden_error"].items():
                sums[key] = sums.get(key, np.zeros(2)) + np.array(squares)
        return {key: float(residual / max(total, 1e-30)) for key, (residual, total) in sums.items()}

    def kept_mass(self) -> dict[float, float]:
        """Mean mass of the kept tokens at each temperature over the committed shards; 1 where draws estimate all."""
        logits = self.manifest.logits
        sums, count = np.zeros(len(logits.temperatures)), 0
        names = logits.tail_arrays or tuple(logits.arrays(self.manifest.vocabulary_size))
        read = {name: self._arrays[f"{LOGITS}/{name}"] for name in names}
        for shard in self.committed():
            arrays = {
                name: torch.from_numpy(np.asarray(array[shard.view, shard.start : shard.stop]))
                for name, array in read.items()
            }
            log_tails = logits.log_tails(arrays, self.measured.statics).double().flatten(0, -2).numpy()
            sums += -np.expm1(log_tails).sum(axis=0)
            count += len(log_tails)
        return dict(zip(logits.temperatures, (sums / count).tolist(), strict=True))

    def committed(self) -> list[Shard]:
        """The shards that were captured."""
        records = names_in((self.directory / STORE_RECORD).parent)
        return [shard for shard in self.manifest.shards() if Path(shard.record).name in records]

    def captured_slots(self, view: int = 0) -> NDArray[np.int64]:
        """The slots of a view that were captured, ascending: a uniform sample of the corpus, [n]."""
        return np.array([slot for s in self.committed() if s.view == view for slot in range(s.start, s.stop)], np.int64)

    def _existing(self, view: int, slots: Slots) -> NDArray[np.int64]:
        """Slots as an array, if the cache has them.

        Raises:
            UserError: naming the first that it has not.
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

    def _load(self, view: int, needed: NDArray[np.int64]) -> None:
        """Read those of the chunks, in ascending order, that are not at hand yet; neighbours at once."""
        missing = np.array([chunk for chunk in needed if (view, int(chunk)) not in self._chunks], np.int64)
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else ():
            start = int(run[0]) * self._chunk_windows
            stop = min((int(run[-1]) + 1) * self._chunk_windows, self.manifest.num_windows(view))
            shards = list(self.manifest.shards_over(view, start, stop))
            for shard in shards:
                self._check(shard)
            read = {name: np.asarray(array[view, start:stop]) for name, array in self._arrays.items()}
            for shard in shards:
                # Zarr reads a file that is gone as zeros.
                self._require_unchanged(shard)
            for number, chunk in enumerate(run):
                rows = slice(number * self._chunk_windows, (number + 1) * self._chunk_windows)
                self._chunks[view, int(chunk)] = {name: values[rows] for name, values in read.items()}

    def _check(self, shard: Shard) -> None:
        """Compare a shard's checksums when it is first read, and again if its files are others than before."""
        state = self._state_of(shard)
        if self._checked.get(shard) == state:
            return
        if Path(shard.record).name not in names_in((self.directory / STORE_RECORD).parent):
            raise UserError(
                f"teacher cache {self.directory} lacks the slots {shard.start:,} to {shard.stop - 1:,} of view "
                f"{shard.view}, which were not captured ({shard.record} is missing); read slots that were, or capture "
                "these with `palenka cache run`"
            )
        if damage := damage_of_shard(self.directory, shard):
            raise UserError(
                f"teacher cache {self.directory} is damaged: {damage}; `palenka cache run` captures it anew"
            )
        self._checked[shard] = state

    def _require_unchanged(self, shard: Shard) -> None:
        if self._checked[shard] != self._state_of(shard):
            raise UserError(
                f"teacher cache {self.directory} changed while shard {shard.number} of view {shard.view} was read; "
                "leave it alone, and run the same command again"
            )

    def _state_of(self, shard: Shard) -> tuple[object, ...]:
        """What tells a shard's files from others of the same name."""
        return tuple(state_of(self.directory / shard.file_of(name)) for name in self._arrays)
