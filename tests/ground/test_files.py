"""Whole files: two writers never tear each other's, a killed one leaves what is told and removed."""

import json
import os
import resource
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from palenka.ground.errors import UserError, system_error
from palenka.ground.files import (
    directory_aside,
    is_partial,
    names_in,
    remove,
    remove_leftovers,
    remove_leftovers_of,
    size_of,
    whole_directory,
    write_whole,
)
from palenka.ground.records import commit, damage_of, read_record, write_record

HEX = "0123456789abcdef" * 2


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_written_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_whole(path, "é")
    write_whole(path, b"\xff\0")
    assert path.read_bytes() == b"\xff\0"
    assert names(path.parent) == ["file.txt"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_whole(path, "before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "after")
    assert path.read_text() == "before"
    assert names(tmp_path) == ["file.txt"]


@contextmanager
def full_disk() -> Iterator[None]:
    """While no file may grow: the system says so as it does of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_by_the_name_of_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("1")
    path = tmp_path / "out"
    with full_disk():
        with pytest.raises(OSError, match="File too large") as error:
            write_whole(path, "text")
        assert (error.value.filename, error.value.filename2) == (str(path), None)
        with pytest.raises(OSError, match="File too large") as error, whole_directory(path) as aside:
            shutil.copyfile(tmp_path / "source", aside / "copy")
        assert (error.value.filename, error.value.filename2) == (str(path), None)
        # What concerns no disk keeps its own name.
        with pytest.raises(FileNotFoundError, match="missing"), whole_directory(path):
            (tmp_path / "missing").read_text()
        with pytest.raises(ConnectionError) as error, whole_directory(path):
            raise ConnectionError("no network")
        assert error.value.filename is None
    sentence = str(system_error("cannot copy", OSError(28, "No space left on device", "from", None, "to")))
    assert sentence == "cannot copy: to: No space left on device; make room, and run the same command again"
    assert names(tmp_path) == ["source"]


def test_a_directory_that_another_process_made_meanwhile_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    with pytest.raises(UserError, match="corpus was made by another process meanwhile"), whole_directory(path):
        write_whole(path / "theirs", "")
    assert names(tmp_path) == ["corpus"]
    assert names(path) == ["theirs"]


def test_writers_at_the_same_time_do_not_tear_each_others_files(tmp_path: Path) -> None:
    path = tmp_path / "record.json"

    def write(number: int) -> None:
        write_record(path, {"numbers": [number] * 20_000})
        assert len(set(read_record(path)["numbers"])) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert names(tmp_path) == ["record.json"]


def test_the_entry_with_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with pytest.raises(UserError, match="record.json is not written: loss in it is not finite"):
        write_record(path, {"steps": 3, "loss": [0.5, float("nan")], "seconds": float("inf")})
    assert not path.exists()


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    with whole_directory(path) as aside:
        (aside / "weights").write_text("1")
        assert not list(path.iterdir())
        assert is_partial(aside.name)
    assert (path / "weights").read_text() == "1"
    with pytest.raises(ZeroDivisionError), whole_directory(tmp_path / "other") as aside:
        (aside / "weights").write_text(str(1 // 0))
    assert names(tmp_path) == ["model"]


def test_what_is_not_moved_from_aside_is_gone(tmp_path: Path) -> None:
    with directory_aside(tmp_path / "model") as aside:
        (aside / "weights").write_text("1")
        (aside / "rest").write_text("2")
        (aside / "weights").replace(tmp_path / "weights")
    assert names(tmp_path) == ["weights"]


def test_leftovers_are_removed_and_nothing_else_is(tmp_path: Path) -> None:
    kept = ["a.partial", f"{HEX}.partial", f"a.b.{HEX}.partial", f"a.{HEX}", f"A.{HEX.upper()}.partial"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / f"a.{HEX}.partial" / "deep").mkdir(parents=True)
    remove_leftovers_of(tmp_path / "a")
    assert names(tmp_path) == sorted(kept)
    (tmp_path / f"[a].{HEX}.partial").touch()
    with whole_directory(tmp_path / "[a]"):
        assert not (tmp_path / f"[a].{HEX}.partial").exists()
    (tmp_path / "c" / "0").mkdir(parents=True)
    (tmp_path / "c" / "0" / f"0.{HEX}.partial").touch()
    remove_leftovers(tmp_path)
    kept.remove(f"a.b.{HEX}.partial")
    assert names(tmp_path) == sorted([*kept, "[a]", "c"])
    assert not names(tmp_path / "c" / "0")
    remove_leftovers(tmp_path / "missing")
    remove_leftovers_of(tmp_path / "missing" / "file")


def test_files_of_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store" / "part"
    assert size_of(path) is None
    assert names_in(path.parent) == set()
    write_whole(path, "four")
    (path.parent / f"part.{HEX}.partial").touch()
    assert size_of(path) == 4
    assert names_in(path.parent) == {"part"}
    remove(path)
    remove(path)
    assert not names(path.parent)


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    """A folder with two files, a and b, and their record."""
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("two")
    commit(tmp_path, "commits/0.json", ["a", "b"], note="kept")
    return tmp_path


def test_a_commit_that_is_whole_has_no_damage_and_keeps_its_facts(committed: Path) -> None:
    assert damage_of(committed, "commits/0.json") is None
    assert json.loads((committed / "commits" / "0.json").read_text())["note"] == "kept"


def test_other_contents_of_the_same_size_are_told_where_contents_are_read(committed: Path) -> None:
    (committed / "b").write_text("too")
    assert damage_of(committed, "commits/0.json", contents=False) is None
    assert damage_of(committed, "commits/0.json") == "b differs from its checksum"


@pytest.mark.parametrize("contents", [False, True])
def test_another_size_is_told(committed: Path, contents: bool) -> None:
    (committed / "b").write_text("three")
    assert damage_of(committed, "commits/0.json", contents=contents) == "b has 5 bytes where 3 were written"


def test_a_file_that_is_gone_is_told(committed: Path) -> None:
    (committed / "a").unlink()
    assert damage_of(committed, "commits/0.json") == "a is missing"


def test_a_changed_record_is_told(committed: Path) -> None:
    record = committed / "commits" / "0.json"
    record.write_text(record.read_text().replace("kept", "kepT"))
    assert damage_of(committed, "commits/0.json") == "commits/0.json differs from its checksum"


def test_what_is_no_record_is_told(committed: Path) -> None:
    record = committed / "commits" / "0.json"
    record.write_text("[]")
    assert damage_of(committed, "commits/0.json") == "commits/0.json is not a commit record"
    with pytest.raises(UserError, match="is damaged: it is not a JSON object; delete it"):
        read_record(record)


def test_a_record_that_is_gone_is_told(committed: Path) -> None:
    (committed / "commits" / "0.json").unlink()
    assert damage_of(committed, "commits/0.json") == "commits/0.json is missing"
