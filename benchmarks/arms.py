"""Students that differ in one thing: the same shape, windows and seeds, each measured on held-out text.

Shared by the benchmarks that ask whether a student notices. Finished runs are kept: they go on after an interruption.
"""

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows, window_losses
from palenka.data.model_files import load_model
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

SEEDS = (0, 1, 2)
HELD_OUT_WINDOWS = 2048
STUDENT = {
    "architecture": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
}


@dataclass(frozen=True)
class Arm:
    """What sets some students apart: their objective and their teacher."""

    objective: Mapping[str, float]
    teacher: Mapping[str, Any] | None = None
    losses: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Held-out cross-entropies of the seeds, mean and deviation, as cells of a table."""
        seeds = ", ".join(f"{loss:.4f}" for loss in self.losses)
        return f"{seeds} | {statistics.mean(self.losses):.4f} | {statistics.stdev(self.losses):.4f}"


def arguments(description: str | None) -> argparse.Namespace:
    """Corpus, teacher and output of such a benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "teacher", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    return parser.parse_args()


def folder_name(name: str) -> str:
    """An arm's name as a folder's."""
    return name.replace(" ", "-").replace(",", "").replace("=", "")


def run_arms(given: argparse.Namespace, arms: Mapping[str, Arm], fraction: float, epochs: int) -> None:
    """Train and measure every arm with every seed, seed after seed."""
    for seed in SEEDS:
        for name, arm in arms.items():
            output = given.output / "students" / f"{folder_name(name)}-{seed}"
            settings = {
                "corpus": given.corpus,
                "output": output,
                "model": STUDENT,
                "teachers": {"t": arm.teacher} if arm.teacher else {},
                "objective": arm.objective,
                "fraction": fraction,
                "epochs": epochs,
                "global_batch": 16,
                "micro_batch": 8,
                "optimizer": {"learning_rate": 2e-3, "warmup_steps": 60},
                "seed": seed,
            }
            train(TrainSettings.model_validate(settings))
            arm.losses.append(held_out(output, Corpus.open(given.corpus, "dev")))


def held_out(model: Path, corpus: Corpus) -> float:
    """Cross-entropy in nats per token on windows of a split that are the same for every model."""
    windows = fixed_windows(corpus, 128, HELD_OUT_WINDOWS)
    return float(np.concatenate(list(window_losses(load_model(model, torch.device("cpu")), windows, 4))).mean())
