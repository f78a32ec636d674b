"""Documents encoded in parts: the ids are those of the whole document, whatever the tokenizer, wherever it is cut."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from palenka.data.text.encoder import DocumentEncoder
from palenka.data.text.learn import train_tokenizer
from palenka.data.text.readers import Piece
from palenka.data.text.tokenizer import save_learnt

REAL_TEXT = Path(__file__).parents[4] / "shared" / "data" / "babylm"
TEXT = "The cat's kitten didn't see the other cats; it saw 12 mice, and don't they run! naïve café 字字 \n\n the end\n"
CHINESE = "我们在河边看见了一只猫，它正在睡觉。后来下雨了，我们就回家了！\n第二天早上，天气很好；猫还在那里。"
OTHERS = ["byte_level", "split_by_pattern", "sentence_piece", "unigram", "word_piece", "bare"]
KINDS = ["own", *OTHERS]


@pytest.fixture(scope="session")
def tokenizer_of(
    save_tokenizer_of: Callable[[str, str, Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """A tokenizer of a kind, as AutoTokenizer gives it."""

    @cache
    def make(kind: str) -> Any:
        folder = tmp_path_factory.mktemp(kind)
        if kind == "own":
            save_learnt(train_tokenizer([Piece(TEXT * 3, True)], 400, 2), folder)
        else:
            save_tokenizer_of(kind, (TEXT + CHINESE) * 20, folder)
        return AutoTokenizer.from_pretrained(folder)

    return make


def encode(tokenizer: Any, pieces: list[Piece], part_characters: int, longest: int = 10_000) -> list[list[int]]:
    documents: list[list[int]] = []
    encoder = DocumentEncoder(
        tokenizer.backend_tokenizer, tokenizer.split_special_tokens, part_characters, longest_characters=longest
    )
    for tokens, opens_document in encoder.encode(pieces):
        if opens_document:
            documents.append([])
        documents[-1].extend(tokens.tolist())
    assert encoder.torn == 0
    return documents


def whole(tokenizer: Any, documents: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False).input_ids for text in documents]


# Words without white space, up to five characters with the gap: letters, digits, contractions, combining marks,
# characters that NFKC makes a space, joins, splits or turns into others, spelt special tokens, and odd white space.
# fmt: off
WORDS = st.sampled_from([
    "a", "cat", "'s", "'", "’ll", "12", "½", "...", "é", "e\u0301", "\u0301", "´", "¨\u0301", "ﬁ", "가", "\u1100\u1161",
    "\u11a8", "字", "🙂", "<s>", "\u200b", "\x1c", "\x85", "\u2028", "\u3000", "\u00a0", "\u1680", "\ufdfa", "\u037a",
    "\u0345", "\ufeff", "。", "，", ".", "<|endoftext|>", "[SEP]", "▁", "ไม่มี",
])
# fmt: on
GAPS = st.sampled_from(["", " ", "  ", "\n", "\n\n", " \n ", "\t", " \u0301", "\r\n"])
DOCUMENTS = st.lists(st.tuples(WORDS, GAPS), min_size=1, max_size=12).map(
    lambda words: "".join(word + gap for word, gap in words)
)


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(DOCUMENTS, min_size=1, max_size=3), st.integers(1, 30), st.integers(1, 7))
@example(["´ accent first"], 4, 2)
@example(["\u0301mark first", " space first", "\nline first"], 5, 3)
@example(["the cats   \n\n  didn't <s> see"], 6, 1)
@example(["ends.\n\nbegins. \n\n and"], 5, 4)
def test_parts_give_the_ids_of_the_whole(
    kind: str, tokenizer_of: Callable[[str], Any], documents: list[str], part_characters: int, step: int
) -> None:
    pieces = [
        Piece(text[start : start + step], start == 0) for text in documents for start in range(0, len(text), step)
    ]
    assert encode(tokenizer_of(kind), pieces, part_characters) == whole(tokenizer_of(kind), documents)


@pytest.mark.parametrize("kind", KINDS)
def test_long_text_is_really_cut(kind: str, tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of(kind)
    draw = random.Random(0)
    sentences = "".join("".join(draw.sample(CHINESE, 9)) + draw.choice("，。；\n") for _ in range(300))
    for text in (" ".join(draw.choices((TEXT + CHINESE).split(" "), k=3_000)), sentences):
        encoder = DocumentEncoder(tokenizer.backend_tokenizer, tokenizer.split_special_tokens, part_characters=200)
        found = list(encoder.encode([Piece(text, True)]))
        assert len(found) > len(text) / 800
        assert [opens for _, opens in found] == [True, *[False] * (len(found) - 1)]
        assert [token for tokens, _ in found for token in tokens.tolist()] == whole(tokenizer, [text])[0]


def test_a_run_without_a_place_to_cut_is_torn_and_counted(tokenizer_of: Callable[[str], Any]) -> None:
    tokenizer = tokenizer_of("own")
    encoder = DocumentEncoder(tokenizer.backend_tokenizer, True, part_characters=10, longest_characters=40)
    text = "ab" * 100
    found = [token for tokens, _ in encoder.encode([Piece(text, True)]) for token in tokens.tolist()]
    assert encoder.torn > 0
    assert tokenizer.decode(found).replace(" ", "") == text
