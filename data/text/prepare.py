"""Prepare a corpus: clean raw text, learn a tokenizer on its train split or take one, and store every split's tokens.

    palenka data prepare --config configs/corpora/babylm-10m.yaml
    palenka data prepare --sources text --tokenizer HuggingFaceTB/SmolLM2-135M --output runs/corpora/smollm2

The text is read twice, once to learn the tokenizer and once to encode it, and never held in memory. Everything is
written beside the output and renamed at the end, so a corpus is either complete or absent.
"""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from tokenizers import Tokenizer

from palenka.data.corpus import (
    CONFIG_FILE,
    TOKENIZER_FOLDER,
    Corpus,
    Repeated,
    Source,
    splits_of,
)
from palenka.data.corpus_writer import CorpusWriter, seal
from palenka.data.hub import Located, locate_tokenizer
from palenka.data.text.bos import add_bos
from palenka.data.text.documents import Repeats, Sorting
from palenka.data.text.encoder import LONGEST_CHARACTERS, DocumentEncoder
from palenka.data.text.halves import with_test_split
from palenka.data.text.learn import SMALLEST_VOCABULARY, train_tokenizer
from palenka.data.text.readers import Advance, ReadingOptions
from palenka.data.text.source import TextSource
from palenka.data.text.sources import SourceFile, find_sources
from palenka.data.text.tokenizer import (
    Boundaries,
    boundaries_of,
    hash_of_directory,
    load_tokenizer,
    save_learnt,
    save_tokenizer,
    tokenizer_hash,
    vocabulary_size_of,
)
from palenka.ground.errors import UserError, refuse_difference, system_error
from palenka.ground.files import sha256_of_file, whole_directory
from palenka.ground.lock import sole_writer
from palenka.ground.progress import info, progress_bar
from palenka.ground.settings import Command, read_yaml

LARGEST_VOCABULARY = 262_144
_NOT_COMPARED = frozenset({"sources", "output", "plugins", "tokenizer"})
_OF_LEARNING = ("vocabulary_size", "min_frequency")


class CorpusSettings(Command):
    """Prepare a corpus: clean raw text, learn a tokenizer on its train split, store every split's tokens."""

    sources: tuple[Path, ...] = Field(min_length=1)
    """The raw text: folders, files, patterns, and ids of datasets on the Hugging Face Hub (org/name, org/name@REVISION,
    org/name:CONFIGURATION). A folder gives its *.train, *.dev and *.test files at any depth, named by their source, or
    else its .txt, .jsonl (.gz, .zst) and .parquet files, whose split is in their name or a folder's, else train."""

    output: Path
    """Directory of the prepared corpus; it must not exist yet, or hold the same corpus."""

    tokenizer: Path | None = None
    """An existing tokenizer, instead of a learnt one: a directory (a model's, too) or an id on the Hugging Face Hub.
    Its own conventions apply."""

    text_field: str = "text"
    """The field that holds the text of a record, in .jsonl, .parquet and datasets of the Hub."""

    cleaner: Literal["babylm", "none"] | None = None
    """How text is cleaned: babylm, by the name of its source, or none. By default only *.train, *.dev and *.test files
    are cleaned, and only if the tokenizer is learnt."""

    dev_fraction: float = Field(default=0, ge=0, lt=0.5)
    """If no source is a dev split: fraction of the train split that becomes one, by a hash of each document. The same
    fraction becomes the test split, unless a source is one."""

    vocabulary_size: int | None = Field(default=16_000, ge=SMALLEST_VOCABULARY, le=LARGEST_VOCABULARY)
    """Maximum size of a learnt tokenizer: 3 special tokens, 256 bytes and the learnt ones."""

    min_frequency: int | None = Field(default=2, ge=1, le=10**9)
    """How often a pair of tokens must occur in the train split to become a token."""

    document_start: bool | str | None = None
    """Token before each document, so that a model learns to begin: true for the tokenizer's bos, false for none, or a
    token. Default: the tokenizer's convention, and <s> with a learnt one."""

    document_end: bool | str | None = None
    """Token after each document: true for the tokenizer's eos, false for none, or a token. Default: the tokenizer's
    convention, its eos if it adds no tokens to a text, and none with a learnt one."""

    add_bos: bool = False
    """Whether the corpus's tokenizer, and so that of every model trained on it, puts its bos before every text by
    itself; the corpus's tokens are the same. The BabyLM pipeline then scores first tokens."""

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        return (given,) if isinstance(given, str | Path) else given

    @model_validator(mode="before")
    @classmethod
    def _learnt_or_given(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        if not isinstance(given, Mapping) or given.get("tokenizer") is None:
            return given
        for name in _OF_LEARNING:
            if given.get(name) is not None:
                raise ValueError(f"tokenizer is {given['tokenizer']}, which is not learnt; leave {name} out")
        return {**given, **dict.fromkeys(_OF_LEARNING)}

    @field_validator("document_start", "document_end", mode="before")
    @classmethod
    def _words_for_truth(cls, given: Any) -> Any:  # noqa: ANN401 - whatever was given
        return {"true": True, "false": False}.get(given.lower(), given) if isinstance(given, str) else given

    @property
    def reading(self) -> ReadingOptions:
        """Settings of the readers."""
        return ReadingOptions(self.cleaner or ("none" if self.tokenizer else None), self.text_field)


def prepare(settings: CorpusSettings) -> None:
    """Prepare a corpus, or report that it exists already.

    Reads the text twice. 67 MB take about 40 s on two idle cores; memory is about 0.3 GB for any amount of text.

    Raises:
        UserError: if the sources are not usable, the output holds something else, or the disk is full.
    """
    try:
        sources = find_sources(settings.sources, settings.reading)
        if settings.dev_fraction and (dev := [source.name for source in sources if source.split == "dev"]):
            raise UserError(
                f"dev_fraction is {settings.dev_fraction}, but {dev[0]} is a dev split; give one of the two"
            )
        hashes = {source.name: source.identity for source in sources}
        if settings.output.exists() and not _is_empty_folder(settings.output):
            _require_same(settings, hashes)
            info(f"corpus {settings.output} is prepared already: settings and sources are the same")
            return
        with sole_writer(settings.output), whole_directory(settings.output) as aside:
            _write_corpus(settings, with_test_split(sources), hashes, aside)
            _require_unchanged(sources, hashes)
    except OSError as error:
        raise system_error(f"cannot prepare corpus {settings.output}", error) from error


def _write_corpus(settings: CorpusSettings, sources: list[TextSource], hashes: dict[str, str], directory: Path) -> None:
    for source in sources:
        if remark := source.remark():
            info(f"{source.name} {remark}")
    located = locate_tokenizer(settings.tokenizer) if settings.tokenizer else None
    held_out = _held_out(settings, sources)
    boundaries = _write_tokenizer(settings, sources, held_out, located, directory / TOKENIZER_FOLDER)
    if settings.add_bos:
        add_bos(directory / TOKENIZER_FOLDER)
    tokenizer = load_tokenizer(directory / TOKENIZER_FOLDER)
    encoder = DocumentEncoder(tokenizer.backend_tokenizer, tokenizer.split_special_tokens)
    identity, vocabulary_size = tokenizer_hash(tokenizer), vocabulary_size_of(tokenizer)
    repeats, records = Repeats(), defaultdict[str, list[Source]](list)
    with ExitStack() as stack, progress_bar("encoding", _num_bytes(sources), "bytes") as advance:
        splits = dict.fromkeys([*(source.split for source in sources), *held_out])
        writers = {
            split: stack.enter_context(CorpusWriter(directory, split, identity, vocabulary_size)) for split in splits
        }
        for source in sources:
            sorting = Sorting(source.split, held_out, repeats)
            _encode_source(source, sorting, encoder, writers, boundaries, advance)
            if sorting.empty:
                info(f"{source.name} has {sorting.empty:,} document(s) without text; they are left out")
            for split, tally in sorting.tallies.items():
                writers[split].add_words(tally.document_words)
            for split, counts in sorting.counts().items():
                about = Source(path=source.name, sha256=hashes[source.name], cleaner=source.cleaner, counts=counts)
                records[split].append(about)
        for split, writer in writers.items():
            in_train = repeats.also_in(split, "train") if split != "train" else 0
            writer.finish(tuple(records[split]), Repeated(within=repeats.duplicates(split), in_train=in_train))
    if encoder.torn:
        info(f"{encoder.torn:,} runs of {LONGEST_CHARACTERS:,} characters without a place to cut them were torn")
    if located and located.source:
        settings = settings.model_copy(update={"tokenizer": Path(located.source)})
    settings.write_yaml(directory / CONFIG_FILE)
    seal(directory)


def _held_out(settings: CorpusSettings, sources: list[TextSource]) -> dict[str, float]:
    """Fractions of the train sources that go to other splits, by split."""
    if not settings.dev_fraction:
        return {}
    splits = ["dev"] if any(source.split == "test" for source in sources) else ["dev", "test"]
    return dict.fromkeys(splits, settings.dev_fraction)


def _require_unchanged(sources: list[TextSource], hashes: Mapping[str, str]) -> None:
    """Refuse files that changed while they were read: they are read twice, after their hashes were taken."""
    for source in sources:
        if isinstance(source, SourceFile) and sha256_of_file(source.path) != hashes[source.name]:
            raise UserError(f"{source.path} was changed while it was read; leave it alone, and run the command again")


def _write_tokenizer(
    settings: CorpusSettings,
    sources: list[TextSource],
    held_out: Mapping[str, float],
    located: Located | None,
    directory: Path,
) -> Boundaries:
    """Write the corpus's tokenizer, learnt or given; returns its document boundaries."""
    if located is None:
        learnt = _learn_tokenizer(settings, [source for source in sources if source.split == "train"], held_out)
        save_learnt(learnt, directory)
        start = True if settings.document_start is None else settings.document_start
        return boundaries_of(load_tokenizer(directory), start, settings.document_end or False)
    tokenizer = load_tokenizer(located.directory)
    save_tokenizer(tokenizer, directory)
    boundaries = boundaries_of(tokenizer, settings.document_start, settings.document_end)
    before, after = (" ".join(tokenizer.convert_ids_to_tokens(ids)) or "nothing" for ids in boundaries)
    info(f"{settings.tokenizer}: {len(tokenizer):,} tokens; a document begins with {before} and ends with {after}")
    return boundaries


def _learn_tokenizer(settings: CorpusSettings, sources: list[TextSource], held_out: Mapping[str, float]) -> Tokenizer:
    assert settings.vocabulary_size is not None
    assert settings.min_frequency is not None
    with progress_bar("learning the tokenizer", _num_bytes(sources), "bytes") as advance:
        pieces = (
            piece
            for source in sources
            for piece in Sorting(source.split, held_out).only("train", source.documents(advance))
        )
        tokenizer = train_tokenizer(pieces, settings.vocabulary_size, settings.min_frequency)
    if (found := tokenizer.get_vocab_size()) < settings.vocabulary_size:
        info(f"the train split gives {found:,} tokens, not {settings.vocabulary_size:,}: it is too small for more")
    return tokenizer


def _encode_source(
    source: TextSource,
    sorting: Sorting,
    encoder: DocumentEncoder,
    writers: Mapping[str, CorpusWriter],
    boundaries: Boundaries,
    advance: Advance,
) -> None:
    """Append a source's documents to the tokens of their splits."""
    before, after = (np.array(ids, dtype=np.uint32) for ids in boundaries)
    split = None
    for tokens, opens_document in encoder.encode(sorting.pass_on(source.documents(advance))):
        if opens_document:
            if split:
                writers[split].append(after)
            split = sorting.splits.popleft()
            sorting.tallies[split].tokens += len(before) + len(after)
            writers[split].start_document()
            writers[split].append(before)
        assert split is not None
        sorting.tallies[split].tokens += len(tokens)
        writers[split].append(tokens)
    if split:
        writers[split].append(after)


def _num_bytes(sources: list[TextSource]) -> int | None:
    sizes = [source.num_bytes for source in sources]
    return None if None in sizes else sum(filter(None, sizes))


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _require_same(settings: CorpusSettings, hashes: dict[str, str]) -> None:
    """Refuse an output that holds anything but the requested corpus."""
    output = settings.output
    if not (output / CONFIG_FILE).is_file():
        raise UserError(f"output {output} exists and is no prepared corpus; choose another output")
    config = read_yaml(output / CONFIG_FILE)
    corpora = [Corpus.open(output, split) for split in splits_of(output)]
    wanted = hash_of_directory(locate_tokenizer(settings.tokenizer).directory) if settings.tokenizer else None
    found = corpora[0].tokenizer_hash if config["tokenizer"] else None
    refuse_difference(
        f"corpus {output}",
        {"tokenizer": wanted, **_comparable(settings.as_plain()), "sources": hashes},
        {
            "tokenizer": found,
            **_comparable(config),
            "sources": {source.path: source.sha256 for corpus in corpora for source in corpus.sources},
        },
        "delete it or choose another output",
    )


def _comparable(config: dict[str, object]) -> dict[str, object]:
    """The settings that decide tokens; paths and origins do not."""
    return {key: value for key, value in config.items() if key not in _NOT_COMPARED}
