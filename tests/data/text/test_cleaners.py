"""What each cleaner does to a text, and where its documents begin."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.text.babylm import read_documents
from palenka.data.text.cleaners import CLEANERS, GENERAL, cleaner_for
from palenka.data.text.lines import PART_CHARACTERS


def documents_of(source: str, text: str, limit: int = PART_CHARACTERS) -> list[str]:
    documents: list[str] = []
    with TemporaryDirectory() as folder:
        path = Path(folder, f"{source}.train")
        path.write_bytes(text.encode())
        for piece in read_documents(path, cleaner_for(source), limit):
            if piece.opens_document:
                documents.append("")
            documents[-1] += piece.text
    return documents


@pytest.mark.parametrize("source", [*CLEANERS, "unknown"])
def test_every_cleaner_fixes_spaces(source: str) -> None:
    assert documents_of(source, " A \t cat\u00a0\u00a0sat ,  then\r\n ran .  \n") == ["A cat sat, then\nran."]


@pytest.mark.parametrize(
    ("source", "raw", "cleaned"),
    [
        ("cbt", "I do n't , she 's '' it ’ll", "I do n't, she's '' it’ll"),
        ("childes", "*MOT: do n't [giggles] .", "*MOT: do n't [giggles]."),
        ("switchboard", "A: I, uh , do", "A: I, uh, do"),
        ("open_subtitles", "Hi.\nSubtitles by X\nENGLISH SUBTITLES\nBye.", "Hi.\nBye."),
        ("open_subtitles", "subtitle " + "long " * 50, ("subtitle " + "long " * 50).strip()),
        ("qed", "THlS lS lT. ALL OF lT!", "This is it. All of it!"),
        ("qed", "l AM HERE (laughter from the audience)", "I am here (laughter from the audience)"),
        ("qed", "Well, NASA lit it. ()", "Well, NASA lit it. ()"),
        ("qed", "AB cd", "AB cd"),
        ("qed", "ABcd", "Abcd"),
        ("simple_wiki", "= = = Kite = = =\nA toy .\n= = = = Use = = = =\nFun.", "Kite\nA toy.\nUse\nFun."),
        ("wikipedia", "= A = b =\n= = C = =\n= = = D = =\n= =\n=", "A = b\nC\n= = = D = =\n= =\n="),
        ("simple_wiki", "= = = .22 Long = = =", ".22 Long"),
        ("gutenberg", "= = = Not a wiki = = =", "= = = Not a wiki = = ="),
    ],
)
def test_each_source_has_its_rules(source: str, raw: str, cleaned: str) -> None:
    assert documents_of(source, raw) == [cleaned]


def test_a_stem_is_known_only_if_it_is_exactly_right() -> None:
    assert cleaner_for("childes") is CLEANERS["childes"]
    assert {cleaner_for(stem) for stem in ("childes_part2", "bnc_spoken-1", "CHILDES", "")} == {GENERAL}


def test_wiki_articles_are_documents() -> None:
    text = "rest of one\n\n\n= = = A = = =\n\nText.\n\n\n= = = = Part = = = =\nMore.\n\n"
    text += "  \n= = = B = = =\n= = = C = = =\n\n"
    assert documents_of("simple_wiki", text) == ["rest of one", "A\n\nText.\n\nPart\nMore.", "B", "C"]


def test_other_documents_are_blocks_between_blank_lines() -> None:
    text = "\n \na\nb\n\n\u00a0\n\nc\n"
    assert documents_of("gutenberg", text) == ["a\nb", "c"]
    assert documents_of("wikipedia", text) == ["a\nb", "c"], "a wiki without headings has blocks too"
    assert documents_of("open_subtitles", "\nsubtitle\n\nb") == ["b"], "a block without text is no document"
    assert documents_of("qed", " \n\t\n") == []


WORDS = st.sampled_from(["a", "do", "n't", "'s", ".", "x,", "subtitle", "(B", "= = =", "\n", "\n\n", "字", "é\u0301"])
GAPS = st.sampled_from([" ", "  ", "\t", "\u00a0 ", "\u2003"])


@given(st.sampled_from(["cbt", "childes", "switchboard"]), st.lists(st.tuples(WORDS, GAPS), max_size=40))
def test_cutting_a_line_in_parts_changes_nothing(source: str, words: list[tuple[str, str]]) -> None:
    text = "".join(f"w{gap}{word}{gap}" for word, gap in words)
    assert documents_of(source, text, limit=16) == documents_of(source, text)


@given(st.sampled_from([*CLEANERS, "unknown"]), st.text(st.sampled_from("aB=.( )\n\t\u00a0\u3000'’é"), max_size=80))
def test_cleaned_documents_are_tidy(source: str, text: str) -> None:
    for limit in (3, PART_CHARACTERS):
        for document in documents_of(source, text, limit):
            assert document == document.strip()
            assert "\n\n\n" not in document
            assert set(filter(str.isspace, document)) <= {" ", "\n"}
            if cleaner_for(source).line_rule is GENERAL.line_rule:
                assert "  " not in document
                assert " \n" not in document


@pytest.mark.parametrize("line", ["(" * 60_000, "= " * 30_000, "= " * 15_000 + "x" + " =" * 14_000, " ." * 30_000])
@pytest.mark.parametrize("source", sorted(CLEANERS))
def test_no_line_is_quadratic(source: str, line: str) -> None:
    started = time.perf_counter()
    documents_of(source, line)
    assert time.perf_counter() - started < 0.5
