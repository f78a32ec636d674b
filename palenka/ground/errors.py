"""Mistakes that a user can fix, each in one sentence: the value, the rule, what to do."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "fix the permissions or choose another place"),
    **dict.fromkeys((errno.EROFS, errno.EBUSY), "choose another place"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP), "choose another name"),
    **dict.fromkeys((errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EXDEV), "choose another file system"),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "give one that is there",
    errno.EMFILE: "let a process open more files (ulimit -n)",
}


class UserError(Exception):
    """A mistake of the user's: a command prints its one sentence and exits with status 2."""


class NeedsPluginsError(UserError):
    """A file made with the user's plug-ins, none of which was named: it is not damaged, but cannot be understood."""


def system_error(what: str, error: OSError) -> UserError:
    """An error of the operating system as a user's mistake, with a fitting remedy.

    Args:
        what: failed, as the sentence's beginning, such as ``"cannot write runs/mine"``.
        error: the system's.
    """
    said = error.strerror or str(error)
    name = error.filename2 or error.filename  # of a copy, what is written
    where = f"{name}: " if name and str(name) not in what else ""
    remedy = _REMEDIES.get(error.errno or 0, "fix that")
    return UserError(f"{what}: {where}{said}; {remedy}, and run the same command again")


def reason_of(error: Exception) -> str:
    """A library's error on one short line: its type and its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Turn any error of libraries about unreadable data into one sentence.

    Args:
        what: is wrong, as the sentence's beginning, such as ``"x.gguf cannot be read as GGUF"``.
        remedy: what the user can do, as its end.

    Raises:
        UserError: with the library's reason; a `UserError` from inside is passed on.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({reason_of(error)}); {remedy}") from error


def refuse_difference(what: str, expected: object, found: object, remedy: str) -> None:
    """Raise a `UserError` that names the first field in which `found` differs from `expected`, and both sides.

    Args:
        what: what is compared, as the sentence's subject, such as ``"cache runs/caches/gpt2"``.
        expected: nested mappings and plain values of the current request.
        found: the same from disk.
        remedy: what the user can do, as the sentence's end.

    Raises:
        UserError: if the two differ anywhere.
    """
    difference = _first_difference(expected, found, "")
    if difference is not None:
        field, wanted, got = difference
        raise UserError(f"{what} does not match: {field} is {got!r} there, but {wanted!r} is expected; {remedy}")


def _first_difference(expected: object, found: object, path: str) -> tuple[str, object, object] | None:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = _first_difference(expected.get(key), found.get(key), f"{path}.{key}" if path else str(key))
            if inner is not None:
                return inner
        return None
    return None if expected == found else (path, expected, found)
