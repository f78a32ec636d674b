"""Readers of text: each says which files it reads, and yields their documents, a piece at a time.

A format is one file with a class that registers itself in `READERS`; whoever prepares a corpus asks nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from palenka.ground.registry import Registry

Advance = Callable[[int], object]
"""Called with a number of bytes that were read, now and then."""


class Piece(NamedTuple):
    """Some text of a document; a document without any is one empty piece."""

    text: str
    opens_document: bool


@dataclass(frozen=True)
class ReadingOptions:
    """What a user may say of how text is read.

    Attributes:
        cleaner: ``"babylm"``, the cleaner of the source that a file's name says, or ``"none"``; None for what the
            format is used to.
        text_field: the field of a record that is its text.
    """

    cleaner: Literal["babylm", "none"] | None = None
    text_field: str = "text"


class Reader(ABC):
    """Reads the files of one format.

    Args:
        options: of the user's.

    Attributes:
        suffixes: how the names of its files end, such as ``".jsonl"`` or ``".jsonl.gz"``. The longest that fits decides
            who reads a file, and of two readers that have it the one that was registered last.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, options: ReadingOptions | None = None) -> None:
        self.options = options or ReadingOptions()

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
