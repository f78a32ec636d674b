"""A student's step on a GPU that computes nothing: what the host launches, and what its terms move.

    python -m benchmarks.null_gpu --output FOLDER

On a machine without a GPU, in an environment with a CUDA build of torch (`pip install torch==2.14.1`, 6 GB), with gcc
and nm. `null_gpu.c` stands for NVIDIA's libraries: launches are counted and return at once. So numbers mean nothing,
but all of the host's work is real: torch's CUDA code, kernels compiled by Triton for an H200, graphs that are captured.
Counted are launches, waits and the host's milliseconds. The gigabytes of the compiled terms over the vocabulary are
inductor's estimate, which counts a buffer once for a kernel, however often it is read. Caches have their published
formats, but come from narrow teachers.
"""

import argparse
import contextlib
import ctypes
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch._inductor import metrics

from benchmarks import gpu_models
from benchmarks.gpu_models import TEACHERS, Bench, capture_of, make_teachers, prepare_text, student_of
from palenka.cache_teachers.capture import capture
from palenka.cache_teachers.shard_in_memory import ShardInMemory
from palenka.cache_teachers.teacher import Teacher
from palenka.data.signals.cache import TeacherCache
from palenka.data.signals.distribution import Distribution
from palenka.data.signals.low_rank import LowRankOthers
from palenka.data.signals.store import read_manifest
from palenka.train_student.objective.divergences import DIVERGENCES
from palenka.train_student.objective.next_token import NextTokenTerms
from palenka.train_student.train import opened

NARROW = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 256}
"""Of the teachers, so that a CPU captures them in minutes."""
WARMED, COUNTED = 6, 5
"""Steps that compile, record and make room, and steps that are counted."""
TORCHS = ("torch_cuda", "c10_cuda", "torch_python", "torch_cuda_linalg")
SITE = Path(torch.__file__).parents[1]


class Steps(Bench):
    """The benchmark of a GPU with published shapes for a few steps; there is text for twice as many as are counted."""

    @property
    def steps(self) -> int:
        """Of a run."""
        return 2 * (WARMED + COUNTED)

    @property
    def windows(self) -> int:
        """Of a step."""
        return 128


def symbols(library: Path, kind: str) -> set[str]:
    """The undefined (U) or defined (T) symbols of a library."""
    said = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].split("@")[0] for line in said.splitlines() if f" {kind} " in line}


def build(folder: Path) -> Path:
    """Compile the library; whatever torch or Triton may call and `null_gpu.c` lacks does nothing and succeeds."""
    source, include = Path(__file__).with_suffix(".c"), SITE / "triton/backends/nvidia/include"
    (runtime,) = SITE.glob("nvidia/**/libcudart.so.*")
    called = set.union(*(symbols(SITE / f"torch/lib/lib{name}.so", "U") for name in TORCHS)) | symbols(runtime, "T")
    names = {name for name in called if re.match(r"(__)?cuda[A-Z]|cublas", name)}
    driver = re.findall(r"(?:CUDAAPI|#define\s+cu\w+)\s+(cu[A-Z]\w+)", (include / "cuda.h").read_text())
    names |= set(driver)
    compiled = folder / "null_gpu.o"
    subprocess.run(["gcc", "-c", "-fPIC", "-O1", f"-I{include}", "-o", compiled, source], check=True)
    said = subprocess.run(["nm", compiled], capture_output=True, text=True, check=True).stdout
    there = {line.split()[-1] for line in said.splitlines() if " T " in line}
    multiplies = re.compile(r"cublas(?!.*(Create|Destroy|Set|Get)).*(gemm|Gemm|Matmul)")
    rest = ["void null_launch(const char *);"]
    for name in sorted(names - there):
        does = f'null_launch("{name}"); ' if multiplies.match(name) else ""
        rest.append(f"int {name}() {{ {does}return 0; }}")
    (folder / "rest.c").write_text("\n".join(rest) + "\n")
    library = folder / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", "-o", library, compiled, folder / "rest.c", "-ldl"],
        check=True,
    )
    return library


def prepare(bench: Bench) -> None:
    """Text and caches, on the CPU."""
    prepare_text(bench)
    gpu_models.SMALL.update(NARROW)
    narrow = Steps(bench.output, torch.device("cpu"), smoke=True, ends=bench.ends)
    make_teachers(narrow)
    for name in TEACHERS:
        settings = capture_of(narrow, name, bench.output / f"cache-{name}")
        capture(settings.model_copy(update={"micro_batch": 16}))


def step_of(bench: Bench, arm: str, *, graphs: bool = False, micro_batches: int = 1) -> dict[str, Any]:
    """A step of an arm, in so many micro-batches that lie ready."""
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)  # cuDNN has a driver of its own
    settings = student_of(bench, arm, bench.output / f"run-{os.getpid()}", graphs=graphs)
    settings = settings.model_copy(update={"micro_batch": bench.windows // micro_batches})
    with opened(settings) as ready:
        trainer = ready.trainer()
        weights = settings.weights(1, trainer.num_steps)
        with contextlib.closing(trainer.reading.batches(1)) as reading:
            batches = list(islice(reading, (WARMED + COUNTED) * micro_batches))
        trainer.wrapped.train()

        def step(number: int) -> None:
            for batch in batches[number * micro_batches : (number + 1) * micro_batches]:
                trainer.learn(batch, weights, is_last=batch is batches[-1])
            trainer.update(number + 1)

        return counted(bench, step)


def capture_by(bench: Bench, name: str) -> dict[str, Any]:
    """A micro-batch of a capture, and its forward pass alone, of a narrow teacher with the statics of its cache."""
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    settings, corpus = capture_of(bench, name, bench.output / f"cache-{name}"), bench.corpus
    manifest = read_manifest(settings.output)
    teacher = Teacher(settings, corpus, settings.windows, bench.device)
    teacher.use(TeacherCache(settings.output, manifest.hidden_keys()).measured)
    indices = settings.windows.slots(len(corpus.tokens), 0)[: bench.windows]
    tokens, filled = corpus.gather(settings.windows, 0, indices), ShardInMemory(teacher, manifest)
    with torch.no_grad():
        return {
            "forward": counted(bench, lambda _: teacher.outputs(torch.from_numpy(tokens))),
            "captured": counted(bench, lambda _: filled.add(tokens, 0, indices)),
        }


def counted(bench: Bench, work: Callable[[int], object]) -> dict[str, Any]:
    """Launches, copies and waits of one of several times that some work is done, and the host's milliseconds."""
    null, counts, spent = ctypes.CDLL(None), bench.output / "counts", []
    for number in range(WARMED + COUNTED):
        if number == WARMED:
            null.null_reset()
        began = time.perf_counter()
        work(number)
        spent.append(1e3 * (time.perf_counter() - began))
    null.null_write(str(counts).encode())
    lines = (line.split("\t") for line in counts.read_text().splitlines())
    times = {name: int(number) / COUNTED for number, name in lines}
    return {
        "host_milliseconds": round(statistics.median(spent[WARMED:]), 1),
        "launches": times.get("launches", 0),
        "of_them_products": sum(number for name, number in times.items() if name.startswith("cublas")),
        "copies": sum(number for name, number in times.items() if name.startswith("copies")),
        "waits": times.get("waits", 0),
    }


def terms_of(_: Bench, kind: str) -> dict[str, Any]:
    """The terms over a vocabulary of 16,000 for 16,384 tokens, of two teachers or none: estimated gigabytes."""
    tokens, kept, rank, size = (128, 128), 7, 64, 16_000

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.zeros(*shape, dtype=dtype, device="cuda")

    def spoken() -> Distribution:
        ids = zeros(*tokens, kept, dtype=torch.int64)
        others = LowRankOthers(zeros(*tokens, rank), zeros(size, rank), zeros(size)) if kind == "low rank" else None
        return Distribution(ids, zeros(*tokens, kept), zeros(*tokens), others)

    teachers = [] if kind == "none" else [spoken(), spoken()]
    weights, divergence, sums = [0.05] * len(teachers), DIVERGENCES["forward"], zeros(1 + len(teachers))
    labels, logits = zeros(*tokens, dtype=torch.int64), zeros(128 * 128, size, dtype=torch.bfloat16)
    NextTokenTerms(labels, 1.0, teachers, weights, divergence, 2.0, compiled=True).to_gradient(logits, sums)
    return {
        "estimated_gigabytes": round(metrics.num_bytes_accessed / 1e9, 2),
        "kernels": metrics.generated_kernel_count,
    }


def main() -> None:
    """Prepare what is needed, then count each part in a process of its own, where the library stands for the GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="which of them")
    parser.add_argument("--part", choices=PARTS, help="only this part, for the processes that this one starts")
    given = parser.parse_args()
    if given.part:
        bench = Steps(given.output, torch.device("cuda"), smoke=False, ends=math.inf)
        print(json.dumps(PARTS[given.part](bench)))
        return
    if torch.version.cuda is None or torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} here: this needs a CUDA build, on a machine without a GPU")
    given.output.mkdir(parents=True, exist_ok=True)
    library = build(given.output.absolute())
    if not all((given.output / f"cache-{name}").exists() for name in TEACHERS):
        prepare(Steps(given.output, torch.device("cpu"), smoke=False, ends=math.inf))
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "LD_LIBRARY_PATH": str(library.parent),
        "TORCH_LOGS": "inductor_metrics",  # without it inductor does not estimate
    }
    told = {}
    for number, part in enumerate(given.parts):
        # Of its own: nothing is estimated of what another call has compiled.
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(given.output.absolute() / f"compiled-{time.time_ns()}-{number}")
        command = [sys.executable, "-m", "benchmarks.null_gpu", "--output", given.output, "--part", part]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{part} failed:\n{done.stderr[-3000:]}")
        told[part] = json.loads(done.stdout.splitlines()[-1])
        print(f"{part}: {json.dumps(told[part])}", flush=True)
    (given.output / "null_gpu.json").write_text(json.dumps(told, indent=2) + "\n")


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    **{arm: partial(step_of, arm=arm) for arm in ("control", "cached")},
    **{f"{arm}, graphs": partial(step_of, arm=arm, graphs=True) for arm in ("control", "cached")},
    "control in four": partial(step_of, arm="control", micro_batches=4),
    "control in four, graphs": partial(step_of, arm="control", micro_batches=4, graphs=True),
    **{f"capture, {name}": partial(capture_by, name=name) for name in TEACHERS},
    **{f"terms, {kind}": partial(terms_of, kind=kind) for kind in ("none", "top-k", "low rank")},
}

if __name__ == "__main__":
    main()
