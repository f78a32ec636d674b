"""Whole files or none: checksums, and JSON records that are written aside and renamed."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from configs.errors import UserError


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; about 1 s a gigabyte, memory flat."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_record(path: Path, record: dict[str, Any]) -> None:
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
