"""Everyday tasks with Palenka, measured in a folder where `palenka demo` has run.

    python benchmarks/errands.py runs/demo

How long until a loss is seen after the first step; whether a run that was stopped goes on without a step lost; how many
lines a loss of one's own and a look into a cache take. Each training is a process of its own, on the demo's caches.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
LOOK = """\
import palenka

corpus = palenka.Corpus.open({corpus!r})
cache = palenka.TeacherCache.open({cache!r})
print(palenka.look(cache, corpus))
"""


def settings(demo: Path, output: Path, **changes: object) -> Path:
    """A file of a student of the demo's caches."""
    content = {
        "corpus": str(demo / "corpus"),
        "output": str(output),
        "model": {"architecture": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "fraction": 0.036,
        "global_batch": 16,
        "micro_batch": 8,
        "teachers": {"llama": {"cache": str(demo / "cache-llama")}},
        "objective": {"hard": 0.5, "logit": 0.5},
        **changes,
    }
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(content))
    return file


def start(file: Path, *words: str) -> "subprocess.Popen[str]":
    """`palenka train` in a process, without a terminal; the examples are importable."""
    command = [sys.executable, "-m", "palenka", "train", str(file), *words]
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def log_of(output: Path) -> list[dict[str, float]]:
    """The lines of a run's log, as far as they are whole."""
    file = output / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0] if file.is_file() else ""
    return [json.loads(line) for line in whole.splitlines()]


def seconds_until_a_loss_is_seen(demo: Path, folder: Path) -> tuple[float, float]:
    """From the start of the command, and from the end of the first step, to the line that a person reads."""
    output = folder / "seen"
    began = time.perf_counter()
    process = start(settings(demo, output))
    assert process.stderr is not None
    for line in process.stderr:
        if re.search(r"step 1 of .* loss \d", line):
            break
    seen = time.perf_counter() - began
    stepped = max(0.0, time.time() - (output / "metrics.jsonl").stat().st_mtime)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return seen, stepped


def losses_after_a_stop(demo: Path, folder: Path) -> tuple[int, int, bool]:
    """The step that a run was stopped after, the one that it went on with, and whether its log is as if undisturbed."""
    whole, stopped = folder / "whole", folder / "stopped"
    start(settings(demo, whole, log_every=1)).communicate()
    file = settings(demo, stopped, log_every=1)
    process = start(file)
    while len(log_of(stopped)) < 12:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    kept = int(re.findall(r"kept as it is after step ([\d,]+)", said)[0].replace(",", ""))
    again = start(file).communicate()[1]
    first = int(re.findall(r"going on after step ([\d,]+)", again)[0].replace(",", "")) + 1
    losses = ([line["loss"] for line in log_of(output) if "loss" in line] for output in (whole, stopped))
    return kept, first, next(losses) == next(losses)


def lines_of_ones_own_loss(demo: Path, folder: Path) -> tuple[int, float]:
    """Lines of the example, and its first value in a run that uses it."""
    output = folder / "own"
    words = ("--plugins", "best_guess", "--objective.best_guess", "0.3", "--fraction", "0.01")
    start(settings(demo, output), *words).communicate()
    return len((EXAMPLES / "best_guess.py").read_text().splitlines()), log_of(output)[0]["best_guess/llama"]


def look_into_a_cache(demo: Path) -> tuple[int, float, str]:
    """Lines of Python, seconds, and the first line of what they print."""
    text = LOOK.format(corpus=str(demo / "corpus"), cache=str(demo / "cache-llama"))
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    lines = sum(bool(line) for line in text.splitlines())
    return lines, time.perf_counter() - began, done.stdout.splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all errands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder that `palenka demo` has made")
    demo = parser.parse_args(arguments).demo.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seen, stepped = seconds_until_a_loss_is_seen(demo, folder)
        kept, first, is_same = losses_after_a_stop(demo, folder)
        own, value = lines_of_ones_own_loss(demo, folder)
        lines, seconds, shown = look_into_a_cache(demo)
    print("| errand | asked | found |\n|---|---|---|")
    print(f"| loss visible after the first step | 5 s | {stepped:.2f} s ({seen:.1f} s after the command) |")
    print(
        f"| stop and go on | no step lost | stopped after step {kept}, went on with step {first}, "
        f"{'the same' if is_same else 'ANOTHER'} log |"
    )
    print(f"| a loss of one's own | one file of 30 lines | {own} lines, in the log from {value:.3f} on |")
    print(f"| a look into a cache | 5 lines of Python | {lines} lines, {seconds:.1f} s: {shown} |")


if __name__ == "__main__":
    main()
