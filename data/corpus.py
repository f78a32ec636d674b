"""The corpus store: the tokens of a split in one flat stream, with documents, sources and a fingerprint.

A prepared corpus is a directory::

    config.yaml      the settings that it was made with
    tokenizer/       the tokenizer, as a Hugging Face directory
    files.json       checksums of all files but the tokens, which have the fingerprint; written last
    train.zarr       one Zarr v3 group per split; dev.zarr chooses models, test.zarr reports them
        tokens           [N] uint16; uint32 for a vocabulary of 65,536 tokens or more
        document_starts  [D] int64, the position of each document's first token, ascending
        document_words   [D] int64, the words of each document

`tokens` is a single chunk without codecs, so the chunk's file is the array: the writer (`corpus_writer.py`) appends to
it without knowing N, every Zarr reader reads it, and `Corpus` maps it into memory. Memory does not depend on N on
either side.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from palenka.data.windows import WindowRule, gather
from palenka.ground.errors import UserError
from palenka.ground.files import size_of, state_of
from palenka.ground.records import damage_of, read_record
from palenka.ground.settings import Settings, path_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "dev", "test")
"""The splits of a corpus."""

FORMAT_VERSION = 3
"""Raised whenever the layout changes, or when cleaning or tokenising gives other tokens for the same text."""

CONFIG_FILE = "config.yaml"
TOKENIZER_FOLDER = "tokenizer"
FILES_RECORD = "files.json"
LARGEST_UINT16_VOCABULARY = 65_535
_BLOCK_BYTES = 1 << 20

TokenArray = NDArray[np.uint16] | NDArray[np.uint32]


class Counts(Settings):
    """Amounts of text; words and bytes are those of the cleaned text, so they do not depend on the tokenizer."""

    tokens: int = 0
    """All tokens, including those before and after documents."""

    documents: int = 0
    """Documents with any text."""

    words: int = 0
    """Runs of characters other than white space."""

    bytes: int = 0
    """UTF-8 bytes of the documents' text."""

    empty: int = 0
    """Documents without text, which are dropped."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            tokens=self.tokens + other.tokens,
            documents=self.documents + other.documents,
            words=self.words + other.words,
            bytes=self.bytes + other.bytes,
            empty=self.empty + other.empty,
        )


class Repeated(Settings):
    """Numbers of duplicate documents of a split; they are kept."""

    within: int = 0
    """Documents that already occurred in the split."""

    in_train: int = 0
    """Documents of another split that are also in the train split."""


class Source(Settings):
    """One file of raw text that went into a split."""

    path: str
    """Relative to the folder of the sources, with forward slashes."""

    sha256: str
    """Of the raw file."""

    cleaner: str
    """The cleaning of its text, as its reader names it."""

    counts: Counts
    """Amounts of text from the file."""


class StoreRecord(Settings):
    """The attributes of a split's Zarr group."""

    format_version: int
    split: str
    tokenizer: str
    vocabulary_size: int
    fingerprint: str
    counts: Counts
    repeated: Repeated
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Corpus:
    """One split of a prepared corpus, open for reading.

    Attributes:
        directory: of the prepared corpus.
        split: such as ``"train"``.
        tokens: [N] uint16 or uint32, read-only and mapped from the file: a slice costs nothing until it is used.
        document_starts: [D] int64, ascending, the first is 0.
        document_words: [D] int64, of each document.
        fingerprint: SHA-256 over the token type, `tokens`, `document_starts` and `tokenizer_hash`; two splits with
            the same fingerprint hold the same tokens of the same tokenizer.
        tokenizer_hash: of the tokenizer, the same for all tokenizers that map text to the same ids
            (`palenka.data.text.tokenizer.tokenizer_hash`).
        vocabulary_size: tokens that the tokenizer knows, its special tokens included.
        counts: tokens, documents, words, bytes and empty documents.
        repeated: numbers of duplicate documents.
        sources: the files that the split was made from, in order.
        state: of the tokens' file when it was checked, to notice changes.
    """

    directory: Path
    split: str
    tokens: TokenArray
    document_starts: NDArray[np.int64]
    document_words: NDArray[np.int64]
    fingerprint: str
    tokenizer_hash: str
    vocabulary_size: int
    counts: Counts
    repeated: Repeated
    sources: tuple[Source, ...]
    state: tuple[int, int, int] | None

    @classmethod
    def open(cls, directory: str | Path, split: str = "train") -> Self:
        """Open a split and compare its checksums: reads it once, about 1 s for 500 M tokens.

        Raises:
            UserError: if there is no such corpus or split, it has another format version, or a file was changed.
        """
        directory = path_of(directory)
        store = _require_store(directory, split)
        try:
            record, starts, words, shape, dtype = _read_group(store)
        except (ValidationError, ValueError, KeyError, TypeError, OSError) as error:
            raise _damaged(store, f"its records cannot be read ({type(error).__name__})") from error
        file = chunk_file(store)
        state = state_of(file)
        found = size_of(file) or 0
        if found != (expected := shape * dtype.itemsize):
            raise _damaged(store, f"tokens hold {found} bytes, but {expected} are expected")
        fingerprint = fingerprint_of(blocks_of(file), dtype, starts, record.tokenizer)
        if fingerprint != record.fingerprint:
            raise _damaged(store, f"its fingerprint is {fingerprint}, but {record.fingerprint} was recorded")
        require_files(directory)
        return cls(
            directory=directory,
            split=split,
            tokens=np.memmap(file, dtype=dtype, mode="r", shape=(shape,)),
            document_starts=starts,
            document_words=words,
            fingerprint=fingerprint,
            tokenizer_hash=record.tokenizer,
            vocabulary_size=record.vocabulary_size,
            counts=record.counts,
            repeated=record.repeated,
            sources=record.sources,
            state=state,
        )

    def gather(self, rule: WindowRule, view: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of some windows of a view, [len(indices), length].

        Raises:
            UserError: if the file of the tokens was changed since the corpus was opened.
        """
        self._require_unchanged()  # reading beyond the end of a truncated mapped file would kill the process
        windows = gather(self.tokens, rule, view, indices)
        self._require_unchanged()
        return windows

    def words_before(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """The words of the stream before each of some places in it, [n].

        A document's words are spread evenly over its tokens, special tokens included, and a window counts the share of
        its tokens. So whole documents count exactly, with any tokenizer.
        """
        before: NDArray[np.float64] = np.interp(places, *self._words_at_documents)
        return before

    @cached_property
    def _words_at_documents(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The document boundaries, and the words before each of them."""
        places = np.append(self.document_starts, len(self.tokens)).astype(np.int64)
        return places, np.concatenate([[0], np.cumsum(self.document_words, dtype=np.int64)])

    def _require_unchanged(self) -> None:
        store = self.directory / f"{self.split}.zarr"
        if state_of(chunk_file(store)) != self.state:
            raise UserError(
                f"corpus store {store} was changed while it was read; leave it alone, and run the same command again"
            )

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The corpus's tokenizer, as `transformers.AutoTokenizer` gives it."""
        from palenka.data.text.tokenizer import load_tokenizer

        return load_tokenizer(self.directory / TOKENIZER_FOLDER)


def token_dtype(vocabulary_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The smallest little-endian type that holds every token's id."""
    return np.dtype("<u2") if vocabulary_size <= LARGEST_UINT16_VOCABULARY else np.dtype("<u4")


def fingerprint_of(
    tokens: Iterator[bytes], dtype: np.dtype[np.generic], document_starts: NDArray[np.int64], tokenizer_hash: str
) -> str:
    """The identity of a split's content; `tokens` are their bytes in order, cut anywhere."""
    digest = hashlib.sha256(dtype.str.encode())
    for block in tokens:
        digest.update(block)
    digest.update(np.ascontiguousarray(document_starts, dtype="<i8").data)
    digest.update(tokenizer_hash.encode())
    return digest.hexdigest()


def splits_of(directory: Path) -> list[str]:
    """The splits that a prepared corpus holds."""
    return [split for split in SPLITS if (directory / f"{split}.zarr").is_dir()]


def _require_store(directory: Path, split: str) -> Path:
    if not (directory / CONFIG_FILE).is_file():
        raise UserError(
            f"{directory} is no corpus, without {CONFIG_FILE}; make one with `palenka data prepare --sources TEXT "
            f"--output {directory}`, and with --tokenizer MODEL if it is for a model that exists"
        )
    store = directory / f"{split}.zarr"
    if split not in SPLITS or not store.is_dir():
        existing = ", ".join(splits_of(directory)) or "none"
        raise UserError(f"corpus {directory} has no split {split!r}; choose one that it has: {existing}")
    return store


def _read_group(
    store: Path,
) -> tuple[StoreRecord, NDArray[np.int64], NDArray[np.int64], int, np.dtype[np.generic]]:
    """The record, the documents' starts and words, and the number and the type of the tokens."""
    import zarr

    group = zarr.open_group(store, mode="r", zarr_format=3)
    attributes = group.attrs.asdict()
    if (version := attributes.get("format_version")) != FORMAT_VERSION:
        raise UserError(
            f"corpus store {store} has format version {version}, but {FORMAT_VERSION} is read here; prepare it again"
        )
    tokens = group["tokens"]
    if not isinstance(tokens, zarr.Array) or tokens.chunks != tokens.shape:
        raise ValueError("tokens are not one chunk")
    starts, words = (np.asarray(group[name][:], dtype=np.int64) for name in ("document_starts", "document_words"))  # type: ignore[index]
    if starts.shape != words.shape:
        raise ValueError("starts and words are of other documents")
    return StoreRecord.model_validate(attributes), starts, words, tokens.shape[0], tokens.dtype


def require_files(directory: Path) -> None:
    """Refuse a corpus whose tokenizer, settings or records were changed.

    Raises:
        UserError: naming the file.
    """
    damage = damage_of(directory, FILES_RECORD)
    if damage is None:
        known = read_record(directory / FILES_RECORD)["files"]
        added = {f"{TOKENIZER_FOLDER}/{path.name}" for path in (directory / TOKENIZER_FOLDER).iterdir()} - set(known)
        damage = f"{min(added)} was added" if added else None
    if damage:
        raise UserError(
            f"corpus {directory} is damaged: {damage}; restore that file, or delete the corpus and prepare it again"
        )


def _damaged(store: Path, how: str) -> UserError:
    return UserError(f"corpus store {store} is damaged: {how}; delete {store.parent} and prepare it again")


def chunk_file(store: Path) -> Path:
    """The file of a store that is its tokens."""
    return store / "tokens" / "c" / "0"


def blocks_of(path: Path) -> Iterator[bytes]:
    """A file's bytes; read, not mapped, so that checking a store does not make it resident."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            yield block
