"""The base class of sources of text: the split, identity and documents of each."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from palenka.data.text.readers import Advance, Piece


@dataclass(frozen=True)
class TextSource(ABC):
    """A file, or a split of a dataset on the Hub.

    Attributes:
        name: in the corpus's record; it contains no path of this machine.
        split: ``"train"``, ``"dev"`` or ``"test"``.
    """

    name: str
    split: str

    @property
    @abstractmethod
    def identity(self) -> str:
        """The identity of the text: a checksum, or a commit."""

    @property
    @abstractmethod
    def num_bytes(self) -> int | None:
        """Bytes to read; None if unknown."""

    @property
    def cleaner(self) -> str:
        """The cleaning of its text, as the corpus's record names it."""
        return "none"

    @abstractmethod
    def documents(self, advance: Advance) -> Iterator[Piece]:
        """The documents; a source is read more than once.

        Raises:
            UserError: if the source cannot be read; the error names the place.
        """

    def remark(self) -> str | None:
        """A remark for the user before it is read: the end of a sentence that begins with its name."""
        return None
