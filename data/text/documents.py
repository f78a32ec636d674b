"""Between readers and encoder: the split of each document, and counts of text.

A document's split must be known before its first token is written, so a hash of its head, the first 65,536 characters,
decides it. The same document is always in the same split.
"""

import hashlib
from array import array
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from palenka.data.corpus import Counts
from palenka.data.text.readers import Piece

HEAD_CHARACTERS = 65_536


@dataclass
class Tally:
    """The amount of a source's text in a split, and the words of each document."""

    document_words: "array[int]" = field(default_factory=lambda: array("q"))
    bytes: int = 0
    tokens: int = 0

    def counts(self) -> Counts:
        """Its sums."""
        words = self.document_words
        return Counts(tokens=self.tokens, documents=len(words), words=sum(words), bytes=self.bytes)


class Repeats:
    """Hashes of documents by split, 8 bytes each, to count duplicates."""

    def __init__(self) -> None:
        self._hashes: dict[str, array[int]] = defaultdict(lambda: array("Q"))

    def add(self, split: str, number: int) -> None:
        """Add a document by a hash of its text."""
        self._hashes[split].append(number)

    def duplicates(self, split: str) -> int:
        """Documents of a split that already occurred in it."""
        found = self._of(split)
        return len(found) - len(np.unique(found))

    def also_in(self, split: str, other: str) -> int:
        """Documents of a split that also occur in another one."""
        return int(np.isin(self._of(split), self._of(other)).sum())

    def _of(self, split: str) -> NDArray[np.uint64]:
        return np.frombuffer(self._hashes[split], dtype=np.uint64) if self._hashes[split] else np.empty(0, np.uint64)


@dataclass
class Sorting:
    """Sorts the documents of one source into splits, and counts them.

    Attributes:
        split: of the source.
        held_out: fraction of a train source that goes to another split, by split.
        repeats: where the documents' hashes go.
        tallies: amounts of text, by split.
        empty: documents without any text, which are dropped.
        splits: of the documents passed on and not yet consumed, in order.
    """

    split: str
    held_out: Mapping[str, float] = field(default_factory=dict)
    repeats: Repeats | None = None
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    empty: int = 0
    splits: deque[str] = field(default_factory=deque)

    def pass_on(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The same documents, without those that have no text; a word cut between two pieces counts once."""
        digest, tally, inside_word = hashlib.blake2b(), Tally(), False
        split = ""
        for piece in _with_heads(pieces):
            text = piece.text
            if piece.opens_document:
                self._remember(split, digest)
                split = ""
                if len(text) < HEAD_CHARACTERS and not text.strip():
                    self.empty += 1
                    continue
                split = self._split_of(text)
                self.splits.append(split)
                digest, tally, inside_word = hashlib.blake2b(digest_size=8), self.tallies[split], False
                tally.document_words.append(0)
            encoded = text.encode()
            digest.update(encoded)
            tally.bytes += len(encoded)
            tally.document_words[-1] += len(text.split()) - (inside_word and not text[:1].isspace())
            inside_word = not text[-1:].isspace()
            yield piece
        self._remember(split, digest)

    def counts(self) -> dict[str, Counts]:
        """Amounts of text by split; documents without text count for the source's own split."""
        found = {split: tally.counts() for split, tally in self.tallies.items()}
        own = found.get(self.split, Counts())
        return {**found, self.split: own.model_copy(update={"empty": self.empty})}

    def only(self, split: str, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Only the documents of one split."""
        wanted = False
        for piece in self.pass_on(pieces):
            if piece.opens_document:
                wanted = self.splits.popleft() == split
            if wanted:
                yield piece

    def _split_of(self, head: str) -> str:
        if not self.held_out or self.split != "train":
            return self.split
        number = int.from_bytes(hashlib.blake2b(head.encode(), digest_size=8, person=b"dev split").digest(), "big")
        below = 0.0
        for split, fraction in self.held_out.items():
            below += fraction
            if number < below * 2**64:
                return split
        return self.split

    def _remember(self, split: str, digest: "hashlib.blake2b") -> None:
        if split and self.repeats:
            self.repeats.add(split, int.from_bytes(digest.digest(), "big"))


def _with_heads(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same documents, each beginning with a piece of its first `HEAD_CHARACTERS`, or all of it."""
    head: list[str] = []
    num_waiting, gathering = 0, False
    for text, opens_document in pieces:
        if opens_document:
            if gathering:
                yield Piece("".join(head), True)
            head, num_waiting, gathering = [], 0, True
        if not gathering:
            yield Piece(text, False)
            continue
        head.append(text)
        num_waiting += len(text)
        if num_waiting >= HEAD_CHARACTERS:
            whole = "".join(head)
            yield Piece(whole[:HEAD_CHARACTERS], True)
            if rest := whole[HEAD_CHARACTERS:]:
                yield Piece(rest, False)
            gathering = False
    if gathering:
        yield Piece("".join(head), True)
