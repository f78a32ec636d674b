"""Real processes: two that share the work, some that are killed, and the programs as a user calls them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cache_teachers.capture import CaptureSettings, capture
from configs.settings import Settings
from train_student.settings import TrainSettings
from train_student.shapes import ModelShape
from train_student.train import train

pytestmark = pytest.mark.slow

LENGTH = 16
SECONDS = 240
# One thread, as in this process: the number of threads decides the order of sums, and so the last bits.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
PROGRAMS = Path(sys.executable).parent
TWO_PROCESSES = [
    *(str(PROGRAMS / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"),
]


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def changed(settings: CaptureSettings, **changes: object) -> CaptureSettings:
    return CaptureSettings.model_validate(settings.as_plain() | changes)


def call(command: Sequence[str], folder: Path, expected: int = 0, **environment: str) -> str:
    """Run a command to its end in a folder; returns what it said on standard error."""
    seen = ENVIRONMENT | environment
    done = subprocess.run(command, cwd=folder, env=seen, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == expected, done.stderr
    return done.stderr


def configuration(settings: Settings, folder: Path) -> str:
    path = folder / f"{type(settings).__name__}.yaml"
    settings.write_yaml(path)
    return str(path)


@pytest.fixture
def long_capture(capture_settings: CaptureSettings) -> CaptureSettings:
    """A capture of 12 shards that takes seconds."""
    return changed(capture_settings, windows={"length": LENGTH, "views": 6}, micro_batch=2)


@pytest.fixture
def student_settings(
    capture_settings: CaptureSettings, make_shape: Callable[..., ModelShape], tmp_path: Path
) -> TrainSettings:
    """A student with a cached teacher: 20 steps."""
    capture(capture_settings)
    return TrainSettings.model_validate(
        {
            "corpus": capture_settings.corpus,
            "output": tmp_path / "run",
            "model": make_shape(),
            "windows": capture_settings.windows,
            "fraction": 0.3,
            "teachers": {"t": {"cache": capture_settings.output}},
            "objective": {"hard": 0.5, "logit": 0.5},
            "global_batch": 16,
            "micro_batch": 4,
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 3},
            "validation": {"every": 5},
            "log_every": 1,
        }
    )


def elsewhere(settings: TrainSettings, name: str) -> TrainSettings:
    return settings.model_copy(update={"output": settings.output.with_name(name)})


def metrics(settings: TrainSettings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (settings.output / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one(student_settings: TrainSettings, tmp_path: Path) -> None:
    one, two = elsewhere(student_settings, "one"), elsewhere(student_settings, "two")
    result = train(one)
    told = call([*TWO_PROCESSES, "train_student", "--config", configuration(two, tmp_path)], tmp_path)
    assert told.count("2 process(es)") == 1  # a launch that starts one alone would say so, or say it twice
    assert told.count("20 steps of 16 windows") == 1
    curves = [metrics(settings) for settings in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 24
    # The same sums in another order, 20 Adam steps: equal to six digits at first, to four at the end.
    for mine, theirs in zip(*curves, strict=True):
        mine.pop("tokens_per_second", None)
        theirs.pop("tokens_per_second", None)
        assert theirs == pytest.approx(mine, rel=1e-6 if mine["step"] == 1 else 1e-4)
    found = json.loads((two.output / "result.json").read_text())
    assert found["validation_cross_entropy"] == pytest.approx(result["validation_cross_entropy"], rel=1e-4)
    assert {key: found[key] for key in ("steps", "tokens", "best_step", "parameters")} == {
        key: result[key] for key in ("steps", "tokens", "best_step", "parameters")
    }
    ours, theirs = (load_file(settings.output / "model.safetensors") for settings in (one, two))
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-4)


def test_two_processes_capture_the_bytes_of_one(long_capture: CaptureSettings, tmp_path: Path) -> None:
    two = changed(long_capture, output=str(tmp_path / "two"), micro_batch=32)
    capture(changed(long_capture, micro_batch=32))
    told = call([*TWO_PROCESSES, "cache_teachers", "run", "--config", configuration(two, tmp_path)], tmp_path)
    assert told.count("12 of 12 shards to capture") == 1  # the first process speaks for both
    assert contents(two.output) == contents(long_capture.output)


def test_a_batch_that_two_processes_cannot_share_is_refused(student_settings: TrainSettings, tmp_path: Path) -> None:
    odd = student_settings.model_copy(update={"global_batch": 15})
    told = call([*TWO_PROCESSES, "train_student", "--config", configuration(odd, tmp_path)], tmp_path, expected=1)
    assert "global_batch is 15, but there are 2 processes; make it a multiple of their number" in told
    assert not odd.output.exists()


@pytest.mark.parametrize("room", ["cache_teachers", "train_student"])
def test_processes_that_do_not_see_each_other_are_refused(
    room: str, capture_settings: CaptureSettings, student_settings: TrainSettings, tmp_path: Path
) -> None:
    if room == "train_student":
        command, output = [room, "--config", configuration(student_settings, tmp_path)], student_settings.output
    else:
        other = changed(capture_settings, output=str(tmp_path / "other"))
        command, output = [room, "run", "--config", configuration(other, tmp_path)], other.output
    told = call([*TWO_PROCESSES, *command], tmp_path, expected=1, ACCELERATE_USE_CPU="false")
    assert "2 processes were launched, but this one sees 1; without GPUs, set ACCELERATE_USE_CPU=true" in told
    assert not output.exists()


def stop(command: Sequence[str], folder: Path, now: Callable[[], bool], how: signal.Signals) -> int:
    """Start a command and send it a signal at some moment; returns its exit status."""
    with subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + SECONDS
        while not now() and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(how)
        return process.wait(timeout=SECONDS)


def test_a_capture_killed_at_random_moments_ends_as_an_undisturbed_one(
    long_capture: CaptureSettings, tmp_path: Path
) -> None:
    undisturbed = changed(long_capture, output=str(tmp_path / "undisturbed"))
    capture(undisturbed)
    output = long_capture.output
    command = [sys.executable, "-m", "cache_teachers", "run", "--config", configuration(long_capture, tmp_path)]
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)

    def commits() -> int:
        return len(list(output.glob("commits/*-*.json")))

    def being_made() -> bool:
        return output.exists() or output.with_name(f"{output.name}.partial").exists()

    def after_some_shards() -> Callable[[], bool]:
        enough = commits() + draw.randint(1, 2)
        chance = draw.choice([1.0, 0.05, 0.01])  # of going a look later; a look takes 2 ms
        return lambda: commits() >= enough and draw.random() < chance

    assert stop(command, tmp_path, being_made, signal.SIGKILL) == -signal.SIGKILL
    for how, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        before = commits()
        assert stop(command, tmp_path, after_some_shards(), how) == status, f"seed {seed}"
        assert before < commits() < 12, f"seed {seed}"
    told = call(command, tmp_path)
    assert f"{12 - before} of 12 shards to capture" not in told
    assert contents(output) == contents(undisturbed.output), f"seed {seed}"
    assert sorted(path.name for path in output.parent.glob("cache*")) == ["cache"]


def test_a_killed_training_ends_as_an_undisturbed_one(student_settings: TrainSettings, tmp_path: Path) -> None:
    student_settings = student_settings.model_copy(update={"fraction": 1.0})  # long enough to be caught in the middle
    undisturbed = elsewhere(student_settings, "undisturbed")
    train(undisturbed)
    command = [sys.executable, "-m", "train_student", "--config", configuration(student_settings, tmp_path)]
    kept = student_settings.output / "model.safetensors"
    assert stop(command, tmp_path, kept.exists, signal.SIGKILL) == -signal.SIGKILL
    assert not (student_settings.output / "result.json").exists()
    call(command, tmp_path)
    after, expected = contents(student_settings.output), contents(undisturbed.output)
    assert after.keys() == expected.keys()
    # The output's name, seconds and tokens per second are each run's own.
    different = {name for name in after if after[name] != expected[name]}
    assert different <= {"config.yaml", "metrics.jsonl", "result.json"}
    losses = [[line.get("loss") for line in metrics(settings)] for settings in (student_settings, undisturbed)]
    assert losses[0] == losses[1]


def test_the_programs_work_from_any_directory_with_paths_relative_to_it(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "dev"):
        (text / f"switchboard.{split}").write_text("the teacher sees the river .\n" * 400)
    palenka, python = str(PROGRAMS / "palenka"), [sys.executable, "-m"]
    shape = ["--model", "{architecture: llama, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}"]
    windows, corpus = ["--windows.length", str(LENGTH)], ["--corpus", "runs/corpus"]
    commands = [
        [palenka, "data", "prepare", "--sources", "text", "--output", "runs/corpus", "--vocabulary_size", "280"],
        [*python, "data", "prepare", "--sources", "text", "--output", "runs/corpus", "--vocabulary_size", "280"],
        [*python, "train_student", *corpus, *windows, *shape, "--output", "runs/model"],
        [*python, "cache_teachers", "run", *corpus, *windows, "--teacher", "runs/model", "--output", "runs/cache"],
        [*python, "eval", "runs/model", "--data", "runs/corpus", "--out", "runs/held_out.json", "--length", "16"],
    ]
    told = [call(command, tmp_path) for command in commands]
    assert "is prepared already" in told[1]
    assert (tmp_path / "runs" / "model" / "result.json").is_file()
    assert (tmp_path / "runs" / "cache" / "commits" / "0-0.json").is_file()
    assert json.loads((tmp_path / "runs" / "held_out.json").read_text())["cross_entropy"] > 0
    # A run says how it was made, and that is enough to make it again.
    again = [palenka, "train", "--config", "runs/model/config.yaml", "--output", "runs/again"]
    call(again, tmp_path)
    models = [tmp_path / "runs" / name / "model.safetensors" for name in ("model", "again")]
    assert models[0].read_bytes() == models[1].read_bytes()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ([str(PROGRAMS / "palenka"), "tarin"], "'tarin' is not a command of palenka; choose from data, cache, train"),
        (
            [sys.executable, "-m", "data", "prepare", "--sources", "nowhere", "--output", "o"],
            "sources nowhere does not",
        ),
        ([sys.executable, "-m", "cache_teachers", "run", "--config", "no.yaml"], "cannot read configuration no.yaml"),
        (
            [sys.executable, "-m", "train_student", "--epochs", "many"],
            "epochs is many, but it should be a valid integer",
        ),
        ([sys.executable, "-m", "eval", "no/model", "--data", "no/corpus", "--out", "o"], "no/corpus is no corpus"),
    ],
)
def test_a_mistake_ends_a_process_with_status_2_and_one_line(command: list[str], told: str, tmp_path: Path) -> None:
    said = call(command, tmp_path, expected=2)
    assert said.startswith("error: ")
    assert told in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    looking: Mapping[str, str] = ENVIRONMENT | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(
        [str(PROGRAMS / "palenka"), "--help"],
        cwd=tmp_path,
        env=looking,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert "study" in done.stdout
    assert not any(line.endswith((" torch", " transformers")) for line in done.stderr.splitlines())
