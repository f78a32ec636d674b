"""Grids in real processes: points in processes of their own, and through a real SLURM on this machine."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.signals.cache import TeacherCache
from palenka.grid.slurm import SCRIPTS
from palenka.templates import write_pairs

pytestmark = pytest.mark.slow

SECONDS = 300
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "160"}


def call(file: Path, *arguments: str, expected: int = 0, **environment: str) -> str:
    command = [sys.executable, "-m", "palenka", "grid", "--config", str(file), *arguments]
    seen = ENVIRONMENT | environment
    done = subprocess.run(command, env=seen, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == expected, done.stderr
    return done.stdout + done.stderr


def results(file: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((file.parent / "grid" / "grid.json").read_text())
    return read


def weights(file: Path) -> dict[str, bytes]:
    return {str(path.relative_to(file.parent)): path.read_bytes() for path in file.parent.rglob("*.safetensors")}


def test_points_in_processes_of_their_own_end_as_in_one(grid_file: Path) -> None:
    call(grid_file, "--local.processes", "2")
    found, trained = results(grid_file), weights(grid_file)
    assert len(trained) == 5
    shutil.rmtree(grid_file.parent / "grid")
    call(grid_file, "--local.isolated", "false")
    assert weights(grid_file) == trained
    assert results(grid_file) == found


SITE = """
import os, signal, sys
if "points/logit0.1-seed0" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_point_whose_process_is_killed_does_not_end_the_grid(grid_file: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    told = call(grid_file, expected=1, PYTHONPATH=path)
    log = grid_file.parent / "grid" / "logs" / "points" / "logit0.1-seed0.log"
    assert f"points/logit0.1-seed0 failed: its process was killed by {signal.SIGKILL.name}; see {log}" in told
    assert results(grid_file)["points"]["untried"] == []
    assert {row["variant"] for row in results(grid_file)["finalists"]["ranking"]} == {"control", "logit0.9"}
    call(grid_file)
    assert results(grid_file)["points"]["failures"] == {}


LONGER = ["--overrides", "{fraction: 1.0, epochs: 12}", "--finalists.count", "0", "--local.processes", "2"]
"""Points of some seconds."""


def begin(file: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "palenka", "grid", "--config", str(file), *arguments]
    # A background job of a shell ignores SIGINT, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def points_of(grid: "subprocess.Popen[str]") -> list[int]:
    """The processes that a grid has started."""
    found = Path(f"/proc/{grid.pid}/task").glob("*/children")
    return [int(number) for path in found for number in path.read_text().split()]


def logged(output: Path) -> int:
    """How many points have logged something, and are not finished."""
    begun = {path.parent for path in output.glob("points/*/metrics.jsonl")}
    return len(begun - {path.parent for path in output.glob("points/*/result.json")})


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_grid_that_is_stopped_or_killed_leaves_no_point_running_and_ends_as_an_undisturbed_one(
    grid_file: Path, tmp_path: Path
) -> None:
    call(grid_file, *LONGER, "--output", str(tmp_path / "undisturbed"))
    output = tmp_path / "grid"

    # Killed: its points keep their last step and end by themselves; the next grid waits for those that still run.
    grid = begin(grid_file, *LONGER)
    wait_for(lambda: logged(output) == 2, output / "logs")
    left = points_of(grid)
    assert len(left) == 2
    grid.kill()
    grid.communicate()
    again = begin(grid_file, *LONGER)
    wait_for(lambda: not any(Path(f"/proc/{number}").exists() for number in left), output / "logs")
    assert all(path.is_dir() for path in output.glob("points/*/checkpoints"))

    # Stopped: it passes the signal on, waits, and says what is kept.
    wait_for(lambda: len(points_of(again)) == 2 and logged(output) == 2, output / "logs")
    left = points_of(again)
    again.send_signal(signal.SIGTERM)
    told, _ = again.communicate(timeout=SECONDS)
    assert again.returncode == 143, told
    assert "waiting for 2 point(s) to keep their last step" in told
    assert f"stopped by SIGTERM: the points of {output} keep their last step" in told
    assert "failed" not in told
    assert not any(Path(f"/proc/{number}").exists() for number in left)

    third = begin(grid_file, *LONGER)
    wait_for(lambda: bool(points_of(third)), output / "logs")
    third.send_signal(signal.SIGINT)  # while points only start
    assert (third.communicate(timeout=SECONDS)[0], third.returncode)[1] == 130

    call(grid_file, *LONGER)
    assert results(grid_file)["points"]["failures"] == {}
    found = {path.parent.name: path.read_bytes() for path in output.rglob("model.safetensors")}
    expected = {path.parent.name: path.read_bytes() for path in (tmp_path / "undisturbed").rglob("model.safetensors")}
    assert len(found) == 3
    assert found == expected
    assert not list(output.rglob("*.lock"))
    assert not list(output.rglob("*.failure.json"))


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=500 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM of one node: munge, controller and node daemon, with files of their own; yields its slurm.conf."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    daemons = {name: shutil.which(name, path=path) for name in ("munged", "slurmctld", "slurmd", "sbatch")}
    if lacking := [name for name, place in daemons.items() if place is None]:
        pytest.skip(f"{', '.join(lacking)} not installed; on Debian: apt-get install slurm-wlm munge")
    # Sockets have short paths, and munge wants a folder that is only its own.
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o700)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"key-file": key} | {f"{name}-file": folder / f"munge.{name}" for name in ("pid", "log", "seed")}
    options = [f"--{option}={place}" for option, place in files.items()]
    configuration = folder / "slurm.conf"
    host, user = socket.gethostname().split(".")[0], getpass.getuser()
    ports = free_ports(2)
    configuration.write_text(SLURM_CONF.format(host=host, user=user, folder=folder, ports=ports, cpus=os.cpu_count()))
    commands = [
        [str(daemons["munged"]), "--foreground", "--force", f"--socket={folder}/munge.socket", *options],
        [str(daemons["slurmctld"]), "-D", "-f", str(configuration)],
        [str(daemons["slurmd"]), "-D", "-f", str(configuration), "-N", host],
    ]
    with ExitStack() as stack:
        for command in commands:
            log = stack.enter_context((folder / f"{Path(command[0]).name}.out").open("wb"))
            daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            stack.callback(stop, daemon)
            if command is commands[0]:
                wait_for((folder / "munge.socket").exists, folder)
        wait_for(lambda: ask(configuration, "sinfo", "--noheader", "--format=%T") == "idle", folder)
        yield configuration
        ask(configuration, "scancel", f"--user={user}")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def stop(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def ask(configuration: Path, *command: str) -> str:
    seen = ENVIRONMENT | {"SLURM_CONF": str(configuration)}
    done = subprocess.run(command, env=seen, capture_output=True, text=True, timeout=SECONDS, check=False)
    return done.stdout.strip()


def wait_for(ready: Callable[[], bool], logs: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "\n".join(said(logs))
        time.sleep(0.2)


def said(logs: Path) -> Sequence[str]:
    """The ends of the logs in a folder."""
    files = [path for path in logs.rglob("*") if path.suffix in (".out", ".log")]
    return [f"{path}: {path.read_text(errors='replace')[-1500:]}" for path in files]


def test_slurm_runs_every_point_ranks_them_and_goes_on_to_the_finalists(grid_file: Path, slurm: Path) -> None:
    told = call(grid_file, "--launcher", "slurm", SLURM_CONF=str(slurm))
    output = grid_file.parent / "grid"
    assert "3 task(s) of" in told

    def ended() -> bool:
        return ask(slurm, "squeue", "--noheader") == ""

    wait_for(ended, output / "logs", SECONDS)
    wait_for(lambda: (output / "grid.json").exists(), output / "logs", 10)
    found = results(grid_file)
    assert {
        name: (output / f"{name}.sbatch").exists() for name in ("finish", "rank", *SCRIPTS.values())
    } == dict.fromkeys(("finish", "rank", "grid", "finalists"), True)
    assert found["points"]["failures"] == {}, "\n".join(said(output / "logs"))
    assert {row["rank"] for row in found["points"]["ranking"]} == {1, 2, 3}
    assert set(found["points"]["runs"]) == {f"points/{name}-seed0" for name in ("control", "logit0.1", "logit0.9")}
    assert [row["rank"] for row in found["finalists"]["ranking"]] == [1, 2]
    assert "control" in {row["variant"] for row in found["finalists"]["ranking"]}
    trained = weights(grid_file)

    # All is there: nothing is submitted, and a processor without SLURM finds the same.
    told = call(grid_file, "--launcher", "slurm", SLURM_CONF=str(slurm))
    assert "submitted" not in told
    assert "3 of 3 points are finished" in told
    assert results(grid_file) == found
    assert weights(grid_file) == trained


def test_tasks_that_fail_are_reported_and_they_alone_are_submitted_again(grid_file: Path, slurm: Path) -> None:
    output = grid_file.parent / "grid"
    # The cache is gone for a while, so that the two points with teachers fail.
    cache = grid_file.parent / "cache"
    cache.rename(cache.with_name("elsewhere"))
    call(grid_file, "--launcher", "slurm", SLURM_CONF=str(slurm))
    wait_for(lambda: ask(slurm, "squeue", "--noheader") == "", output / "logs", SECONDS)
    found = results(grid_file)
    assert set(found["points"]["failures"]) == {"points/logit0.1-seed0", "points/logit0.9-seed0"}
    assert found["finalists"] is None
    cache.with_name("elsewhere").rename(cache)
    told = call(grid_file, "--launcher", "slurm", SLURM_CONF=str(slurm))
    assert "2 task(s) of" in told
    wait_for(lambda: ask(slurm, "squeue", "--noheader") == "", output / "logs", SECONDS)
    assert results(grid_file)["points"]["failures"] == {}
    assert len(results(grid_file)["finalists"]["ranking"]) == 2


REPOSITORY = Path(__file__).parents[2]
SMALLER = ["--gpus-per-node=0", "--mem=100M", "--cpus-per-task=1"]


def test_the_scripts_for_the_other_stages_run_on_a_cluster(
    grid_file: Path, capture_settings: CaptureSettings, slurm: Path, tmp_path: Path
) -> None:
    """As they are, but for limits: teachers, a cache in parts, minimal pairs, a grid whose following job was lost."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    seen = ENVIRONMENT | {"SLURM_CONF": str(slurm), "PATH": programs, "ACCELERATE_USE_CPU": "true"}

    def submit(script: str, *arguments: str, options: Sequence[str] = ()) -> None:
        command = ["sbatch", *SMALLER, *options, str(REPOSITORY / "slurm" / f"{script}.sbatch"), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=seen, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: ask(slurm, "squeue", "--noheader") == "", tmp_path, SECONDS)

    student = yaml.safe_load((tmp_path / "student.yaml").read_text())
    teachers = tmp_path / "configs" / "teachers"
    teachers.mkdir(parents=True)
    for name in ("gpt2-705m", "llama-360m"):
        teacher = {key: value for key, value in student.items() if key not in ("teachers", "objective")}
        (teachers / f"{name}.yaml").write_text(yaml.safe_dump(teacher | {"output": f"runs/teachers/{name}"}))
    submit("teachers")
    assert all((tmp_path / "runs" / "teachers" / name / "result.json").exists() for name in ("gpt2-705m", "llama-360m"))

    asked = capture_settings.as_plain() | {"output": "runs/cache", "windows": {"length": 16, "views": 3}}
    (tmp_path / "cache.yaml").write_text(yaml.safe_dump(asked))
    submit("caches", "cache.yaml", options=["--array=0-2"])
    cache = TeacherCache(tmp_path / "runs" / "cache")
    assert cache.committed() == list(cache.manifest.shards())

    for suite in ("blimp_filtered", "supplement_filtered"):
        write_pairs(tmp_path / "runs" / "evaluation" / suite)
    models = [str(path) for path in sorted((tmp_path / "runs" / "teachers").iterdir())]
    submit("evaluation", *models, options=["--array=0-1"])
    for model in models:
        suites = json.loads((tmp_path / "runs" / "results" / f"{Path(model).name}.json").read_text())["suites"]
        assert [result["figures"]["accuracy"]["n"] for result in suites] == [1200, 1200]

    call(grid_file, "--finalists.count", "0")
    submit("finalists", str(grid_file))
    assert [row["rank"] for row in results(grid_file)["finalists"]["ranking"]] == [1, 2]
