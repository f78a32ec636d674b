"""The lock of file systems without flock: a file that only one process can make, with a heartbeat.

It tells host and process, and its time is set anew every few seconds. A holder whose process is gone (as far as this
host can see it), or that was silent for long, holds nothing, and its file is taken away. Silence is measured by the
clock of the file system alone: those of two hosts may differ.
"""

import json
import os
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
    """This process, as messages to others name it."""
    return f"process {os.getpid()} on {socket.gethostname()}"


def refuse_held(output: Path, holder: str) -> NoReturn:
    """Raise a `UserError` about an output that another process writes."""
    raise UserError(f"{output} is being written by {holder}; wait until it ends, or choose another output")


class HolderFile:
    """A file that only one process can make.

    Args:
        path: of the file.
        output: what is written, for sentences.
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
        """Hold it; it is gone at the end.

        Raises:
            UserError: if another process holds it and is not to be waited for.
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
        """Who holds it now; None if nobody does."""
        if not self.path.exists() or self._is_dead(found := self._read()):
            return None
        return str(found.get("name", "another process"))

    def _make(self, content: dict[str, Any]) -> bool:
        """Make the file; False if it is there."""
        try:
            with self.path.open("x", encoding="utf-8") as file:
                json.dump(content, file)
        except FileExistsError:
            return False
        return True

    def _read(self) -> dict[str, Any]:
        """Who holds it; nothing is known before the holder has said so."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_dead(self, found: dict[str, Any]) -> bool:
        is_here = found.get("host") == self._mine["host"]
        return (is_here and not _is_alive(int(found["process"]))) or self._silence() > SILENT_SECONDS

    def _silence(self) -> float:
        """Seconds since the last heartbeat."""
        clock = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            clock.touch()
            return clock.stat().st_mtime - self.path.stat().st_mtime
        except OSError:  # it is gone, or nothing may be written here
            return 0.0
        finally:
            clock.unlink(missing_ok=True)

    def _take_away(self, dead: dict[str, Any]) -> None:
        """Remove a dead holder's file; put it back if it is that of another who came meanwhile."""
        aside = HolderFile(self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}"), self.output)
        try:
            self.path.rename(aside.path)
        except FileNotFoundError:
            return
        if (found := aside._read()) != dead:
            self._make(found)
        aside.path.unlink(missing_ok=True)

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except OSError:
                return


def _namespace() -> str:
    """What tells containers apart that share a host's name: their numbers of processes mean nothing to each other."""
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
