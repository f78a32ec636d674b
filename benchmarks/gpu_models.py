"""What the GPU benchmark measures: made-up text, and teachers, captures and students of published shapes.

`--smoke` has small shapes of the same depth, so that the scripts can be tried anywhere.
"""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from benchmarks.capture_and_read import random_teacher
from palenka.cache_teachers.settings import CaptureSettings
from palenka.data.corpus import Corpus
from palenka.data.text.prepare import CorpusSettings, prepare
from palenka.ground.settings import read_yaml
from palenka.train_student.settings import TrainSettings

STUDENT = Path("configs/students/palenka-58m-l0.1-h0.3.yaml")
TEACHERS = {"gpt2": "gpt2-705m", "llama": "llama-360m"}
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Dense bf16 operations a second, by a part of the device's name, as the vendor gives them."""


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


def config(name: str) -> Path:
    """The file of a teacher's shape."""
    return Path("configs/teachers") / f"{TEACHERS[name]}.yaml"


def multiplications(shape: dict[str, Any], bench: Bench) -> float:
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


def student_of(bench: Bench, arm: str, output: Path, *, graphs: bool = False) -> TrainSettings:
    """The published student for some steps, with the teachers of an arm: control, cached or live."""
    plain: dict[str, Any] = read_yaml(STUDENT)
    used = bench.windows * bench.steps * 128 / len(bench.corpus.tokens)
    plain |= {"corpus": bench.output / "corpus", "output": output, "model": shape_of(bench, STUDENT), "epochs": 1}
    plain |= {"fraction": min(1.0, used), "global_batch": bench.windows, "micro_batch": bench.windows}
    plain |= {"log_every": bench.steps // 2, "gradient_ratios_every": 10**6, "validation": {"windows": 8}}
    plain |= {"precision": bench.precision, "device": bench.device.type, "cuda_graphs": graphs}
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


def table(told: dict[str, Any]) -> str:
    """The record in Markdown: a line for each part."""
    lines = [f"# {told['call']['hardware']}", "", "| part | what | figure |", "|---|---|---|"]
    for part, figures in told.items():
        rows = figures.items() if isinstance(figures, dict) else [("", figures)]
        lines += [f"| {part} | {what} | {json.dumps(figure)} |" for what, figure in rows]
    return "\n".join(lines) + "\n"
