r"""Cleaners of the text of each BabyLM source, chosen by the file's stem.

`CLEANERS` lists for each source its name, the substitutions made anywhere in its text, the rule for whole lines, and
what begins a document. Every cleaner makes each run of white space inside a line one space, and strips it at both ends
of the line.

Speaker marks (``*MOT:`` in childes, ``A:`` in switchboard) stay: the published recipe keeps them, and only they
separate one speaker's turn from the next.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

Substitution = tuple[re.Pattern[str], str]
"""A pattern and its replacement, safe on any part of a line: it depends only on one space and its neighbours."""

LineRule = Callable[[str], str | None]
"""Maps a whole stripped line to its replacement; None drops it. Applied only to lines that fit in one part."""

LONGEST_CREDIT_CHARACTERS = 200
"""A credit is short; a longer line that says "subtitle" is dialogue, perhaps a whole film of it."""

_SPACES: Substitution = (re.compile(r"\s+"), " ")
_SPACE_BEFORE_PUNCTUATION: Substitution = (re.compile(r" (?=[.,;!?])"), "")
# A title may begin with a full stop: "= = = .223 Remington = = =".
_SPACE_BEFORE_PUNCTUATION_IN_WIKI: Substitution = (re.compile(r"(?<!=) (?=[.,;!?])"), "")
_SPACE_BEFORE_APOSTROPHE: Substitution = (re.compile(r"(?<=\w) (?=['’]\w)"), "")

_PLAIN = (_SPACES, _SPACE_BEFORE_PUNCTUATION)
_WIKI = (_SPACES, _SPACE_BEFORE_PUNCTUATION_IN_WIKI)

# The same number of marks at both ends. The title neither begins nor ends with one, so an unbalanced heading does not
# match.
_HEADING = re.compile(r"(=(?: =)*) (?!=)(.*[^=\s]) \1")
_ARTICLE_MARKS = "= = ="
_ASIDES_AND_STOPS = re.compile(r"\([^()]*\)|[.!?]")
_SENTENCE_END = re.compile(r"([.!?]\s*)")
_WORD = re.compile(r"\w+")


def keep_line(line: str) -> str | None:
    """The rule that changes nothing."""
    return line


def unmark_heading(line: str) -> str | None:
    """``= = = Title = = =``, at any depth, as the title alone."""
    heading = _HEADING.fullmatch(line)
    return heading[2] if heading else line


def drop_subtitle_credit(line: str) -> str | None:
    """Drop short lines about the subtitles themselves, such as "Subtitles by ..."."""
    return None if len(line) <= LONGEST_CREDIT_CHARACTERS and "subtitle" in line.lower() else line


def lower_shouting(line: str) -> str | None:
    """A line mostly in upper case, as sentences.

    Mostly means half of the characters, except those in parentheses and ``.!?``. In such a line 'l' is a misread 'I',
    in words without another lower-case letter.
    """
    body = _ASIDES_AND_STOPS.sub("", line)
    if not body or 2 * sum(map(str.isupper, body)) < len(body):
        return line
    return "".join(sentence.capitalize() for sentence in _SENTENCE_END.split(_WORD.sub(_fix_misread, line)))


def _fix_misread(word: re.Match[str]) -> str:
    fixed = word[0].replace("l", "I")
    return word[0] if any(map(str.islower, fixed)) else fixed


def opens_article(line: str) -> bool:
    """Whether a line, before its rule, is the heading of a wiki article; deeper headings are sections of it."""
    heading = _HEADING.fullmatch(line)
    return heading is not None and heading[1] == _ARTICLE_MARKS


@dataclass(frozen=True)
class Cleaner:
    """How the text of one source is cleaned.

    Attributes:
        name: of the source, as in the corpus record.
        substitutions: made in this order, anywhere.
        line_rule: for whole lines, after the substitutions.
        has_articles: documents begin at article headings; otherwise, or in a file without headings, at blank lines.
        keeps_lines: lines stay unchanged, including white space; only documents are found.
    """

    name: str
    substitutions: tuple[Substitution, ...] = _PLAIN
    line_rule: LineRule = keep_line
    has_articles: bool = False
    keeps_lines: bool = False

    def substitute(self, text: str) -> str:
        """Make the substitutions in a part of a line."""
        for pattern, replacement in self.substitutions:
            text = pattern.sub(replacement, text)
        return text


GENERAL = Cleaner("general")
CLEANERS = {
    cleaner.name: cleaner
    for cleaner in (
        Cleaner("aochildes"),
        Cleaner("bnc_spoken"),
        Cleaner("cbt", (*_PLAIN, _SPACE_BEFORE_APOSTROPHE)),
        Cleaner("childes"),
        Cleaner("children_stories"),
        Cleaner("gutenberg"),
        Cleaner("open_subtitles", line_rule=drop_subtitle_credit),
        Cleaner("qed", line_rule=lower_shouting),
        Cleaner("simple_wiki", _WIKI, line_rule=unmark_heading, has_articles=True),
        Cleaner("switchboard"),
        Cleaner("wikipedia", _WIKI, line_rule=unmark_heading, has_articles=True),
    )
}


def cleaner_for(stem: str) -> Cleaner:
    """The cleaner of a file's stem, exactly as written in `CLEANERS`; `GENERAL` for any other stem."""
    return CLEANERS.get(stem, GENERAL)


def finder_for(stem: str) -> Cleaner:
    """A cleaner that changes nothing and finds the documents that the cleaner of a file's stem would find."""
    return replace(cleaner_for(stem), name="none", substitutions=(), line_rule=keep_line, keeps_lines=True)
