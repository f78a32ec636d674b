"""BabyLM-style plain text, SOURCE.train, SOURCE.dev and SOURCE.test: from its lines to cleaned documents.

Documents are wiki articles, else the blocks between blank lines, else the whole file. Inside an article several blank
lines count as one. A document never begins or ends with a blank line, and one without text vanishes.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from palenka.data.text.cleaners import CLEANERS, GENERAL, Cleaner, cleaner_for, opens_article
from palenka.data.text.lines import PART_CHARACTERS, Part, read_parts
from palenka.data.text.readers import READERS, Advance, Piece, Reader


@READERS.register("babylm")
class BabyLMText(Reader):
    """Text that is cleaned as its source needs; the file's stem names the source."""

    suffixes = (".train", ".dev", ".test")

    def documents(self, path: Path, advance: Advance) -> Iterator[Piece]:
        """The documents, each piece at most a part of a line and the line's end before it."""
        return read_documents(path, cleaner_for(path.stem), advance=advance)

    def cleaner(self, path: Path) -> str:
        """The cleaner of the file's source."""
        return cleaner_for(path.stem).name

    def remark(self, path: Path) -> str | None:
        """That a source is not known."""
        if path.stem in CLEANERS:
            return None
        return (
            f"is of no known source ({', '.join(CLEANERS)}), so the {GENERAL.name} cleaner is applied: white space and "
            "spaces before punctuation alone"
        )


def read_documents(
    path: Path,
    cleaner: Cleaner,
    limit: int = PART_CHARACTERS,
    advance: Advance | None = None,
) -> Iterator[Piece]:
    """A file's cleaned documents, each as the pieces that together are its text.

    Args:
        path: the file.
        cleaner: for its source.
        limit: longest part of a line that is looked at as one.
        advance: called with the number of bytes read, now and then.

    Raises:
        UserError: if the file is not UTF-8 text.
    """
    by_heading = cleaner.has_articles and any(map(_is_article_heading, clean(read_parts(path, limit), cleaner)))
    opening, line_end = True, ""
    for part in clean(read_parts(path, limit, advance=advance), cleaner):
        if part.opens_line and not part.text:
            opening, line_end = opening or not by_heading, "\n\n"
            continue
        opening = opening or (by_heading and _is_article_heading(part))
        text = part.text
        if part.opens_line and part.ends_line:
            ruled = cleaner.line_rule(text)
            if not ruled:
                continue
            text = ruled
        yield Piece(line_end + text if part.opens_line and not opening else text, opening)
        opening, line_end = False, "\n"


def clean(parts: Iterable[Part], cleaner: Cleaner) -> Iterator[Part]:
    """Make a cleaner's substitutions in parts of lines, and strip the lines.

    A blank line comes out as one empty part. The parts of a longer line that come out are never empty, the last
    excepted, and no white space is lost or doubled between them, however the line was cut.
    """
    started, gap = False, ""
    for part in parts:
        text = cleaner.substitute(gap + part.text)
        gap = " " if text.endswith(" ") else ""
        text = text.rstrip(" ") if started else text.strip(" ")
        if text or part.ends_line:
            yield Part(text, not started, part.ends_line)
            started = not part.ends_line
        if part.ends_line:
            gap = ""


def _is_article_heading(part: Part) -> bool:
    return part.opens_line and part.ends_line and opens_article(part.text)
