"""Fine-tuning a model on one task with one seed, by the recipe of 2025 and 2026.

AdamW (weight decay 0.01) at 3e-5, 6 % of the steps of warm-up, then a cosine to a tenth of the rate; an epoch's last
incomplete batch is not read. The validation examples are predicted after every epoch, and the best epoch gives the
task's predictions. So the epoch is chosen on the measured data, which flatters all figures alike.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from palenka.data.model_files import load_model
from palenka.eval.glue.classifier import Classifier, batch_of, encode_examples
from palenka.eval.glue.metrics import accuracy, f1
from palenka.eval.glue.tasks import GlueTask, TaskData
from palenka.ground.errors import UserError

if TYPE_CHECKING:
    from palenka.eval.model import EvaluatedModel

LEARNING_RATE, WEIGHT_DECAY, WARM_UP, LEAST_RATE = 3e-5, 0.01, 0.06, 0.1
LENGTH = 512
"""Maximum tokens of a pair of texts; fewer if the model has fewer positions."""
_VALID_BATCH = 64
_TOKENS_PER_PASS, _GPU_TOKENS_PER_PASS = 1024, 2**15
"""Tokens of a pass: more would be mostly padding on a CPU, and could exceed a GPU's memory."""


@dataclass(frozen=True)
class FineTuned:
    """The result of one task and one seed.

    Attributes:
        predictions: the labels of the validation examples, at the best epoch.
        scores: of each epoch, by the deciding metric.
    """

    predictions: list[int]
    scores: list[float]


def fine_tune(
    model: "EvaluatedModel", task: GlueTask, data: TaskData, seed: int, advance: Callable[[int], None] = lambda _: None
) -> FineTuned:
    """Fine-tune a fresh copy of a model.

    Args:
        model: that is measured; it is not changed.
        task: of the recipe.
        data: its examples.
        seed: of the head's weights, the order of the examples and dropout.
        advance: called with numbers of examples read; `examples_read` in total.

    Raises:
        UserError: if the loss is not finite.
    """
    pretrained = load_model(model.directory, model.load().device)
    device = pretrained.device
    length = LENGTH if model.positions is None else min(LENGTH, model.positions)
    train, valid = (encode_examples(model.tokenizer, examples, length) for examples in data)
    labels = torch.tensor([example.label for example in data.train], device=device)
    expected = np.array([example.label for example in data.valid])
    order = np.random.RandomState(seed)
    found = FineTuned([], [])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        classifier = Classifier(pretrained, task.labels)
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        batches = max(1, len(train) // task.batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_over(batches * task.epochs))
        for _ in range(task.epochs):
            classifier.train()
            shuffled = order.permutation(len(train))
            for chosen in (shuffled[start * task.batch : (start + 1) * task.batch] for start in range(batches)):
                total = 0.0
                for part in parts_of(chosen, train, _TOKENS_PER_PASS if device.type == "cpu" else _GPU_TOKENS_PER_PASS):
                    logits = classifier(batch_of([train[place] for place in part], device))
                    loss = functional.cross_entropy(logits, labels[torch.from_numpy(part).to(device)], reduction="sum")
                    (loss / len(chosen)).backward()
                    total += loss.item() / len(chosen)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                advance(len(chosen))
                if not math.isfinite(total):
                    raise UserError(f"fine-tuning {model.directory} gives the loss {total}; its weights are broken")
            predictions = predict(classifier, valid)
            advance(len(valid))
            score = float((f1 if task.by_f1 else accuracy)(expected, predictions, np.ones(len(expected))))
            best = not found.scores or score > max(found.scores)
            found = FineTuned(predictions.tolist() if best else found.predictions, [*found.scores, score])
    return found


def parts_of(
    chosen: NDArray[np.int64], texts: Sequence[tuple[int, ...]], tokens_at_most: int
) -> list[NDArray[np.int64]]:
    """The texts of a step in passes of at most `tokens` tokens including padding, grouped by similar length.

    The step's gradient is the same. A batch that fits is not split.
    """
    lengths = np.array([len(texts[place]) for place in chosen])
    if len(chosen) * lengths.max() <= tokens_at_most:
        return [chosen]
    parts: list[list[int]] = []
    for place in chosen[np.argsort(-lengths, kind="stable")].tolist():
        if not parts or (len(parts[-1]) + 1) * len(texts[parts[-1][0]]) > tokens_at_most:
            parts.append([])
        parts[-1].append(place)
    return [np.array(part) for part in parts]


def examples_read(task: GlueTask, data: TaskData) -> int:
    """Number of examples that fine-tuning reads, including predictions."""
    trained = max(len(data.train) // task.batch * task.batch, min(task.batch, len(data.train)))
    return task.epochs * (trained + len(data.valid))


def rate_over(steps: int) -> Callable[[int], float]:
    """The fraction of the learning rate at each step: linear from 0, then half a cosine down to a tenth."""
    warm_up = int(WARM_UP * steps)

    def rate(step: int) -> float:
        if step < warm_up:
            return step / warm_up
        progress = (step - warm_up) / max(1, steps - warm_up)
        return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * progress)) / 2

    return rate


@torch.inference_mode()
def predict(classifier: Classifier, texts: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    """The label of each text, [n]; texts are grouped by similar length."""
    classifier.eval()
    device = next(classifier.parameters()).device
    places = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    found = np.empty(len(texts), dtype=np.int64)
    for start in range(0, len(places), _VALID_BATCH):
        chosen = places[start : start + _VALID_BATCH]
        found[chosen] = classifier(batch_of([texts[place] for place in chosen], device)).argmax(dim=-1).cpu().numpy()
    return found
