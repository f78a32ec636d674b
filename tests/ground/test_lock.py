"""The lock on an output: one holder, named; it can be waited for, and dies with its process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from palenka.ground.errors import UserError
from palenka.ground.lock import sole_writer


def test_a_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "run"
    with sole_writer(output):
        with pytest.raises(UserError, match=rf"{output} is being written by process {os.getpid()} on \S+; wait until"):
            sole_writer(output).__enter__()
        with sole_writer(output.with_name("another")):
            pass
    with sole_writer(output):
        pass
    assert not list(output.parent.iterdir())


def test_a_writer_may_wait_for_another(tmp_path: Path) -> None:
    order: list[int] = []

    def write(number: int) -> None:
        with sole_writer(tmp_path / "run", wait=True):
            order.append(number)
            threading.Event().wait(0.02)
            order.append(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert order[::2] == order[1::2], "two wrote at the same time"
    assert sorted(order[::2]) == list(range(6))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    output = tmp_path / "run"
    script = f"""
import signal, sys
from pathlib import Path
from palenka.ground.lock import sole_writer
with sole_writer(Path({str(output)!r})):
    print("holding", flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(UserError, match=rf"is being written by process {holder.pid} on "):
            sole_writer(output).__enter__()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with sole_writer(output):
        pass
