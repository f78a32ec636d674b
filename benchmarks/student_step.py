"""The cost of a student's step with cached and with live teachers, relative to cross-entropy alone.

    python -m benchmarks.student_step --corpus CORPUS --output FOLDER

The student of --student with its two teachers, all in their full shapes with random weights, over the corpus's tokens.
Every measurement is a process of its own and the arms take turns, round after round, so that a noisy machine disturbs
all alike: quote the ratios. Peak memory of cached and live has the measurement of gradient ratios in it. From the times
follows what a grid of 25 students of 6 epochs costs from caches, their capture included, and with live teachers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.capture_and_read import forward_and_capture, peak_megabytes, random_teacher
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.windows import WindowRule, gather
from palenka.ground.settings import read_yaml
from palenka.train_student.optimizer import adamw
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

STEPS, SAMPLE, ROUNDS = 4, 64, 3
POINTS, EPOCHS = 25, 6
ARMS = ("transformers", "control", "cached", "live")


def corpus_of(given: argparse.Namespace) -> Corpus:
    """The text that is read."""
    return Corpus.open(given.corpus, "train")


def captures_of(given: argparse.Namespace) -> dict[str, CaptureSettings]:
    """How the teachers in the student's file are captured, by name; makes those models that are not there yet."""
    settings = {}
    student: dict[str, Any] = read_yaml(given.student)
    for name, source in student["teachers"].items():
        shape = Path(source["model"]).name
        model = given.output / shape
        if not model.exists():
            random_teacher(corpus_of(given), Path("configs/teachers") / f"{shape}.yaml", model)
        plain: dict[str, Any] = read_yaml(Path("configs/caches") / f"{shape}.yaml")
        plain |= {"teacher": model, "corpus": given.corpus, "output": given.output / f"cache-{name}-{given.precision}"}
        plain |= {"micro_batch": given.windows, "fraction": fraction_of(given), "precision": given.precision}
        settings[name] = CaptureSettings.model_validate(
            plain | {"hidden": plain["hidden"] | {"sample_windows": SAMPLE}}
        )
    return settings


def fraction_of(given: argparse.Namespace) -> float:
    """The part of the text that the steps read."""
    return float(given.windows * STEPS * WindowRule().length / len(corpus_of(given).tokens))


def capture_rates(given: argparse.Namespace) -> dict[str, float]:
    """Captures what the students read; returns what each teacher's capture takes, in seconds a token."""
    rates = {}
    given.output.mkdir(parents=True, exist_ok=True)
    for name, settings in captures_of(given).items():
        with tempfile.TemporaryDirectory(dir=given.output) as folder:
            elsewhere = settings.model_copy(update={"output": Path(folder) / "cache"})
            rates[name] = statistics.median(forward_and_capture(corpus_of(given), elsewhere, given.windows).capture)
        capture(settings)
    return rates


def student_of(given: argparse.Namespace, arm: str, output: Path) -> TrainSettings:
    """The student's own file, for a few steps over this corpus, with the teachers of an arm."""
    plain: dict[str, Any] = read_yaml(given.student)
    plain |= {"corpus": given.corpus, "output": output, "epochs": 1, "log_every": 1}
    plain |= {"global_batch": given.windows, "micro_batch": given.windows, "fraction": fraction_of(given)}
    plain |= {"validation": {"windows": 1}, "precision": given.precision}
    plain["optimizer"] |= {"warmup_steps": 1}  # the file's own is longer than these few steps
    captured = captures_of(given)
    if arm == "control":
        plain |= {"teachers": {}, "objective": {"hard": 1.0}}
    for name, source in plain["teachers"].items():
        shared = {"weight": source["weight"], "layers": source["layers"]}
        if arm == "cached":
            plain["teachers"][name] = shared | {"cache": captured[name].output}
        else:
            live = {"source": "live", "model": captured[name].teacher, "precision": given.precision, "k": 32}
            plain["teachers"][name] = shared | live | {"hidden": {"sample_windows": SAMPLE}}
    return TrainSettings.model_validate(plain)


def one(given: argparse.Namespace) -> None:
    """The steps of one arm: seconds a token of each but the first, the part spent waiting, and peak memory."""
    with tempfile.TemporaryDirectory(dir=given.output) as folder:
        output = Path(folder) / "student"
        if given.arm == "transformers":
            seconds, waits = plain_steps(student_of(given, "control", output)), [0.0]
        else:
            train(student_of(given, given.arm, output))
            lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
            steps = [line for line in lines if "tokens_per_second" in line][1:]
            seconds, waits = [1 / line["tokens_per_second"] for line in steps], [line["data_wait"] for line in steps]
    told = {"seconds": statistics.median(seconds), "wait": statistics.median(waits), "megabytes": peak_megabytes()}
    print(json.dumps(told))


def plain_steps(settings: TrainSettings) -> list[float]:
    """Seconds a token of training steps with the model's own loss: whole logits, plain autograd."""
    corpus = Corpus.open(settings.corpus, settings.split)
    model = settings.model.build(corpus, settings.seed).train()
    optimizer, rule = adamw(model, settings.optimizer, torch.device("cpu")), settings.windows
    slots = rule.slots(len(corpus.tokens), 0)
    seconds = []
    for step in range(STEPS):
        began = time.perf_counter()
        begin = step * settings.global_batch
        tokens = torch.from_numpy(gather(corpus.tokens, rule, 0, slots[begin : begin + settings.global_batch]))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append((time.perf_counter() - began) / tokens.numel())
    return seconds[1:]


def measure(given: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """What every arm told in every round."""
    told: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for _ in range(ROUNDS):
        for arm in ARMS:
            command = [sys.executable, "-m", "benchmarks.student_step", "--arm", arm, "--student", str(given.student)]
            command += ["--corpus", str(given.corpus), "--output", str(given.output)]
            command += ["--precision", given.precision, "--windows", str(given.windows)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told[arm].append(json.loads(done.stdout.splitlines()[-1]))
            print(arm, told[arm][-1], file=sys.stderr, flush=True)
    return told


def main() -> None:
    """Measure, and print the table and the arithmetic of the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--student", type=Path, default=Path("configs/students/palenka-58m-l0.1-h0.1.yaml"))
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16", help="of student and teachers")
    parser.add_argument("--windows", type=int, default=32, help="of a step")
    parser.add_argument("--arm", choices=ARMS, help="only this arm, once; for the processes that this one starts")
    given = parser.parse_args()
    if given.arm:
        one(given)
        return
    captures = capture_rates(given)
    told = measure(given)
    print("| arm | tokens/s | time against control | waiting for data | peak memory, MB | against control |")
    print("|---|---|---|---|---|---|")
    for arm, rounds in told.items():
        seconds, wait, memory = (statistics.median(found[key] for found in rounds) for key in rounds[0])
        times = [found["seconds"] / base["seconds"] for found, base in zip(rounds, told["control"], strict=True)]
        more = memory / statistics.median(base["megabytes"] for base in told["control"])
        spread = f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
        print(f"| {arm} | {1 / seconds:,.0f} | {spread} | {wait:.2%} | {memory:,.0f} | {more:.2f} |")
    cached, live = (statistics.median(found["seconds"] for found in told[arm]) for arm in ("cached", "live"))
    once, passes = sum(captures.values()), POINTS * EPOCHS
    print(f"capture: {', '.join(f'{name} {1e3 * rate:.2f}' for name, rate in captures.items())} ms a token")
    print(
        f"{POINTS} students of {EPOCHS} epochs, ms for each token of the corpus: live {passes} x {1e3 * live:.2f} = "
        f"{1e3 * passes * live:,.0f}; cached {1e3 * once:.2f} + {passes} x {1e3 * cached:.2f} = "
        f"{1e3 * (once + passes * cached):,.0f}; {passes * live / (once + passes * cached):.2f} times cheaper"
    )


if __name__ == "__main__":
    main()
