"""JSON lines, Parquet and plain text: every document as it stands, and faults named where they are."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from palenka.data.text.readers import ReadingOptions
from palenka.data.text.sources import find_sources
from palenka.ground.errors import UserError

TEXTS = ["The cat .\n\n  Indented\ttext\r\n", "", "naïve 字 🙂", " \n", "The cat .\n\n  Indented\ttext\r\n"]


def documents_of(path: Path, **options: object) -> list[str]:
    (source,) = find_sources([path], ReadingOptions(**options))  # type: ignore[arg-type]
    read: list[int] = []
    documents: list[str] = []
    for text, opens_document in source.documents(read.append):
        documents += [""] * opens_document
        documents[-1] += text
    assert sum(read) == source.num_bytes
    return documents


def write_records(path: Path, records: list[dict[str, object]]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a [x].jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.ndjson"])
def test_each_record_is_a_document_as_it_stands(name: str, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"number": n, "text": text} for n, text in enumerate(TEXTS)]
    assert documents_of(write_records(tmp_path / name, records)) == TEXTS
    records = [{"body": text, "text": n} for n, text in enumerate(TEXTS)]
    assert documents_of(write_records(tmp_path / name, records), text_field="body") == TEXTS
    with pytest.raises(
        UserError, match=r"record 1: the field 'text' is 0, no text; name a field of text with text_field"
    ):
        documents_of(tmp_path / name)
    with pytest.raises(UserError, match=r"has no field 'content'; name one that it has with text_field: body, text"):
        documents_of(tmp_path / name, text_field="content")


def test_records_that_differ_in_other_fields_are_read(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"text": "a", "meta": 1},
        {"text": "b", "meta": "x"},
        {"meta": [2], "text": ""},
        {"text": None},
    ]
    assert documents_of(write_records(tmp_path / "a.jsonl", records)) == ["a", "b", "", ""]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.jsonl.zst"])
@pytest.mark.parametrize("record", ['{"meta": 2}', "{}"])
def test_a_record_without_the_field_is_named_and_told_from_one_whose_text_is_null(
    record: str, name: str, tmp_path: Path
) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
    pack = packers.get(Path(name).suffix, bytes)
    lines = ['{"text": "a", "meta": 1}'] * 300 + ['{"text": null}', "", record, '{"text": "b"}']
    (tmp_path / name).write_bytes(pack("\n".join(lines).encode()))
    with pytest.raises(UserError, match=rf"{name}, line 303: the record has no field 'text', but (meta|none at all);"):
        documents_of(tmp_path / name)
    lines[-2] = '{"text": null}'
    (tmp_path / name).write_bytes(pack("\n".join(lines).encode()))
    assert documents_of(tmp_path / name) == ["a"] * 300 + ["", "", "b"]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("line", ['{"text": "cut', '["a"]', '{"text": "\\ud800"', "plain"])
def test_a_line_that_cannot_be_read_is_named(line: str, packed: str, tmp_path: Path) -> None:
    content = '{"text": "a"}\n' * 700 + line + "\n" + '{"text": "b"}\n'
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
    path = tmp_path / f"a.jsonl{packed}"
    path.write_bytes(packers.get(packed, bytes)(content.encode()))
    with pytest.raises(UserError, match=rf"a\.jsonl{packed}, line 701: it is no JSON object"):
        documents_of(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_is_cut_off_or_something_else_is_refused(name: str, tmp_path: Path) -> None:
    path = write_records(tmp_path / name, [{"text": text * 50} for text in TEXTS])
    for content in (path.read_bytes()[:-20], b"something else"):
        path.write_bytes(content)
        with pytest.raises(
            UserError, match=f"{name}(, line |: it cannot be read).*fix it there, or leave the file out"
        ):
            assert documents_of(path) is None


def test_cleaning_if_it_is_asked_for(tmp_path: Path) -> None:
    path = write_records(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    assert documents_of(path, cleaner="babylm") == [
        "The cat.\n\nIndented text",
        "",
        "naïve 字 🙂",
        "",
        "The cat.\n\nIndented text",
    ]
    (tmp_path / "b.txt").write_bytes("\ufeffOne  line .\r\n\r\nAnother\r\n".encode())
    assert documents_of(tmp_path / "b.txt") == ["One  line .\n\nAnother\n"]
    assert documents_of(tmp_path / "b.txt", cleaner="babylm") == ["One line.\n\nAnother"]
    (tmp_path / "childes.train").write_bytes(b"\r\n*MOT: one  line . \r\n\tAnother\r\n \r\n\r\nLast")
    assert documents_of(tmp_path / "childes.train") == ["*MOT: one line.\nAnother", "Last"]
    assert documents_of(tmp_path / "childes.train", cleaner="none") == ["*MOT: one  line . \n\tAnother", "Last"]
    wiki = "= = = A = = =\n\nText  here .\n\n\n= = = = B = = = =\n\n= = = C = = =\nEnd\n"
    (tmp_path / "simple_wiki.train").write_text(wiki)
    verbatim = ["= = = A = = =\n\nText  here .\n\n= = = = B = = = =", "= = = C = = =\nEnd"]
    assert documents_of(tmp_path / "simple_wiki.train", cleaner="none") == verbatim


def test_text_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\xff\n")
    with pytest.raises(UserError, match=r"a\.txt, line 2: byte 7 of the file is not UTF-8 text"):
        documents_of(tmp_path / "a.txt")


def test_the_library_that_reads_records_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_records(tmp_path / "a.jsonl", [{"text": "a"}])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        UserError, match=r"a\.jsonl is read by the library datasets, .* pip install 'palenka\[datasets\]'"
    ):
        documents_of(path)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_records_has_no_documents(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert documents_of(tmp_path / "a.jsonl") == []


def test_a_table_without_a_row_has_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert documents_of(path) == []
