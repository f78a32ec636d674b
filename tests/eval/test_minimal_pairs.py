"""Reading minimal pairs: what is right is read as it stands, what is wrong is named by file and line."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palenka.eval.choices import Choice
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES, folders_of
from palenka.ground.errors import UserError

PAIR = {"sentence_good": "The river sees .", "sentence_bad": "The river see ."}
EWOK = {"Domain": "social", "Context1": "A keeps it.", "Target1": "A has it.", "Target2": "B has it."}


KINDS = ("lines", "table")
CASES = Path(__file__).parents[3] / "shared" / "cases"


def read_pairs(folder: Path, suite: str) -> list[Choice]:
    pairs: list[Choice] = SUITES[suite].read(folder, Conditions())
    return pairs


def fingerprint(folder: Path) -> str:
    return SUITES["blimp"].fingerprint(folder, Conditions())


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_file_is_a_task_and_each_line_a_pair(tmp_path: Path) -> None:
    other = {"sentence_good": "Où ?\u2028\nA.", "sentence_bad": "Où\tA.", "UID": "elsewhere", "pair_id": 7}
    write(tmp_path / "b.jsonl", PAIR)
    (tmp_path / "a.jsonl").write_bytes(
        json.dumps(other, ensure_ascii=False).encode() + b"\r\n" + json.dumps(PAIR).encode()
    )
    (tmp_path / "notes.txt").write_text("no pairs")
    pairs = read_pairs(tmp_path, "blimp")
    assert [(pair.task, pair.index, pair.line, pair.options) for pair in pairs] == [
        ("a", 0, 1, ((None, other["sentence_good"]), (None, other["sentence_bad"]))),
        ("a", 1, 2, ((None, PAIR["sentence_good"]), (None, PAIR["sentence_bad"]))),
        ("b", 0, 1, ((None, PAIR["sentence_good"]), (None, PAIR["sentence_bad"]))),
    ]
    assert pairs[1].place == f"{tmp_path / 'a.jsonl'}:2"


def test_a_domain_of_ewok_is_a_task_over_files_and_within_them(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", EWOK, EWOK | {"Domain": "spatial"}, EWOK)
    write(tmp_path / "b.jsonl", EWOK)
    pairs = read_pairs(tmp_path, "ewok_filtered")
    assert [(pair.task, pair.index) for pair in pairs] == [("social", 0), ("spatial", 0), ("social", 1), ("social", 2)]
    assert pairs[0].options == (("A keeps it.", " A has it."), ("A keeps it.", " B has it."))


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ewok_comes_as_a_table_too(suffix: str, tmp_path: Path) -> None:
    rows = [EWOK | {"Context1": 'A, "keeps"\nit.', "ContextType": "direct"}, EWOK | {"Domain": "spatial"}]
    write(tmp_path / "lines" / "a.jsonl", *rows)
    (tmp_path / "table").mkdir()
    write_table(tmp_path / "table" / f"test{suffix}", rows)
    read = [[(pair.task, pair.options) for pair in read_pairs(tmp_path / kind, "ewok_filtered")] for kind in KINDS]
    assert read[0] == read[1]
    assert len(read[0]) == 2
    write(tmp_path / "table" / "a.jsonl", EWOK)  # the same data in two forms are read once
    assert len(read_pairs(tmp_path / "table", "ewok_filtered")) == 1


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    for name, content, told in (
        ("a.csv", "Domain,Context1,Target1,Target2\nsocial,A\n", r"a\.csv:2 has another number of fields"),
        ("a.csv", "Domain,Context1,Target1,Target2\n", r"a\.csv is empty"),
        ("a.csv", "Domain,Context1\nsocial,A\n", r"a\.csv:2 has no field Target1; each line needs Domain"),
        ("a.parquet", "no table", r"a\.parquet is no Parquet file"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=told):
            read_pairs(folder, "ewok_filtered")


def test_files_are_read_as_other_systems_save_them(tmp_path: Path) -> None:
    line = json.dumps(PAIR).encode()
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    (tmp_path / "blank.jsonl").write_bytes(line + b"\n\n \n")
    (tmp_path / "._bom.jsonl").write_bytes(b"\x00\x05\x16\x07")
    assert [(pair.task, pair.line) for pair in read_pairs(tmp_path, "blimp")] == [("blank", 1), ("bom", 1), ("bom", 2)]
    for path in CASES.glob("pairs-*.jsonl"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        assert any(pair.task == path.stem for pair in read_pairs(tmp_path, "blimp"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b'{"sentence_good": "a"', r"is not JSON \(Expecting ',' delimiter"),
        (b"", "is empty; fix or remove that line"),
        (b"  \t", "is empty"),
        (b'["a", "b"]', "is not a JSON object"),
        (b'{"sentence_good": "\xff"}', "is not JSON .*codec can't decode byte 0xff"),
        (b'{"sentence_good": "a"}', "has no field sentence_bad; each line needs sentence_good, sentence_bad"),
        (b'{"sentence_good": "a", "sentence_bad": 3}', "sentence_bad is 3, but it should be a text"),
        (b'{"sentence_good": null, "sentence_bad": "a"}', "sentence_good is None, but"),
        (b'{"sentence_good": " ", "sentence_bad": "a"}', "sentence_good is ' ', but it should be a text that is not"),
        (b'{"sentence_good": "\\ud800", "sentence_bad": "a"}', "sentence_good is .*, which is not Unicode text"),
    ],
)
def test_a_wrong_line_is_named(line: bytes, told: str, tmp_path: Path) -> None:
    right = json.dumps(PAIR).encode()
    (tmp_path / "task.jsonl").write_bytes(b"\n".join([right, right, line, right]) + b"\n")
    with pytest.raises(UserError, match=rf"task\.jsonl:3:? {told}"):
        read_pairs(tmp_path, "blimp")


def test_what_is_no_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is not a folder"):
        read_pairs(tmp_path / "nowhere", "blimp")
    with pytest.raises(
        UserError, match=r"holds no \*\.jsonl files, nor a folder blimp_supplement or supplement_filtered"
    ):
        read_pairs(tmp_path, "blimp_supplement")
    write(tmp_path / "a.jsonl", PAIR)
    write(tmp_path / "b.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl is empty, but every file should hold at least one line"):
        read_pairs(tmp_path, "blimp")
    with pytest.raises(UserError, match=r"a\.jsonl:1 has no field Domain"):
        read_pairs(tmp_path, "ewok_filtered")


def test_the_hash_is_of_names_and_bytes(tmp_path: Path) -> None:
    hashes: set[str] = set()
    for name, rows in (("a", [PAIR]), ("b", [PAIR]), ("b", [PAIR, PAIR])):
        write(tmp_path / str(len(hashes)) / f"{name}.jsonl", *rows)
        hashes.add(fingerprint(tmp_path / str(len(hashes))))
    assert len(hashes) == 3
    write(tmp_path / "again" / "a.jsonl", PAIR)
    assert fingerprint(tmp_path / "again") == fingerprint(tmp_path / "0")


def test_a_suite_finds_its_folder(tmp_path: Path) -> None:
    official = tmp_path / "official"
    for folder in ("blimp_filtered", "supplement_filtered"):
        write(official / folder / "a.jsonl", PAIR)
    blimp, supplement = official / "blimp_filtered", official / "supplement_filtered"
    both = {"blimp_filtered": blimp, "blimp_supplement": supplement}
    assert folders_of(["blimp_filtered"], blimp) == {"blimp_filtered": blimp}
    assert folders_of(["blimp_supplement"], official) == {"blimp_supplement": supplement}
    assert folders_of(["blimp_filtered", "blimp_supplement"], official) == both
    assert folders_of(["blimp_filtered", "blimp_supplement"], both) == both
    assert folders_of(["held_out"], tmp_path) == {"held_out": tmp_path}
    (tmp_path / "corpus").mkdir()
    assert folders_of(["held_out"], tmp_path) == {"held_out": tmp_path / "corpus"}
    (tmp_path / "dev.zarr").mkdir()
    assert folders_of(["held_out"], tmp_path) == {"held_out": tmp_path}
    write(official / "a.jsonl", PAIR)  # a folder that holds pairs is meant itself
    assert folders_of(["blimp_filtered"], official) == {"blimp_filtered": official}


def test_a_suite_without_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "blimp_filtered" / "a.jsonl", PAIR)
    with pytest.raises(
        UserError, match=r"has no folder ewok_filtered or ewok_fast, which ewok_filtered needs.*--data\.ewok_filtered"
    ):
        folders_of(["blimp_filtered", "ewok_filtered"], tmp_path)
    with pytest.raises(UserError, match=r"data has no folder for ewok_filtered; give it as --data\.ewok_filtered DIR"):
        folders_of(["blimp", "ewok_filtered"], {"blimp": tmp_path})
    with pytest.raises(UserError, match="data names ewok_filtered, but the suites are blimp"):
        folders_of(["blimp"], {"blimp": tmp_path, "ewok_filtered": tmp_path})
    with pytest.raises(UserError, match="nowhere is not a folder"):
        folders_of(["blimp", "held_out"], tmp_path / "nowhere")
