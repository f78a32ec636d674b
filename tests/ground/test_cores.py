"""How many cores a process has, and how the threads of torch wait in it."""

import os
import subprocess
import sys

import pytest

from palenka.ground.processes import cores


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3", "LOCAL_WORLD_SIZE": "8"}, 3),
        ({"OMP_NUM_THREADS": "0"}, 12),
        ({"OMP_NUM_THREADS": "4,2"}, 12),
        ({"LOCAL_WORLD_SIZE": "4"}, 3),
        ({"LOCAL_WORLD_SIZE": "99"}, 1),
        ({"LOCAL_WORLD_SIZE": ""}, 12),
        ({}, 12),
    ],
)
def test_the_processes_of_a_launch_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cores() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "found"),
    [
        ({}, ["PASSIVE", "1000"]),
        ({"GOMP_SPINCOUNT": "7"}, ["PASSIVE", "7"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", "None"]),
    ],
)
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(theirs: dict[str, str], found: list[str]) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | theirs
    program = f"import os, palenka.train_student; print(*map(os.environ.get, {names}))"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == found
