"""Reading minimal pairs: what is right is read as it stands, what is wrong is named by file and line."""

import json
from pathlib import Path

import pytest

from palenka.eval.minimal_pairs import MinimalPair
from palenka.eval.suite import Conditions
from palenka.eval.suites import SUITES, folders_of
from palenka.ground.errors import UserError

PAIR = {"sentence_good": "The river sees .", "sentence_bad": "The river see ."}
EWOK = {"Domain": "social", "Context1": "A keeps it.", "Target1": "A has it.", "Target2": "B has it."}


def read_pairs(folder: Path, suite: str) -> list[MinimalPair]:
    pairs: list[MinimalPair] = SUITES[suite].read(folder, Conditions())
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
    assert [(pair.task, pair.index, pair.line, pair.good, pair.bad, pair.context) for pair in pairs] == [
        ("a", 0, 1, other["sentence_good"], other["sentence_bad"], None),
        ("a", 1, 2, PAIR["sentence_good"], PAIR["sentence_bad"], None),
        ("b", 0, 1, PAIR["sentence_good"], PAIR["sentence_bad"], None),
    ]
    assert pairs[1].place == f"{tmp_path / 'a.jsonl'}:2"


def test_a_domain_of_ewok_is_a_task_over_files_and_within_them(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", EWOK, EWOK | {"Domain": "spatial"}, EWOK)
    write(tmp_path / "b.jsonl", EWOK)
    pairs = read_pairs(tmp_path, "ewok_filtered")
    assert [(pair.task, pair.index) for pair in pairs] == [("social", 0), ("spatial", 0), ("social", 1), ("social", 2)]
    assert (pairs[0].context, pairs[0].good, pairs[0].bad) == ("A keeps it.", "A has it.", "B has it.")


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
    with pytest.raises(UserError, match=r"holds no \*\.jsonl files"):
        read_pairs(tmp_path, "blimp")
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
        UserError, match=r"has no folder ewok_filtered, which ewok_filtered needs.*--data\.ewok_filtered"
    ):
        folders_of(["blimp_filtered", "ewok_filtered"], tmp_path)
    with pytest.raises(UserError, match=r"data has no folder for ewok_filtered; give it as --data\.ewok_filtered DIR"):
        folders_of(["blimp", "ewok_filtered"], {"blimp": tmp_path})
    with pytest.raises(UserError, match="data names ewok_filtered, but the suites are blimp"):
        folders_of(["blimp"], {"blimp": tmp_path, "ewok_filtered": tmp_path})
    with pytest.raises(UserError, match="nowhere is not a folder"):
        folders_of(["blimp", "held_out"], tmp_path / "nowhere")
