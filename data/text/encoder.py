"""Documents of any length to the ids that a tokenizer gives for each whole document, on all cores and in flat memory.

A document of up to `PART_CHARACTERS` is encoded whole. A longer one is cut into parts. Each part is encoded after the
characters that precede it, and the cut is checked with the tokenizer: these characters must give the same ids with and
without the part; their ids are then dropped. If they do not, a token crosses the cut, and the two parts are encoded as
one.

A cut lies before a space that follows other characters than white space, else between a word and a line's end or a
punctuation mark. There every tokenizer that works word by word begins a new word, so the ids are those of the whole
document. With one that does not (SentencePiece without splitting, where a whole document is one word), they are so if
no token crosses the cut, which the check ensures. A space put before a text, and white space stripped from it, affect
only the characters that are dropped. Only a run of more than `LONGEST_CHARACTERS` without such a place is cut
regardless.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from palenka.data.text.readers import Piece

PART_CHARACTERS = 65_536
"""Longest text that is encoded as one, if there is a place to cut it."""
LONGEST_CHARACTERS = 4 * PART_CHARACTERS
"""Longest text that is encoded as one."""
_CONTEXT_CHARACTERS = 256
_BATCH_CHARACTERS = 16 * PART_CHARACTERS

_SIGNS = r"!-/:-@\[-^`{-~¡-§«»।॥‐-‧‰-⁞、-】〽！-／：-＠［-］｛-､"
_BEFORE_SPACE, _BEHIND_WORD = r"\S(?= )", rf"\w(?=[\n\r\t{_SIGNS}])"
_PLACES = tuple(re.compile(f".*{place}", re.DOTALL) for place in (_BEFORE_SPACE, _BEHIND_WORD))
_NEXT_PLACE = re.compile(f"{_BEFORE_SPACE}|{_BEHIND_WORD}")


@dataclass(frozen=True)
class _Part:
    """Text of a document.

    Attributes:
        text: itself.
        before: the preceding characters in its document; empty at the beginning of the document.
        torn: whether it was cut from the preceding text at an unsafe place.
    """

    text: str
    before: str = ""
    torn: bool = False


class DocumentEncoder:
    """Encodes documents that come in pieces.

    Args:
        tokenizer: any; it is not changed.
        spelt_out: whether text that spells a special token is encoded as any other text (`split_special_tokens`).
        part_characters: longest text that is encoded as one, if there is a place to cut it.
        longest_characters: longest text that is encoded as one.

    Attributes:
        torn: number of cuts at which the ids may differ from those of the whole document.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        spelt_out: bool = False,
        part_characters: int = PART_CHARACTERS,
        longest_characters: int = LONGEST_CHARACTERS,
    ) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = spelt_out
        self._part_characters = part_characters
        self._longest_characters = longest_characters
        self.torn = 0

    def encode(self, pieces: Iterable[Piece]) -> Iterator[tuple[NDArray[np.uint32], bool]]:
        """The ids [n] of some text, and whether it opens a document, in order; no special token is added."""
        held: tuple[_Part, list[int]] | None = None
        for part, before, ids in self._encoded(self._parts(pieces)):
            agrees = ids[: len(before)] == before
            if held and part.before and not agrees and self._may_be_one(held[0], part):
                held = self._joined(held[0], part)
                continue
            self.torn += part.torn or not agrees
            yield from _given(held)
            held = part, ids[len(before) :] if agrees else self._ids(part.text)
        yield from _given(held)

    def _may_be_one(self, first: _Part, second: _Part) -> bool:
        return not second.torn and len(first.text) + len(second.text) <= self._longest_characters

    def _joined(self, first: _Part, second: _Part) -> tuple[_Part, list[int]]:
        """Two parts as one, in the place of the first, and its ids."""
        whole = _Part(first.text + second.text, first.before, first.torn)
        return whole, self._ids(whole.before + whole.text)[len(self._ids(whole.before)) :]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def _encoded(self, parts: Iterable[_Part]) -> Iterator[tuple[_Part, list[int], list[int]]]:
        """Each part with the ids of the preceding characters, and of both together."""
        for batch in _batches(parts):
            texts = [part.before + part.text for part in batch] + [part.before for part in batch if part.before]
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            befores = iter(encodings[len(batch) :])
            for part, encoding in zip(batch, encodings, strict=False):
                yield part, next(befores).ids if part.before else [], encoding.ids

    def _parts(self, pieces: Iterable[Piece]) -> Iterator[_Part]:
        """The documents in parts, which do not depend on the pieces of the input."""
        waiting: list[str] = []
        num_waiting, before, torn = 0, "", False
        for text, opens_document in pieces:
            if opens_document:
                if waiting:
                    yield _Part("".join(waiting), before, torn)
                waiting, num_waiting, before, torn = [], 0, "", False
            waiting.append(text)
            num_waiting += len(text)
            if num_waiting > self._part_characters:
                rest = "".join(waiting)
                while found := self._cut(rest):
                    yield _Part(rest[: found.end], before, torn)
                    before = (before + rest[: found.end])[-_CONTEXT_CHARACTERS:]
                    rest, torn = rest[found.end :], found.torn
                waiting, num_waiting = [rest], len(rest)
        if waiting:
            yield _Part("".join(waiting), before, torn)

    def _cut(self, text: str) -> "_Cut | None":
        """The end of the first part of a text; None if it is short, or if more text is needed to decide."""
        limit = self._part_characters
        if len(text) <= limit:
            return None
        for place in _PLACES:
            if found := place.match(text[: limit + 1]):
                return _Cut(found.end(), False)
        if found := _NEXT_PLACE.search(text, limit, self._longest_characters + 1):
            return _Cut(found.end(), False)
        return _Cut(self._longest_characters, True) if len(text) > self._longest_characters else None


class _Cut(NamedTuple):
    """The end of a part, and whether it is an unsafe place."""

    end: int
    torn: bool


def _given(held: tuple[_Part, list[int]] | None) -> Iterator[tuple[NDArray[np.uint32], bool]]:
    if held is not None:
        yield np.array(held[1], dtype=np.uint32), not held[0].before


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Parts in groups that are large enough to keep all cores busy."""
    batch: list[_Part] = []
    num_characters = 0
    for part in parts:
        batch.append(part)
        num_characters += len(part.text)
        if num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
