"""What text comes from: a source says which split it is of, what tells it from another, and its documents."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from palenka.data.text.readers import Advance, Piece


@dataclass(frozen=True)
class TextSource(ABC):
    """A file, or a split of a dataset on the Hub.

    Attributes:
        name: in the corpus's record; no path on this machine is in it.
        split: ``"train"``, ``"dev"`` or ``"test"``.
    """

    name: str
    split: str

    @property
    @abstractmethod
    def identity(self) -> str:
        """What is the same for the same text: a checksum, or a commit."""

    @property
    @abstractmethod
    def num_bytes(self) -> int | None:
        """How much there is to read; None where that is unknown."""

    @property
    def cleaner(self) -> str:
        """What is done to its text, as the corpus's record names it."""
        return "none"

    @abstractmethod
    def documents(self, advance: Advance) -> Iterator[Piece]:
        """The documents; a source is read more than once.

        Raises:
            UserError: if the source cannot be read; it says where.
        """

    def remark(self) -> str | None:
        """What a user should know before it is read, as the end of a sentence that begins with its name."""
        return None
