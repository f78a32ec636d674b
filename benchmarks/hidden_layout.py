"""Hidden states at equal bytes: full width at few positions, or a truncated basis at more positions?

    python benchmarks/hidden_layout.py --corpus CORPUS --teacher TEACHER --output FOLDER

Captures the teacher once for each layout, trains the same student from each of them with three seeds (beside a control
and a student with the logit term alone), and prints held-out cross-entropies as a table. Finished runs are kept, so the
same command goes on after an interruption. About half an hour on a CPU core with the corpus and teacher of the record.
"""

import argparse
import statistics
from pathlib import Path

from cache_teachers.capture import CaptureSettings, capture
from data.cache import TeacherCache
from data.corpus import Corpus
from eval.held_out import measure_held_out
from train_student.settings import TrainSettings
from train_student.train import train

SEEDS = (0, 1, 2)
FRACTION, EPOCHS = 0.015, 2
LAYOUTS = {
    "full width, 7 positions": {"positions": 7},
    "32 components, 28 positions": {"positions": 28, "components": 32},
    "16 components, 56 positions": {"positions": 56, "components": 16},
    "8 components, 112 positions": {"positions": 112, "components": 8},
}
"""For a teacher of width 128 and windows of 128 tokens: 7 codes a token and layer each."""
STUDENT = {
    "architecture": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
}


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "teacher", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    arms: dict[str, tuple[dict[str, float], Path | None]] = {"control": ({"hard": 1.0}, None)}
    for name, hidden in LAYOUTS.items():
        cache = given.output / "caches" / name.replace(" ", "-").replace(",", "")
        capture(
            CaptureSettings.model_validate(
                {
                    "teacher": given.teacher,
                    "corpus": given.corpus,
                    "output": cache,
                    "fraction": FRACTION,
                    "micro_batch": 8,
                    "hidden": hidden,
                }
            )
        )
        arms.setdefault("logits alone", ({"hard": 0.5, "logit": 0.5, "temperature": 1.0}, cache))
        arms[name] = ({"hard": 0.5, "logit": 0.5, "temperature": 1.0, "hidden": 0.3}, cache)
    losses: dict[str, list[float]] = {name: [] for name in arms}
    for seed in SEEDS:
        for name, (objective, cache) in arms.items():
            losses[name].append(_held_out(given, name, seed, objective, cache))
    print("| arm | bytes a token of hidden states | relative error | held-out, seeds 0, 1, 2 | mean | deviation |")
    print("|---|---|---|---|---|---|")
    for name, (_, cache) in arms.items():
        print(_row(name, losses[name], TeacherCache(cache) if cache and name in LAYOUTS else None))


def _held_out(
    given: argparse.Namespace, name: str, seed: int, objective: dict[str, float], cache: Path | None
) -> float:
    """Held-out cross-entropy of one student, in nats per token."""
    output = given.output / "students" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
    settings = {
        "corpus": given.corpus,
        "output": output,
        "model": STUDENT,
        "teachers": {"t": {"cache": cache}} if cache else {},
        "objective": objective,
        "fraction": FRACTION,
        "epochs": EPOCHS,
        "global_batch": 16,
        "micro_batch": 8,
        "optimizer": {"learning_rate": 2e-3, "warmup_steps": 60},
        "seed": seed,
    }
    train(TrainSettings.model_validate(settings))
    measured = measure_held_out(output, Corpus.open(given.corpus, "dev"), 128, output / "held_out.json")
    return float(measured["cross_entropy"])


def _row(name: str, losses: list[float], cache: TeacherCache | None) -> str:
    stored = sum(size for array, size in cache.bytes_per_token().items() if "hidden" in array) if cache else 0.0
    error = statistics.mean(cache.hidden_errors().values()) if cache else 0.0
    seeds = ", ".join(f"{loss:.4f}" for loss in losses)
    kept = f"{stored:.1f} | {error:.3f}" if cache else "– | –"
    return f"| {name} | {kept} | {seeds} | {statistics.mean(losses):.4f} | {statistics.stdev(losses):.4f} |"


if __name__ == "__main__":
    main()
