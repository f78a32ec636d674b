"""The tokenizer: byte-level BPE, trained on the train split alone, and its encoder for documents of any length.

A document is encoded in pieces, on all cores and in flat memory, to exactly the tokens that the saved tokenizer gives
for the whole of it. Two things make that true. The pieces are cut before white space that follows something else, where
the byte-level splitting begins a new word whatever comes before. And the space that the tokenizer puts before a text
(`add_prefix_space`) is put before a document's first piece alone.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from palenka.data.text.lines import cut
from palenka.data.text.readers import Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<pad>", "<s>", "</s>"
SPECIAL_TOKENS = (PAD, START, END)
"""In the order of their ids: 0, 1, 2."""
START_ID = SPECIAL_TOKENS.index(START)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())

_NORMALIZER = normalizers.NFKC()

PIECE_CHARACTERS = 16_384
"""Longest piece that is encoded as one; a run of more characters without white space is torn here."""
_BATCH_CHARACTERS = 64 * PIECE_CHARACTERS
# Learning inside one word is quadratic in its length, and a file may be a single word.
_LONGEST_WORD = 256
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{_LONGEST_WORD + 1},}}")
_CHARACTERS_LEARNT_OF_A_RUN = 4 * _LONGEST_WORD

# Only these two white-space characters: cleaned text has no others, both tokenizer and Python count them as white
# space, and NFKC neither changes them nor joins them to what stands before.
_BEFORE_SPACE = re.compile(r".*\S(?=[ \n])", re.DOTALL)


def train_tokenizer(pieces: Iterable[Piece], vocabulary_size: int, min_frequency: int) -> Tokenizer:
    """Learn a byte-level BPE tokenizer; the same text gives the same tokenizer, byte for byte.

    Of a run of more than 256 characters without white space in a piece, only the first 1,024 are learnt from, as words
    of 256: this bounds time and memory, and no word is that long.

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
    tokenizer.train_from_iterator((_shorten_words(text) for text, _ in encoder_pieces(pieces)), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write a directory that `transformers.AutoTokenizer` loads, with the special tokens named.

    Text that spells a special token, such as ``<s>``, is encoded as any other text.
    """
    from transformers import PreTrainedTokenizerFast

    directory.mkdir(parents=True, exist_ok=True)
    # The library tells of a full disk with a bare Exception; writing the same text here first raises an OSError.
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD, split_special_tokens=True
    ).save_pretrained(directory)


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer that `save_tokenizer` wrote."""
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer


class DocumentEncoder:
    """Encodes documents in pieces, to the tokens that the tokenizer gives for each whole document.

    Args:
        tokenizer: as `train_tokenizer` returns it; it is left as it is.
        piece_characters: longest piece that is encoded as one.
    """

    def __init__(self, tokenizer: Tokenizer, piece_characters: int = PIECE_CHARACTERS) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.encode_special_tokens = True
        self._piece_characters = piece_characters

    def encode(self, pieces: Iterable[Piece]) -> Iterator[tuple[NDArray[np.uint32], bool]]:
        """The tokens [n] of some text, and whether it opens a document, in order; no special token is added."""
        for batch in _batches(encoder_pieces(pieces, self._piece_characters)):
            encodings = self._tokenizer.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
            for encoding, piece in zip(encodings, batch, strict=True):
                yield np.array(encoding.ids, dtype=np.uint32), piece.opens_document


def encoder_pieces(pieces: Iterable[Piece], limit: int = PIECE_CHARACTERS) -> Iterator[Piece]:
    """The same documents in pieces of `limit` characters, cut where the encoder may, each document's first prefixed."""
    waiting: list[str] = []
    num_waiting, opens = 0, True
    for text, opens_document in pieces:
        if opens_document and waiting:
            yield Piece("".join(waiting), opens)
            waiting, num_waiting = [], 0
        if opens_document:
            text = _prefixed(text)
            opens = True
        waiting.append(text)
        num_waiting += len(text)
        if num_waiting > limit:
            parts, rest = cut("".join(waiting), limit, _BEFORE_SPACE)
            for part in parts:
                yield Piece(part, opens)
                opens = False
            waiting, num_waiting = [rest], len(rest)
    if waiting:
        yield Piece("".join(waiting), opens)


def _prefixed(text: str) -> str:
    """A document's text with the space that `add_prefix_space` gives it: unless NFKC makes its first character one."""
    return text if _NORMALIZER.normalize_str(text[:1]).startswith(" ") else f" {text}"


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces in groups that are large enough to keep all cores busy."""
    batch: list[Piece] = []
    num_characters = 0
    for piece in pieces:
        batch.append(piece)
        num_characters += len(piece.text)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _shorten_words(text: str) -> str:
    """Cut runs that are too long to learn from down to words of bearable length."""

    def spaced(run: re.Match[str]) -> str:
        learnt = run[0][:_CHARACTERS_LEARNT_OF_A_RUN]
        return " ".join(learnt[start : start + _LONGEST_WORD] for start in range(0, len(learnt), _LONGEST_WORD))

    return _LONG_RUN.sub(spaced, text)
