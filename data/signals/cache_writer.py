"""Writing a teacher cache: an empty one first, then its shards, each complete or absent."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec

from palenka.data.signals.chunks import ArrayChunks
from palenka.data.signals.manifest import (
    COMPRESSION_LEVEL,
    COMPRESSOR,
    CacheManifest,
    Shard,
    StoredArray,
    blosc_block,
)
from palenka.data.signals.store import (
    STATICS,
    STORE_RECORD,
    Arrays,
    Measured,
    chunk_windows,
    facts_of,
    read_manifest,
    read_measured,
)
from palenka.ground.errors import refuse_difference
from palenka.ground.files import remove, whole_directory
from palenka.ground.records import commit

HiddenError = Mapping[str, tuple[float, float]]
"""For every layer the residual and the total sum of squares of a part of its states (`Layer.squared_error`)."""


class CacheWriter:
    """Writes the shards of a cache, each complete or absent.

    Many processes may write one cache, each its own shards. One of them calls `create_cache` first.
    """

    def __init__(self, directory: Path, manifest: CacheManifest) -> None:
        self.directory = directory
        self.manifest = manifest
        group = zarr.open_group(directory, mode="r", zarr_format=3)
        self.measured = read_measured(directory, group, manifest, manifest.hidden_keys())

    def room_for(self, shard: Shard) -> dict[str, NDArray[np.generic]]:
        """Buffers for one shard: an array [windows, …] for every array of the cache."""
        windows = shard.stop - shard.start
        return {
            name: np.zeros((windows, array.rows, array.row.width), array.row.dtype)
            for name, array in self.manifest.arrays().items()
        }

    def write(self, shard: Shard, arrays: Arrays, hidden_error: HiddenError) -> None:
        """Write one shard's arrays, each [shard.stop − shard.start, …], and then its commit record."""
        stored = [ArrayChunks.of(self.directory, self.manifest, name) for name in self.manifest.arrays()]
        compressed = [array.compress(arrays[array.name]) for array in stored]  # of all arrays at once
        for array, chunks in zip(stored, compressed, strict=True):
            remove(self.directory / shard.file_of(array.name))
            array.write(shard, [chunk.result() for chunk in chunks])
        files = [shard.file_of(name) for name in self.manifest.arrays()]
        remove(self.directory / shard.record)
        facts = facts_of(self.directory, shard)
        commit(self.directory, shard.record, files, hidden_error=dict(hidden_error), **facts)


def is_begun(directory: Path, manifest: CacheManifest) -> bool:
    """Whether a cache with this manifest was begun at `directory`.

    Raises:
        UserError: if something else is there, or a cache with another corpus, teacher, window rule or encoding.
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


def create_cache(directory: Path, manifest: CacheManifest, measured: Measured) -> None:
    """Create an empty cache at `directory`, which must not exist; only its sole writer may call this.

    Args:
        directory: where the cache will be; it appears there complete.
        manifest: its description.
        measured: of the teacher, for every layer in `manifest.hidden_keys()`.
    """
    with whole_directory(directory) as aside:
        _write_store(aside, manifest, measured)


def _write_store(directory: Path, manifest: CacheManifest, measured: Measured) -> None:
    """Write the metadata and the measured statistics, then their commit record."""
    group = zarr.open_group(directory, mode="w", zarr_format=3)
    group.attrs.update(manifest.model_dump(mode="json"))
    num_windows = max(manifest.num_windows(view) for view in range(manifest.windows.views))
    for name, array in manifest.arrays().items():
        shape = (manifest.windows.views, num_windows, array.rows, array.row.width)
        group.create_array(
            name,
            shape=shape,
            dtype=array.row.dtype,
            chunks=(1, chunk_windows(manifest), *shape[2:]),
            shards=(1, manifest.windows_per_shard, *shape[2:]),
            filters=[TransposeCodec(order=(3, 0, 1, 2))] if array.row.by_column else None,
            compressors=[_compressor(array, chunk_windows(manifest)), Crc32cCodec()],
        )
    for folder, values in [
        (STATICS, measured.statics),
        *((f"hidden/{key}", layer.statics()) for key, layer in measured.layers.items()),
    ]:
        for name, value in values.items():
            group.create_array(f"{folder}/{name}", data=value.numpy())
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    commit(directory, STORE_RECORD, files)


def _compressor(array: StoredArray, chunk_windows: int) -> BloscCodec:
    """Zstandard over a whole chunk, or over each of its columns."""
    block = blosc_block(array.row, chunk_windows * array.rows * array.row.width)
    return BloscCodec(cname=COMPRESSOR, clevel=COMPRESSION_LEVEL, shuffle=array.row.shuffle, blocksize=block)
