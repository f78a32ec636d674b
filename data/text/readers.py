"""Readers of text: each declares which files it reads, and yields their documents, a piece at a time.

A format is one file with a class that registers itself in `READERS`; no other code knows about formats.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from palenka.ground.registry import Registry

Advance = Callable[[int], object]
"""Called now and then with the number of bytes read since the last call."""


class Piece(NamedTuple):
    """Some text of a document; a document without text is one empty piece."""

    text: str
    opens_document: bool


@dataclass(frozen=True)
class ReadingOptions:
    """A user's options for reading text.

    Attributes:
        cleaner: ``"babylm"`` for the cleaner of the source in a file's name, or ``"none"``; None for the format's
            default.
        text_field: the field of a record that is its text.
    """

    cleaner: Literal["babylm", "none"] | None = None
    text_field: str = "text"


class Reader(ABC):
    """Reads the files of one format.

    Args:
        options: of the user's.

    Attributes:
        suffixes: of the names of its files, such as ``".jsonl"`` or ``".jsonl.gz"``. The reader with the longest
            matching suffix reads a file; of two with the same suffix, the one registered last.
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, options: ReadingOptions | None = None) -> None:
        self.options = options or ReadingOptions()

    @abstractmethod
    def documents(self, path: Path, advance: Advance) -> Iterator[Piece]:
        """The documents of a file, each as the pieces of its text; a file is read more than once.

        Raises:
            UserError: if the file cannot be read; the error names the place.
        """

    def cleaner(self, path: Path) -> str:
        """The cleaning of a file's text, as the corpus's record names it."""
        return "none"

    def remark(self, path: Path) -> str | None:
        """A remark for the user before a file is read: the end of a sentence that begins with its name."""
        return None


READERS: Registry[type[Reader]] = Registry("reader of text")
