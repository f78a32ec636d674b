"""BabyLM-style plain text, SOURCE.train, SOURCE.dev and SOURCE.test: from its lines to cleaned documents.

Documents are wiki articles, else the blocks between blank lines, else the whole file. Inside an article several blank
lines count as one. A document never begins or ends with a blank line, and empty documents are dropped.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from palenka.data.text.cleaners import CLEANERS, GENERAL, Cleaner, cleaner_for, finder_for, opens_article
from palenka.data.text.lines import PART_CHARACTERS, Part, read_parts, refuse_json_lines
from palenka.data.text.readers import READERS, Advance, Piece, Reader


@READERS.register("babylm")
class BabyLMText(Reader):
    """Text with a cleaner per source, chosen by the file's stem or by `cleaner`."""

    suffixes = (".train", ".dev", ".test")

    def documents(self, path: Path, advance: Advance) -> Iterator[Piece]:
        """The documents in pieces, each at most a part of a line and the line's end before it."""
        refuse_json_lines(path)
        return read_documents(path, self._cleaner(path), advance=advance)

    def cleaner(self, path: Path) -> str:
        """The cleaner of the file's source."""
        return self._cleaner(path).name

    def _cleaner(self, path: Path) -> Cleaner:
        return finder_for(path.stem) if self.options.cleaner == "none" else cleaner_for(path.stem)

    def remark(self, path: Path) -> str | None:
        """A remark if the source is not known."""
        if path.stem in CLEANERS or self.options.cleaner == "none":
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
    """A file's cleaned documents, each as the pieces of its text.

    Args:
        path: the file.
        cleaner: for its source.
        limit: longest part of a line that is cleaned as one.
        advance: called with the number of bytes read, now and then.

    Raises:
        UserError: if the file is not UTF-8 text.
    """
    by_heading = cleaner.has_articles and any(map(_is_article_heading, clean(read_parts(path, limit), cleaner)))
    opens = _is_article_heading if by_heading else _is_blank
    yield from _joined(clean(read_parts(path, limit, advance=advance), cleaner), cleaner, opens)


def cleaned_document(parts: Iterable[Part], cleaner: Cleaner) -> Iterator[Piece]:
    """The cleaned text of one document in pieces; no pieces if it has no text."""
    return _joined(clean(parts, cleaner), cleaner, lambda _: False)


def _joined(parts: Iterable[Part], cleaner: Cleaner, opens: Callable[[Part], bool]) -> Iterator[Piece]:
    """Parts of lines grouped into documents, which begin where `opens` is true; several blank lines become one."""
    opening, line_end = True, ""
    for part in parts:
        opening = opening or opens(part)
        if _is_blank(part):
            line_end = "\n\n"
            continue
        text = part.text
        if part.opens_line and part.ends_line:
            ruled = cleaner.line_rule(text)
            if not ruled:
                continue
            text = ruled
        yield Piece(line_end + text if part.opens_line and not opening else text, opening)
        opening, line_end = False, "\n"


def clean(parts: Iterable[Part], cleaner: Cleaner) -> Iterator[Part]:
    """Make a cleaner's substitutions in parts of lines, and strip the lines, unless it keeps them.

    A blank line gives one empty part. A longer line gives no empty parts except the last, and no white space is lost or
    doubled between parts, wherever the line was cut.
    """
    if cleaner.keeps_lines:
        for part in parts:
            blank = part.opens_line and part.ends_line and part.text.isspace()
            yield part._replace(text="") if blank else part
        return
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
    return part.opens_line and part.ends_line and opens_article(part.text.strip())


def _is_blank(part: Part) -> bool:
    return part.opens_line and not part.text
