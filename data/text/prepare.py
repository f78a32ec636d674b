"""Prepare a corpus: clean raw text, learn a tokenizer on its train split, and store every split's tokens.

    palenka data prepare --config configs/corpora/babylm-10m.yaml

The text is read twice, once to learn the tokenizer and once to encode it, and kept in memory never. Everything is
written beside the output and renamed at the end, so a corpus is either whole or not there.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from palenka.data.corpus import CONFIG_FILE, TOKENIZER_FOLDER, Corpus, CorpusWriter, Counts, Source, splits_of
from palenka.data.text.readers import Advance, Piece
from palenka.data.text.sources import SourceFile, find_sources
from palenka.data.text.tokenizer import SMALLEST_VOCABULARY, START_ID, DocumentEncoder, save_tokenizer, train_tokenizer
from palenka.ground.errors import UserError, refuse_difference
from palenka.ground.files import sha256_of_file, whole_directory
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info, progress_bar
from palenka.ground.settings import Command, read_yaml

_NOT_COMPARED = frozenset({"sources", "output", "plugins"})


class CorpusSettings(Command):
    """Prepare a corpus: clean raw text, learn a tokenizer on its train split, store every split's tokens."""

    sources: Path
    """Folder with the raw text: *.train, *.dev and *.test files at any depth, named by their source, or such as
    *.train.EXT of any other format that has a reader."""

    output: Path
    """Directory of the prepared corpus; it must not exist yet, or hold the same corpus."""

    vocabulary_size: int = Field(default=16_000, ge=SMALLEST_VOCABULARY)
    """Tokens of the tokenizer at most: 3 special ones, 256 bytes and the learnt ones."""

    min_frequency: int = Field(default=2, ge=1)
    """How often a pair of tokens must occur in the train split to become a token."""

    document_start: bool = True
    """Open each document with <s>, so that a model learns to begin; false leaves it out, as published."""


def prepare(settings: CorpusSettings) -> None:
    """Prepare a corpus, or say that it is there already.

    Reads the text twice; 67 MB take about 40 s on two idle cores, and any amount of text about 0.3 GB of memory.

    Raises:
        UserError: if the sources are not usable, the output holds something else, or the disk does not take it.
    """
    try:
        sources = find_sources(settings.sources)
        hashes = {source.name: sha256_of_file(source.path) for source in sources}
        if settings.output.exists() and not _is_empty_folder(settings.output):
            _require_same(settings, hashes)
            info(f"corpus {settings.output} is prepared already: settings and sources are the same")
            return
        with sole_writer(settings.output), whole_directory(settings.output) as aside:
            _write_corpus(settings, sources, hashes, aside)
    except OSError as error:
        where = error.filename or settings.output
        raise UserError(
            f"cannot prepare corpus {settings.output}: {where}: {error.strerror or error}; "
            "free the disk, fix the permissions or choose another output"
        ) from error


def _write_corpus(settings: CorpusSettings, sources: list[SourceFile], hashes: dict[str, str], directory: Path) -> None:
    for source in sources:
        if remark := source.reader.remark(source.path):
            info(f"{source.name} {remark}")
    tokenizer = _learn_tokenizer(settings, [source for source in sources if source.split == "train"])
    save_tokenizer(tokenizer, directory / TOKENIZER_FOLDER)
    tokenizer_hash = sha256_of_file(directory / TOKENIZER_FOLDER / "tokenizer.json")
    encoder = DocumentEncoder(tokenizer)
    with progress_bar("encoding", _num_bytes(sources), "bytes") as advance:
        for split in dict.fromkeys(source.split for source in sources):
            with CorpusWriter(directory, split, tokenizer_hash, tokenizer.get_vocab_size()) as writer:
                records = tuple(
                    _encode_source(source, hashes[source.name], encoder, writer, settings.document_start, advance)
                    for source in sources
                    if source.split == split
                )
                writer.finish(records)
    settings.write_yaml(directory / CONFIG_FILE)
    if (found := tokenizer.get_vocab_size()) < settings.vocabulary_size:
        info(f"the train split gives {found:,} tokens, not {settings.vocabulary_size:,}: it is too small for more")


def _learn_tokenizer(settings: CorpusSettings, sources: list[SourceFile]) -> Tokenizer:
    with progress_bar("learning the tokenizer", _num_bytes(sources), "bytes") as advance:
        pieces = (piece for source in sources for piece in source.reader.documents(source.path, advance))
        return train_tokenizer(pieces, settings.vocabulary_size, settings.min_frequency)


def _encode_source(
    source: SourceFile,
    sha256: str,
    encoder: DocumentEncoder,
    writer: CorpusWriter,
    document_start: bool,
    advance: Advance,
) -> Source:
    """Append a file's documents to the split's tokens."""
    before = writer.num_tokens
    counter = _Counter()
    pieces = counter.watch(source.reader.documents(source.path, advance))
    for tokens, opens_document in encoder.encode(pieces):
        if opens_document:
            writer.start_document()
            if document_start:
                writer.append(np.array([START_ID]))
        writer.append(tokens)
    counts = Counts(
        tokens=writer.num_tokens - before, documents=counter.documents, words=counter.words, bytes=counter.num_bytes
    )
    return Source(path=source.name, sha256=sha256, cleaner=source.reader.cleaner(source.path), counts=counts)


class _Counter:
    """Counts documents, words and bytes of the pieces that pass."""

    def __init__(self) -> None:
        self.documents = self.words = self.num_bytes = 0

    def watch(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The same pieces, counted; a word torn between two pieces counts once."""
        inside_word = False
        for piece in pieces:
            text = piece.text
            self.documents += piece.opens_document
            self.num_bytes += len(text.encode())
            self.words += len(text.split()) - (inside_word and not piece.opens_document and not text[:1].isspace())
            inside_word = not text[-1:].isspace()
            yield piece


def _num_bytes(sources: list[SourceFile]) -> int:
    return sum(source.path.stat().st_size for source in sources)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _require_same(settings: CorpusSettings, hashes: dict[str, str]) -> None:
    """Refuse an output that holds anything else than the corpus that is asked for."""
    output = settings.output
    if not (output / CONFIG_FILE).is_file():
        raise UserError(f"output {output} exists and is no prepared corpus; choose another output")
    config = read_yaml(output / CONFIG_FILE)
    found = {split: Corpus.open(output, split).sources for split in splits_of(output)}
    refuse_difference(
        f"corpus {output}",
        {**_comparable(settings.as_plain()), "sources": hashes},
        {
            **_comparable(config),
            "sources": {source.path: source.sha256 for sources in found.values() for source in sources},
        },
        "delete it or choose another output",
    )


def _comparable(config: dict[str, object]) -> dict[str, object]:
    """Settings that decide tokens: where sources and output lie does not, nor where what is named comes from."""
    return {key: value for key, value in config.items() if key not in _NOT_COMPARED}
