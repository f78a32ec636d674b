"""Students that differ in one thing: the same shape, windows and seeds, each measured on held-out text.

Shared by the benchmarks that measure effects on students. Finished runs are kept, so a benchmark can be resumed.
"""

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from palenka.data.corpus import Corpus
from palenka.data.held_out import fixed_windows, window_losses
from palenka.data.model_files import load_model
from palenka.ground.records import read_record, write_record
from palenka.train_student.settings import TrainSettings
from palenka.train_student.train import train

HELD_OUT_WINDOWS = 512
STUDENT = {
    "architecture": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 128,
}
OPTIMIZER = {"learning_rate": 2e-3, "beta2": 0.95, "warmup_steps": 60}
"""With it two students that differ by rounding alone end 1e-6 nats apart, seeds 0.02. With beta2 0.999 and 20 steps of
warm-up seeds leave the plateau at the unigrams' entropy at other steps, and end up to 0.6 nats apart."""


@dataclass(frozen=True)
class Arm:
    """A group of students with the same objective and teacher, and their losses by seed.

    With `after`, each goes on from the student of the same seed of the arm with this name.
    """

    objective: Mapping[str, Any]
    teacher: Mapping[str, Any] | None = None
    after: str | None = None
    losses: dict[int, float] = field(default_factory=dict)

    def row(self) -> str:
        """Held-out cross-entropies of the seeds, in their order, and their mean, as cells of a table."""
        if not self.losses:
            return "– | –"
        seeds = ", ".join(f"{self.losses[seed]:.4f}" for seed in sorted(self.losses))
        return f"{seeds} | {statistics.mean(self.losses.values()):.4f}"


def paired_interval(arm: Arm, rival: Arm) -> str:
    """The mean difference of two arms, paired by seed, Student's 95 % interval, and how many pairs, as cells."""
    differences = [arm.losses[seed] - rival.losses[seed] for seed in arm.losses if seed in rival.losses]
    if len(differences) < 2:
        return f"{differences[0]:+.4f} | – | 1" if differences else "– | – | 0"
    mean = statistics.mean(differences)
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=stats.sem(differences))
    return f"{mean:+.4f} | {low:+.4f} to {high:+.4f} | {len(differences)}"


def arguments(description: str | None) -> argparse.Namespace:
    """Corpus, teacher and output of such a benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "teacher", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--objectives", nargs="+", default=[])
    parser.add_argument("--students", nargs="+", default=[], help="train these alone; the table has all that are there")
    parser.add_argument("--only-table", action="store_true")
    return parser.parse_args()


def is_chosen(given: argparse.Namespace, name: str) -> bool:
    """Whether to train an arm: `--students` names it without its objective, or names none."""
    return not given.students or name.rpartition(": ")[2] in given.students


def folder_name(name: str) -> str:
    """An arm's name as a folder's."""
    return name.replace(" ", "-").replace(",", "").replace("=", "").replace(":", "")


def run_arms(given: argparse.Namespace, arms: Mapping[str, Arm], fraction: float, epochs: int) -> None:
    """Train and measure every arm with every seed, seed by seed; finished measures are only read.

    With `--only-table`, and for arms that `--students` does not name, nothing is trained: only existing measures are
    read.
    """
    for seed in given.seeds:
        for name, arm in arms.items():
            output = _place(given, name, seed)
            measured = output.with_suffix(".json")
            if not measured.is_file():
                if given.only_table or not is_chosen(given, name):
                    continue
                settings = {
                    "corpus": given.corpus,
                    "output": output,
                    "model": {"from": _place(given, arm.after, seed)} if arm.after else STUDENT,
                    "teachers": {"t": arm.teacher} if arm.teacher else {},
                    "objective": arm.objective,
                    "fraction": fraction,
                    "epochs": epochs,
                    "global_batch": 8,
                    "micro_batch": 8,
                    "optimizer": OPTIMIZER,
                    "validation": {"windows": 64},
                    "gradient_ratios_every": 100_000,
                    "seed": seed,
                }
                train(TrainSettings.model_validate(settings))
                write_record(measured, {"held_out": held_out(output, Corpus.open(given.corpus, "test"))})
            arm.losses[seed] = float(read_record(measured)["held_out"])


def _place(given: argparse.Namespace, name: str, seed: int) -> Path:
    """The folder of an arm's student."""
    return Path(given.output) / "students" / f"{folder_name(name)}-{seed}"


def held_out(model: Path, corpus: Corpus) -> float:
    """Cross-entropy in nats per token on windows of a split that are the same for every model."""
    windows, loaded = fixed_windows(corpus, 128, HELD_OUT_WINDOWS), load_model(model, torch.device("cpu"))
    return float(np.concatenate(list(window_losses(loaded, windows, corpus.vocabulary_size, 4))).mean())
