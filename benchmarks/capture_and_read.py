"""The cost of a capture relative to the bare forward pass, the speed of reading, and memory by size of the corpus.

    python benchmarks/capture_and_read.py overhead --corpus CORPUS --shape configs/teachers/llama-360m.yaml
    python benchmarks/capture_and_read.py flat --corpus CORPUS --teacher TEACHER --folder FOLDER

`overhead` times a model of the shape with random weights over the corpus's tokens: bare forward passes and captures of
the same windows in turn, round after round. `flat` captures about 1 M and 10 M tokens with a small teacher in processes
of their own, then reads them as a training run does; it prints seconds, tokens per second and peak memory of each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from palenka.cache_teachers.capture import capture, capture_shards, manifest_of
from palenka.cache_teachers.settings import CaptureSettings
from palenka.cache_teachers.shard_in_memory import encode_windows
from palenka.cache_teachers.teacher import Teacher
from palenka.data.corpus import Corpus
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.cache_writer import CacheWriter, create_cache
from palenka.data.signals.stream import ReadingOrder, stream
from palenka.data.windows import gather
from palenka.ground.settings import read_yaml
from palenka.train_student.model.shapes import ModelShape

ROUNDS, WINDOWS, MICRO_BATCH = 5, 128, 8
SHARDS = 4
"""Shards of a measured capture: all but the last are compressed beside the forward passes, as in a real one."""
HIDDEN = {"sample_windows": MICRO_BATCH}


def random_teacher(corpus: Corpus, shape: Path, folder: Path) -> Path:
    """A model directory with random weights."""
    model = ModelShape.model_validate(read_yaml(shape)["model"]).build(corpus, seed=0)
    model.save_pretrained(folder)
    for path in (corpus.directory / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def overhead(given: argparse.Namespace) -> None:
    """Ratios of captures to bare forward passes."""
    corpus = Corpus.open(given.corpus, "train")
    with tempfile.TemporaryDirectory() as folder:
        directory = given.teacher or random_teacher(corpus, given.shape, Path(folder) / "teacher")
        for hidden in (None, HIDDEN):
            settings = CaptureSettings.model_validate(
                {
                    "teacher": directory,
                    "corpus": given.corpus,
                    "output": Path(folder) / f"cache-{bool(hidden)}",
                    "precision": given.precision,
                    "micro_batch": MICRO_BATCH,
                    "hidden": hidden,
                }
            )
            _compare(corpus, settings, given.windows)


def _compare(corpus: Corpus, settings: CaptureSettings, windows: int) -> None:
    took = forward_and_capture(corpus, settings, windows, shards=SHARDS)
    ratios = [whole / forward for forward, whole in zip(took.forward, took.capture, strict=True)]
    forward, whole = statistics.median(took.forward), statistics.median(took.capture)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}, n = {ROUNDS}"
    print(
        f"hidden states {'of 9 layers' if settings.hidden else 'not kept'}: "
        f"forward {1 / forward:,.0f} tokens/s, capture {1 / whole:,.0f} tokens/s, "
        f"ratio {statistics.median(ratios):.3f} ({spread}), {1e6 * (whole - forward):.0f} µs a token more",
        flush=True,
    )


@dataclass(frozen=True)
class CaptureTimes:
    """Seconds a token of the same windows, each for every round.

    Attributes:
        forward: of the bare forward pass.
        encode: of that and the encoding, in memory.
        capture: of all, written to disk.
    """

    forward: list[float]
    encode: list[float]
    capture: list[float]


def forward_and_capture(
    corpus: Corpus, settings: CaptureSettings, windows: int, device: torch.device | None = None, shards: int = 0
) -> CaptureTimes:
    """Alternating forward passes and captures of the same windows; the first round warms up and is not counted.

    With a number of shards, the cache has at least so many; a capture with the same settings cannot go on from it then.
    """
    rule, batch = settings.windows, settings.micro_batch
    without_states = settings.model_copy(update={"hidden": None})
    where = device or torch.device("cpu")
    teacher, bare = (Teacher(each, corpus, rule, where) for each in (settings, without_states))
    manifest = manifest_of(settings, corpus, teacher)
    if shards:
        most = max(1, windows // shards)
        manifest = manifest.model_copy(update={"windows_per_shard": min(manifest.windows_per_shard, most)})
    teacher.measure(batch)
    create_cache(settings.output, manifest, teacher.measured.to(torch.device("cpu")))
    writer = CacheWriter(settings.output, manifest)
    measured = [replace(each, stop=min(each.stop, windows)) for each in manifest.shards_over(0, 0, windows)]
    indices = rule.slots(len(corpus.tokens), 0)[:windows]
    tokens = torch.from_numpy(gather(corpus.tokens, rule, 0, indices))

    def forward() -> None:
        for part in tokens.split(batch):
            bare.outputs(part)

    def encode() -> None:
        for start in range(0, windows, batch):
            encode_windows(teacher, manifest, tokens[start : start + batch].numpy(), 0, indices[start : start + batch])

    took = CaptureTimes([], [], [])
    for number in range(ROUNDS + 1):
        for seconds, work in (
            (took.forward, forward),
            (took.encode, encode),
            (took.capture, lambda: capture_shards(measured, corpus, teacher, writer, batch, verbose=False)),
        ):
            started = time.perf_counter()
            work()
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            if number:
                seconds.append((time.perf_counter() - started) / tokens.numel())
    return took


def flat(given: argparse.Namespace) -> None:
    """Captures and readings of two sizes, each in a process of its own."""
    for tokens in (1_000_000, 10_000_000):
        for step in ("capture", "read"):
            environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
            command = [sys.executable, __file__, "one", "--step", step, "--tokens", str(tokens)]
            for name in ("corpus", "teacher", "folder"):
                command += [f"--{name}", str(getattr(given, name))]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            print(done.stdout.splitlines()[-1], flush=True)


def one(given: argparse.Namespace) -> None:
    """One capture or reading, and its cost."""
    corpus = Corpus.open(given.corpus, "train")
    fraction = given.tokens / len(corpus.tokens)
    output = given.folder / f"cache-{given.tokens}"
    started = time.perf_counter()
    if given.step == "capture":
        capture(
            CaptureSettings(
                teacher=given.teacher, corpus=given.corpus, output=output, fraction=fraction, micro_batch=MICRO_BATCH
            )
        )
        read = given.tokens
    else:
        cache = TeacherCache(output)
        order = ReadingOrder(cache.manifest.windows, len(corpus.tokens), seed=0, epochs=1, fraction=fraction, batch=32)
        slices = ((start, min(start + 32, len(order))) for start in range(0, len(order), 32))
        read = 0
        started = time.perf_counter()
        for batch in stream(corpus, order, {"t": cache}, slices):
            read += batch.decode({"t": cache}).signals["t"].at(2.0).log_tail.numel()
    seconds = time.perf_counter() - started
    told = {
        "step": given.step,
        "tokens": read,
        "seconds": round(seconds, 2),
        "tokens_per_second": round(read / seconds),
        "peak_megabytes": round(peak_megabytes()),
    }
    print(json.dumps(told))


def peak_megabytes() -> float:
    """Peak memory of this process, on Linux; ru_maxrss would include its parent's before the fork."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "flat", "one"))
    for name in ("corpus", "teacher", "folder", "shape"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--windows", type=int, default=WINDOWS)
    parser.add_argument("--step", default="capture")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    given = parser.parse_args()
    {"overhead": overhead, "flat": flat, "one": one}[given.what](given)


if __name__ == "__main__":
    main()
