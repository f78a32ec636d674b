"""The speed of Palenka on a GPU, in some six minutes: the GPU's tests, a student's step, captures and reading.

    python -m benchmarks.gpu --output FOLDER
    python -m benchmarks.gpu --output FOLDER --device cpu --smoke

Models have the published shapes and random weights; the text is made up of 16,000 words. Every part says what it took
and is left out, and named, when the minutes are over. The record, FOLDER/gpu.json and gpu.md, names the hardware.
`--smoke` has small shapes, so that the script can be tried anywhere.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from benchmarks.capture_and_read import forward_and_capture, random_teacher
from benchmarks.gpu_profile import profile
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import read_manifest
from palenka.data.signals.stream import ReadingOrder, stream
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.ground.call import this_call
from palenka.ground.processes import cores
from palenka.ground.settings import read_yaml
from palenka.train_student.run import Run
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

STUDENT = Path("configs/students/palenka-58m-l0.1-h0.3.yaml")
TEACHERS = {"gpt2": "gpt2-705m", "llama": "llama-360m"}
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 operations a second, by a part of the device's name, as the vendor gives them."""
POINTS, EPOCHS, PER_GPU = 25, 6, (1, 2, 4, 8)


@dataclass
class Bench:
    """What is measured, on what, and until when.

    Attributes:
        output: folder of all that is made.
        device: where models run.
        smoke: small shapes and few steps.
        ends: when no part begins any more, on the monotonic clock.
    """

    output: Path
    device: torch.device
    smoke: bool
    ends: float
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        """Of all models."""
        return "float32" if self.device.type == "cpu" else "bf16"

    @property
    def windows(self) -> int:
        """Of a step, and of a teacher's forward pass."""
        return 8 if self.smoke else 128

    @property
    def steps(self) -> int:
        """Of a run: those of the second half are measured."""
        return 6 if self.smoke else 40

    def part(self, name: str, measure: Callable[["Bench"], object]) -> None:
        """Measure a part, and keep what it tells; a part that fails, or has no time left, says so and no more."""
        if time.monotonic() > self.ends:
            self.told[name] = "left out: no time was left"
            return
        self.output.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            self.told[name] = measure(self)
        except Exception as error:
            self.told[name] = f"failed: {type(error).__name__}: {error}"
        self.told.setdefault("seconds", {})[name] = round(time.monotonic() - started, 1)
        print(f"{name}: {json.dumps(self.told[name])}", flush=True)
        (self.output / "gpu.json").write_text(json.dumps(self.told, indent=2) + "\n")
        (self.output / "gpu.md").write_text(table(self.told))

    @property
    def corpus(self) -> Corpus:
        """The text that all read."""
        return Corpus.open(self.output / "corpus", "train")


def prepare_text(bench: Bench) -> dict[str, int]:
    """Random words, more of the frequent ones, as a corpus with a vocabulary of 16,000 tokens."""
    draw, count = random.Random(0), 400 if bench.smoke else 16_000
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(count)]
    odds = list(accumulate(1 / (rank + 10) for rank in range(count)))
    folder = bench.output / "text"
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in (("train", 2_000 if bench.smoke else 150_000), ("dev", 200)):
        text = "\n".join(" ".join(draw.choices(words, cum_weights=odds, k=12)) for _ in range(lines))
        (folder / f"switchboard.{split}").write_text(text)
    size = 500 if bench.smoke else 16_000
    prepare(CorpusSettings(sources=folder, output=bench.output / "corpus", vocabulary_size=size, min_frequency=1))
    return {"tokens": len(bench.corpus.tokens), "vocabulary": bench.corpus.vocabulary_size}


def shape_of(bench: Bench, file: Path) -> dict[str, Any]:
    """A published shape, or a small one of the same depth."""
    shape: dict[str, Any] = read_yaml(file)["model"]
    return shape | SMALL if bench.smoke else shape


def make_teachers(bench: Bench) -> dict[str, int]:
    """The teachers with random weights, and the bytes of each."""
    for name, shape in TEACHERS.items():
        (bench.output / "shapes").mkdir(exist_ok=True)
        file = bench.output / "shapes" / f"{shape}.yaml"
        file.write_text(json.dumps({"model": shape_of(bench, Path("configs/teachers") / f"{shape}.yaml")}))
        folder = bench.output / name
        folder.mkdir(exist_ok=True)
        random_teacher(bench.corpus, file, folder)
    os.sync()  # a commit record would have to wait for gigabytes of them
    return {name: (bench.output / name / "model.safetensors").stat().st_size for name in TEACHERS}


def capture_of(bench: Bench, name: str, output: Path) -> CaptureSettings:
    """How a teacher is captured: its published settings, for the windows that the students read."""
    plain: dict[str, Any] = read_yaml(Path("configs/caches") / f"{TEACHERS[name]}.yaml")
    used = bench.windows * bench.steps * 128 / len(bench.corpus.tokens)
    plain |= {"teacher": bench.output / name, "corpus": bench.output / "corpus", "output": output}
    plain |= {"precision": bench.precision, "device": bench.device.type, "micro_batch": bench.windows}
    plain["hidden"] = plain["hidden"] | {"sample_windows": 16 if bench.smoke else 256}
    return CaptureSettings.model_validate(plain | {"fraction": min(1.0, used)})


def captures(bench: Bench) -> dict[str, object]:
    """A capture beside the bare forward pass: seconds a token of both, their ratio and the forward pass's MFU."""
    told: dict[str, object] = {}
    for name in TEACHERS:
        settings = capture_of(bench, name, bench.output / f"cache-{name}")
        count = (2 if bench.smoke else 8) * bench.windows
        took = forward_and_capture(bench.corpus, settings, count, bench.device)
        forward, encode, whole = map(statistics.median, (took.forward, took.encode, took.capture))
        told[name] = {
            "forward_tokens_per_second": round(1 / forward),
            "capture_tokens_per_second": round(1 / whole),
            "encoded_against_forward": round(encode / forward, 3),
            "ratio": round(statistics.median(w / f for f, w in zip(took.forward, took.capture, strict=True)), 3),
            "mfu": mfu(bench, 2 * operations(shape_of(bench, config(name)), bench), 1 / forward),
        }
        capture(settings)  # what is missing of it
    return told


def config(name: str) -> Path:
    """The file of a teacher's shape."""
    return Path("configs/teachers") / f"{TEACHERS[name]}.yaml"


def operations(shape: dict[str, Any], bench: Bench) -> float:
    """Multiplications of a forward pass for a token: one for each weight of a matrix, and two products in attention.

    Embeddings are looked up and count nothing; the head counts. Of attention half is masked, and not counted.
    """
    width, depth, inner = (shape[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    matrices = 3 if shape["architecture"] == "llama" else 2
    block = 4 * width**2 + matrices * width * inner + 128 * width
    return float(depth * block + width * bench.corpus.vocabulary_size)


def mfu(bench: Bench, operations_of_token: float, tokens_per_second: float) -> float | None:
    """The part of the device's peak that a model's arithmetic takes; None where the peak is not known."""
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else ""
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    return None if peak is None else round(operations_of_token * tokens_per_second / peak, 4)


def student_of(bench: Bench, arm: str, output: Path) -> TrainSettings:
    """The published student for some steps, with the teachers of an arm: control, cached or live."""
    plain: dict[str, Any] = read_yaml(STUDENT)
    used = bench.windows * bench.steps * 128 / len(bench.corpus.tokens)
    plain |= {"corpus": bench.output / "corpus", "output": output, "model": shape_of(bench, STUDENT), "epochs": 1}
    plain |= {"fraction": min(1.0, used), "global_batch": bench.windows, "micro_batch": bench.windows}
    plain |= {"log_every": bench.steps // 2, "gradient_ratios_every": 10**6, "validation": {"windows": 8}}
    plain |= {"precision": bench.precision, "device": bench.device.type}
    plain["optimizer"] = plain["optimizer"] | {"warmup_steps": None}  # the published one is longer than these runs
    if arm == "control":
        plain |= {"teachers": {}, "objective": {"hard": 1.0}}
    for name, source in plain["teachers"].items():
        shared = {"weight": source["weight"], "layers": source["layers"]}
        if arm == "cached":
            plain["teachers"][name] = shared | {"cache": bench.output / f"cache-{name}"}
        else:
            live = {"source": "live", "model": bench.output / name, "precision": bench.precision, "k": 32}
            plain["teachers"][name] = shared | live | {"hidden": {"sample_windows": 16}}
    return TrainSettings.model_validate(plain)


def run_arm(bench: Bench, arm: str, number: int = 0) -> dict[str, Any]:
    """Train an arm; tokens a second of its second half, the part spent waiting for data, and the memory."""
    settings = student_of(bench, arm, bench.output / f"run-{arm}-{number}")
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train(settings)
    metrics = Run(settings.output).metrics()
    speed, waited = (float(metrics[name][1][-1]) for name in ("tokens_per_second", "data_wait"))
    return {
        "tokens_per_second": speed,
        "mfu": mfu(bench, 6 * operations(shape_of(bench, STUDENT), bench), speed),
        "data_wait": waited,
        "peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2) if bench.device.type == "cuda" else None,
    }


def steps(bench: Bench) -> dict[str, Any]:
    """The student's step of every arm, and what a grid costs from caches and with live teachers."""
    told: dict[str, Any] = {arm: run_arm(bench, arm) for arm in ("control", "cached", "live")}
    control, cached, live = (1 / told[arm]["tokens_per_second"] for arm in ("control", "cached", "live"))
    passes, captured = POINTS * EPOCHS, bench.told.get("captures")
    told["cached_against_control"] = round(cached / control, 3)
    told["live_against_control"] = round(live / control, 3)
    if isinstance(captured, dict):
        once = sum(1 / each["capture_tokens_per_second"] for each in captured.values())
        told["grid_of_25_live_against_cached"] = round(passes * live / (once + passes * cached), 2)
    return told


def profiles(bench: Bench) -> dict[str, Any]:
    """Where the time of a step goes, of a control and with caches."""
    if bench.device.type != "cuda":
        return {"left out": "kernels are a GPU's"}
    return {arm: profile(student_of(bench, arm, bench.output / f"profiled-{arm}")) for arm in ("control", "cached")}


def reading(bench: Bench) -> dict[str, Any]:
    """Tokens a second that are read and checked from both caches, without a model."""
    caches = {}
    for name in TEACHERS:
        folder = bench.output / f"cache-{name}"
        caches[name] = TeacherCache(folder, read_manifest(folder).hidden_keys())
    settings, corpus = student_of(bench, "cached", bench.output / "unused"), bench.corpus
    order = ReadingOrder(settings.windows, len(corpus.tokens), 0, 1, settings.fraction, batch=bench.windows)
    slices = ((at, at + bench.windows) for at in range(0, len(order) - bench.windows + 1, bench.windows))
    hidden = caches["gpt2"].manifest.hidden
    assert hidden is not None
    started, read = time.perf_counter(), 0
    pinned = bench.device.type == "cuda"
    for batch in stream(corpus, order, caches, slices, hidden.num_positions(), 4, pinned):
        read += batch.tokens.numel()
    return {"tokens_per_second": round(read / (time.perf_counter() - started))}


def several(bench: Bench) -> dict[str, Any]:
    """Controls at the same time on one device: tokens a second of all together, by how many there are."""
    told: dict[str, Any] = {}
    for count in PER_GPU[:2] if bench.smoke else PER_GPU:
        if time.monotonic() > bench.ends:
            told[str(count)] = "left out: no time was left"
            continue
        command = [sys.executable, "-m", "benchmarks.gpu", "--output", str(bench.output), "--arm", "control"]
        command += ["--device", bench.device.type, *(["--smoke"] if bench.smoke else [])]
        started = [
            subprocess.Popen([*command, "--number", f"{count}{number}"], stdout=subprocess.PIPE, text=True)
            for number in range(count)
        ]
        said = [process.communicate()[0] for process in started]
        told[str(count)] = round(sum(json.loads(each.splitlines()[-1])["tokens_per_second"] for each in said))
    return told


def run_tests(bench: Bench) -> str:
    """The last line of the GPU's tests."""
    if bench.smoke:
        return "left out: they need a GPU, and are no part of a smoke test"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [done.stderr])[-1]


def table(told: dict[str, Any]) -> str:
    """The record in Markdown: a line for each part."""
    lines = [f"# {told['call']['hardware']}", "", "| part | what | figure |", "|---|---|---|"]
    for part, figures in told.items():
        rows = figures.items() if isinstance(figures, dict) else [("", figures)]
        lines += [f"| {part} | {what} | {json.dumps(figure)} |" for what, figure in rows]
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[Bench], object]] = {
    "tests": run_tests,
    "text": prepare_text,
    "teachers": make_teachers,
    "captures": captures,
    "steps": steps,
    "profile": profiles,
    "reading": reading,
    "per_gpu": several,
}


def main() -> None:
    """Measure all parts and write the record, or run one arm for the process that asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small shapes and few steps")
    parser.add_argument("--minutes", type=float, default=5.5, help="after which no part begins any more")
    parser.add_argument("--arm", help="only this arm, for the processes that this one starts")
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="which of them, in this order")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU (cuda) here; --device cpu --smoke tries the script")
    device = torch.device(given.device)
    bench = Bench(given.output, device, given.smoke, time.monotonic() + 60 * given.minutes)
    if given.arm:
        print(json.dumps(run_arm(bench, given.arm, given.number)))
        return
    bench.told["call"] = this_call(device).as_plain() | {"cores": cores()}
    for name in given.parts:
        bench.part(name, PARTS[name])
    print(table(bench.told))
    if failed := [name for name, figures in bench.told.items() if str(figures).startswith("failed")]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
