"""The lock for file systems without flock: a file that only one process can create, with a heartbeat.

It names host and process, and its time is updated every few seconds. If the holder's process is gone (as far as this
host can see), or was silent for too long, the lock is free and the file is removed. Silence is measured only by the
clock of the file system, since the clocks of two hosts may differ.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from palenka.ground.errors import UserError
from palenka.ground.progress import info

HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 90.0
_POLL_SECONDS = 0.2


def name_of_holder() -> str:
    """The name of this process in messages to others."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def refuse_held(output: Path, holder: str) -> NoReturn:
    """Raise a `UserError` about an output that another process writes."""
    raise UserError(f"{output} is being written by {holder}; wait until it ends, or choose another output")


class HolderFile:
    """A file that only one process can create.

    Args:
        path: of the file.
        output: that is written, for errors.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self.path = path
        self.output = output
        self._mine = {
            "name": name_of_holder(),
            "host": f"{socket.gethostname()} {_namespace()}",
            "process": os.getpid(),
            "token": uuid.uuid4().hex,
        }

    @contextmanager
    def held(self, wait: bool) -> Iterator[None]:
        """Hold it; it is removed at the end.

        Raises:
            UserError: if another process holds it and `wait` is false.
        """
        is_told = False
        while not self._make(self._mine):
            found = self._read()
            if self._is_dead(found):
                self._take_away(found)
                continue
            name = str(found.get("name", "another process"))
            if not wait:
                refuse_held(self.output, name)
            if not is_told:
                info(f"{self.output} is being written by {name}; waiting for it")
            is_told = True
            time.sleep(_POLL_SECONDS)
        info(f"{self.path.parent} has no file locks (flock); {self.path.name}, with a heartbeat, stands in for one")
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(ended,), daemon=True)
        heart.start()
        try:
            yield
        finally:
            ended.set()
            heart.join()
            if self._read() == self._mine:
                self.path.unlink(missing_ok=True)

    def holder(self) -> str | None:
        """Its current holder; None if it is free."""
        if not self.path.exists() or self._is_dead(found := self._read()):
            return None
        return str(found.get("name", "another process"))

    def _make(self, content: dict[str, Any]) -> bool:
        """Create the file; False if it exists."""
        try:
            with self.path.open("x", encoding="utf-8") as file:
                try:
                    file.write(json.dumps(content))
                    file.flush()
                except OSError:  # a full disk: an empty file would hold the lock until it has been silent for long
                    self.path.unlink()
                    raise
        except FileExistsError:
            return False
        return True

    def _read(self) -> dict[str, Any]:
        """The holder's record; empty before the holder has written it."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_dead(self, found: dict[str, Any]) -> bool:
        process = found.get("process")
        is_gone = isinstance(process, int) and found.get("host") == self._mine["host"] and not _is_alive(process)
        return is_gone or self._silence() > SILENT_SECONDS

    def _silence(self) -> float:
        """Seconds since the last heartbeat."""
        clock = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            clock.touch()
            return clock.stat().st_mtime - self.path.stat().st_mtime
        except OSError:  # it is gone, or this folder is read-only
            return 0.0
        finally:
            clock.unlink(missing_ok=True)

    def _take_away(self, dead: dict[str, Any]) -> None:
        """Remove a dead holder's file; restore it if it turns out to be a new holder's."""
        aside = HolderFile(self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}"), self.output)
        try:
            self.path.rename(aside.path)
        except FileNotFoundError:
            return
        if (found := aside._read()) != dead:
            self._make(found)
        aside.path.unlink(missing_ok=True)

    def _beat(self, ended: threading.Event) -> None:
        """Show that this process lives; stop it if another took the lock over while it was suspended."""
        while not ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # of a network's disk, for a moment
                found = self._read()
                if found.get("token", self._mine["token"]) != self._mine["token"]:
                    info(f"this process was silent for too long: {self.output} is now written by {found.get('name')}")
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                os.utime(self.path)


def _namespace() -> str:
    """Distinguishes containers that share a host's name: their process ids are unrelated."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
