"""Real processes: two that share the work, some that are killed, and the programs as a user calls them."""

import contextlib
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

from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.ground.settings import Settings
from palenka.train_student.objective.settings import ObjectiveSettings
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

Contents = Callable[[Path], dict[str, bytes]]
Changed = Callable[..., Any]

pytestmark = pytest.mark.slow

SECONDS = 240
# One thread, as in this process: the number of threads decides the order of sums, and so the last bits.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
PROGRAMS = Path(sys.executable).parent
TWO_PROCESSES = [
    *(str(PROGRAMS / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"),
]


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
def long_capture(capture_settings: CaptureSettings, changed: Changed) -> CaptureSettings:
    """A capture of 12 shards that takes seconds."""
    long: CaptureSettings = changed(capture_settings, windows={"length": 16, "views": 6}, micro_batch=1)
    return long


@pytest.fixture
def student_settings(
    capture_settings: CaptureSettings, student_of_cache: Callable[..., TrainSettings], changed: Changed
) -> TrainSettings:
    """A student with a cached teacher, logits and hidden states: 20 steps."""
    capture(changed(capture_settings, hidden={"positions": 3, "sample_windows": 40}))
    return student_of_cache(
        fraction=0.3,
        objective={"hard": 0.5, "logit": 0.5, "hidden": 0.5},
        micro_batch=4,
        optimizer={"learning_rate": 3e-3, "warmup_steps": 3},
        validation={"every": 5},
        log_every=1,
    )


def elsewhere(settings: TrainSettings, name: str) -> TrainSettings:
    return settings.model_copy(update={"output": settings.output.with_name(name)})


def metrics(settings: TrainSettings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (settings.output / "metrics.jsonl").read_text().splitlines()]


EVERY_OTHER_TERM = {
    "hard": {"weight": 0.5, "schedule": {"start": 1.0}},
    "logit": 0.5,
    "divergence": "js",
    "contrastive": {"weight": 0.5, "schedule": {"shape": "constant", "steps": 5}},
    "auxiliary": {"weight": 0.5, "dropout": 0.0},
}


@pytest.mark.parametrize("objective", [{}, EVERY_OTHER_TERM], ids=["hidden", "every other term"])
def test_two_processes_train_as_one(
    student_settings: TrainSettings, tmp_path: Path, objective: dict[str, object], changed: Changed
) -> None:
    if objective:
        student_settings = changed(student_settings, objective=objective)
    one, two = elsewhere(student_settings, "one"), elsewhere(student_settings, "two")
    result = train(one)
    told = call([*TWO_PROCESSES, "palenka.train_student", "--config", configuration(two, tmp_path)], tmp_path)
    assert told.count("2 process(es)") == 1  # a launch that starts one alone would say so, or say it twice
    assert told.count("20 steps of 16 windows") == 1
    curves = [metrics(settings) for settings in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 24
    # The same sums in another order, 20 Adam steps: equal to six digits at first, to four at the end.
    for mine, theirs in zip(*curves, strict=True):
        for own in ("tokens_per_second", "data_wait"):
            mine.pop(own, None)
            theirs.pop(own, None)
        assert theirs == pytest.approx(mine, rel=1e-6 if mine["step"] == 1 else 1e-4)
    found = json.loads((two.output / "result.json").read_text())
    assert found["validation_cross_entropy"] == pytest.approx(result.validation_cross_entropy, rel=1e-4)
    assert {key: found[key] for key in ("steps", "tokens", "best_step", "parameters")} == result.model_dump(
        include={"steps", "tokens", "best_step", "parameters"}
    )
    for file in ("model.safetensors", "projections.safetensors"):
        ours, theirs = (load_file(settings.output / file) for settings in (one, two))
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=1e-4)


WATCHED = """
import hashlib, json, sys
import torch
from accelerate.utils import gather_object
import palenka.train_student.train
from palenka.train_student.__main__ import main
from palenka.train_student.trainer import Trainer

class Watched(Trainer):
    def fit(self):
        before = {name: weight.detach().clone() for name, weight in self.objective.named_parameters()}
        result = super().fit()
        named = dict(self.objective.named_parameters())
        told = {
            "weights": {name: hashlib.sha256(bytes(part.detach().numpy())).hexdigest() for name, part in named.items()},
            "unmoved": [name for name, part in named.items() if (part == before[name]).all()],
            "slices": list(self.reading.slices(1)),
            "seed": torch.initial_seed(),
        }
        with open(f"rank-{self.accelerator.process_index}.json", "w") as file:
            json.dump(told, file)
        return result

palenka.train_student.train.Trainer = Watched
sys.exit(main())
"""


def test_all_ranks_end_with_the_same_projections_and_read_each_window_once(
    student_settings: TrainSettings, tmp_path: Path
) -> None:
    script = tmp_path / "watched.py"
    script.write_text(WATCHED)
    call([*TWO_PROCESSES[:-1], str(script), "--config", configuration(student_settings, tmp_path)], tmp_path)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["weights"] == ranks[1]["weights"]
    projections = [
        name for name in ranks[0]["weights"] if name.startswith("terms.hidden.layers.projections.teacher_t.")
    ]
    assert len(projections) == 2 * 3
    assert ranks[0]["unmoved"] == []
    assert ranks[0]["seed"] != ranks[1]["seed"]  # of dropout, at the last step
    read = sorted(number for rank in ranks for start, stop in rank["slices"] for number in range(start, stop))
    assert read == list(range(20 * 16))  # positions in the reading order, in which each window of an epoch stands once


def test_hidden_states_alone_train_on_two_processes(student_settings: TrainSettings, tmp_path: Path) -> None:
    teachers = {"t": student_settings.teachers["t"].model_copy(update={"layers": {0: 0, 1: 1}})}
    given = student_settings.objective.as_plain() | {"hard": 0.0, "logit": 0.0}
    objective = ObjectiveSettings.model_validate(given)
    assert list(objective.active) == ["hidden"]
    alone = student_settings.model_copy(update={"teachers": teachers, "objective": objective, "fraction": 0.05})
    call([*TWO_PROCESSES, "palenka.train_student", "--config", configuration(alone, tmp_path)], tmp_path)
    assert (alone.output / "result.json").exists()


def test_two_processes_capture_the_bytes_of_one(
    long_capture: CaptureSettings, tmp_path: Path, contents: Contents, changed: Changed
) -> None:
    two = changed(long_capture, output=str(tmp_path / "two"), micro_batch=32)
    capture(changed(long_capture, micro_batch=32))
    command = [*TWO_PROCESSES, "palenka.cache_teachers", "run", "--config", configuration(two, tmp_path)]
    told = call(command, tmp_path, ACCELERATE_USE_CPU="false")  # without GPUs, they see each other in any case
    assert told.count("12 of 12 shards to capture") == 1  # the first process speaks for both
    assert contents(two.output) == contents(long_capture.output)


def test_a_batch_that_two_processes_cannot_share_is_refused(student_settings: TrainSettings, tmp_path: Path) -> None:
    odd = student_settings.model_copy(update={"global_batch": 15})
    told = call(
        [*TWO_PROCESSES, "palenka.train_student", "--config", configuration(odd, tmp_path)], tmp_path, expected=1
    )
    assert "global_batch is 15, but there are 2 processes; make it a multiple of their number" in told
    assert not odd.output.exists()


def stop(command: Sequence[str], folder: Path, now: Callable[[], bool], how: signal.Signals) -> int:
    """Start a command and send it a signal at some moment; returns its exit status."""
    # A background job of a shell ignores SIGINT, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
    long_capture: CaptureSettings, tmp_path: Path, contents: Contents, changed: Changed
) -> None:
    undisturbed = changed(long_capture, output=str(tmp_path / "undisturbed"))
    capture(undisturbed)
    output = long_capture.output
    command = [sys.executable, "-m", "palenka.cache_teachers", "run", "--config", configuration(long_capture, tmp_path)]
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)

    def commits() -> int:
        return len(list(output.glob("commits/*-*.json")))

    def being_made() -> bool:
        return output.exists() or any(output.parent.glob(f"{output.name}.*.partial"))

    def after_some_shards() -> Callable[[], bool]:
        enough = commits() + draw.randint(1, 2)
        chance = draw.choice([1.0, 0.05, 0.01])  # of going a look later; a look takes 2 ms
        return lambda: commits() > enough or (commits() == enough and draw.random() < chance)

    assert stop(command, tmp_path, being_made, signal.SIGKILL) == -signal.SIGKILL
    for how, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        before = commits()
        assert stop(command, tmp_path, after_some_shards(), how) == status, f"seed {seed}"
        assert before < commits() < 12, f"seed {seed}"
    told = call(command, tmp_path)
    assert f"{12 - before} of 12 shards to capture" not in told
    assert contents(output) == contents(undisturbed.output), f"seed {seed}"
    assert sorted(path.name for path in output.parent.glob("cache*")) == ["cache"]


def test_a_training_killed_at_random_moments_ends_as_an_undisturbed_one(
    student_settings: TrainSettings, tmp_path: Path, contents: Contents
) -> None:
    settings = student_settings.model_copy(update={"fraction": 1.0, "epochs": 3, "checkpoint_every": 7})
    undisturbed = elsewhere(settings, "undisturbed")
    train(undisturbed)
    command = [sys.executable, "-m", "palenka.train_student", "--config", configuration(settings, tmp_path)]
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)

    def steps() -> int:
        log = settings.output / "metrics.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    for _ in range(3):
        enough = steps() + draw.randint(1, 60)
        assert stop(command, tmp_path, lambda enough=enough: steps() >= enough, signal.SIGKILL) == -signal.SIGKILL  # type: ignore[misc]
        assert not (settings.output / "result.json").exists(), f"seed {seed}"
    assert "going on after step" in call(command, tmp_path)
    after, expected = contents(settings.output), contents(undisturbed.output)
    assert after.keys() == expected.keys(), f"seed {seed}"
    # The output's name, calls, seconds, tokens per second, and the length of the metrics with them, are each run's own.
    own = ("config.yaml", "metrics.jsonl", "calls.jsonl", "result.json", "state.json", "commit.json")
    different = {name for name in after if after[name] != expected[name] and not name.endswith(own)}
    assert different == set(), f"seed {seed}"
    curves = [metrics(run) for run in (settings, undisturbed)]
    for mine, theirs in zip(*curves, strict=True):
        own_speed = {"tokens_per_second": 0, "data_wait": 0}
        assert mine | own_speed == theirs | own_speed, f"seed {seed}"


def test_a_killed_training_goes_on_with_another_number_of_processes(
    student_settings: TrainSettings, tmp_path: Path
) -> None:
    settings = student_settings.model_copy(update={"checkpoint_every": 4, "fraction": 1.0})
    undisturbed = elsewhere(settings, "undisturbed")
    train(undisturbed)
    file = configuration(settings, tmp_path)
    begun = settings.output / "checkpoints" / "step-00000008"
    command = [sys.executable, "-m", "palenka.train_student", "--config", file]
    assert stop(command, tmp_path, begun.exists, signal.SIGKILL) == -signal.SIGKILL
    told = call([*TWO_PROCESSES, "palenka.train_student", "--config", file], tmp_path)
    assert "2 process(es), going on after step" in told
    for name, tensor in load_file(undisturbed.output / "model.safetensors").items():
        torch.testing.assert_close(load_file(settings.output / "model.safetensors")[name], tensor, rtol=0, atol=1e-3)


def test_two_processes_stop_after_the_same_step_and_end_as_undisturbed_ones(
    student_settings: TrainSettings, tmp_path: Path
) -> None:
    settings = student_settings.model_copy(
        update={"fraction": 1.0, "epochs": 4, "checkpoint_every": "1h", "log_every": 7}
    )
    undisturbed = elsewhere(settings, "undisturbed")
    call([*TWO_PROCESSES, "palenka.train_student", "--config", configuration(undisturbed, tmp_path)], tmp_path)
    log = settings.output / "metrics.jsonl"
    command = [*TWO_PROCESSES, "palenka.train_student", "--config", configuration(settings, tmp_path)]
    stop(command, tmp_path, lambda: log.is_file() and log.read_bytes().count(b"\n") > 8, signal.SIGTERM)
    (kept,) = (settings.output / "checkpoints").iterdir()
    assert not (settings.output / "result.json").exists()
    told = call(command, tmp_path)
    assert f"going on after step {int(kept.name.removeprefix('step-'))}" in told
    assert (settings.output / "model.safetensors").read_bytes() == (
        undisturbed.output / "model.safetensors"
    ).read_bytes()
    for mine, theirs in zip(metrics(settings), metrics(undisturbed), strict=True):
        own_speed = {"tokens_per_second": 0, "data_wait": 0}
        assert mine | own_speed == theirs | own_speed


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="finds processes in /proc")
@pytest.mark.parametrize("moment", ["before they find each other", "while they train"])
def test_a_launcher_that_is_killed_leaves_no_process(
    student_settings: TrainSettings, tmp_path: Path, moment: str
) -> None:
    settings = student_settings.model_copy(update={"fraction": 1.0, "epochs": 100, "checkpoint_every": "1h"})
    file = configuration(settings, tmp_path)

    def processes() -> list[str]:
        of_launch = [path for path in Path("/proc").glob("[0-9]*/cmdline") if file.encode() in read_bytes(path)]
        return [path.parent.name for path in of_launch]

    def now() -> bool:
        begun = (settings.output / "metrics.jsonl").is_file()
        return begun if moment == "while they train" else len(processes()) == 3

    assert stop([*TWO_PROCESSES, "palenka.train_student", "--config", file], tmp_path, now, signal.SIGKILL) < 0
    until = time.monotonic() + 60
    while processes():
        assert time.monotonic() < until
        time.sleep(0.1)
    assert (settings.output / "checkpoints").exists() == (moment == "while they train")


def read_bytes(path: Path) -> bytes:
    """What a file has; nothing if its process has ended."""
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""


def test_a_second_process_on_an_output_is_refused_and_a_killed_one_leaves_no_lock(
    student_settings: TrainSettings, tmp_path: Path
) -> None:
    settings = student_settings.model_copy(update={"fraction": 1.0, "epochs": 5})
    command = [sys.executable, "-m", "palenka.train_student", "--config", configuration(settings, tmp_path)]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as first:
        while not (settings.output / "metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.01)
        told = call(command, tmp_path, expected=2)
        assert f"{settings.output} is being written by process {first.pid} on " in told
        first.kill()
    short = student_settings.model_copy(update={"output": settings.output, "fraction": 1.0, "epochs": 5})
    assert train(short).steps > 0


def test_the_programs_work_from_any_directory_with_paths_relative_to_it(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "dev"):
        (text / f"switchboard.{split}").write_text("the teacher sees the river .\n" * 400)
    palenka, python = str(PROGRAMS / "palenka"), [sys.executable, "-m"]
    shape = ["--model", "{architecture: llama, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}"]
    windows, corpus = ["--windows.length", "16"], ["--corpus", "runs/corpus"]
    commands = [
        [palenka, "data", "prepare", "--sources", "text", "--output", "runs/corpus", "--vocabulary_size", "280"],
        [
            *python,
            "palenka.data",
            "prepare",
            "--sources",
            "text",
            "--output",
            "runs/corpus",
            "--vocabulary_size",
            "280",
        ],
        [*python, "palenka.train_student", *corpus, *windows, *shape, "--output", "runs/model"],
        [
            *python,
            "palenka.cache_teachers",
            "run",
            *corpus,
            *windows,
            "--teacher",
            "runs/model",
            "--output",
            "runs/cache",
        ],
        [
            *python,
            "palenka.eval",
            "runs/model",
            "--data",
            "runs/corpus",
            "--out",
            "runs/held_out.json",
            "--length",
            "16",
        ],
    ]
    told = [call(command, tmp_path) for command in commands]
    assert "is prepared already" in told[1]
    assert (tmp_path / "runs" / "model" / "result.json").is_file()
    assert (tmp_path / "runs" / "cache" / "commits" / "0-0.json").is_file()
    assert (
        json.loads((tmp_path / "runs" / "held_out.json").read_text())["suites"][0]["figures"]["cross_entropy"]["value"]
        > 0
    )
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
            [sys.executable, "-m", "palenka.data", "prepare", "--sources", "nowhere", "--output", "o"],
            "sources nowhere does not",
        ),
        (
            [sys.executable, "-m", "palenka.cache_teachers", "run", "--config", "no.yaml"],
            "cannot read configuration no.yaml",
        ),
        (
            [sys.executable, "-m", "palenka.train_student", "--epochs", "many"],
            "epochs is many, but it should be a valid integer",
        ),
        (
            [sys.executable, "-m", "palenka.eval", "no/model", "--data", "no/corpus", "--out", "o"],
            "data no/corpus is not a folder",
        ),
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
