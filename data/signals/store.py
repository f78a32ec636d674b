"""Shared by the writer and reader of a teacher cache: store, manifest, measured statistics, and checks of shards."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from palenka.data.signals.hidden import Layer
from palenka.data.signals.layers import LayerStacks
from palenka.data.signals.manifest import LOGITS, CacheManifest, Shard
from palenka.data.windows import CHUNK_WINDOWS
from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers_of
from palenka.ground.lock import sole_writer
from palenka.ground.records import damage_of, read_record, read_sealed, write_sealed
from palenka.ground.settings import Settings, read_as

Arrays = Mapping[str, NDArray[np.generic]]

STORE_RECORD = "commits/store.json"
FIDELITY_RECORD = "commits/fidelity.json"
_ASKED_RECORD = "commits/asked.json"
STATICS = f"{LOGITS}/statics"


@dataclass(frozen=True)
class Measured:
    """The statistics measured of a teacher before its capture.

    Attributes:
        statics: of the logit encoding, by name.
        layers: the coordinates of each layer kept, by "model/layer".
    """

    statics: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)

    @cached_property
    def stacks(self) -> LayerStacks:
        """The layers as they are worked on, many at once."""
        return LayerStacks.of(self.layers)

    def to(self, device: torch.device) -> "Measured":
        """The same on another device."""
        statics = {name: value.to(device) for name, value in self.statics.items()}
        return Measured(statics, {key: layer.to(device) for key, layer in self.layers.items()})


class Fidelity(Settings):
    """The error of a cache against its teacher: means over the tokens of some windows that were computed again.

    Each is by temperature, in nats per token except the missing mass; see `palenka.cache_teachers.verify`.
    """

    windows: int
    truncation: dict[str, float] = Field(default={})
    """The error of the kept tokens alone: the divergence of all others from a flat tail."""
    missing: dict[str, float] = Field(default={})
    """The mass of the tokens that are not kept."""
    low_rank: dict[str, float] = Field(default={})
    """The remaining truncation error if the others are stored by low rank."""
    rounding: dict[str, float] = Field(default={})
    """The additional error of rounding."""


def read_fidelity(directory: Path) -> Fidelity | None:
    """The last measurement; None if there is none for this store.

    Raises:
        UserError: if the record is damaged.
    """
    path = directory / FIDELITY_RECORD
    if not path.is_file():
        return None
    record = read_sealed(path, "verify the cache again")
    is_of_this = record.pop("store", None) == _checksum_of_store(directory)
    return read_as(Fidelity, record, path) if is_of_this else None


def write_fidelity(directory: Path, fidelity: Fidelity) -> None:
    """Write the measurement of a cache beside it, tied to its store."""
    path = directory / FIDELITY_RECORD
    with sole_writer(path, wait=True):
        write_sealed(path, {**fidelity.as_plain(), "store": _checksum_of_store(directory)})


def read_asked(directory: Path) -> float:
    """The largest fraction of each view's windows that captures into this cache were started with.

    Raises:
        UserError: if the record is damaged.
    """
    path = directory / _ASKED_RECORD
    return float(read_sealed(path, "delete this file and capture again")["fraction"]) if path.is_file() else 0.0


def write_asked(directory: Path, fraction: float) -> None:
    """Record the fraction that a capture is started with, if it is the largest so far; only the sole writer may."""
    if fraction > read_asked(directory):
        remove_leftovers_of(directory / _ASKED_RECORD)
        write_sealed(directory / _ASKED_RECORD, {"fraction": fraction})


def _checksum_of_store(directory: Path) -> str:
    return str(read_record(directory / STORE_RECORD)["checksum"])


def read_manifest(directory: Path) -> CacheManifest:
    """The manifest of a cache, its metadata checked.

    Raises:
        UserError: if there is no cache, or its metadata is damaged or of another format version.
    """
    if not (directory / "zarr.json").is_file():
        raise UserError(f"{directory} is not a teacher cache: it has no zarr.json; make one with `palenka cache run`")
    if (directory / "tokens").is_dir() and not (directory / STORE_RECORD).exists():
        raise UserError(
            f"{directory} is a split of a corpus, not a teacher cache; capture one with `palenka cache run`, or give "
            "its directory"
        )
    if damage := damage_of(directory, STORE_RECORD):
        raise UserError(f"teacher cache {directory} is damaged: {damage}; delete it and capture it again")
    said = dict(zarr.open_group(directory, mode="r").attrs)
    version = CacheManifest.model_fields["format_version"].default
    if (found := said.get("format_version")) != version:
        raise UserError(
            f"teacher cache {directory}: format_version is {found}, but this version of Palenka reads {version}; "
            "capture it again"
        )
    return read_as(CacheManifest, said, directory)


def read_measured(directory: Path, group: zarr.Group, manifest: CacheManifest, keys: Iterable[str]) -> Measured:
    """The measured statistics of a cache, checked.

    Raises:
        UserError: if they were changed since they were recorded.
    """
    try:
        measured = _measured_in(group, manifest, keys)
        damage = damage_of(directory, STORE_RECORD)
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:  # by codecs, Zarr, or a missing array
        damage = str(error)
    if damage:
        raise UserError(f"teacher cache {directory} was changed while it was read ({damage}); leave it alone")
    return measured


def _measured_in(group: zarr.Group, manifest: CacheManifest, keys: Iterable[str]) -> Measured:
    def read(folder: str, without: Collection[str] = ()) -> dict[str, Tensor]:
        arrays = group.get(folder)
        names = sorted(set(arrays.array_keys()) - set(without)) if isinstance(arrays, zarr.Group) else []
        return {name: torch.from_numpy(np.asarray(array_at(group, f"{folder}/{name}")[...])) for name in names}

    layers = {key: manifest.hidden.layer(read(f"hidden/{key}", {"codes"})) for key in keys} if manifest.hidden else {}
    return Measured(read(STATICS), layers)


def damage_of_shard(
    directory: Path, shard: Shard, contents: bool = True, arrays: Iterable[str] | None = None
) -> str | None:
    """The damage to a shard of a cache, or to some of its arrays, in a few words; None if it is undamaged.

    Its record must belong to this shard and this cache: a copy from elsewhere counts as damage.
    """
    files = None if arrays is None else {shard.file_of(name) for name in arrays}
    return damage_of(directory, shard.record, contents, files, **facts_of(directory, shard))


def facts_of(directory: Path, shard: Shard) -> dict[str, object]:
    """The facts that tie a commit record to its shard and its cache."""
    return {"shard": [shard.view, shard.number], "store": _checksum_of_store(directory)}


def chunk_windows(manifest: CacheManifest) -> int:
    """Windows in a chunk: a chunk never spans two shards, since the second may not be captured."""
    return min(CHUNK_WINDOWS, manifest.windows_per_shard)


def array_at(group: zarr.Group, name: str) -> zarr.Array:  # type: ignore[type-arg]
    """The array at a path of a store."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array
