"""The lock on an output: one holder, named; it can be waited for, and dies with its process."""

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from palenka.ground import holder_file
from palenka.ground.errors import UserError
from palenka.ground.holder_file import HolderFile
from palenka.ground.lock import sole_writer
from palenka.ground.stopping import Stopped, stopped_at_once

HOLD = """
import signal, sys
from pathlib import Path
from palenka.ground.lock import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("holding", flush=True)
    signal.pause()
"""


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


def test_what_a_killed_writer_left_half_written_is_removed(tmp_path: Path) -> None:
    left, other = (tmp_path / f"{name}.{'0' * 32}.partial" for name in ("out", "out2"))
    for path in (left, other):
        path.touch()
    with sole_writer(tmp_path / "out"):
        assert not left.exists()
        assert other.exists()


def test_a_link_and_its_target_are_one_output(tmp_path: Path) -> None:
    (tmp_path / "disk" / "run").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "work").symlink_to(tmp_path / "disk")
    for one, other in (("run", "disk/run"), ("disk/run", "work/run"), ("work/run", "run")):
        with sole_writer(tmp_path / one), pytest.raises(UserError, match="is being written by"):
            sole_writer(tmp_path / other).__enter__()


def test_the_root_is_no_output() -> None:
    with pytest.raises(UserError, match="/ is a whole file system"):
        sole_writer(Path("/")).__enter__()


def alternate(lock: Path, tmp_path: Path, hold: object) -> None:
    order: list[int] = []

    def write(number: int) -> None:
        with hold(lock):  # type: ignore[operator]
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


def test_a_writer_may_wait_for_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alternate(tmp_path / "run", tmp_path, lambda path: sole_writer(path, wait=True))
    assert "is being written by process" in (told := capsys.readouterr().err)
    assert "waiting for it" in told


@pytest.mark.parametrize("comes", [False, True], ids=["removed", "another's"])
def test_a_file_that_its_holder_removed_meanwhile_locks_nothing(
    comes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Between opening and locking: the holder before ended and removed the file, and perhaps somebody made it anew.
    flock, output = fcntl.flock, tmp_path / "run"

    def after_removal(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "run.lock").unlink()
        if comes:
            (tmp_path / "run.lock").touch()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", after_removal)
    with sole_writer(output):
        assert fcntl.flock is flock
        with pytest.raises(UserError, match="is being written by"):
            sole_writer(output).__enter__()
    assert not list(tmp_path.iterdir())


def test_locks_follow_the_umask_and_one_that_may_only_be_read_can_be_held(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        with sole_writer(tmp_path / "run"):
            assert stat.S_IMODE((tmp_path / "run.lock").stat().st_mode) == 0o664
    finally:
        os.umask(before)
    (tmp_path / "run.lock").touch(0o444)
    with sole_writer(tmp_path / "run"):
        pass
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def holding(output: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds an output's lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(output)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            yield holder
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()


@pytest.mark.slow
def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    output = tmp_path / "run"
    with holding(output) as holder, pytest.raises(UserError, match=rf"is being written by process {holder.pid} on "):
        sole_writer(output).__enter__()
    with sole_writer(output):
        pass


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_lock_that_a_member_of_the_group_left_shuts_nobody_out(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    for path in (folder, *folder.parents):
        if path == Path(tempfile.gettempdir()):
            break
        path.chmod(0o777)
    with holding(folder / "run"):
        pass
    assert (folder / "run.lock").stat().st_uid == 0
    child = os.fork()
    if not child:
        # The interpreter may be closed to other users, so that none could be started.
        os.setgroups([])
        os.setuid(1234)
        with contextlib.suppress(BaseException):
            with sole_writer(folder / "run"):
                pass
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert not list(folder.iterdir())


def hold_file(path: Path) -> object:
    return HolderFile(path.with_name("run.lock.holder"), path).held(wait=True)


def test_without_flock_writers_wait_for_each_other_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alternate(tmp_path / "run", tmp_path, hold_file)
    told = " ".join(capsys.readouterr().err.split())
    assert "has no file locks (flock); run.lock.holder, with a heartbeat, stands in for one" in told


def test_a_holders_file_is_of_a_process_that_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, output = tmp_path / "run.lock.holder", tmp_path / "run"
    with HolderFile(path, output).held(wait=False):
        mine = json.loads(path.read_text())
        with pytest.raises(UserError, match=rf"{output} is being written by process {os.getpid()} on "):
            HolderFile(path, output).held(wait=False).__enter__()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps(mine | {"process": ended.pid}))
    with HolderFile(path, output).held(wait=False):
        pass
    # Another host's process is not seen from here: its silence tells.
    path.write_text(json.dumps(mine | {"process": ended.pid, "host": "elsewhere", "name": "process 7 on elsewhere"}))
    with pytest.raises(UserError, match="is being written by process 7 on elsewhere"):
        HolderFile(path, output).held(wait=False).__enter__()
    silent = time.time() - 2 * holder_file.SILENT_SECONDS
    os.utime(path, (silent, silent))
    with HolderFile(path, output).held(wait=False):
        assert json.loads(path.read_text())["process"] == os.getpid()
    monkeypatch.setattr(holder_file, "HEARTBEAT_SECONDS", 0.01)
    with HolderFile(path, output).held(wait=False):
        os.utime(path, (silent, silent))
        for _ in range(200):
            if path.stat().st_mtime > silent:
                break
            time.sleep(0.02)
        assert path.stat().st_mtime > silent
    assert not list(tmp_path.iterdir())


def test_a_holder_that_was_suspended_for_too_long_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "run.lock.holder", tmp_path / "run"
    monkeypatch.setattr(holder_file, "HEARTBEAT_SECONDS", 0.01)
    theirs = {"name": "process 7 on elsewhere", "token": "another"}

    def hold() -> None:
        with stopped_at_once(), HolderFile(path, output).held(wait=False):
            path.unlink()  # by hand: nobody else has it
            time.sleep(0.1)
            path.write_text(json.dumps(theirs))
            time.sleep(10)

    with pytest.raises(Stopped) as stop:
        hold()
    assert stop.value.status == 143
    assert f"{output} is now written by process 7 on elsewhere" in " ".join(capsys.readouterr().err.split())
    assert json.loads(path.read_text()) == theirs


def test_a_full_disk_leaves_no_holders_file_and_a_lock_needs_no_room(tmp_path: Path) -> None:
    path = tmp_path / "run.lock.holder"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            HolderFile(path, tmp_path / "run").held(wait=False).__enter__()
        assert not list(tmp_path.iterdir())
        with sole_writer(tmp_path / "run"), pytest.raises(UserError, match="is being written by another process"):
            sole_writer(tmp_path / "run").__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    path.write_text(json.dumps({"process": "x", "host": 3}))  # whatever it says, its silence counts
    with pytest.raises(UserError, match="is being written by another process"):
        HolderFile(path, tmp_path / "run").held(wait=False).__enter__()


NO_FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int op) { errno = atoi(getenv("LOCK_ERRNO")); return -1; }
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("number", [38, 37, 95])  # ENOSYS, ENOLCK, EOPNOTSUPP
def test_a_file_system_without_flock_has_a_file_in_its_place(number: int, tmp_path: Path) -> None:
    (tmp_path / "noflock.c").write_text(NO_FLOCK)
    library = tmp_path / "noflock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "noflock.c"], check=True)
    environment = {"LD_PRELOAD": str(library), "LOCK_ERRNO": str(number)}
    output = tmp_path / "outputs" / "run"
    command = [sys.executable, "-c", HOLD.replace("signal.pause()", "pass"), str(output)]

    def write() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)

    with holding(output, **environment) as holder:
        assert [path.name for path in output.parent.iterdir()] == ["run.lock.holder"]
        refused = write()
        assert refused.returncode
        assert f"is being written by process {holder.pid} on" in refused.stderr
    # Killed, it leaves its file; nobody is kept out by it.
    assert [path.name for path in output.parent.iterdir()] == ["run.lock.holder"]
    assert (done := write()).returncode == 0, done.stderr
    assert "stands in for one" in done.stderr
    assert not list(output.parent.iterdir())
