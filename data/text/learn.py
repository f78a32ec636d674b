"""Learning a tokenizer: byte-level BPE with NFKC, from the train split alone."""

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
# tokenizer: letters, digits or other signs alone, so Chinese is one word from punctuation mark to punctuation mark.
_LONGEST_WORD = 256
_LONG_WORD = re.compile(
    rf"[^\W\d_]{{{_LONGEST_WORD + 1},}}|\d{{{_LONGEST_WORD + 1},}}|(?:[^\w\s]|_){{{_LONGEST_WORD + 1},}}"
)
_CHARACTERS_LEARNT_OF_A_WORD = 4 * _LONGEST_WORD
_FIRST_WITHOUT_SPACES = "\u0e00"
"""Thai; scripts that are written without spaces do not come before it, so there a long word is no language."""

# Only these two white-space characters: cleaned text has no others, both tokenizer and Python count them as white
# space, and NFKC neither changes them nor joins them to what stands before.
_BEFORE_SPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)


def train_tokenizer(pieces: Iterable[Piece], vocabulary_size: int, min_frequency: int) -> Tokenizer:
    """Learn a byte-level BPE tokenizer; the same text gives the same tokenizer, byte for byte.

    A word of more than 256 characters (letters, digits or signs alone) is learnt from as words of 256, and in a script
    that is written with spaces only its first 1,024 characters are: this bounds time and memory.

    Args:
        pieces: documents, as readers yield them.
        vocabulary_size: tokens at most, the 3 special ones and the 256 bytes included.
        min_frequency: how often a pair of tokens must occur to be merged.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFKC()  # its own: while training, the lock of this one is held
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
    """Documents in parts of `limit` characters, cut before white space, with the space that opens a document put in.

    So the tokenizer learns from the words that it will find when it encodes, with `add_prefix_space`.
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
    """A document's text with the space that `add_prefix_space` gives it: unless NFKC makes its first character one."""
    return text if _NORMALIZER.normalize_str(text[:1]).startswith(" ") else f" {text}"


def _shorten_words(text: str) -> str:
    """Cut words that are too long to learn from down to words of bearable length."""

    def spaced(word: re.Match[str]) -> str:
        learnt = word[0]
        if max(learnt) < _FIRST_WITHOUT_SPACES:
            learnt = learnt[:_CHARACTERS_LEARNT_OF_A_WORD]
        return " ".join(learnt[start : start + _LONGEST_WORD] for start in range(0, len(learnt), _LONGEST_WORD))

    return _LONG_WORD.sub(spaced, text)
