"""Commands as processes: forked from one that has loaded torch, or launched as a user does; killed, and waited for."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from palenka.__main__ import main as palenka

LIMIT_SECONDS = 300
PATIENCE_SECONDS = 30
Target = Literal["all", "launcher", "group", "any"]
"""Processes of a launch: all, the one that launched the others, its process group, or any one."""
LAUNCHED = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
"""Environment of launched commands: one thread, as forked ones have."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: of it; None where it was killed, or took too long.
        said: by it.
        seconds: that it took.
    """

    status: int | None
    said: str
    seconds: float


class LivesOnError(Exception):
    """A process that a command has started outlives it."""


def call(
    arguments: Sequence[str],
    meanwhile: Callable[[], None] | None = None,
    kill_after: float | None = None,
    confine: Callable[[], None] | None = None,
) -> Ended:
    """A command in a process of its own, forked from this one.

    Args:
        arguments: of `palenka`.
        meanwhile: called here while it runs.
        kill_after: these seconds.
        confine: called there before it begins.

    Raises:
        LivesOnError: if a process of it is there at its end.
    """
    read, write = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if not child:
        _become(arguments, write, confine)
    os.close(write)
    if meanwhile is not None:
        meanwhile()
    limit = LIMIT_SECONDS if kill_after is None else kill_after
    said = b""
    os.set_blocking(read, False)
    status: int | None = None
    while True:
        with contextlib.suppress(BlockingIOError):
            said += os.read(read, 2**16)
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            break
        if time.perf_counter() - began > limit:
            _kill(living(child))
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
    with contextlib.suppress(BlockingIOError):
        while part := os.read(read, 2**16):
            said += part
    os.close(read)
    if left := living(child):
        raise LivesOnError(f"{len(left)} process(es) of {list(arguments)} live on")
    return Ended(status, said.decode(errors="replace"), time.perf_counter() - began)


def _become(arguments: Sequence[str], write: int, confine: Callable[[], None] | None) -> None:
    """Run a command in this forked process, which leads a session of its own, and end with it."""
    os.setsid()
    for number in (1, 2):
        os.dup2(write, number)
    ending = 70
    with contextlib.suppress(BaseException):
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", 1, errors="backslashreplace")
        try:
            if confine is not None:
                confine()
            ending = palenka(list(arguments))
        except SystemExit as end:
            ending = int(end.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
            ending = 71
        sys.stdout.flush()
    os._exit(ending)


class Launch:
    """A command with processes of its own, started as a user does.

    Args:
        command: with its arguments, among them a folder that no other command names.
        folder: that one; the processes of the launch, some with sessions of their own, are told by it.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._folder = folder
        self._began = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            env=os.environ | LAUNCHED,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.mine = {self._process.pid}

    def is_running(self) -> bool:
        """Whether the process that launched the others has not ended."""
        return self._process.poll() is None

    def send(self, number: signal.Signals, to: Target, draw: random.Random) -> bool:
        """Send a signal; False where the launch has ended already."""
        if not self.is_running():
            return False
        self.mine |= {*named(self._folder)}
        if to == "group":
            os.killpg(self._process.pid, number)
            return True
        there = sorted(self.mine)
        _send({"all": there, "launcher": [self._process.pid], "any": [draw.choice(there)]}[to], number)
        return True

    def kill(self, draw: random.Random) -> bool:
        """Kill all its processes, the one that launched the others, or any one; False where it has ended already."""
        return self.send(signal.SIGKILL, draw.choice(["all", "launcher", "any"]), draw)

    def end(self) -> Ended:
        """Wait for its end."""
        try:
            said, _ = self._process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            _kill(named(self._folder))
            said, _ = self._process.communicate()
        return Ended(self._process.returncode, said, time.perf_counter() - self._began)

    def require_gone(self) -> None:
        """Give its processes some seconds to end by themselves.

        Raises:
            LivesOnError: if one does not.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while left := self.mine & {*named(self._folder)}:
            if time.monotonic() > until:
                _kill(sorted(left))
                raise LivesOnError(f"{len(left)} process(es) of the launch live on")
            time.sleep(0.1)


def named(folder: Path) -> list[int]:
    """The processes whose command names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes() and _is_alive(path.parent):
                found.append(int(path.parent.name))
    return found


def living(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if _fields(path)[3] == str(session) and _is_alive(path.parent):
                found.append(int(path.parent.name))
    return found


def _is_alive(process: Path) -> bool:
    return _fields(process / "stat")[0] != "Z"


def _fields(stat: Path) -> list[str]:
    """State, parent, group and session of a process, and so on."""
    return stat.read_text().rpartition(")")[2].split()


def _kill(processes: Sequence[int]) -> None:
    _send(processes, signal.SIGKILL)


def _send(processes: Sequence[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
