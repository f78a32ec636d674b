"""A lock on an output: one process at a time writes there, and the lock dies with its holder.

The lock is the kernel's (flock) on a small file beside the output, so nothing is left to clean up after a crash.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from palenka.ground.errors import UserError


@contextmanager
def sole_writer(output: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock `NAME.lock` beside an output; the file is removed when it is released.

    Args:
        output: what is written.
        wait: wait for another holder instead of refusing.

    Raises:
        UserError: if another process holds it; its host and number are named.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_name(f"{output.name}.lock")
    descriptor = _acquire(path, output, wait)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, output: Path, wait: bool) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # A holder that finished meanwhile has removed the file that was opened: that one locks nothing any more.
            if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"{output} is being written by {holder}; wait until it ends, or choose another output"
            ) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


def holder_of(output: Path) -> str | None:
    """The process that writes an output now, with its host; None if none does. Nothing is written."""
    path = output.absolute().with_name(f"{output.absolute().name}.lock")
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
