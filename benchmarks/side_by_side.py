"""Two trainings on the same cores, with threads that sleep or spin while they wait.

    python -m benchmarks.side_by_side --corpus CORPUS --folder FOLDER

Trains a small model alone and twice side by side, round after round: with threads that soon sleep while they wait for
each other (the default of Palenka), that sleep at once, and that spin for milliseconds (libgomp's own). Prints tokens a
second, as the runs say, and the ratio of each of two to one alone in the same round. Some minutes.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from palenka.ground.records import read_record

ROUNDS = 3
POLICIES = {"soon sleep": {}, "sleep": {"GOMP_SPINCOUNT": "0"}, "spin": {"GOMP_SPINCOUNT": "300000"}}
OPTIONS = {
    "model.architecture": "llama",
    "model.hidden_size": 96,
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 3,
    "model.intermediate_size": 256,
    "model.max_position_embeddings": 128,
    "global_batch": 16,
    "micro_batch": 8,
    "fraction": 0.001,
    "validation.windows": 16,
    "device": "cpu",
}


def train(given: argparse.Namespace, policy: str, count: int) -> list[float]:
    """Tokens a second of some trainings that run at the same time."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    outputs = [given.folder / f"run-{number}" for number in range(count)]
    running = []
    for output in outputs:
        shutil.rmtree(output, ignore_errors=True)
        command = [sys.executable, "-m", "palenka", "train", "--corpus", str(given.corpus), "--output", str(output)]
        command += [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
        environment = kept | POLICIES[policy]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    for process in running:
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(errors.decode())
    return [float(read_record(output / "result.json")["tokens_per_second"]) for output in outputs]


def main() -> None:
    """All rounds, and a line for each policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    alone: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    ratios: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    for _ in range(ROUNDS):
        for policy in POLICIES:
            (single,) = train(given, policy, 1)
            alone[policy].append(single)
            ratios[policy] += [each / single for each in train(given, policy, 2)]
    for policy in POLICIES:
        speeds = ", ".join(f"{speed:,.0f}" for speed in alone[policy])
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios[policy])
        print(f"{policy}: alone {speeds} tokens/s; side by side {each}, median {statistics.median(ratios[policy]):.2f}")
    print(f"load {os.getloadavg()}")


if __name__ == "__main__":
    main()
