"""The speed of Palenka on a GPU, in some six minutes: the GPU's tests, a student's step, captures and reading.

    python -m benchmarks.gpu --output FOLDER
    python -m benchmarks.gpu --output FOLDER --device cpu --smoke

Models have the published shapes and random weights; the text is made up of 16,000 words. Every part says what it took
and is left out, and named, when the minutes are over. The record, FOLDER/gpu.json and gpu.md, names the hardware.
`--smoke` has small shapes, so that the script can be tried anywhere.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.capture_and_read import forward_and_capture
from benchmarks.gpu_models import (
    STUDENT,
    TEACHERS,
    Bench,
    capture_of,
    config,
    make_teachers,
    mfu,
    multiplications,
    prepare_text,
    shape_of,
    student_of,
    table,
)
from benchmarks.gpu_profile import operations_of, profile
from palenka.cache_teachers.capture import capture
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.store import read_manifest
from palenka.data.signals.stream import ReadingOrder, stream
from palenka.ground.call import this_call
from palenka.ground.processes import cores
from palenka.train_student.run import Run
from palenka.train_student.train import train

POINTS, EPOCHS, PER_GPU = 25, 6, (1, 2, 4, 8)


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
            "mfu": mfu(bench, 2 * multiplications(shape_of(bench, config(name)), bench), 1 / forward),
        }
        capture(settings)  # what is missing of it
    return told


def run_arm(bench: Bench, arm: str, number: int = 0, *, graphs: bool = False) -> dict[str, Any]:
    """Train an arm; tokens a second of its second half, the part spent waiting for data, and the memory."""
    settings = student_of(bench, arm, bench.output / f"run-{arm}-{number}{'-graphs' * graphs}", graphs=graphs)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    train(settings)
    metrics = Run(settings.output).metrics()
    speed, waited = (float(metrics[name][1][-1]) for name in ("tokens_per_second", "data_wait"))
    return {
        "tokens_per_second": speed,
        "mfu": mfu(bench, 6 * multiplications(shape_of(bench, STUDENT), bench), speed),
        "data_wait": waited,
        "peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2) if bench.device.type == "cuda" else None,
    }


def steps(bench: Bench) -> dict[str, Any]:
    """The student's step of every arm, and what a grid costs from caches and with live teachers."""
    told: dict[str, Any] = {}
    for kind, graphs in ways(bench).items():
        told |= {f"{arm}{kind}": run_arm(bench, arm, graphs=graphs) for arm in ("control", "cached")}
    told["live"] = run_arm(bench, "live")
    seconds = {arm: 1 / figures["tokens_per_second"] for arm, figures in told.items()}
    passes, captured = POINTS * EPOCHS, bench.told.get("captures")
    for kind in ways(bench):
        told[f"cached_against_control{kind}"] = round(seconds[f"cached{kind}"] / seconds[f"control{kind}"], 3)
    # Without graphs: the live run has none.
    told["live_against_control"] = round(seconds["live"] / seconds["control"], 3)
    if isinstance(captured, dict):
        once = sum(1 / each["capture_tokens_per_second"] for each in captured.values())
        told["grid_of_25_live_against_cached"] = round(
            passes * seconds["live"] / (once + passes * seconds["cached"]), 2
        )
    return told


def ways(bench: Bench) -> dict[str, bool]:
    """Whether passes are recorded as CUDA graphs, by a word for the record; a CPU has none."""
    return {"": False, ", graphs": True} if bench.device.type == "cuda" else {"": False}


def profiles(bench: Bench) -> dict[str, Any]:
    """Where the time of a step goes, of a control and with caches; on a CPU operations, by `compile`."""
    told: dict[str, Any] = {}
    for arm in ("control", "cached"):
        settings = student_of(bench, arm, bench.output / f"profiled-{arm}")
        if bench.device.type == "cuda":
            for kind, graphs in ways(bench).items():
                told[f"{arm}{kind}"] = profile(settings.model_copy(update={"cuda_graphs": graphs}))
        else:
            kinds = {word: settings.model_copy(update={"compile": word}) for word in ("false", "true")}
            told[arm] = {f"operations, compile {word}": operations_of(each) for word, each in kinds.items()}
    return told


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
