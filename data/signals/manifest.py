"""The manifest of a teacher cache, and the layout of its windows in shards.

The manifest holds everything that must match for the cache to be of use, and no path and no date, so that the
same capture gives the same bytes anywhere.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numcodecs
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from palenka.data.signals.encoding import ArrayType
from palenka.data.signals.encodings import AnyLogitEncoding
from palenka.data.signals.hidden import AnyHiddenEncoding, HiddenLayers
from palenka.data.windows import BLOCK_WINDOWS, WindowRule
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.settings import Precision, Settings

if TYPE_CHECKING:
    from palenka.data.corpus import Corpus

COMPRESSOR: Literal["zstd"] = "zstd"
COMPRESSION_LEVEL = 6
"""Of Blosc; higher levels take several times as long for a few percent."""
_SHUFFLES = {
    "noshuffle": numcodecs.Blosc.NOSHUFFLE,
    "shuffle": numcodecs.Blosc.SHUFFLE,
    "bitshuffle": numcodecs.Blosc.BITSHUFFLE,
}
"""Blosc's numbers for Zarr's names."""
_SMALLEST_BLOCK, _LARGEST_BLOCK = 2**12, 2**20
_COLUMNS_BLOCK = 2**14
"""Maximum bytes of whole columns in a block: zstd compresses better up to this size, and blocks of a single column
decompress at two thirds of the speed."""
LOGITS = "logits"
"""The folder of a cache with the arrays of its logit encoding."""
LARGEST_SHARD_BYTES = 64 * 2**20
LARGEST_SHARD_WINDOWS = 4 * BLOCK_WINDOWS


class TeacherIdentity(Settings):
    """The identity of a teacher."""

    weights: str
    """SHA-256 over all tensors of the model."""
    config: dict[str, Any]
    """Its Hugging Face configuration."""
    precision: Precision
    """The type that its forward pass computes in."""
    source: str | None = None
    """Where on the Hugging Face Hub it came from, as ``org/name@COMMIT``; not compared."""

    def compared(self) -> dict[str, object]:
        """The fields that must be equal for two teachers to be the same."""
        return {name: value for name, value in self.as_plain().items() if name != "source"}


class CacheManifest(Settings):
    """Everything that must match for a cache to be of use; it holds no path and no date."""

    format_version: Literal[5] = 5
    corpus: str
    """Fingerprint of the corpus store."""
    tokenizer: str
    """SHA-256 of the tokenizer."""
    num_tokens: int
    """Tokens in the corpus store."""
    vocabulary_size: int
    windows: WindowRule
    teachers: dict[str, TeacherIdentity]
    """Teachers by name; several form an ensemble, whose distribution is the geometric mean of theirs."""
    logits: AnyLogitEncoding
    hidden: AnyHiddenEncoding | None = None
    hidden_layers: dict[str, HiddenLayers] = Field(default={})
    """Layers kept of each teacher's hidden states, by its name; empty unless hidden states are kept."""
    windows_per_shard: int = Field(ge=1)
    """Slots that are written, committed and, if damaged, captured again together."""

    def compared(self) -> dict[str, object]:
        """The fields that must be equal for two caches to be interchangeable."""
        return self.as_plain() | {"teachers": {name: teacher.compared() for name, teacher in self.teachers.items()}}

    def hidden_keys(self) -> tuple[str, ...]:
        """The names of the layers kept, in the order of teachers and layers."""
        return tuple(hidden_key(model, layer) for model, kept in self.hidden_layers.items() for layer in kept.layers)

    def keys_to_decode(self, keys: Collection[str]) -> tuple[str, ...]:
        """All layers that are read to decode some of them, in order.

        Raises:
            UserError: if a layer is not kept; lists those that are.
        """
        order = self.hidden_keys()
        if unknown := [key for key in keys if key not in order]:
            kept = f"choose from {', '.join(order)}" if order else "it has none; capture them"
            raise UserError(f"hidden states {unknown[0]} are not in the cache; {kept}")
        if self.hidden is None or not self.hidden.needs_before:
            return tuple(key for key in order if key in keys)
        # A later key of a model replaces an earlier one: the last place of each model.
        last = {model_and_layer(key)[0]: place for place, key in enumerate(order) if key in keys}
        return tuple(key for place, key in enumerate(order) if place <= last.get(model_and_layer(key)[0], -1))

    def arrays(self) -> dict[str, "StoredArray"]:
        """The arrays of the cache by their path in it."""
        logits = self.logits.arrays(self.vocabulary_size)
        arrays = {f"{LOGITS}/{name}": StoredArray(self.windows.length, each) for name, each in logits.items()}
        if self.hidden:
            for model, kept in self.hidden_layers.items():
                for layer in kept.layers:
                    row = self.hidden.array(kept.width, layer)
                    arrays[codes_of(hidden_key(model, layer))] = StoredArray(self.hidden.num_positions(), row)
        return arrays

    def require_text(self, subject: str, corpus: "Corpus", rule: WindowRule) -> None:
        """Refuse a cache whose text differs from a corpus, or whose windows differ, or which has fewer views.

        Args:
            subject: the cache, as the sentence's subject.
            corpus: what it is read beside.
            rule: how that is cut into windows.

        Raises:
            UserError: with the first difference, or both numbers of views.
        """
        asked = (corpus.tokenizer_hash, corpus.fingerprint, rule.as_plain() | {"views": None})
        found = (self.tokenizer, self.corpus, self.windows.as_plain() | {"views": None})
        names = ("tokenizer", "corpus", "windows")
        refuse_difference(
            subject,
            dict(zip(names, asked, strict=True)),
            dict(zip(names, found, strict=True)),
            f"read the corpus and windows that were captured, or capture {corpus.directory}",
        )
        if rule.views > self.windows.views:
            raise UserError(
                f"{subject} holds {self.windows.views} view(s), but windows.views is {rule.views}; capture as many, or "
                "read fewer"
            )

    def num_windows(self, view: int) -> int:
        """Windows of a view."""
        return self.windows.count(self.num_tokens, view)

    def shards(self, fraction: float = 1.0) -> Iterator["Shard"]:
        """The shards of all views that hold the first `fraction` of each view's slots."""
        for view in range(self.windows.views):
            yield from self.shards_over(view, 0, num_used(self.num_windows(view), fraction))

    def shards_over(self, view: int, start: int, stop: int) -> Iterator["Shard"]:
        """The shards of a view that hold its slots [start, stop)."""
        size = self.windows_per_shard
        for number in range(start // size, -(-stop // size)):
            yield Shard(view, number, number * size, min((number + 1) * size, self.num_windows(view)))


@dataclass(frozen=True)
class StoredArray:
    """An array of a cache: its rows per window, and the type of a row."""

    rows: int
    row: ArrayType

    @property
    def bytes_per_window(self) -> int:
        """Bytes of a window before compression."""
        return self.rows * self.row.width * np.dtype(self.row.dtype).itemsize

    def empty(self, windows: int) -> NDArray[Any]:
        """A buffer for some windows, [windows, rows, width], with the memory layout of a chunk."""
        width, dtype = self.row.width, np.dtype(self.row.dtype).newbyteorder("<")
        if self.row.by_column:
            return np.moveaxis(np.empty((width, windows, self.rows), dtype), 0, -1)
        return np.empty((windows, self.rows, width), dtype)


@dataclass(frozen=True)
class Shard:
    """Consecutive slots of a view that are written together."""

    view: int
    number: int
    start: int
    stop: int

    @property
    def record(self) -> str:
        """Path of the commit record in the cache."""
        return f"commits/{self.view}-{self.number}.json"

    def file_of(self, array: str) -> str:
        """Path of this shard's file of an array in the cache."""
        return f"{array}/c/{self.view}/{self.number}/0/0"


def compressed_bytes(rows: Mapping[str, ArrayType], stored: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Bytes of arrays, each compressed as one chunk of a cache, by name.

    Args:
        rows: the row type of each array.
        stored: the arrays.
    """
    return {
        name: len(blosc_of(row, stored[name].size).encode(np.ascontiguousarray(row.as_stored(stored[name]))))
        for name, row in rows.items()
    }


def blosc_of(row: ArrayType, size: int) -> numcodecs.Blosc:
    """The compressor of a chunk of `size` numbers, the same that an array's metadata declare."""
    return numcodecs.Blosc(COMPRESSOR, COMPRESSION_LEVEL, _SHUFFLES[row.shuffle], blosc_block(row, size))


def blosc_block(row: ArrayType, size: int) -> int:
    """Blosc's block size in bytes for a chunk of `size` numbers: some columns, or the whole chunk."""
    column = size // row.width * np.dtype(row.dtype).itemsize
    columns = max(1, _COLUMNS_BLOCK // max(1, column)) * column
    return max(_SMALLEST_BLOCK, columns) if row.by_column else _LARGEST_BLOCK


def hidden_key(model: str, layer: int) -> str:
    """The name of a model's layer among the hidden states of a signal."""
    return f"{model}/{layer}"


def model_and_layer(key: str) -> tuple[str, int]:
    """What `hidden_key` made the name of a hidden state from."""
    model, _, layer = key.rpartition("/")
    return model, int(layer)


def codes_of(key: str) -> str:
    """The name of the array with the codes of a layer."""
    return f"hidden/{key}/codes"


def windows_per_shard(bytes_per_window: int) -> int:
    """The number of windows that fit in `LARGEST_SHARD_BYTES`: a power of two, at most `LARGEST_SHARD_WINDOWS`."""
    fit = LARGEST_SHARD_BYTES // bytes_per_window
    return min(LARGEST_SHARD_WINDOWS, 1 << max(0, fit.bit_length() - 1))


def num_used(num_windows: int, fraction: float) -> int:
    """The number of slots in the first `fraction` of a view, a uniform sample of it."""
    return min(num_windows, max(1, round(num_windows * fraction)))
