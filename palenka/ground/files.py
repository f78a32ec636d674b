"""Whole files or none: checksums, JSON records that are written aside and renamed, and commit records.

A commit record names files that belong together, with sizes and checksums. It is written last: they count
once it is there.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from palenka.ground.errors import UserError


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; about 1 s a gigabyte, memory flat."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON record that is either whole or absent, whenever the process or the machine stops."""
    aside = path.with_name(f"{path.name}.partial")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises:
        FileNotFoundError: if there is no record.
        UserError: if it is not a JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; delete it and run the same command again")
    return record


def commit(directory: Path, record: str, files: Iterable[str], **facts: object) -> None:
    """Record size and checksum of files that are whole, and facts about them: from here on they count."""
    written = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": sha256_of_file(directory / name)} for name in files
    }
    whole = {"files": written, **facts}
    write_record(directory / record, {**whole, "checksum": _checksum(whole)})


def damage_of(directory: Path, record: str, contents: bool = True) -> str | None:
    """What is wrong with the files that a commit record names, in a few words; None if nothing is.

    Args:
        directory: that the files are in.
        record: path of the record in it.
        contents: also compare checksums, at about 1 s a gigabyte; otherwise only presence and sizes.
    """
    try:
        found = read_record(directory / record)
        files = [(name, entry["bytes"], entry["sha256"]) for name, entry in found["files"].items()]
        if found.pop("checksum") != _checksum(found):
            return f"{record} differs from its checksum"
    except FileNotFoundError:
        return f"{record} is missing"
    except (UserError, KeyError, TypeError, AttributeError):
        return f"{record} is not a commit record"
    if not files:
        return f"{record} names no file"
    for name, size, checksum in files:
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes where {size} were written"
        if contents and sha256_of_file(path) != checksum:
            return f"{name} differs from its checksum"
    return None


def _checksum(record: Mapping[str, object]) -> str:
    """The SHA-256 of a record without its own checksum."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
