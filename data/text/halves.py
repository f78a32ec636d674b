"""Halves of the dev sources if no source is a test split: the first half chooses models, the second is reported.

A source is cut at the beginning of the document nearest to its middle. If that would leave one side less than a third
(for instance a file that is one document), it is cut at the line's end nearest to the middle, and if that would too (a
file that is one long line), at a space. The second half then begins a new document.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from palenka.data.text.readers import Advance, Piece
from palenka.data.text.source import TextSource
from palenka.ground.progress import info

_SMALLEST_SHARE = 1 / 3
_SHORTEST_CUT = 1000
"""Minimum characters of a source that may be cut at a space: a sentence stays whole."""


def with_test_split(sources: Sequence[TextSource]) -> list[TextSource]:
    """The same sources, or, if none is a test split, each dev source as its first half and a test source."""
    if any(source.split == "test" for source in sources):
        return list(sources)
    found: list[TextSource] = []
    for source in sources:
        found += _halves(source) if source.split == "dev" else [source]
    return found


def _halves(source: TextSource) -> list[TextSource]:
    whole = _Cut(source)
    if whole.place is None:
        info(
            f"{source.name} is a single line, too short to be cut or without a space: all of it is dev, none of it test"
        )
        return [source]
    return [Half(source.name, split, whole) for split in ("dev", "test")]


class _Place(NamedTuple):
    """The cut of a source: a number of characters, and the characters dropped there, none if a document begins."""

    offset: int
    left_out: str

    def leaves_shares(self, first: int, last: int) -> bool:
        """Whether both sides have at least a third of the text between two offsets."""
        return _SMALLEST_SHARE <= (self.offset - first) / (last - first) <= 1 - _SMALLEST_SHARE


@dataclass(frozen=True)
class _Cut:
    """A source and where its second half begins."""

    source: TextSource

    @cached_property
    def place(self) -> _Place | None:
        """The cut; None if the source has no such place. Reads the source once; memory: 8 bytes per line."""
        starts, line_ends, total = array("q"), array("q"), 0
        first: int | None = None  # of the characters other than white space
        last = 0
        for text, opens_document in self.source.documents(lambda _: None):
            if opens_document:
                starts.append(total)
            line_ends.extend(total + found.start() for found in re.finditer("\n", text))
            if stripped := text.rstrip():
                first = total + len(text) - len(text.lstrip()) if first is None else first
                last = total + len(stripped) - 1
            total += len(text)
        if first is None:
            return None
        document, line_end = (_nearest(each, first, last) for each in (starts, line_ends))
        places = ((document, ""), (line_end, "\n"))
        found = [_Place(offset, left_out) for offset, left_out in places if offset is not None]
        is_long = last - first >= _SHORTEST_CUT
        if is_long and not any(place.leaves_shares(first, last) for place in found):
            space = self._space(first, last)
            found += [_Place(space, " ")] if space is not None else []
        # If none is near enough, the last kind of place is used.
        return next((place for place in found if place.leaves_shares(first, last)), found[-1] if found else None)

    def _space(self, first: int, last: int) -> int | None:
        """The space nearest to the middle with text on both sides. Reads the source once more."""
        behind, total = (first + last) // 2 + 1, 0
        before: int | None = None
        after: int | None = None
        for text, _ in self.source.documents(lambda _: None):
            here = max(0, behind - total)
            if (at := text.rfind(" ", 0, here)) >= 0:
                before = total + at
            if after is None and (at := text.find(" ", here)) >= 0:
                after = total + at
            total += len(text)
        return _nearest(array("q", [place for place in (before, after) if place is not None]), first, last)


def _nearest(places: "array[int]", first: int, last: int) -> int | None:
    """The place nearest to the middle of some text, with text on both sides."""
    found: NDArray[np.int64] = np.array(places, dtype=np.int64)
    found = found[(found > first) & (found <= last)]
    return int(found[np.abs(2 * found - first - last).argmin()]) if len(found) else None


@dataclass(frozen=True)
class Half(TextSource):
    """The first half of a source, its dev split, or the second, its test split."""

    whole: _Cut

    @property
    def identity(self) -> str:
        """The identity of the whole source."""
        return self.whole.source.identity

    @property
    def num_bytes(self) -> int | None:
        """Bytes read for it: all of the source."""
        return self.whole.source.num_bytes

    @property
    def cleaner(self) -> str:
        """The cleaner of the source."""
        return self.whole.source.cleaner

    def remark(self) -> str | None:
        """The remark of the source, printed once."""
        return self.whole.source.remark() if self.split == "dev" else None

    def documents(self, advance: Advance) -> Iterator[Piece]:
        """The documents of the half."""
        assert self.whole.place is not None
        pieces = self.whole.source.documents(advance)
        return _before(pieces, self.whole.place) if self.split == "dev" else _behind(pieces, self.whole.place)


def _before(pieces: Iterable[Piece], cut: _Place) -> Iterator[Piece]:
    """The text before a cut; the rest is read too, so that the whole source is checked."""
    total = 0
    for text, opens_document in pieces:
        if total < cut.offset or (total == cut.offset and not text):
            yield Piece(text[: cut.offset - total], opens_document)
        total += len(text)


def _behind(pieces: Iterable[Piece], cut: _Place) -> Iterator[Piece]:
    """The text after a cut, which begins a document."""
    total, opened = 0, False
    for text, opens_document in pieces:
        rest = text[max(0, cut.offset - total) :]
        total += len(text)
        if opened:
            yield Piece(text, opens_document)
        elif total > cut.offset and (rest := rest.lstrip(cut.left_out)):
            opened = True
            yield Piece(rest, True)
