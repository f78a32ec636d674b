"""The corpus store: what is written is what Zarr and `Corpus` read, and anything else is refused."""

import hashlib
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.corpus import Corpus, Counts, Source
from palenka.data.corpus_writer import CorpusWriter, seal
from palenka.ground.errors import UserError

TOKENIZER = b"{}"
TOKENIZER_HASH = hashlib.sha256(TOKENIZER).hexdigest()
DOCUMENTS = [[1, 5, 6], [1], [1, 400, 65_534, 0]]


def words_of(document: list[int]) -> int:
    return sum(document) % 7


def write(directory: Path, documents: list[list[int]], vocabulary_size: int = 65_535, split: str = "train") -> Path:
    (directory / "tokenizer").mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer" / "tokenizer.json").write_bytes(TOKENIZER)
    (directory / "config.yaml").touch()
    with CorpusWriter(directory, split, TOKENIZER_HASH, vocabulary_size) as writer:
        for document in documents:
            writer.start_document()
            for token in document:
                writer.append(np.array([token]))
        writer.add_words(map(words_of, documents))
        words = sum(map(words_of, documents))
        counts = Counts(tokens=writer.num_tokens, documents=len(documents), words=words, bytes=9)
        writer.finish((Source(path="a.train", sha256="0", cleaner="general", counts=counts),))
    seal(directory)
    return directory


@given(
    st.lists(st.lists(st.integers(0, 65_534), min_size=1, max_size=6), min_size=1, max_size=6),
    st.sampled_from([65_535, 65_536]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocabulary_size: int
) -> None:
    directory = write(tmp_path_factory.mktemp("corpus"), documents, vocabulary_size)
    corpus = Corpus.open(directory, "train")
    group: Any = zarr.open_group(directory / "train.zarr", mode="r")
    flat = [token for document in documents for token in document]
    starts = np.cumsum([0, *map(len, documents[:-1])])
    assert corpus.tokens.tolist() == group["tokens"][:].tolist() == flat
    assert corpus.document_starts.tolist() == group["document_starts"][:].tolist() == starts.tolist()
    assert corpus.document_words.tolist() == group["document_words"][:].tolist() == [*map(words_of, documents)]
    assert corpus.tokens.dtype == group["tokens"].dtype == (np.uint16 if vocabulary_size == 65_535 else np.uint32)
    assert (corpus.vocabulary_size, corpus.tokenizer_hash) == (vocabulary_size, TOKENIZER_HASH)
    assert corpus.counts == Counts(
        tokens=len(flat), documents=len(documents), words=sum(map(words_of, documents)), bytes=9
    )


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=6))
def test_words_of_documents_are_shared_out_over_their_tokens(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]
) -> None:
    corpus = Corpus.open(write(tmp_path_factory.mktemp("corpus"), documents), "train")
    of_tokens = [Fraction(words_of(document), len(document)) for document in documents for _ in document]
    before = [Fraction(0), *accumulate(of_tokens)]
    assert corpus.words_before(np.arange(len(before))) == pytest.approx([float(words) for words in before], abs=1e-9)
    assert corpus.words_before(np.array([len(corpus.tokens)])) == [corpus.counts.words]


def test_tokens_are_mapped_read_only_and_stored_as_they_are(tmp_path: Path) -> None:
    corpus = Corpus.open(write(tmp_path, DOCUMENTS), "train")
    assert isinstance(corpus.tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        corpus.tokens[0] = 3
    raw = (tmp_path / "train.zarr" / "tokens" / "c" / "0").read_bytes()
    assert raw == b"".join(token.to_bytes(2, "little") for document in DOCUMENTS for token in document)
    assert not list(tmp_path.glob("*.tokens"))


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    flat = [token for document in DOCUMENTS for token in document]
    found = Corpus.open(write(tmp_path / "a", DOCUMENTS), "train").fingerprint
    content = b"<u2" + np.array(flat, "<u2").tobytes() + np.array([0, 3, 4], "<i8").tobytes() + TOKENIZER_HASH.encode()
    assert found == hashlib.sha256(content).hexdigest()
    assert found == Corpus.open(write(tmp_path / "b", DOCUMENTS, split="dev"), "dev").fingerprint
    assert found != Corpus.open(write(tmp_path / "c", [flat]), "train").fingerprint


def test_a_missing_corpus_or_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is no corpus, without config\.yaml"):
        Corpus.open(tmp_path / "nothing", "train")
    write(tmp_path, DOCUMENTS)
    write(tmp_path, DOCUMENTS, split="dev")
    with pytest.raises(UserError, match="has no split 'test'; choose one that it has: train, dev"):
        Corpus.open(tmp_path, "test")
    with pytest.raises(UserError, match=r"has no split '\.\./train'"):
        Corpus.open(tmp_path, "../train")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the dev split has no text"):
        write(tmp_path, [], split="dev")


@pytest.mark.parametrize(
    "name", ["tokens/c/0", "document_starts/c/0", "document_words/c/0", "zarr.json", "tokens/zarr.json"]
)
@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "empty"])
def test_damage_is_named(tmp_path: Path, name: str, how: str) -> None:
    path = write(tmp_path, [[7, 8], [9]]) / "train.zarr" / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        flipped = bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes({"flipped": flipped, "truncated": content[:-1], "empty": b""}[how])
    with pytest.raises(UserError, match=r"corpus .* is damaged: .*; .*delete .* and prepare it again"):
        Corpus.open(tmp_path, "train")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    group = zarr.open_group(write(tmp_path, DOCUMENTS) / "train.zarr", mode="r+")
    group.attrs["format_version"] = 99
    with pytest.raises(UserError, match="has format version 99, but 3 is read here"):
        Corpus.open(tmp_path, "train")


@pytest.mark.parametrize("name", ["config.yaml", "files.json", "tokenizer/tokenizer.json"])
def test_a_corpus_with_another_tokenizer_or_other_settings_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, DOCUMENTS)
    path = tmp_path / name
    content = path.read_bytes()
    for other in (b"{ }", None):
        path.write_bytes(other) if other else path.unlink()
        with pytest.raises(
            UserError, match=rf"damaged: {name} .*; restore that file, or delete|is no corpus, without config.yaml"
        ):
            Corpus.open(tmp_path, "train")
        path.write_bytes(content)


def test_a_file_added_to_the_tokenizer_is_refused(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENTS)
    (tmp_path / "tokenizer" / "special_tokens_map.json").write_text('{"bos_token": "</s>"}')
    with pytest.raises(UserError, match=r"tokenizer/special_tokens_map\.json was added; restore"):
        Corpus.open(tmp_path, "train")
