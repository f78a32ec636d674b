"""The tokenizer, and that encoding a document in pieces gives the tokens of the whole."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from palenka.data.text.readers import Piece
from palenka.data.text.tokenizer import DocumentEncoder, encoder_pieces, load_tokenizer, save_tokenizer, train_tokenizer

TEXT = "The cat's kitten didn't see the other cats; it saw 12 mice, and don't they run! naïve café 字字 \n\n the end\n"


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer([Piece(TEXT * 3, True)], 400, 2)


@cache
def saved() -> Any:
    with TemporaryDirectory() as folder:
        save_tokenizer(tokenizer(), Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def encode(pieces: list[Piece], piece_characters: int) -> list[list[int]]:
    documents: list[list[int]] = []
    for tokens, opens_document in DocumentEncoder(tokenizer(), piece_characters).encode(pieces):
        if opens_document:
            documents.append([])
        documents[-1].extend(tokens.tolist())
    return documents


# Words without white space, up to five characters with the gap: letters, digits, contractions, combining marks,
# characters that NFKC makes a space, joins, splits or turns into others, spelt special tokens, and odd white space.
# fmt: off
WORDS = st.sampled_from([
    "a", "cat", "'s", "'", "’ll", "12", "½", "...", "é", "e\u0301", "\u0301", "´", "¨\u0301", "ﬁ", "가", "\u1100\u1161",
    "\u11a8", "字", "🙂", "<s>", "\u200b", "\x1c", "\x85", "\u2028", "\u3000", "\u00a0", "\u1680", "\ufdfa", "\u037a",
    "\u0345", "\ufeff",
])
# fmt: on
GAPS = st.sampled_from(["", " ", "  ", "\n", "\n\n", " \n ", "\t", " \u0301"])
DOCUMENTS = st.lists(st.tuples(WORDS, GAPS), min_size=1, max_size=12).map(
    lambda words: "".join(word + gap for word, gap in words)
)


@given(st.lists(DOCUMENTS, min_size=1, max_size=3), st.integers(1, 30), st.integers(1, 7))
@example(["´ accent first"], 4, 2)
@example(["\u0301mark first", " space first", "\nline first"], 5, 3)
@example(["the cats   \n\n  didn't <s> see"], 6, 1)
def test_pieces_give_the_tokens_of_the_whole(documents: list[str], piece_characters: int, step: int) -> None:
    pieces = [
        Piece(text[start : start + step], start == 0) for text in documents for start in range(0, len(text), step)
    ]
    # A run without a place to cut in `piece_characters` is torn, as documented: then ask for pieces that are longer.
    while is_torn(list(encoder_pieces(pieces, piece_characters))):
        piece_characters += 1
    assert encode(pieces, piece_characters) == [saved()(text).input_ids for text in documents]


def is_torn(pieces: list[Piece]) -> bool:
    return any(
        not after.opens_document and (before.text[-1].isspace() or after.text[0] not in " \n")
        for before, after in pairwise(pieces)
    )


@given(DOCUMENTS, st.integers(1, 9), st.integers(1, 9), st.integers(1, 30))
def test_how_text_arrives_changes_nothing(text: str, step: int, other: int, piece_characters: int) -> None:
    arrivals = [[Piece(text[i : i + n], i == 0) for i in range(0, len(text), n)] for n in (step, other)]
    assert encode(arrivals[0], piece_characters) == encode(arrivals[1], piece_characters)


def test_long_text_is_really_cut() -> None:
    text = TEXT * 200
    pieces = [piece.text for piece in encoder_pieces([Piece(text, True)], 64)]
    assert len(pieces) > len(text) / 64
    assert "".join(pieces) == f" {text}"
    assert encode([Piece(text, True)], 64) == [saved()(text).input_ids]


def test_the_saved_tokenizer_is_as_published() -> None:
    assert [saved().convert_tokens_to_ids(token) for token in ("<pad>", "<s>", "</s>")] == [0, 1, 2]
    assert (saved().pad_token_id, saved().bos_token_id, saved().eos_token_id) == (0, 1, 2)
    assert len(saved()) == tokenizer().get_vocab_size() <= 400
    assert saved()("").input_ids == []
    assert saved()("cat").input_ids == saved()(" cat").input_ids, "a space is put before a text without one"
    assert saved()("ﬁ").input_ids == saved()("fi").input_ids, "text is normalised to NFKC"
    assert not {0, 1, 2} & set(saved()("<s> a </s><pad>").input_ids), "spelt special tokens are text"
    assert saved().decode(saved()(TEXT).input_ids) == f" {TEXT}"


def test_every_byte_has_a_token() -> None:
    text = "".join(map(chr, range(1, 0x800)))
    assert saved().decode(saved()(text).input_ids) == " " + tokenizer().normalizer.normalize_str(text)


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    again = train_tokenizer([Piece(character, index == 0) for index, character in enumerate(TEXT * 3)], 400, 2)
    save_tokenizer(tokenizer(), tmp_path / "first")
    save_tokenizer(again, tmp_path / "again")
    assert (tmp_path / "first/tokenizer.json").read_bytes() == (tmp_path / "again/tokenizer.json").read_bytes()


def test_merges_are_those_of_an_independent_count() -> None:
    """The first merge joins the most frequent pair of the words, each with the space before it."""
    learnt = train_tokenizer([Piece("hug hug hug pug pug hugs", True)], 260, 2)
    assert learnt.id_to_token(259) == "ug"  # 6 times; " h" 4 times


def test_a_tokenizer_loads_as_the_fast_class(tmp_path: Path) -> None:
    save_tokenizer(tokenizer(), tmp_path)
    assert load_tokenizer(tmp_path)(TEXT).input_ids == saved()(TEXT).input_ids
    assert not list(tmp_path.glob("*.p*kl*"))


@pytest.mark.parametrize("length", [300, 5_000])
def test_a_run_without_white_space_can_be_learnt_from(length: int) -> None:
    learnt = train_tokenizer([Piece("ab" * length, True)], 300, 2)
    assert "abab" in learnt.get_vocab()
