"""Learning a tokenizer: from the words that it will find, from long ones in bounded time, from text without spaces."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from palenka.data.text.learn import prefixed_parts, train_tokenizer
from palenka.data.text.readers import Piece

SENTENCES = ["我们在河边看见了一只猫", "它正在睡觉", "后来下雨了", "我们就回家了", "第二天早上天气很好", "猫还在那里"]


def chinese(sentences: int, mark: str) -> str:
    draw = random.Random(0)
    return "".join(draw.choice(SENTENCES) + mark for _ in range(sentences))


def learnt_from_all_of(text: str, vocabulary_size: int) -> Tokenizer:
    """The library's own, from the text as one string, the space before a document put in by hand."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {text}"], trainer)
    return tokenizer


@given(st.lists(st.text(alphabet="ab \n", min_size=1, max_size=40), min_size=1, max_size=4), st.integers(1, 7))
def test_the_parts_are_the_documents_with_a_space_before_each(documents: list[str], step: int) -> None:
    pieces = [
        Piece(text[start : start + step], start == 0) for text in documents for start in range(0, len(text), step)
    ]
    expected = "".join(text if text.startswith(" ") else f" {text}" for text in documents)
    assert "".join(prefixed_parts(pieces, limit=8)) == expected


def test_text_without_spaces_is_learnt_from_in_full() -> None:
    text = chinese(1_500, "。")
    assert len(text) > 10_000
    learnt = train_tokenizer([Piece(text, True)], 330, 2)
    assert learnt.get_vocab() == learnt_from_all_of(text, 330).get_vocab()


def test_so_is_text_without_spaces_and_marks() -> None:
    text = chinese(2_000, "")
    per_character = [
        len(tokenizer.encode(text).ids) / len(text)
        for tokenizer in (train_tokenizer([Piece(text, True)], 330, 2), learnt_from_all_of(text, 330))
    ]
    assert per_character[0] == pytest.approx(per_character[1], rel=0.01)


@pytest.mark.parametrize("length", [300, 5_000])
def test_a_run_without_white_space_can_be_learnt_from(length: int) -> None:
    learnt = train_tokenizer([Piece("ab" * length, True)], 300, 2)
    assert "abab" in learnt.get_vocab()
