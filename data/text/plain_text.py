"""Plain text, NAME.txt: a file is one unchanged document."""

from collections.abc import Iterator
from pathlib import Path

from palenka.data.text.babylm import cleaned_document
from palenka.data.text.cleaners import cleaner_for
from palenka.data.text.lines import read_blocks, read_parts, refuse_json_lines
from palenka.data.text.readers import READERS, Advance, Piece, Reader


@READERS.register("text")
class PlainText(Reader):
    """Text that is not cleaned unless asked for; a byte-order mark is skipped, and lines end in a newline."""

    suffixes = (".txt",)

    def documents(self, path: Path, advance: Advance) -> Iterator[Piece]:
        """The one document, a block of the file at a time."""
        refuse_json_lines(path)
        if self.options.cleaner == "babylm":
            yield from cleaned_document(read_parts(path, advance=advance), cleaner_for(path.stem))
            return
        opens = True
        for text in read_blocks(path, advance=advance):
            if text or opens:
                yield Piece(text, opens)
                opens = False
