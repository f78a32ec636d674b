"""Whole files or none: what is written lies aside, under a name of its own, until it is renamed.

Aside is `NAME.HEX.partial`, with 32 random digits, so that two processes never write the same file. Zarr names its own
so, too. What a killed writer left there is told by this name, and the sole writer of NAME removes it.

A path that is a link stands for its target: what is written takes its place there, on whatever disk that is.

Caches ask their store for nothing but what stands here and in `records.py`, so that another one than a folder could
take its place: `write_whole`, `size_of`, `names_in`, `remove`, `read_record`.
"""

import glob
import hashlib
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from palenka.ground.errors import UserError

_PARTIAL = ".partial"
_ASIDE_PATTERN = f".{'[0-9a-f]' * 32}{_PARTIAL}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, and its folder, that is either whole or as it was, whenever the process or the machine stops.

    Raises:
        UserError: if something else than a file is there.
    """
    path = resolved(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a folder, a device or a pipe, not a file to write to; choose another name")
    with _aside(path) as aside:
        with aside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def require_own(path: Path, is_ours: Callable[[str], bool], what: str, option: str = "out") -> None:
    """Refuse to write over a file that is something else than what would be written.

    Args:
        path: of the file; nothing there is well.
        is_ours: tells an earlier one by its text.
        what: would be written, such as ``"report"``.
        option: that names the file.

    Raises:
        UserError: if something else is there.
    """
    if not path.exists():
        return
    try:
        found = is_ours(read_text(path))
    except (OSError, ValueError, UserError):
        found = False
    if not found:
        raise UserError(f"{path} exists and is no {what}; choose another {option}")


@contextmanager
def directory_aside(path: Path) -> Iterator[Path]:
    """A new directory beside a path, to be moved there whole or in parts; at the end it is gone, whatever happens.

    Only the sole writer of the path may ask for it: what killed ones left is removed.
    """
    path = resolved(path)
    remove_leftovers_of(path)
    with _aside(path) as aside:
        aside.mkdir()
        yield aside


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A new directory that takes its path's place at the end, where nothing or an empty one is; or else is gone.

    Only the sole writer of the path may ask for it, as for `directory_aside`.

    Raises:
        UserError: if its place cannot be taken at the end, before anything is spent.
    """
    path = resolved(path)
    if path.is_mount() or path == Path.cwd():
        where = "the root of a disk" if path.is_mount() else "the folder that this command runs in"
        raise UserError(f"{path} is {where}, which cannot be replaced; choose a folder inside it")
    with directory_aside(path) as aside:
        yield aside
        follow_umask(aside)
        aside.replace(path)


def follow_umask(aside: Path) -> None:
    """Let files in a new directory be read and written by those who may use it: safetensors makes them private."""
    mode = stat.S_IMODE(aside.stat().st_mode) & 0o666
    for path in aside.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left half-written in a directory, at any depth; its sole writer alone may."""
    for leftover in list(directory.rglob(f"*{_ASIDE_PATTERN}")):
        _remove(leftover)


def remove_leftovers_of(path: Path) -> None:
    """Remove what killed writers left half-written of one file or directory; its sole writer alone may."""
    path = resolved(path)
    for leftover in list(path.parent.glob(f"{glob.escape(path.name)}{_ASIDE_PATTERN}")):
        _remove(leftover)


def resolved(path: Path) -> Path:
    """The absolute path of a file or a directory, without links: it need not exist."""
    return Path(os.path.realpath(path))


def is_partial(name: str) -> bool:
    """Whether a file or a directory of this name is half-written."""
    return name.endswith(_PARTIAL)


@contextmanager
def disk_errors() -> Iterator[None]:
    """What safetensors says of a full disk, as the OSError that it is; safetensors has an error of its own for it.

    Raises:
        OSError: for an error of the system that it names by number.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            number = int(found[1])
            raise OSError(number, os.strerror(number)) from error
        raise


def size_of(path: Path) -> int | None:
    """The bytes of a file; None if there is none."""
    return path.stat().st_size if path.is_file() else None


def names_in(directory: Path) -> set[str]:
    """The names of the files in a directory that are whole; none if there is no directory."""
    return {path.name for path in directory.glob("*") if not is_partial(path.name)}


def remove(path: Path) -> None:
    """Remove a file, and what killed writers left of it; its sole writer alone may."""
    remove_leftovers_of(path)
    path.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; about 1 s a gigabyte, memory flat."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_pipe(path: Path) -> bool:
    """Whether it is a pipe or a device, which might never end."""
    return path.exists() and not (path.is_file() or path.is_dir())


def read_text(path: Path) -> str:
    """The text of a file; a pipe or a device, which might never end, is not read.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        UserError: if it is a pipe or a device.
        UnicodeDecodeError: if it is not UTF-8.
    """
    if is_pipe(path):
        raise UserError(f"{path} is a pipe or a device; give a file")
    return path.read_text(encoding="utf-8")


def state_of(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from another of the same name, and from itself after a change; None without one."""
    try:
        return _told_by(path.stat())
    except FileNotFoundError:
        return None


def state_of_open(number: int) -> tuple[int, int, int]:
    """The same of an open file, by its number in the system: it stays this file whatever becomes of the name."""
    return _told_by(os.fstat(number))


def _told_by(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """The name under which a file or a directory is written before it has its own; what is left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        yield aside
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
