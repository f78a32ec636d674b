"""Learning a tokenizer: byte-level BPE with NFKC, from the train split only."""

import re
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from palenka.data.text.lines import cut
from palenka.data.text.readers import Piece
from palenka.data.text.tokenizer import SPECIAL_TOKENS

SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())

_NORMALIZER = normalizers.NFKC()

_PIECE_CHARACTERS = 16_384
# Learning inside one word is quadratic in its length, and a file may be a single word. Words are those of the
# tokenizer: runs of only letters, digits or other signs, so Chinese text between punctuation marks is one word.
_LONGEST_WORD = 256
_LONG_WORD = re.compile(
    rf"[^\W\d_]{{{_LONGEST_WORD + 1},}}|\d{{{_LONGEST_WORD + 1},}}|(?:[^\w\s]|_){{{_LONGEST_WORD + 1},}}"
)
_CHARACTERS_LEARNT_OF_A_WORD = 4 * _LONGEST_WORD
_FIRST_WITHOUT_SPACES = "\u0e00"
"""Thai: all scripts written without spaces come from here on, so a long word of earlier letters is not language."""

# Only these two white-space characters: cleaned text has no others, both tokenizer and Python count them as white
# space, and NFKC neither changes them nor joins them to the preceding character.
_BEFORE_SPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)


def train_tokenizer(pieces: Iterable[Piece], vocabulary_size: int, min_frequency: int) -> Tokenizer:
    """Learn a byte-level BPE tokenizer; the same text gives the same tokenizer, byte for byte.

    A word of more than 256 characters (only letters, digits or signs) is split into words of 256. In a script with
    spaces only its first 1,024 characters are used. This bounds time and memory.

    Args:
        pieces: documents, as readers yield them.
        vocabulary_size: maximum number of tokens, including the 3 special ones and the 256 bytes.
        min_frequency: how often a pair of tokens must occur to be merged.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()  # a separate one, since training holds the lock of this one
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_shorten_words(text) for text in prefixed_parts(pieces)), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def prefixed_parts(pieces: Iterable[Piece], limit: int = _PIECE_CHARACTERS) -> Iterator[str]:
    """Documents in parts of `limit` characters, cut before white space, each document with its first space added.

    So the tokenizer learns from the same words that it encodes later, with `add_prefix_space`.
    """
    rest = ""
    for text, opens_document in pieces:
        if opens_document:
            if rest:
                yield rest
            rest = _prefixed(text)
        else:
            rest += text
        if len(rest) > limit:
            parts, rest = cut(rest, limit, _BEFORE_SPACE)
            yield from parts
    if rest:
        yield rest


def _prefixed(text: str) -> str:
    """A document's text with the space of `add_prefix_space`, unless NFKC turns its first character into one."""
    return text if _NORMALIZER.normalize_str(text[:1]).startswith(" ") else f" {text}"


def _shorten_words(text: str) -> str:
    """Split or shorten words that are too long to learn from."""

    def spaced(word: re.Match[str]) -> str:
        learnt = word[0]
        if max(learnt) < _FIRST_WITHOUT_SPACES:
            learnt = learnt[:_CHARACTERS_LEARNT_OF_A_WORD]
        return " ".join(learnt[start : start + _LONGEST_WORD] for start in range(0, len(learnt), _LONGEST_WORD))

    return _LONG_WORD.sub(spaced, text)
