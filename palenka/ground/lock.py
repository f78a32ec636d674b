"""A lock on an output: one process at a time writes there, and the lock ends with its holder.

It is the kernel's lock (flock) on a small file beside the output, so a crash needs no clean-up. If the output is a
link, the file lies beside its target: a link and its target are one output.

On file systems without flock (Lustre, some NFS) a file with a heartbeat replaces it, `NAME.lock.holder`
(`holder_file.py`).
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palenka.ground.errors import UserError
from palenka.ground.files import remove_leftovers_of, resolved
from palenka.ground.holder_file import HolderFile, name_of_holder, refuse_held
from palenka.ground.progress import info

_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def sole_writer(output: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock `NAME.lock` beside an output; the file is removed when it is released.

    Leftovers of a killed writer of the output are removed first.

    Args:
        output: to be written.
        wait: wait for another holder, with a message, instead of refusing.

    Raises:
        UserError: if another process holds it; with its host and process id.
    """
    output = resolved(output)
    if not output.name:
        raise UserError(f"{output} is a whole file system, not a place to write to; choose a folder inside it")
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name(f"{output.name}.lock")
    descriptor = _acquire(path, output, wait)
    try:
        if descriptor is None:
            with HolderFile(path.with_name(f"{path.name}.holder"), output).held(wait):
                remove_leftovers_of(output)
                yield
        else:
            _sign(descriptor)
            remove_leftovers_of(output)
            yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _acquire(path: Path, output: Path, wait: bool) -> int | None:
    """The descriptor of a locked file; None if the file system has no such locks."""
    is_told = False
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait and is_told else fcntl.LOCK_NB))
            # A holder that finished meanwhile has removed the opened file, whose lock has no effect any more.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            if not wait:
                os.close(descriptor)
                refuse_held(output, holder)
            is_told = True
            info(f"{output} is being written by {holder}; waiting for it")
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NOT_SUPPORTED:
                raise
            path.unlink(missing_ok=True)
            return None
        os.close(descriptor)


def holder_of(output: Path) -> str | None:
    """The process that writes an output now, with its host; None if there is none. Writes nothing."""
    output = resolved(output)
    path = output.with_name(f"{output.name}.lock")
    if (found := HolderFile(path.with_name(f"{path.name}.holder"), output).holder()) is not None:
        return found
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 200).decode(errors="replace") or "another process"
    except OSError:  # a file system without such locks
        return None
    finally:
        os.close(descriptor)
    return None


def _open(path: Path) -> int:
    """The lock's file; a file left by another member of the group can be locked with read permission."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)  # as the umask allows
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _sign(descriptor: int) -> None:
    """Write the holder into the lock's file, if permissions and the disk allow; it locks without."""
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, name_of_holder().encode())
