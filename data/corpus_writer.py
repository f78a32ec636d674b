"""Writes a corpus store (`corpus.py`), split by split, and seals it once it is complete."""

import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from palenka.data.corpus import (
    FILES_RECORD,
    FORMAT_VERSION,
    SPLITS,
    Counts,
    Repeated,
    Source,
    StoreRecord,
    blocks_of,
    chunk_file,
    fingerprint_of,
    token_dtype,
)
from palenka.ground.errors import UserError
from palenka.ground.records import commit

if TYPE_CHECKING:
    import zarr


@dataclass
class CorpusWriter:
    """Writes one split: tokens go to disk as they come, and the store cannot be opened before `finish`.

    A context manager that always closes the file.

    Args:
        directory: of the corpus being made.
        split: such as ``"train"``.
        tokenizer_hash: of the tokenizer.
        vocabulary_size: decides the type of the tokens.
    """

    directory: Path
    split: str
    tokenizer_hash: str
    vocabulary_size: int
    num_tokens: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._dtype = token_dtype(self.vocabulary_size)
        self._spool = self.directory / f"{self.split}.tokens"
        self._file = self._spool.open("wb")
        self._starts, self._words = array.array("q"), array.array("q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def start_document(self) -> None:
        """The next token appended is a document's first."""
        self._starts.append(self.num_tokens)

    def add_words(self, words: Iterable[int]) -> None:
        """Add the numbers of words of the next documents, in their order."""
        self._words.extend(words)

    def append(self, tokens: NDArray[np.integer]) -> None:
        """Add tokens [n] at the end of the stream."""
        self._file.write(np.ascontiguousarray(tokens, dtype=self._dtype).data)
        self.num_tokens += len(tokens)

    def finish(self, sources: tuple[Source, ...], repeated: Repeated | None = None) -> None:
        """Turn what was appended into ``<split>.zarr``.

        Raises:
            UserError: if nothing was appended.
        """
        self._file.close()
        if self.num_tokens == 0:
            raise UserError(
                f"the {self.split} split has no text: its sources are empty, or dev_fraction is too small for them; "
                "add text, remove them, or raise it"
            )
        starts, words = (np.array(of_documents, dtype="<i8") for of_documents in (self._starts, self._words))
        assert len(words) == len(starts), "the words of some documents are not known"
        record = StoreRecord(
            format_version=FORMAT_VERSION,
            split=self.split,
            tokenizer=self.tokenizer_hash,
            vocabulary_size=self.vocabulary_size,
            fingerprint=fingerprint_of(blocks_of(self._spool), self._dtype, starts, self.tokenizer_hash),
            counts=sum((source.counts for source in sources), Counts()),
            repeated=repeated or Repeated(),
            sources=sources,
        )
        import zarr

        store = self.directory / f"{self.split}.zarr"
        group = zarr.create_group(store, attributes=record.as_plain())
        _create_array(group, "tokens", (self.num_tokens,), self._dtype)
        _create_array(group, "document_starts", starts.shape, starts.dtype)[:] = starts
        _create_array(group, "document_words", words.shape, words.dtype)[:] = words
        chunk_file(store).parent.mkdir(parents=True)
        self._spool.rename(chunk_file(store))


def seal(directory: Path) -> None:
    """Record the checksums of a complete corpus; from here on it can be opened."""
    files = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    tokens = {chunk_file(Path(f"{split}.zarr")) for split in SPLITS}
    commit(directory, FILES_RECORD, sorted(file.as_posix() for file in files if file not in tokens))


def _create_array(
    group: "zarr.Group", name: str, shape: tuple[int, ...], dtype: np.dtype[np.integer]
) -> "zarr.Array[Any]":
    """Create an array of one chunk without codecs: its file has the array's little-endian bytes."""
    from zarr.codecs import BytesCodec

    return group.create_array(
        name,
        shape=shape,
        chunks=shape,
        dtype=dtype,
        serializer=BytesCodec(endian="little"),
        filters=None,
        compressors=None,
        config={"write_empty_chunks": True},
    )
