"""The lines of a text, of any length, in bounded parts.

BabyLM-style text has lines of 19 MB beside lines of one word. Time is linear in the size of a file, and memory holds a
few parts.
"""

import codecs
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from palenka.data.text.readers import Advance
from palenka.ground.errors import UserError

PART_CHARACTERS = 65_536
"""Longest part of a line, in characters."""

_BLOCK_BYTES = 1 << 18
# The last white space before a word, across which no cleaner works (they drop spaces before punctuation and
# apostrophes). The pattern is greedy, so it searches backwards from the end, in linear time, since only starts of runs
# are tried.
_BETWEEN_WORDS = re.compile(r".*\S(?=\s++[^\s.,;!?'’])", re.DOTALL)


class Part(NamedTuple):
    """A line of text, or a part of one that is too long."""

    text: str
    """Without the line's end."""
    opens_line: bool
    ends_line: bool


def read_parts(
    path: Path,
    limit: int = PART_CHARACTERS,
    block_bytes: int = _BLOCK_BYTES,
    advance: Advance | None = None,
) -> Iterator[Part]:
    r"""The lines of a UTF-8 file, those of more than `limit` characters in parts.

    A part ends before the last white space that is followed by a word (and preceded by other characters), so no word
    and no space before a punctuation mark is cut off. If `limit` characters have no such place, the cut comes after
    them. Lines end in ``\n``, ``\r\n`` or ``\r``; a byte-order mark is skipped.

    Args:
        path: the file.
        limit: longest part.
        block_bytes: bytes read at once; the result does not depend on it.
        advance: called with the number of bytes read, after each block.

    Raises:
        UserError: at the first byte that is not UTF-8.
    """
    return parts_of(read_blocks(path, block_bytes, advance), limit)


def parts_of(blocks: Iterable[str], limit: int = PART_CHARACTERS) -> Iterator[Part]:
    """The lines of a text that comes in blocks; see `read_parts`."""
    rest, opens_line = "", True
    for text in blocks:
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            parts, last = cut(line, limit, _BETWEEN_WORDS)
            for part in parts:
                yield Part(part, opens_line, False)
                opens_line = False
            yield Part(last, opens_line, True)
            opens_line = True
        parts, rest = cut(rest, limit, _BETWEEN_WORDS)
        for part in parts:
            yield Part(part, opens_line, False)
            opens_line = False
    if rest or not opens_line:
        yield Part(rest, opens_line, True)


def cut(text: str, limit: int, place: re.Pattern[str]) -> tuple[list[str], str]:
    """Cut parts off the front of a text while more than `limit` characters are left; returns them and the rest.

    Each cut depends only on the next ``limit + 1`` characters. So a text that arrives in pieces, each appended to the
    rest of the earlier ones, is cut at the same places.

    Args:
        text: what to cut.
        limit: longest part, at least 1.
        place: matches from the start of a text to the last place where it may be cut; if it does not match, the cut
            comes after `limit` characters.
    """
    parts = []
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit + 1]
        found = place.match(window)
        length = found.end() if found else limit
        parts.append(window[:length])
        start += length
    return parts, text[start:]


def refuse_json_lines(path: Path) -> None:
    """Refuse a file of JSON lines that is named as if it were plain text.

    Raises:
        UserError: if its first line is a JSON object.
    """
    with path.open("rb") as file:
        first = next((line for line in iter(lambda: file.readline(_BLOCK_BYTES), b"") if line.strip()), b"")
    try:
        found = json.loads(first) if first.lstrip().startswith(b"{") else None
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        raise UserError(
            f"{path} holds JSON lines, which would be read as plain text; name it {path.name}.jsonl, so that one of "
            "its fields is read"
        )


def read_blocks(path: Path, block_bytes: int = _BLOCK_BYTES, advance: Advance | None = None) -> Iterator[str]:
    """The text of a UTF-8 file in blocks, line ends as newlines, without a byte-order mark.

    Raises:
        UserError: at the first byte that is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    at_start, num_read = True, 0
    with path.open("rb") as file:
        while True:
            block = file.read(block_bytes)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = num_read - pending + error.start
                raise UserError(
                    f"{path}, line {_line_at(path, offset)}: byte {offset} of the file is not UTF-8 text "
                    f"({error.reason}); save the file as UTF-8"
                ) from None
            num_read += len(block)
            if at_start and text:
                text, at_start = text.removeprefix("\ufeff"), False
            yield newlines.decode(text, final=not block)
            if advance:
                advance(len(block))
            if not block:
                return


def _line_at(path: Path, offset: int) -> int:
    """The number of the line, from 1, that holds the byte at `offset`."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    line = 1
    with path.open("rb") as file:
        while block := file.read(min(_BLOCK_BYTES, offset)):
            offset -= len(block)
            line += newlines.decode(block.decode("latin-1"), final=offset == 0).count("\n")
    return line
