"""Atomic files: they are written under a temporary name, then renamed.

The temporary name is `NAME.HEX.partial`, with 32 random digits, so that two processes never write the same file. Zarr
uses the same form. Leftovers of a killed writer are recognised by this name, and the sole writer of NAME removes them.

A path that is a link stands for its target: the target is replaced, on whatever disk it lies.

Caches use only these functions for their store, so that something else could replace a folder: `write_whole`,
`size_of`, `names_in`, `remove`, and `read_record` in `records.py`.
"""

import errno
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
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_ASIDE_PATTERN = f".{'[0-9a-f]' * 32}{_PARTIAL}"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically, also across a crash of the process or the machine; creates its folder.

    Raises:
        UserError: if anything but a file is there.
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
    """Refuse to overwrite a file that is not an earlier version of the output.

    Args:
        path: of the file, which need not exist.
        is_ours: recognises an earlier version by its text.
        what: name of the output, such as ``"report"``.
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
    """A new directory beside a path, to be moved there whole or in parts; it is always removed at the end.

    Only the sole writer of the path may call it: leftovers of killed writers are removed.
    """
    path = resolved(path)
    remove_leftovers_of(path)
    with _aside(path) as aside:
        aside.mkdir()
        yield aside


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A new directory that replaces its path, absent or empty, at the end; after an error it is removed.

    Only the sole writer of the path may call it, as `directory_aside`.

    Raises:
        UserError: at once, if the path cannot be replaced at the end; or if another process wrote it meanwhile.
    """
    path = resolved(path)
    if path.is_mount() or path == Path.cwd():
        where = "the root of a disk" if path.is_mount() else "the folder that this command runs in"
        raise UserError(f"{path} is {where}, which cannot be replaced; choose a folder inside it")
    with directory_aside(path) as aside:
        yield aside
        follow_umask(aside)
        try:
            aside.replace(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise UserError(f"{path} was made by another process meanwhile; run the same command again") from None


def follow_umask(aside: Path) -> None:
    """Give files in a new directory the directory's permissions: safetensors makes them private."""
    mode = stat.S_IMODE(aside.stat().st_mode) & 0o666
    for path in aside.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def remove_leftovers(directory: Path) -> None:
    """Remove leftovers of killed writers in a directory, at any depth; only its sole writer may call it."""
    for leftover in list(directory.rglob(f"*{_ASIDE_PATTERN}")):
        _remove(leftover)


def remove_leftovers_of(path: Path) -> None:
    """Remove leftovers of killed writers of one file or directory; only its sole writer may call it."""
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
    """Turn safetensors' own error for a full disk into an OSError.

    Raises:
        OSError: for a system error whose number it names.
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
    """The names of the complete files in a directory; none if there is no directory."""
    return {path.name for path in directory.glob("*") if not is_partial(path.name)}


def remove(path: Path) -> None:
    """Remove a file, and leftovers of its killed writers; only its sole writer may call it."""
    remove_leftovers_of(path)
    path.unlink(missing_ok=True)


def sha256_of_file(path: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; about 1 s per gigabyte, in constant memory."""
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
    """The state of a file, which differs for another file of this name and after a change; None without a file."""
    try:
        return _told_by(path.stat())
    except FileNotFoundError:
        return None


def state_of_open(number: int) -> tuple[int, int, int]:
    """The same for an open file by its descriptor, whatever happens to its name."""
    return _told_by(os.fstat(number))


def _told_by(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """The temporary name of a file or a directory; leftovers there are removed at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    try:
        yield aside
    except OSError as error:
        # A full disk tells no name, and the name aside means nothing to a user.
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno in _OF_DISKS if not names else any(str(aside) in name for name in names):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
