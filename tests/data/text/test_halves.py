"""Halves of dev sources: nothing is lost or twice, documents stay whole, and the cut is near the middle."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.corpus import Corpus, splits_of
from palenka.data.text.halves import with_test_split
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.data.text.readers import Advance, Piece
from palenka.data.text.source import TextSource
from palenka.ground.errors import UserError


@dataclass(frozen=True)
class Given(TextSource):
    """Documents that come in pieces of so many characters."""

    texts: tuple[str, ...] = ()
    step: int = 3
    identity = "the same"
    num_bytes = None

    def documents(self, advance: Advance) -> Iterator[Piece]:
        for text in self.texts:
            for start in range(0, max(1, len(text)), self.step):
                yield Piece(text[start : start + self.step], start == 0)


def documents_of(source: TextSource) -> list[str]:
    found: list[str] = []
    for text, opens_document in source.documents(lambda _: None):
        found += [""] * opens_document
        found[-1] += text
    return found


def halves(*texts: str, step: int = 3) -> dict[str, list[str]]:
    sources = with_test_split([Given("a.train", "train", ("train",)), Given("a.dev", "dev", texts, step)])
    assert sources[0].split == "train"
    assert {source.name for source in sources[1:]} == {"a.dev"}
    return {source.split: documents_of(source) for source in sources[1:]}


@given(st.lists(st.text(alphabet="ab \n", max_size=12), min_size=1, max_size=9), st.integers(1, 7))
def test_every_document_is_in_one_half_and_one_may_be_cut_at_a_line_end(texts: list[str], step: int) -> None:
    found = halves(*texts, step=step)
    if "test" not in found:
        assert found["dev"] == texts
        assert "\n" not in "".join(texts).strip() or all(not text.strip() for text in texts)
        return
    dev, test = found["dev"], found["test"]
    assert "".join(dev).strip()
    assert "".join(test).strip()
    assert dev[:-1] == texts[: len(dev) - 1]
    assert test[1:] == texts[len(texts) - len(test) + 1 :]
    # At the cut no character but line ends is lost.
    assert re.sub("\n", "", "".join(dev + test)) == re.sub("\n", "", "".join(texts))
    assert dev + test == texts or "\n" in "".join(texts[len(dev) - 1 : len(dev) + 1])


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12))
def test_documents_are_cut_as_near_to_the_middle_as_can_be(sizes: list[int]) -> None:
    found = halves(*("x" * size for size in sizes))
    total = sum(sizes) - 1  # from the first character to the last
    nearest = min(abs(2 * sum(sizes[:number]) - total) for number in range(1, len(sizes)))
    assert abs(2 * sum(map(len, found["dev"])) - total) == nearest


def test_a_document_that_fills_most_of_a_source_is_cut_at_its_line_ends() -> None:
    assert halves("x", "first line\nsecond line\n\nthird line") == {
        "dev": ["x", "first line"],
        "test": ["second line\n\nthird line"],
    }
    assert halves("one line alone") == {"dev": ["one line alone"]}
    assert halves("a long line by itself", "b") == {"dev": ["a long line by itself"], "test": ["b"]}


@pytest.mark.parametrize("step", [7, 10_000])
def test_a_long_line_that_fills_most_of_a_source_is_cut_at_a_space(step: int) -> None:
    words = [f"word{number:04}" for number in range(1000)]
    found = halves("x", " ".join(words), "y", step=step)
    assert found == {"dev": ["x", " ".join(words[:500])], "test": [" ".join(words[500:]), "y"]}
    assert halves("x" * 5000, step=step) == {"dev": ["x" * 5000]}


def test_a_test_split_of_the_sources_is_the_only_one() -> None:
    sources = [Given("a.dev", "dev", ("a", "b")), Given("b.test", "test", ("c",))]
    assert with_test_split(sources) == sources


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "childes.train").write_text("the cat sees the dog\n" * 40)
    (folder / "childes.dev").write_text("\n\n".join(f"document number {number}" for number in range(10)))
    return folder


def test_a_corpus_has_three_splits_that_share_no_document(text: Path, tmp_path: Path) -> None:
    settings = CorpusSettings(sources=(text,), output=tmp_path / "corpus", vocabulary_size=270)
    prepare(settings)
    assert splits_of(settings.output) == ["train", "dev", "test"]
    dev, test = (Corpus.open(settings.output, split) for split in ("dev", "test"))
    assert (dev.counts.documents, test.counts.documents) == (5, 5)
    assert dev.document_words.tolist() == test.document_words.tolist() == [3] * 5
    decoded = [str(each.tokenizer().decode(each.tokens)) for each in (dev, test)]
    for number in range(10):
        assert [f"number {number}" in half for half in decoded] == [number < 5, number >= 5]
    prepare(settings)  # it is there already: sources and settings are the same
    (text / "childes.test").write_text("held out by its makers")
    with pytest.raises(UserError, match=r"childes\.test is None there, but|sources"):
        prepare(settings)


def test_a_corpus_with_a_test_split_of_its_own_keeps_its_dev_split_whole(text: Path, tmp_path: Path) -> None:
    (text / "childes.test").write_text("held out by its makers")
    prepare(CorpusSettings(sources=(text,), output=tmp_path / "corpus", vocabulary_size=270))
    assert Corpus.open(tmp_path / "corpus", "dev").counts.documents == 10
    assert Corpus.open(tmp_path / "corpus", "test").counts.words == 5
