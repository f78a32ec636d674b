"""A reader of NAME.SPLIT.toy: each paragraph is a document, in which an asterisk stands for `star`."""

from collections.abc import Iterator
from pathlib import Path

from palenka.data.text.readers import READERS, Advance, Piece, Reader


@READERS.register("toy")
class ToyReader(Reader):
    suffixes = (".toy",)

    def documents(self, path: Path, advance: Advance) -> Iterator[Piece]:
        for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
            for number, line in enumerate(filter(None, paragraph.split("\n"))):
                yield Piece(("\n" if number else "") + line.replace("*", "star"), opens_document=number == 0)
        advance(path.stat().st_size)
