"""Documents on their way to the encoder: splits by hash, counts, repeats."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.text.documents import HEAD_CHARACTERS, Repeats, Sorting
from palenka.data.text.readers import Piece

TEXTS = st.lists(st.text(alphabet="ab é\n", max_size=30), max_size=8)


def cut(documents: list[str], step: int) -> Iterator[Piece]:
    for text in documents:
        yield from (Piece(text[start : start + step], start == 0) for start in range(0, max(1, len(text)), step))


def gathered(pieces: Iterator[Piece]) -> list[str]:
    documents: list[str] = []
    for text, opens_document in pieces:
        documents += [""] * opens_document
        documents[-1] += text
    return documents


@given(TEXTS, st.integers(1, 9), st.sampled_from([{}, {"dev": 0.5}, {"dev": 0.3, "test": 0.4}]))
def test_documents_pass_with_their_splits_and_are_counted(
    documents: list[str], step: int, held_out: dict[str, float]
) -> None:
    sorting = Sorting("train", held_out, repeats := Repeats())
    passed = gathered(sorting.pass_on(cut(documents, step)))
    kept = [text for text in documents if text.strip()]
    assert passed == kept
    by_split = {
        split: [text for text, of in zip(kept, sorting.splits, strict=True) if of == split]
        for split in ("train", "dev", "test")
    }
    for split, texts in by_split.items():
        counts = sorting.counts().get(split)
        if texts:
            assert counts is not None
            assert counts.documents == len(texts)
            assert counts.words == sum(len(text.split()) for text in texts)
            assert counts.bytes == sum(len(text.encode()) for text in texts)
            assert [*sorting.tallies[split].document_words] == [len(text.split()) for text in texts]
        assert repeats.duplicates(split) == len(texts) - len(set(texts))
        assert all(set(texts).isdisjoint(by_split[other]) for other in by_split if other != split)
    assert sorting.counts()["train"].empty == len(documents) - len(kept)
    only = Sorting("train", held_out)
    assert gathered(only.only("dev", cut(documents, step))) == by_split["dev"]


def test_a_fraction_of_the_documents_whatever_is_around_them() -> None:
    draw = random.Random(0)
    documents = [" ".join(draw.choices(["cat", "dog", "sees", "runs"], k=12)) for _ in range(4_000)]
    splits = []
    for order in (documents, documents[::-1]):
        sorting = Sorting("train", {"dev": 0.1, "test": 0.2})
        passed = gathered(sorting.pass_on(cut(order, 50)))
        splits.append(dict(zip(passed, sorting.splits, strict=True)))
    assert splits[0] == splits[1]
    shares = Counter(splits[0].values())
    assert shares["dev"] / len(splits[0]) == pytest.approx(0.1, abs=0.02)
    assert shares["test"] / len(splits[0]) == pytest.approx(0.2, abs=0.02)


def test_long_documents_are_sorted_by_their_beginning_and_never_held() -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece("a" * 1_000, True)
        for _ in range(199):
            seen.append(len(sorting.splits))
            yield Piece("a" * 1_000, False)

    seen: list[int] = []
    sorting = Sorting("train", {"dev": 0.5})
    assert max(len(piece.text) for piece in sorting.pass_on(pieces())) == HEAD_CHARACTERS
    assert seen.index(1) == HEAD_CHARACTERS // 1_000


def test_what_is_in_both_splits_is_counted() -> None:
    repeats = Repeats()
    for split, documents in {"train": ["a", "b", "b"], "dev": ["b", "b", "c"]}.items():
        list(Sorting(split, {}, repeats).pass_on(cut(documents, 1)))
    assert (repeats.duplicates("train"), repeats.duplicates("dev")) == (1, 1)
    assert (repeats.also_in("dev", "train"), repeats.also_in("test", "train")) == (2, 0)
