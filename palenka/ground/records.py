"""Records in JSON: written atomically, sealed with a checksum of themselves, or the commit records of other files.

A commit record names files that belong together, with sizes and checksums. It is written last: the files count once it
exists. A sealed record has a checksum of itself.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from palenka.ground.errors import UserError
from palenka.ground.files import read_text, sha256_of_file, size_of, write_whole

_AGAIN = "delete it and run the same command again"


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON record atomically, also across a crash of the process or the machine.

    Raises:
        UserError: if a number in it is not finite, which JSON cannot represent.
    """
    try:
        text = json.dumps(record, indent=1, allow_nan=False)
    except ValueError:
        name = next((name for name, value in record.items() if not _is_json(value)), "a number")
        raise UserError(
            f"{path} is not written: {name} in it is not finite; look for nan or inf in what it measures"
        ) from None
    write_whole(path, text + "\n")


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def read_record(path: Path, remedy: str = _AGAIN) -> dict[str, Any]:
    """Read a record of `write_record`.

    Raises:
        FileNotFoundError: if there is no record.
        UserError: if it is not a JSON object.
    """
    try:
        record = load_json(read_text(path))
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object; {remedy}")
    return record


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON record with a checksum of itself, as `write_record` does."""
    write_record(path, {**record, "checksum": checksum_of(record)})


def read_sealed(path: Path, remedy: str = _AGAIN) -> dict[str, Any]:
    """Read a record of `write_sealed`, without the checksum.

    Raises:
        FileNotFoundError: if there is no record.
        UserError: if it is not a JSON object, or was changed.
    """
    record, is_whole = read_with_seal(path, remedy)
    if not is_whole:
        raise UserError(f"{path} was changed since it was written: it differs from its checksum; {remedy}")
    return record


def read_with_seal(path: Path, remedy: str = _AGAIN) -> tuple[dict[str, Any], bool]:
    """A JSON record without its checksum, and whether the checksum fits; it may be another program's file.

    Raises:
        FileNotFoundError: if there is no record.
        UserError: if it is not a JSON object.
    """
    record = read_record(path, remedy)
    return record, record.pop("checksum", None) == checksum_of(record)


def load_json(text: str) -> Any:  # noqa: ANN401 - whatever the text says
    """The value of a text in JSON.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, or has a number that is not finite.
    """
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def commit(directory: Path, record: str, files: Iterable[str], **facts: object) -> None:
    """Record sizes and checksums of complete files, and facts about them: from here on they count."""
    paths = {name: directory / name for name in files}
    written = {name: {"bytes": size_of(path), "sha256": sha256_of_file(path)} for name, path in paths.items()}
    whole = {"files": written, **facts}
    write_record(directory / record, {**whole, "checksum": checksum_of(whole)})


def read_commit(directory: Path, record: str, remedy: str = _AGAIN) -> dict[str, Any]:
    """The facts in a commit record, whose own checksum is compared; its files are not read.

    Raises:
        FileNotFoundError: if there is none.
        UserError: if it is damaged.
    """
    facts = read_sealed(directory / record, remedy)
    facts.pop("files", None)
    return facts


def committed_files(directory: Path, record: str) -> list[str]:
    """The names of the files in an undamaged commit record."""
    return [*read_sealed(directory / record)["files"]]


def damage_of(
    directory: Path,
    record: str,
    contents: bool = True,
    only: Collection[str] | None = None,
    **facts: object,
) -> str | None:
    """The damage to the files that a commit record names, in a few words; None if there is none.

    Args:
        directory: that the files are in.
        record: path of the record in it.
        contents: also compare checksums, at about 1 s per gigabyte; otherwise only presence and sizes.
        only: the files to check; default: all that the record names.
        facts: that the record must have, as given to `commit`: an undamaged record may belong elsewhere.
    """
    return next((damage for _, damage in damages_of(directory, record, contents, only, **facts)), None)


def damages_of(
    directory: Path,
    record: str,
    contents: bool = True,
    only: Collection[str] | None = None,
    **facts: object,
) -> Iterator[tuple[str, str]]:
    """Each damaged file with its damage, as in `damage_of`; or the record itself."""
    try:
        found = read_record(directory / record)
        files = [(name, entry["bytes"], entry["sha256"]) for name, entry in found["files"].items()]
        is_whole = found.pop("checksum") == checksum_of(found)
    except FileNotFoundError:
        yield record, f"{record} is missing"
        return
    except (UserError, IsADirectoryError, KeyError, TypeError, AttributeError):
        yield record, f"{record} is not a commit record"
        return
    if not is_whole:
        yield record, f"{record} differs from its checksum"
        return
    if not files:
        yield record, f"{record} names no file"
    for name, value in facts.items():
        if found.get(name) != value:
            yield record, f"{record} is of another {name}: {found.get(name)!r}, not {value!r}"
            return
    for name in set(only or ()) - {name for name, _, _ in files}:
        yield record, f"{record} does not name {name}"
    for name, size, checksum in files:
        if only is not None and name not in only:
            continue
        if how := _damage_of_file(directory / name, size, checksum if contents else None):
            yield name, f"{name} {how}"


def _damage_of_file(path: Path, size: int, checksum: str | None) -> str | None:
    found = size_of(path)
    if found is None:
        return "is missing"
    if found != size:
        return f"has {found} bytes where {size} were written"
    return "differs from its checksum" if checksum and sha256_of_file(path) != checksum else None


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not finite")
    return value


def checksum_of(record: Mapping[str, object]) -> str:
    """The SHA-256 of a record without its own checksum."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
