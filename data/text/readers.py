"""Readers of text: each says which files it reads, and yields their documents, a piece at a time.

A format is one file with a class that registers itself in `READERS`; whoever prepares a corpus asks nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

from palenka.ground.registry import Registry

Advance = Callable[[int], object]
"""Called with a number of bytes that were read, now and then."""


class Piece(NamedTuple):
    """Some text of a document, never empty."""

    text: str
    opens_document: bool


class Reader(ABC):
    """Reads the files of one format.

    Attributes:
        suffixes: how the names of its files end, such as ``".jsonl"`` or ``".jsonl.gz"``. The longest that fits decides
            who reads a file, and of two readers that have it the one that was registered last.
    """

    suffixes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def documents(self, path: Path, advance: Advance) -> Iterator[Piece]:
        """The documents of a file, each as the pieces that together are its text; a file is read more than once.

        Raises:
            UserError: if the file cannot be read; it says where.
        """

    def cleaner(self, path: Path) -> str:
        """What is done to a file's text, as the corpus's record names it."""
        return "none"

    def remark(self, path: Path) -> str | None:
        """What a user should know of a file before it is read, as the end of a sentence that begins with its name."""
        return None


READERS: Registry[type[Reader]] = Registry("reader of text")
