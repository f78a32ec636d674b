"""Stopping: Ctrl-C (SIGINT) and SIGTERM end a command with status 130 or 143, at once or after saving its work."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from signal import Signals
from types import FrameType

_SIGNALS = (Signals.SIGINT, Signals.SIGTERM)
_ECHO_SECONDS = 1.0
"""A terminal sends Ctrl-C to a launcher and its processes, and the launcher passes it on: within this time it is one
request."""


class Stopped(BaseException):
    """A signal ends the command.

    Args:
        by: the signal.
        kept: a sentence about what was kept; empty if another process prints it.
    """

    def __init__(self, by: Signals, kept: str = "what is finished is kept; run the same command again") -> None:
        super().__init__(kept)
        self.by = by

    @property
    def status(self) -> int:
        """The exit status that shells give to a command that ends by the signal."""
        return 128 + self.by


@dataclass
class StopRequest:
    """Whether a signal has asked the command to stop."""

    by: Signals | None = None
    passed_on: list[Callable[[Signals], None]] = field(default_factory=list)
    """Functions called in the main thread with each signal."""


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Inside, SIGTERM raises `Stopped` at once, so that temporary files are removed, as for Ctrl-C."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(Signals(number))

    with _handled((Signals.SIGTERM,), stop):
        yield


@contextmanager
def stopped_when_ready() -> Iterator[StopRequest]:
    """Inside, signals are noted, so that the work can save itself and end; a second Ctrl-C ends it at once.

    Raises:
        Stopped: at the end, if a signal came and nothing else was raised.
    """
    request = StopRequest()
    noted = 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal noted
        first, request.by = request.by, request.by or Signals(number)
        for pass_on in request.passed_on:
            pass_on(Signals(number))
        if first is None:
            noted = time.monotonic()
        elif number == Signals.SIGINT and time.monotonic() > noted + _ECHO_SECONDS:
            raise KeyboardInterrupt

    with _handled(_SIGNALS, note):
        yield request
    if request.by is not None:
        raise Stopped(request.by)


@contextmanager
def stopped_by_the_system() -> Iterator[None]:
    """Inside, signals end the process at once, even while it waits outside of Python; nothing is kept."""
    with _handled(_SIGNALS, signal.SIG_DFL):
        yield


def ends_with(parent: int) -> None:
    """Send this process SIGTERM within a second after its parent has ended for any reason.

    Raises:
        Stopped: if it has ended already.
    """
    if os.getppid() != parent:
        raise Stopped(Signals.SIGTERM, f"process {parent}, which started this one, has ended")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), Signals.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def _handled(
    signals: tuple[Signals, ...], handler: Callable[[int, FrameType | None], None] | signal.Handlers
) -> Iterator[None]:
    """Handle signals; those that the caller of the command ignores (nohup, a background job) stay ignored.

    Only the main thread can do this; in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    mine = [number for number, was in before.items() if was is not signal.SIG_IGN]
    for number in mine:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])
