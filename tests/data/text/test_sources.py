"""Which files are read, by whom, and that a reader of a user's own takes one file and nothing else."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoTokenizer

from palenka.data.corpus import Corpus
from palenka.data.text.babylm import BabyLMText
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.data.text.readers import READERS
from palenka.data.text.sources import SourceFile, find_sources
from palenka.ground.errors import UserError

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture
def toy_reader(plug_in: Callable[..., None]) -> None:
    plug_in(PLUGINS, "toy_reader")


def find(*given: Path) -> list[SourceFile]:
    found = find_sources(given)
    assert all(isinstance(source, SourceFile) for source in found)
    return cast(list[SourceFile], found)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def splits_of(sources: Sequence[SourceFile]) -> dict[str, str]:
    return {source.name: source.split for source in sources}


def test_babylm_text_is_found_at_any_depth_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "b/x.train", "a/y.dev", "c.test", "a/y.train", "notes.txt", "b/x.py", ".train")
    sources = find(tmp_path)
    assert [source.name for source in sources] == ["a/y.dev", "a/y.train", "b/x.train", "c.test"]
    assert [source.split for source in sources] == ["dev", "train", "train", "test"]
    assert all(isinstance(source.reader, BabyLMText) for source in sources)
    assert "notes.txt is not read: it names no split" in capsys.readouterr().err


def test_other_files_are_text_to_train_on_unless_they_say_otherwise(tmp_path: Path) -> None:
    names = [
        "a.txt",
        "b.jsonl",
        "c.jsonl.gz",
        "d.jsonl.zst",
        "e.parquet",
        "test/f.txt",
        "g-validation-0001-of-2.parquet",
    ]
    touch(tmp_path, *names, "h.dev.txt", "contest.txt", "i.py", "val/train.txt")
    assert splits_of(find(tmp_path)) == {
        "a.txt": "train",
        "b.jsonl": "train",
        "c.jsonl.gz": "train",
        "contest.txt": "train",
        "d.jsonl.zst": "train",
        "e.parquet": "train",
        "g-validation-0001-of-2.parquet": "dev",
        "h.dev.txt": "dev",
        "test/f.txt": "test",
        "val/train.txt": "train",
    }


def test_hidden_files_are_never_text(tmp_path: Path) -> None:
    touch(tmp_path, "._childes.train", ".ipynb_checkpoints/childes.train", "a/.b/c.train", "childes.train")
    assert splits_of(find(tmp_path)) == {"childes.train": "train"}


def test_links_are_followed_and_those_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "childes.train", "deep/qed.dev")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "text" / "cbt.train").symlink_to(tmp_path / "elsewhere" / "childes.train")
    assert list(splits_of(find(tmp_path / "text"))) == ["cbt.train", "more/childes.train", "more/deep/qed.dev"]
    round_about = tmp_path / "elsewhere" / "deep" / "back"
    round_about.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="more/deep/back is a link to a folder that it is in; remove the link"):
        find(tmp_path / "text")
    round_about.unlink()
    for name in ("gone.train", "gone"):
        link = tmp_path / "text" / name
        link.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match=f"text/{name} is a link to .*/nowhere, which is not there; fix or remove"):
            find(tmp_path / "text")
        with pytest.raises(UserError, match=f"sources .*text/{name} leads nowhere"):
            find(link)
        link.unlink()


def test_files_patterns_and_folders_together(tmp_path: Path) -> None:
    touch(tmp_path, "wiki/data.jsonl", "news/data.jsonl", "news/old.txt", "books/a.txt", "books/b [x].txt")
    found = find(tmp_path / "wiki" / "data.jsonl", tmp_path / "news" / "*.jsonl", tmp_path / "books")
    assert list(splits_of(found)) == ["books/a.txt", "books/b [x].txt", "news/data.jsonl", "wiki/data.jsonl"]
    assert list(splits_of(find(tmp_path / "**" / "data.jsonl"))) == ["news/data.jsonl", "wiki/data.jsonl"]
    assert list(splits_of(find(tmp_path / "books" / "b [x].txt"))) == ["b [x].txt"]
    twice = find(tmp_path / "books", tmp_path / "books" / "a.txt")
    assert list(splits_of(twice)) == ["a.txt", "b [x].txt"]


def test_unusable_sources_are_refused(tmp_path: Path) -> None:
    for name in ("missing", "*.jsonl"):
        with pytest.raises(
            UserError, match=f"{re.escape(name)} does not exist; give the folder that holds the text, files"
        ):
            find(tmp_path / name)
    with pytest.raises(UserError, match=r"holds no text; name the training text SOURCE\.train, .* end in one of \.txt"):
        find(tmp_path)
    touch(tmp_path, "childes.dev", "thesis.pdf")
    with pytest.raises(UserError, match=r"holds only childes\.dev \(dev\); name the training text"):
        find(tmp_path)
    with pytest.raises(UserError, match=r"no reader knows the format of .*thesis\.pdf; its name should end in one of"):
        find(tmp_path / "thesis.pdf")


@pytest.mark.parametrize("name", ["childes.train", "notes.txt"])
def test_json_lines_that_are_named_as_text_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('\n{"text": "The cat."}\n{"text": "The dog."}\n')
    with pytest.raises(UserError, match=f"{name} holds JSON lines, .* name it {name}.jsonl, so that one of its fields"):
        list(find(tmp_path)[0].documents(lambda _: None))
    (tmp_path / name).write_text("{braces} are text\n")
    assert list(find(tmp_path)[0].documents(lambda _: None))


@pytest.mark.usefixtures("toy_reader")
def test_a_reader_of_a_users_own_from_its_files_to_the_corpus(tmp_path: Path) -> None:
    sources, output = tmp_path / "text", tmp_path / "corpus"
    sources.mkdir()
    text = "The cat sees a * .\nIt is far.\n\n\n\nThe dog sees\n\n* and *\n"
    (sources / "sky.train.toy").write_text(text)
    (sources / "childes.dev").write_text("The cat .\n")
    prepare(CorpusSettings(sources=(sources,), output=output, vocabulary_size=270))
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
    first, second = find(tmp_path)
    assert (type(first.reader), first.split) == (READERS["toy"], "train")
    assert (type(second.reader), second.split) == (BabyLMText, "train")
    (tmp_path / "sky.toy").touch()
    with pytest.raises(UserError, match=r"sky\.toy is of no split; name it sky\.train\.toy, or \.dev"):
        find(tmp_path)
    (tmp_path / "b.toy.train").unlink()
    assert splits_of(find(tmp_path)) == {"a.dev.train.toy": "train", "sky.toy": "train"}
