"""Which files are read, by whom, and that a reader of a user's own takes one file and nothing else."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from palenka.data.corpus import Corpus
from palenka.data.text.babylm import BabyLMText
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.data.text.readers import READERS
from palenka.data.text.sources import find_sources
from palenka.ground.errors import UserError
from palenka.ground.registry import import_plugins

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture
def toy_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PLUGINS)
    import_plugins(["toy_reader"])


def test_sources_are_found_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b/x.train", "a/y.dev", "c.test", "a/y.train", "notes.txt", "b/x.train.txt", ".train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = find_sources(tmp_path)
    assert [source.name for source in sources] == ["a/y.dev", "a/y.train", "b/x.train", "c.test"]
    assert [source.split for source in sources] == ["dev", "train", "train", "test"]
    assert all(isinstance(source.reader, BabyLMText) for source in sources)


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing does not exist; give the folder"):
        find_sources(tmp_path / "missing")
    with pytest.raises(UserError, match=r"holds no \*\.train files; name the training text"):
        find_sources(tmp_path)
    (tmp_path / "childes.dev").touch()
    with pytest.raises(UserError, match=r"holds only childes\.dev; name the training text"):
        find_sources(tmp_path)
    with pytest.raises(UserError, match="is a file, not a folder"):
        find_sources(tmp_path / "childes.dev")


@pytest.mark.usefixtures("toy_reader")
def test_a_reader_of_a_users_own_from_its_files_to_the_corpus(tmp_path: Path) -> None:
    sources, output = tmp_path / "text", tmp_path / "corpus"
    sources.mkdir()
    text = "The cat sees a * .\nIt is far.\n\n\n\nThe dog sees\n\n* and *\n"
    (sources / "sky.train.toy").write_text(text)
    (sources / "childes.dev").write_text("The cat .\n")
    prepare(CorpusSettings(sources=sources, output=output, vocabulary_size=270))
    corpus = Corpus.open(output, "train")
    tokenizer: Any = AutoTokenizer.from_pretrained(output / "tokenizer")
    documents = [found.replace("*", "star") for found in re.findall(r"\S(?:.|\n(?!\n))*(?=\n\n|\n$)", text)]
    assert documents == ["The cat sees a star .\nIt is far.", "The dog sees", "star and star"]
    expected = [[1, *tokenizer(document).input_ids] for document in documents]
    assert corpus.tokens.tolist() == [token for tokens in expected for token in tokens]
    assert corpus.counts.documents == len(documents)
    assert [(source.path, source.cleaner) for source in corpus.sources] == [("sky.train.toy", "none")]
    assert Corpus.open(output, "dev").tokens.tolist() == [1, *tokenizer("The cat.").input_ids]


@pytest.mark.usefixtures("toy_reader")
def test_the_longest_suffix_decides_and_a_file_has_a_split(tmp_path: Path) -> None:
    (tmp_path / "a.dev.train.toy").touch()
    (tmp_path / "b.toy.train").touch()
    first, second = find_sources(tmp_path)
    assert (type(first.reader), first.split) == (READERS["toy"], "train")
    assert (type(second.reader), second.split) == (BabyLMText, "train")
    (tmp_path / "sky.toy").touch()
    with pytest.raises(UserError, match=r"sky\.toy is of no split; name it sky\.train\.toy, or \.dev"):
        find_sources(tmp_path)
