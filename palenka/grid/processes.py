"""Points in separate processes: signals are passed on to them, and none outlives its grid.

Each process leads its own group, so that Ctrl-C reaches it only through its grid. It stops by itself once the grid is
gone (`ends_with`), and keeps its last step as after a signal.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from signal import Signals

from palenka.grid.points import Grid, Point
from palenka.ground.progress import info
from palenka.ground.stopping import Stopped, StopRequest, stopped_when_ready

Ended = Callable[[Point, int], None]
"""Called with a point whose process has ended, and its status, which is negative after a signal."""


def run_in_processes(
    grid: Grid, points: Sequence[Point], arguments: Sequence[str], devices: Sequence[str | None], ended: Ended
) -> Iterator[Point]:
    """Run points in processes, one at a time on each device; yields each when it has ended.

    Args:
        grid: of the points.
        points: to run.
        arguments: of the command line that the grid was read from.
        devices: one GPU each, as named in CUDA_VISIBLE_DEVICES; None for the CPU.
        ended: called before a point is yielded, unless the grid is stopping.

    Raises:
        Stopped: after a signal, once the running points have kept their last step and ended.
    """
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for device in devices:
        free.put(device)
    with stopped_when_ready() as request, contextlib.closing(_Processes(request)) as processes:

        def run(point: Point) -> Point:
            device = free.get()
            try:
                if request.by is None:
                    status = processes.run(grid, point, arguments, device, len(devices))
                    if request.by is None:
                        ended(point, status)
            finally:
                free.put(device)
            return point

        executor = ThreadPoolExecutor(len(devices))
        try:
            for future in as_completed([executor.submit(run, point) for point in points]):
                point = future.result()
                if request.by is None:
                    yield point
        except BaseException as error:
            processes.send(Signals.SIGKILL if isinstance(error, KeyboardInterrupt) else Signals.SIGTERM)
            raise
        finally:
            executor.shutdown(cancel_futures=True)
        if request.by is not None:
            raise Stopped(
                request.by, f"the points of {grid.settings.output} keep their last step; run it again to go on"
            )


class _Processes:
    """The running processes, so that signals can be passed on."""

    def __init__(self, request: StopRequest) -> None:
        self._request = request
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        request.passed_on.append(self._pass_on)

    def run(self, grid: Grid, point: Point, arguments: Sequence[str], device: str | None, at_once: int) -> int:
        """Run a point to its end; returns the status of its process."""
        log = log_of(grid, point)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        elif at_once > 1:
            # Otherwise each would start a thread per core, and they would wait for each other.
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))
        command = [sys.executable, "-m", "palenka", "grid", "point", *arguments, "--name", point.name]
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(  # noqa: S603
                [*command, "--parent", str(os.getpid())], env=environment, stdout=file, stderr=file, process_group=0
            )
            with self._lock:
                self._running.add(process)
            if self._request.by is not None:  # the signal came while the process was being started
                process.terminate()
            status = process.wait()
            with self._lock:
                self._running.discard(process)
        return status

    def send(self, number: Signals) -> None:
        """Send a signal to the groups of all running processes."""
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def close(self) -> None:
        """Stop passing on signals."""
        self._request.passed_on.remove(self._pass_on)

    def _pass_on(self, _: Signals) -> None:
        """Always SIGTERM: a process that is still starting would answer SIGINT with a traceback."""
        if self._running:
            info(f"waiting for {len(self._running)} point(s) to keep their last step; Ctrl-C again ends them at once")
        self.send(Signals.SIGTERM)


def log_of(grid: Grid, point: Point) -> Path:
    """The log of a point's process."""
    return grid.settings.output / "logs" / f"{point.name}.log"


def describe(status: int) -> str:
    """How a process ended."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
