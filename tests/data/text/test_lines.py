"""Reading lines of text: against Python's own reading, and independent of how the bytes arrive."""

import io
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palenka.data.text.lines import Part, read_parts
from palenka.ground.errors import UserError

# Line ends, white space of many kinds, marks that a cut must not stand before, and characters of 1 to 4 bytes.
TEXTS = st.text(st.sampled_from("ab. ,'’\n\r\t\u00a0\u2003\u3000\x0b\x1c\u2028\ufeffé\u0301字🙂"), max_size=60)


@contextmanager
def file_of(content: bytes) -> Iterator[Path]:
    with NamedTemporaryFile(suffix=".train") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def lines_of(parts: list[Part]) -> list[str]:
    lines: list[str] = []
    for part in parts:
        if part.opens_line:
            lines.append("")
        lines[-1] += part.text
    return lines


@given(TEXTS, st.integers(1, 20), st.integers(1, 9))
def test_parts_are_the_lines_that_python_reads(text: str, limit: int, block_bytes: int) -> None:
    with file_of(text.encode()) as path:
        parts = list(read_parts(path, limit, block_bytes))
        assert parts == list(read_parts(path, limit, 1 << 20)), "the result depends on the size of the read buffer"
    reference = io.StringIO(text.encode().decode("utf-8-sig"), newline=None).read().split("\n")
    assert lines_of(parts) == (reference if reference[-1] else reference[:-1])
    assert all(len(part.text) <= limit for part in parts)
    assert [part.opens_line for part in parts[1:]] == [part.ends_line for part in parts[:-1]]


@given(st.lists(st.sampled_from(["a", "bcd", "é’s", "x.y", ".", "'s", "?!"]), min_size=1), st.integers(8, 20))
def test_parts_are_cut_before_a_word(words: list[str], limit: int) -> None:
    line = "w " + " w ".join(words)
    with file_of(line.encode()) as path:
        parts = [part.text for part in read_parts(path, limit)]
    assert all(part.startswith(" ") and part[1] not in ".,;!?'’" for part in parts[1:])
    assert "".join(parts) == line


def test_a_run_without_white_space_is_cut_at_the_limit() -> None:
    with file_of(b"a" * 10) as path:
        assert [part.text for part in read_parts(path, limit=4)] == ["aaaa", "aaaa", "aa"]


@given(TEXTS, st.sampled_from([b"\xff", b"\xc3", b"\xf0\x9f", b"\xed\xa0\x80"]), TEXTS, st.integers(1, 9))
def test_undecodable_bytes_are_located(before: str, bad: bytes, after: str, block_bytes: int) -> None:
    content = before.encode() + bad + after.encode()
    with pytest.raises(UnicodeDecodeError) as reference:
        content.decode()
    offset = reference.value.start
    line = io.StringIO(content[:offset].decode(), newline=None).read().count("\n") + 1
    with file_of(content) as path, pytest.raises(UserError, match=rf"line {line}: byte {offset} of the file is not"):
        list(read_parts(path, block_bytes=block_bytes))


def test_a_giant_line_costs_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "giant.train"
    path.write_bytes(b"words in one line " * (1 << 20))
    tracemalloc.start()
    size = sum(len(part.text) for part in read_parts(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == path.stat().st_size
    assert peak < size / 10


def test_progress_counts_every_byte() -> None:
    counted: list[int] = []
    with file_of("é\r\n".encode() * 100) as path:
        list(read_parts(path, block_bytes=7, advance=counted.append))
    assert sum(counted) == 400
