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
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec
from zarr.core.array_spec import ArrayConfigParams

from palenka.data.signals.hidden import Layer
from palenka.data.signals.manifest import (
    COMPRESSION_LEVEL,
    COMPRESSOR,
    LOGITS,
    CacheManifest,
    Shard,
    StoredArray,
    blosc_block,
    codes_of,
)
from palenka.data.signals.signal import TeacherSignal
from palenka.data.windows import BLOCK_WINDOWS, CHUNK_WINDOWS
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import names_in, remove, state_of, whole_directory
from palenka.ground.records import commit, damage_of, read_record

Arrays = Mapping[str, NDArray[np.generic]]

HiddenError = Mapping[str, tuple[float, float]]
"""For every layer the residual and the total sum of squares (`Layer.squared_error`)."""

_STORE_RECORD = "commits/store.json"
_STATICS = f"{LOGITS}/statics"


class CacheWriter:
    """Writes the shards of a cache, each of them whole or not at all.

    Many processes may write one cache, each its own shards; `create_cache` comes first, in one of them.
    """

    def __init__(self, directory: Path, manifest: CacheManifest) -> None:
        self.directory = directory
        self.manifest = manifest
        group = zarr.open_group(directory, mode="r+", zarr_format=3)
        # Zarr keeps no such setting on disk, and would write no file for a shard of zeros.
        config: ArrayConfigParams = {"write_empty_chunks": True}
        self._arrays = {name: _array(group, name).with_config(config) for name in manifest.arrays()}
        self.measured = _read_measured(directory, group, manifest, manifest.hidden_keys())

    def empty(self, shard: Shard) -> dict[str, NDArray[np.generic]]:
        """Room for one shard: an array [windows, …] for every array of the cache."""
        windows = shard.stop - shard.start
        return {name: np.zeros((windows, *array.shape[2:]), dtype=array.dtype) for name, array in self._arrays.items()}

    def write(self, shard: Shard, arrays: Arrays, hidden_error: HiddenError) -> None:
        """Write one shard's arrays, each [shard.stop − shard.start, …], and then its commit record."""
        for name, array in self._arrays.items():
            # The last shard of a view ends before its array does: Zarr would read what is there, damaged or not.
            remove(self.directory / shard.file_of(name))
            array[shard.view, shard.start : shard.stop] = arrays[name]
        files = [shard.file_of(name) for name in self._arrays]
        remove(self.directory / shard.record)
        facts = _facts_of(self.directory, shard)
        commit(self.directory, shard.record, files, hidden_error=dict(hidden_error), **facts)


def damage_of_shard(directory: Path, shard: Shard, contents: bool = True) -> str | None:
    """What is wrong with a shard of a cache, in a few words; None if nothing is.

    Its record must be of this shard and of this cache: a copy from elsewhere is damage.
    """
    return damage_of(directory, shard.record, contents, **_facts_of(directory, shard))


def _facts_of(directory: Path, shard: Shard) -> dict[str, object]:
    """What ties a commit record to its shard and to its cache."""
    return {"shard": [shard.view, shard.number], "store": read_record(directory / _STORE_RECORD)["checksum"]}


def is_begun(directory: Path, manifest: CacheManifest) -> bool:
    """Whether a cache with this manifest was begun at `directory`.

    Raises:
        UserError: if something else is there, or a cache of another corpus, teacher, window rule or encoding.
    """
    if not directory.exists() or not any(directory.iterdir()):
        return False
    found, asked = read_manifest(directory).compared(), manifest.compared()
    if found["teachers"] != asked["teachers"]:
        remedy = "the teacher is another one, or was changed since: restore it, or choose another output"
        ours, theirs = ({"teachers": each["teachers"]} for each in (asked, found))
        refuse_difference(f"cache {directory}", ours, theirs, remedy)
    refuse_difference(f"cache {directory}", asked, found, "delete it or choose another output")
    return True


@dataclass(frozen=True)
class Measured:
    """What was measured of a teacher before its capture.

    Attributes:
        statics: of the logit encoding, by name.
        layers: the coordinates of each layer kept, by "model/layer".
    """

    statics: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)

    def to(self, device: torch.device) -> "Measured":
        """The same on another device."""
        statics = {name: value.to(device) for name, value in self.statics.items()}
        return Measured(statics, {key: layer.to(device) for key, layer in self.layers.items()})


def create_cache(directory: Path, manifest: CacheManifest, measured: Measured) -> None:
    """Make an empty cache at `directory`, where nothing is; its sole writer alone may.

    Args:
        directory: where it will be; it appears there whole.
        manifest: what it says of itself.
        measured: of the teacher, for every layer in `manifest.hidden_keys()`.
    """
    with whole_directory(directory) as aside:
        _write_store(aside, manifest, measured)


def _write_store(directory: Path, manifest: CacheManifest, measured: Measured) -> None:
    """The metadata and what was measured, and then their commit record."""
    group = zarr.open_group(directory, mode="w", zarr_format=3)
    group.attrs.update(manifest.model_dump(mode="json"))
    num_windows = max(manifest.num_windows(view) for view in range(manifest.windows.views))
    for name, array in manifest.arrays().items():
        shape = (manifest.windows.views, num_windows, array.rows, array.row.width)
        group.create_array(
            name,
            shape=shape,
            dtype=array.row.dtype,
            chunks=(1, _chunk_windows(manifest), *shape[2:]),
            shards=(1, manifest.windows_per_shard, *shape[2:]),
            filters=[TransposeCodec(order=(3, 0, 1, 2))] if array.row.by_column else None,
            compressors=[_compressor(array, _chunk_windows(manifest)), Crc32cCodec()],
        )
    for folder, values in [
        (_STATICS, measured.statics),
        *((f"hidden/{key}", layer.statics()) for key, layer in measured.layers.items()),
    ]:
        for name, value in values.items():
            group.create_array(f"{folder}/{name}", data=value.numpy())
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    commit(directory, _STORE_RECORD, files)


def read_manifest(directory: Path) -> CacheManifest:
    """The manifest of a cache, its metadata checked.

    Raises:
        UserError: if there is no cache, or its metadata is damaged or of another format version.
    """
    if not (directory / "zarr.json").is_file():
        raise UserError(f"{directory} is not a teacher cache: it has no zarr.json; make one with `palenka cache run`")
    if (directory / "tokens").is_dir() and not (directory / _STORE_RECORD).exists():
        raise UserError(
            f"{directory} is a split of a corpus, not a teacher cache; capture one with `palenka cache run`, or give "
            "its directory"
        )
    if damage := damage_of(directory, _STORE_RECORD):
        raise UserError(f"teacher cache {directory} is damaged: {damage}; delete it and capture it again")
    try:
        return CacheManifest.model_validate(dict(zarr.open_group(directory, mode="r").attrs))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"teacher cache {directory} has a manifest of another format: {field} is {first['input']!r}; "
            "capture it again"
        ) from None


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
        self._arrays = {name: _array(group, name) for name in [*names, *map(codes_of, hidden)]}
        self.measured = _read_measured(directory, group, self.manifest, hidden)
        self._chunk_windows = _chunk_windows(self.manifest)
        self._checked: dict[Shard, tuple[object, ...]] = {}
        self._chunks: OrderedDict[tuple[int, int], dict[str, NDArray[np.generic]]] = OrderedDict()
        self._measured_on: dict[torch.device, Measured] = {}

    def require_shards(self, shards: Iterable[Shard]) -> None:
        """Refuse to go on unless all these shards are there; sizes are compared, checksums when they are read.

        Raises:
            UserError: naming how many shards are missing and what is wrong with the first.
        """
        damages = [damage for shard in shards if (damage := damage_of_shard(self.directory, shard, contents=False))]
        if damages:
            raise UserError(
                f"teacher cache {self.directory} lacks {len(damages)} of the shards needed: {damages[0]}; "
                "run `palenka cache run` again for all of the fraction that is read, it captures just these"
            )

    def read(self, view: int, slots: NDArray[np.int64]) -> TeacherSignal:
        """The signal for the windows at some slots of a view, in their order, on the CPU.

        Raises:
            UserError: if a shard is missing or damaged; it is named.
        """
        return self.decode({name: torch.from_numpy(part) for name, part in self.codes(view, slots).items()})

    def codes(self, view: int, slots: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        """The arrays for the windows at some slots of a view, as they are stored.

        Raises:
            UserError: if a shard is missing or damaged; it is named.
        """
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
        records = names_in((self.directory / _STORE_RECORD).parent)
        return [shard for shard in self.manifest.shards() if Path(shard.record).name in records]

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


def _chunk_windows(manifest: CacheManifest) -> int:
    """Windows of a chunk: none is in two shards, of which the second may not be captured."""
    return min(CHUNK_WINDOWS, manifest.windows_per_shard)


def _read_measured(directory: Path, group: zarr.Group, manifest: CacheManifest, keys: Iterable[str]) -> Measured:
    """What was measured, as it was recorded.

    Raises:
        UserError: if it was changed meanwhile.
    """
    try:
        measured = _measured_in(group, manifest, keys)
        damage = damage_of(directory, _STORE_RECORD)
    except (OSError, RuntimeError, ValueError, KeyError) as error:  # as codecs and Zarr have it
        damage = str(error)
    if damage:
        raise UserError(f"teacher cache {directory} was changed while it was read ({damage}); leave it alone")
    return measured


def _measured_in(group: zarr.Group, manifest: CacheManifest, keys: Iterable[str]) -> Measured:
    def read(folder: str, without: Collection[str] = ()) -> dict[str, Tensor]:
        arrays = group.get(folder)
        names = sorted(set(arrays.array_keys()) - set(without)) if isinstance(arrays, zarr.Group) else []
        return {name: torch.from_numpy(np.asarray(_array(group, f"{folder}/{name}")[:])) for name in names}

    layers = {key: manifest.hidden.layer(read(f"hidden/{key}", {"codes"})) for key in keys} if manifest.hidden else {}
    return Measured(read(_STATICS), layers)


def _compressor(array: StoredArray, chunk_windows: int) -> BloscCodec:
    """Zstandard over a whole chunk, or over each of its columns."""
    block = blosc_block(array.row, chunk_windows * array.rows * array.row.width)
    return BloscCodec(cname=COMPRESSOR, clevel=COMPRESSION_LEVEL, shuffle=array.row.shuffle, blocksize=block)


def _array(group: zarr.Group, name: str) -> zarr.Array:  # type: ignore[type-arg]
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array
