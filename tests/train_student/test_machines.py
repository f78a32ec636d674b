"""What machines do to a run, in real processes: full disks, full memory, signals, and trackers without a login."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from palenka.ground.errors import UserError
from palenka.train_student.model.shapes import ModelShape
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import memory_errors

pytestmark = pytest.mark.slow

SECONDS = 240
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONFAULTHANDLER": "",
}


@pytest.fixture
def settings(
    student_of_text: Callable[..., TrainSettings], make_shape: Callable[..., ModelShape], tmp_path: Path
) -> TrainSettings:
    """A run of 60 steps."""
    output, model = tmp_path / "runs" / "run", make_shape(hidden_size=64)
    return student_of_text(output=output, model=model, micro_batch=8, checkpoint_every=5, log_every=7)


def call(settings: TrainSettings, *options: str, expected: int = 0, more: Mapping[str, str] | None = None) -> str:
    """Train in a process of its own; returns what it said."""
    file = settings.output.parent.with_suffix(".yaml")
    settings.write_yaml(file)
    command = [sys.executable, "-m", "palenka", "train", str(file), *options]
    done = subprocess.run(
        command, env=ENVIRONMENT | dict(more or {}), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1.5 MB, where the user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_sentence_and_once_there_is_room_the_end_is_the_same(
    settings: TrainSettings, small_disk: Path
) -> None:
    call(settings)
    on_disk = settings.model_copy(update={"output": small_disk / "run"})
    file = settings.output.parent.with_suffix(".yaml")
    told = call(settings, "--output", str(on_disk.output), expected=2)
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(
        r"cannot train \S+/run: (\S+: )?No space left on device; make room, and run the same command again", errors[0]
    )
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    call(settings, "--output", str(on_disk.output))
    assert (on_disk.output / "model.safetensors").read_bytes() == (settings.output / "model.safetensors").read_bytes()
    assert not list(small_disk.rglob("*.partial"))

    # The same of an export.
    shutil.rmtree(on_disk.output)
    subprocess.run(["mount", "-o", "remount,size=1500k", str(small_disk)], check=True)
    (small_disk / "filler").write_bytes(bytes(1_300_000))
    export = [sys.executable, "-m", "palenka", "export", str(settings.output), "--out", str(small_disk / "model")]
    done = subprocess.run(export, env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 2, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert file.is_file()


def test_memory_that_runs_out_is_said_with_the_micro_batch(settings: TrainSettings) -> None:
    with pytest.raises(UserError) as told, memory_errors(settings, torch.device("cpu")):
        torch.empty(2**50)
    held = "the memory of cpu does not hold a forward and backward pass with micro_batch 8, windows of 16"
    assert held in str(told.value)
    assert "try micro_batch 4 (the same results), precision bf16" in str(told.value)


@pytest.mark.parametrize(("by", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_last_step_and_the_lines_say_so(
    settings: TrainSettings, by: signal.Signals, status: int
) -> None:
    settings = settings.model_copy(update={"epochs": 30, "checkpoint_every": "1h"})
    file = settings.output.parent.with_suffix(".yaml")
    settings.write_yaml(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, "-m", "palenka", "train", str(file)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        log = settings.output / "metrics.jsonl"
        until = time.monotonic() + SECONDS
        while not (log.is_file() and log.read_bytes().count(b"\n") > 3):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(by)
        told = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == status, told
    last = re.search(rf"stopped by {by.name}: \S+/run is kept as it is after step (\d+) of", told)
    assert last is not None
    assert [place.name for place in (settings.output / "checkpoints").iterdir()] == [f"step-{int(last[1]):08}"]
    assert re.search(r"run: step 1 of [\d,]+, loss \d\.\d+, [\d,]+ tokens/s, (\d+ min )?\d+ s left", told)


def test_wandb_without_a_login_is_one_sentence_and_a_run_that_goes_on_stays_the_same_there(
    settings: TrainSettings, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    home = {"HOME": str(tmp_path), "WANDB_SILENT": "true"}
    offline = home | {"WANDB_MODE": "offline"}
    told = call(settings, "--trackers", "wandb", expected=2, more=home)
    assert told.splitlines()[-1].startswith("error: tracker wandb does not start (")
    assert "log in (`wandb login`), set WANDB_MODE=offline, or take it out of trackers" in told
    # It may be turned off, and on again, offline; a run that goes on keeps its id.
    call(settings, "--trackers", "wandb", more=offline)
    (settings.output / "result.json").unlink()
    shutil.rmtree(sorted((settings.output / "checkpoints").iterdir())[-1])
    call(settings, "--trackers", "wandb", more=offline)
    ids = {path.name.rsplit("-", 1)[1] for path in (settings.output / "wandb").glob("offline-run-*")}
    assert ids == {(settings.output / "wandb.id").read_text()}
    (settings.output / "result.json").unlink()
    call(settings)
    assert json.loads((settings.output / "result.json").read_text())["steps"] > 50
